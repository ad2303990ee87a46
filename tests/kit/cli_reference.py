"""Generate the command reference from the help texts (`tests.kit.pages`).

Writes docs/cli.md; a test compares the file with the current help texts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from typer.testing import CliRunner

from c2fdft_cli.cli.app import app
from c2fdft_cli.cli.command_list import COMMANDS, load_command

FILE = Path(__file__).parents[2] / "docs" / "cli.md"
HEAD = """# Command reference

What `--help` says of every command, at 80 columns. Generated: `python -m tests.kit.pages`.
"""
TYPER = (0, 29, 2)
"""The version of Typer that the page is generated with: older ones wrap lines differently."""
_STYLE = re.compile(r"\x1b\[[0-9;]*m")


def reference() -> str:
    """Return the text of docs/cli.md."""
    parts = [HEAD]
    for words in _lines():
        name = " ".join(["c2fdft", *words])
        parts.append(f"## {name}\n\n```text\n{help_of(words)}\n```\n")
    return "\n".join(parts)


def older_typer() -> bool:
    """Whether the installed Typer is older than the page's."""
    return tuple(map(int, version("typer").split(".")[:3])) < TYPER


def help_of(words: list[str]) -> str:
    """Return the help of a command without colours, at a width of 80 columns."""
    environment = {"COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1", "TERMINAL_WIDTH": "80"}
    done = CliRunner().invoke(app, [*words, "--help"], env={**os.environ, **environment})
    if done.exit_code:
        raise RuntimeError(f"no help of {words}: {done.output}")
    return "\n".join(line.rstrip() for line in _STYLE.sub("", done.stdout).strip().splitlines())


def _lines() -> Iterator[list[str]]:
    yield []
    for entry in COMMANDS:
        yield [entry.name]
        # all subcommands that the help of a group lists: a list here would miss new ones
        for name, below in getattr(load_command(entry.name), "commands", {}).items():
            if not below.hidden:
                yield [entry.name, name]
