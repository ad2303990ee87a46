"""docs/paper.md: equations refer to existing functions, and citations to existing headings."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "c2fdft_cli"
PAPER = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
HEADINGS = set(re.findall(r"^#+ (.+)$", PAPER, re.MULTILINE))
EQUATIONS = [int(n) for n in re.findall(r"^    .*\((\d+)\)$", PAPER, re.MULTILINE)]
ROWS = [
    [cell.strip() for cell in row.strip("|").split("|")]
    for row in PAPER.split("## From equation to function")[1].splitlines()
    if row.startswith("|")
][2:]

REFERENCE = r'(?:"[^"]+"|eqs?\. \(\d+\)(?:(?:, | and | to )\(\d+\))*)'
"""A heading in quotes, or equations: eq. (3), eqs. (5) and (6)."""
CITATION = re.compile(rf"docs/paper\.md(?:,\s+(?P<what>{REFERENCE}(?:,\s+{REFERENCE})*))?")


def citations() -> list[tuple[str, str | None]]:
    """Yield (file, what it cites) wherever the code cites docs/paper.md."""
    files = [*PACKAGE.rglob("*.py"), *(ROOT / "recipes").glob("*.yaml")]
    return [
        (path.relative_to(ROOT).as_posix(), match["what"])
        for path in sorted(files)
        for match in CITATION.finditer(path.read_text(encoding="utf-8"))
    ]


def defined(path: Path) -> set[str]:
    """Names of the functions and classes of a module, methods as Class.method."""
    tree, names = ast.parse(path.read_text(encoding="utf-8")), set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            inner = (item for item in node.body if isinstance(item, ast.FunctionDef))
            names |= {f"{node.name}.{item.name}" for item in inner}
    return names


def test_equations_are_numbered_in_order_and_each_has_a_function():
    assert list(range(1, len(EQUATIONS) + 1)) == EQUATIONS
    named = {int(n) for row in ROWS for n in re.findall(r"\((\d+)\)", row[0])}
    assert named == set(EQUATIONS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]} {row[2]}")
def test_every_named_function_exists(row):
    equation, functions, file = row
    assert equation.startswith("(") or equation in HEADINGS, equation
    wanted = set(re.findall(r"`([^`]+)`", functions))
    assert wanted
    assert wanted <= defined(PACKAGE / file.strip("`"))


def test_every_citation_leads_somewhere():
    for file, what in citations():
        assert what is not None, f"{file} cites docs/paper.md without a heading or an equation"
        for heading in re.findall(r'"([^"]+)"', what):
            assert re.sub(r"\s+", " ", heading) in HEADINGS, (file, heading)
        for number in re.findall(r"\((\d+)\)", what):
            assert int(number) in EQUATIONS, (file, number)


def test_no_other_paper_is_cited_by_section_number():
    """A reference such as "section 3" needs a document that the repository contains."""
    pattern = re.compile(r"paper,? sections?|\(section \d|: section \d|of section \d")
    for path in PACKAGE.rglob("*.py"):
        assert not pattern.search(path.read_text(encoding="utf-8")), path
