"""Write all generated pages of the documentation: `python -m tests.kit.pages`, half a minute.

Tests compare each page with what its module returns.
"""

from __future__ import annotations

from tests.kit import (
    cli_reference,
    python_reference,
    recipe_reference,
    scores_page,
    troubleshooting,
)

PAGES = (cli_reference, recipe_reference, python_reference, scores_page, troubleshooting)
UPDATE = "out of date: run `python -m tests.kit.pages`"

if __name__ == "__main__":
    for page in PAGES:
        page.FILE.write_text(page.reference(), encoding="utf-8")
