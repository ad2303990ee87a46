"""What the site takes from outside of docs/: the pages at the top of the repository."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "LICENSE-WEIGHTS.md": "licence-weights.md",
    "CITATION.cff": "CITATION.cff",
}


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links from docs/ to these pages, which are beside the others here."""

    def link(match: re.Match[str]) -> str:
        return f"]({match[1]}{PAGES[match[2]]}"

    names = "|".join(re.escape(name) for name in PAGES)
    return re.sub(rf"\]\(\.\./((?:\.\./)*)({names})", link, markdown)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add these pages, with their links as the site has them."""
    for source, target in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, target, content=_relinked(text)))
    return files


def _relinked(text: str) -> str:
    """Links from the top of the repository, seen from docs/."""

    def link(match: re.Match[str]) -> str:
        path, anchor = match[1].removeprefix("docs/"), match[2] or ""
        return f"]({PAGES.get(path, path)}{anchor})"

    return re.sub(r"\]\(([^)#:\s]+)(#[^)\s]*)?\)", link, text)
