"""The program parses all command lines in the documentation, and accepts their recipe values."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from c2fdft_cli.cli.app import app
from c2fdft_cli.cli.command_list import COMMANDS, load_command
from c2fdft_cli.recipe.files import load_recipe, recipe_names

ROOT = Path(__file__).parents[2]
LINES = [
    re.compile(r"^ *(?:\$ )?(c2fdft .*)$", re.MULTILINE),
    re.compile(r"`(c2fdft [^`\n]* -[^`\n]*)`"),  # with an option, in a sentence or a table
    re.compile(r"-m (c2fdft_cli [^`\n]*)"),
]

OPTION = r"(?<![\w-])--[a-z][\w-]*"
OTHER_COMMANDS = re.compile(
    r"(?:\b(?:pip|docker|torchrun|srun) |#SBATCH).*?(?=\bc2fdft|`|$)", re.MULTILINE
)
"""Command lines of other programs, up to the name of this one."""
OTHERS = {
    "docs/howto/docker.md": {"--user", "--ipc"},
    "docs/troubleshooting.md": {"--gpus"},
    "docs/numerics.md": {"--stage", "--calls", "--recompute"},  # of version 0.1.0
}
"""Options that sentences of a page name and that no command of this version has."""


def command_lines() -> Iterator[tuple[str, str]]:
    """Yield document and command line, without optional parts and what it is piped to.

    Those of troubleshooting are run by another test; some are wrong on purpose.
    """
    generated = ROOT / "docs" / "cli.md"  # help texts, wrapped at 80 columns
    for file in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        if file not in (generated, ROOT / "docs" / "troubleshooting.md"):
            text = re.sub(r"\\\n\s*", " ", file.read_text(encoding="utf-8"))
            for line in (line for kind in LINES for line in kind.findall(text)):
                alone = re.sub(r"\[-.*?\](?=\s|$)", "", line)
                if "--help" in alone:  # --help ends the program
                    continue
                yield file.name, re.split(r" (?:\||>|&&) ", alone)[0]


def parse(line: str) -> None:
    """Parse a command line as the program does, without running it."""
    program, *words = shlex.split(line, comments=True)
    group = get_command(app)
    context = group.make_context(program, words)
    while hasattr(group, "resolve_command"):
        rest = [*context._protected_args, *context.args]
        name, group, words = group.resolve_command(context, rest)
        context = group.make_context(name, words, parent=context)


@pytest.mark.parametrize(("document", "line"), sorted(set(command_lines())))
def test_a_documented_command_line_parses(document: str, line: str) -> None:
    parse(line)


def values(line: str) -> tuple[str, list[str]]:
    """Return the recipe of a training's command line and the values that it changes.

    The recipe of a file or of weights is unknown: commands of the documents copy or train `derain`.
    """
    words = shlex.split(line, comments=True)
    named = words[words.index("--recipe") + 1] if "--recipe" in words else ""
    changes = [word for word in words if re.match(r"[a-z]+\.[a-z_.]+=", word)]
    return named if named in recipe_names() else "derain", changes


@pytest.mark.parametrize(
    ("document", "line"), sorted({pair for pair in command_lines() if values(pair[1])[1]})
)
def test_a_documented_training_has_values_that_the_recipe_accepts(document: str, line: str) -> None:
    load_recipe(*values(line))


def options_of(command: Any) -> set[str]:
    """Return the options of a command, or of a group and its commands."""
    own = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
    return own.union(*(options_of(one) for one in getattr(command, "commands", {}).values()))


def test_the_options_that_documents_name_exist() -> None:
    """Those of a command, or of a script in recipes/scripts/; see `OTHERS` for other programs."""
    known = options_of(get_command(app)) | {"--help"}
    known = known.union(*(options_of(load_command(one.name)) for one in COMMANDS))
    for script in (ROOT / "recipes" / "scripts").glob("*.py"):
        code = script.read_text(encoding="utf-8")
        known |= set(re.findall(r"add_argument\(\s*\"(--[\w-]+)\"", code))
    unknown = []
    for file in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        text = re.sub(r"\\\n\s*", " ", file.read_text(encoding="utf-8"))
        text = OTHER_COMMANDS.sub("", text)
        found = dict.fromkeys(re.findall(OPTION, text))
        page = file.relative_to(ROOT).as_posix()
        allowed = known | OTHERS.get(page, set())
        unknown += [f"{page}: {name}" for name in found if name not in allowed]
    assert unknown == [], (
        "no command has these options: correct the document or, if they belong to another program, "
        "add it to OTHER_COMMANDS or them to OTHERS in tests/docs/test_commands.py"
    )


def names_in(page: str, heading: str) -> str:
    """The first cells of the table with this heading."""
    table = (ROOT / page).read_text(encoding="utf-8").split(heading)[1].split("\n\n")[0]
    return "".join(line.split("|")[1] for line in table.splitlines() if line)


def test_the_tables_have_every_command() -> None:
    """That of the README, and that of the documents which scripts read."""
    names = names_in("README.md", "| command | what it does |")
    assert [one.name for one in COMMANDS if not re.search(rf"`{one.name}\b", names)] == []
    names = names_in("docs/howto/scripts.md", "| command | keys of its document |")
    missing = [
        one.name
        for one in COMMANDS
        if "--json" in options_of(load_command(one.name)) and f"`{one.name}" not in names
    ]
    assert missing == []


@pytest.mark.parametrize("line", ["c2fdft restor in out", "c2fdft restore in out --stepz 4"])
def test_a_wrong_command_line_does_not_parse(line: str) -> None:
    with pytest.raises(Exception, match=r"No such (command|option)"):
        parse(line)
