"""Generate the reference of recipe keys (`tests.kit.pages`).

Writes docs/reference/recipes.md from the schema and its docstrings; a test compares the file with
the current schema.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from c2fdft_cli.recipe.schema import Period, Recipe, schema

FILE = Path(__file__).parents[2] / "docs" / "reference" / "recipes.md"
HEAD = """# Recipe keys

Every key that a recipe may have. A recipe states what differs from the one that it `extends`, or
from the defaults here, which are the official deraining recipe; `c2fdft recipes show NAME` prints
one in full. On the command line a key is `section.key=value`:

    c2fdft train-coarse --recipe derain --data shards/mine coarse.lr=6e-4 "coarse.batches=[90,24,6]"

Generated: `python -m tests.kit.pages`.
"""
STAGES = {
    "task": "both",
    "network": "both",
    "diffusion": "both",
    "sampling": "fine; validation of both",
    "data": "both",
    "coarse": "coarse",
    "fine": "fine",
    "train": "both",
}
"""The stages that read each section."""


def reference() -> str:
    """Return the text of docs/reference/recipes.md."""
    recipe, parts = Recipe(), [HEAD]
    meanings = meanings_of(Recipe)
    rows = [_row("task", meanings["task"], recipe.task, _limits(schema(), "task"))]
    parts.append(_section("task", "What the recipe is for.", rows))
    for field in fields(Recipe):
        section = getattr(recipe, field.name)
        if is_dataclass(section):
            title = summary_of(type(section))
            parts.append(_section(field.name, title, list(_rows(type(section), section))))
    title = f"The entries of `coarse.periods` and `fine.periods`. {summary_of(Period)}"
    parts.append(f"## periods\n\n{title}\n\n{_table(_rows(Period, Period(50_000)))}\n")
    return "\n".join(parts)


def meanings_of(kind: type) -> dict[str, str]:
    """Return the description of each field from `Args:` of a dataclass and its parents."""
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        listed = (inspect.getdoc(one) or "").partition("Args:")[2]
        for name, text in re.findall(
            r"^ {4}(\w+): ((?:.*\n?)(?: {5,}.*\n?)*)", listed, re.MULTILINE
        ):
            found[name] = _linked(" ".join(text.split())).removesuffix(".")
    return found


def summary_of(kind: type) -> str:
    """Return the first line of a class's docstring as Markdown."""
    return _linked((kind.__doc__ or "").splitlines()[0])


def _section(name: str, title: str, rows: list[str]) -> str:
    return f"## {name}\n\n{title}\nStage: {STAGES[name]}.\n\n{_table(rows)}\n"


def _table(rows: Iterator[str] | list[str]) -> str:
    head = "| key | meaning | default | values |\n|---|---|---|---|\n"
    return head + "\n".join(rows)


def _rows(kind: type, section: Any) -> Iterator[str]:
    meanings, values = meanings_of(kind), asdict(section)
    limits = schema()["$defs"][kind.__name__]
    for field in fields(kind):
        yield _row(
            field.name, meanings[field.name], values[field.name], _limits(limits, field.name)
        )


def _row(name: str, meaning: str, default: object, limits: str) -> str:
    return f"| `{name}` | {meaning} | `{_yaml(default)}` | {limits} |"


def _yaml(value: object) -> str:
    """Format a value as it is written in a recipe."""
    text = json.dumps(value).replace('"', "")
    return re.sub(r"\b(\d+)e-0*(\d+)", r"\1e-\2", text)


def _limits(part: Mapping[str, Any], name: str) -> str:
    """Describe the type and limits of a key in words, from the JSON schema."""
    return _words(part["properties"][name])


def _words(one: Mapping[str, Any]) -> str:
    if "anyOf" in one:
        return " or ".join(_words(part) for part in one["anyOf"])
    if "enum" in one or "const" in one:
        return ", ".join(f"`{word}`" for word in one.get("enum", [one.get("const")]))
    if one.get("type") == "array":
        least, most = one.get("minItems", 0), one.get("maxItems")
        count = f" of {least}" if least == most else ""
        return f"list{count}: {_words(one['items'])}"
    names = {"null": "`null`", "integer": "whole number", "number": "number", "string": "text",
             "boolean": "`true`, `false`", "object": "mapping"}  # fmt: skip
    text = names[one["type"]] if "type" in one else "see [periods](#periods)"
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {one[key]:g}" for key, sign in signs.items() if key in one]
    limits += [f"multiple of {one['multipleOf']}"] if "multipleOf" in one else []
    return ", ".join([text, *limits])


def _linked(text: str) -> str:
    """Turn `docs/x.md` into a link, to the heading that is cited after it if there is one."""

    def link(match: re.Match[str]) -> str:
        page, heading = match[1], match[2]
        anchor = "" if heading is None else "#" + heading.lower().replace(" ", "-")
        return f"[{heading or page.removesuffix('.md')}](../{page}{anchor})"

    return re.sub(r'docs/([\w.]+\.md)(?:, "([^"]+)")?', link, text).replace("|", "\\|")
