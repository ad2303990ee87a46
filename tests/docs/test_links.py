"""What the documents refer to exists: link targets, scripts, modules and tests."""

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
    assert missing == [], f"{page.relative_to(ROOT)}: these links lead nowhere"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_of_the_repository_that_are_named_exist(page):
    """`recipes/x.yaml`, `c2fdft_cli/a/b.py`, `tests/...`; not in the changelog of the past."""
    if page.name == "CHANGELOG.md":
        return
    text = page.read_text(encoding="utf-8")
    named = set(
        re.findall(r"\b((?:recipes|c2fdft_cli|tests|docs)/[\w/.-]+\.(?:py|sh|yaml|md))", text)
    )
    named -= {"recipes/dehaze.yaml"}  # an example in CONTRIBUTING.md
    missing = [path for path in sorted(named) if not (ROOT / path).exists()]
    assert missing == [], f"{page.relative_to(ROOT)}: these files do not exist"


def test_tests_that_are_named_exist():
    named = {
        found
        for page in PAGES
        for found in re.findall(r"\b(tests/[\w/]+\.py)::(test_\w+)", page.read_text("utf-8"))
    }
    assert len(named) > 20
    missing = [
        f"{path}::{name}"
        for path, name in sorted(named)
        if f"def {name}(" not in (ROOT / path).read_text("utf-8")
    ]
    assert missing == []
