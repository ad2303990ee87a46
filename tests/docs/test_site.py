"""The documents build as a site in strict mode: every link has a page and a heading."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "docs" / "site" / "mkdocs.yml"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="needs pip install 'c2fdft[docs]'")
    folder = tmp_path_factory.mktemp("site")
    # without -q, which would disable warnings
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", CONFIG, "-d", folder]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env=environment, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_pages_exist_and_can_be_searched(site: Path) -> None:
    for page in ("tutorial", "cli", "reference/recipes", "reference/python", "changelog", "faq"):
        assert (site / page / "index.html").is_file(), page
    assert (site / "search" / "search_index.json").is_file()
    assert "From a rainy photo to a dry one" in (site / "index.html").read_text(encoding="utf-8")
    assert [path.name for path in (site / "site").iterdir()] == ["wide.css"]


def test_every_document_is_in_the_navigation() -> None:
    text = CONFIG.read_text(encoding="utf-8")
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert {page for page in pages if f": {page}\n" not in text} - {"models/README.md"} == set()


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    page = (site / "index.html").read_text(encoding="utf-8")
    assert 'src="http' not in page
    assert "fonts.g" not in page
