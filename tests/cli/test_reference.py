"""docs/cli.md agrees with the help texts of the commands."""

from __future__ import annotations

import re

import pytest

from c2fdft_cli.cli.command_list import COMMANDS
from tests.kit.cli_reference import FILE, help_of, older_typer, reference
from tests.kit.pages import UPDATE


@pytest.mark.skipif(older_typer(), reason="an older Typer lays help out in another way")
def test_the_reference_equals_the_current_help() -> None:
    assert FILE.read_text(encoding="utf-8") == reference(), UPDATE


@pytest.mark.skipif(older_typer(), reason="an older Typer writes other types")
def test_a_flag_does_not_look_as_if_it_took_a_value() -> None:
    """`--overwrite <bool>` invites to write `--overwrite true`."""
    assert re.findall(r"<\w+", reference()) == []


@pytest.mark.parametrize("entry", COMMANDS, ids=lambda entry: entry.name)
def test_only_a_few_options_have_no_heading(entry) -> None:
    """About five besides --json and --help; the others are under headings."""
    _, _, options = help_of([entry.name]).partition("─ Options ")
    first, _, _ = options.partition("╰")
    assert len(re.findall(r"^│ --", first, re.MULTILINE)) <= 8


@pytest.mark.parametrize("entry", COMMANDS, ids=lambda entry: entry.name)
def test_every_help_fits_eighty_columns(entry) -> None:
    assert max(map(len, help_of([entry.name]).splitlines())) <= 80


def test_every_command_of_a_group_is_in_the_reference() -> None:
    """`weights average`, for example, must be there."""
    text = FILE.read_text(encoding="utf-8")
    for group in ("recipes", "weights"):
        listed = re.findall(r"^│ (\w+) ", help_of([group]), re.MULTILINE)
        assert listed
        assert [name for name in listed if f"## c2fdft {group} {name}\n" not in text] == []
