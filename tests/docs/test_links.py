"""What the documents point to is there: files behind links, scripts and modules named in text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_of_the_repository_that_are_named_exist(page):
    """`recipes/x.yaml`, `c2fdft_cli/a/b.py`, `tests/...`; the changelog speaks of the past."""
    if page.name == "CHANGELOG.md":
        return
    text = page.read_text(encoding="utf-8")
    named = set(
        re.findall(r"\b((?:recipes|c2fdft_cli|tests|docs)/[\w/.-]+\.(?:py|sh|yaml|md))", text)
    )
    named -= {"recipes/dehaze.yaml"}  # the example of CONTRIBUTING
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
