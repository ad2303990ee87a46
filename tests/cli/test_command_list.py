"""The list of commands: it agrees with the commands, and loads only the one that is called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import c2fdft_cli
from c2fdft_cli.cli.app import app
from c2fdft_cli.cli.command_list import COMMANDS, ListedCommand, load_command
from tests.kit.processes import python

HEAVY = ("torch", "numpy", "cv2", "h5py", "omegaconf", "PIL", "imageio", "piq")
RECIPES = ("list", "show", "copy", "validate")


def loaded_after(lines: list[list[str]]) -> set[str]:
    """The modules that a new interpreter has loaded after these command lines."""
    script = f"""
import contextlib, io, sys
import c2fdft_cli
from c2fdft_cli.cli.app import app
for line in {lines!r}:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        app(line)
    assert "Usage: c2fdft" in out.getvalue(), line
print(*sys.modules)
"""
    done = python("-c", script)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def own_modules(modules: set[str]) -> set[str]:
    return {entry.source.split(":")[0] for entry in COMMANDS} & {
        name.removeprefix("c2fdft_cli.cli.commands.") for name in modules
    }


@pytest.mark.slow
def test_no_help_loads_anything_heavy() -> None:
    lines = [["--help"], *([entry.name, "--help"] for entry in COMMANDS)]
    modules = loaded_after([*lines, *(["recipes", name, "--help"] for name in RECIPES)])
    assert not modules & set(HEAVY)
    parts = {name.split(".")[-1] for name in modules if name.startswith("c2fdft_cli.engine.")}
    jobs = {path.name for path in (Path(c2fdft_cli.__file__).parent / "engine").iterdir()}
    loaded = {name for name in parts - jobs if not name.endswith("options")}
    assert not loaded, "the options of a job, which its help needs, belong in a module `*options`"


@pytest.mark.slow
def test_the_list_loads_no_command() -> None:
    assert own_modules(loaded_after([["--help"]])) == set()


@pytest.mark.slow
def test_the_help_of_a_command_loads_only_that_command() -> None:
    assert own_modules(loaded_after([["restore", "--help"]])) == {"restore"}


@pytest.mark.parametrize("entry", COMMANDS, ids=lambda entry: entry.name)
def test_the_list_agrees_with_the_commands(entry: ListedCommand) -> None:
    first, *_ = load_command(entry.name).help.split("\n\n")
    assert " ".join(first.split()) == entry.help


@pytest.mark.parametrize("line", [[], ["recipes"]])
def test_flags_of_groups_are_false_when_not_given(line: list[str]) -> None:
    # None would make any help load the parser's validation library
    from typer.main import get_command

    group: Any = load_command(line[0]) if line else get_command(app)
    with group.make_context("c2fdft", ["list", "--help"], resilient_parsing=True) as context:
        flags = [option for option in group.get_params(context) if option.is_flag]
    assert flags
    assert all(flag.default is False for flag in flags)


@pytest.mark.parametrize(
    ("words", "position", "offered"),
    [
        ("c2fdft re", 1, ["restore", "recipes"]),
        ("c2fdft recipes ", 2, list(RECIPES)),
        ("c2fdft restore --sa", 2, ["--samples"]),
        ("c2fdft restore --weights dera", 3, ["derain", "derain-4step"]),
        ("c2fdft train-fine --from deblur", 3, ["deblur", "deblur-free"]),
        ("c2fdft train-coarse --init deblur-", 3, ["deblur-free"]),
        ("c2fdft weights path denoise-", 3, ["denoise-free"]),
        ("c2fdft train-coarse --recipe derain-", 3, ["derain-heavy", "derain-small"]),
        ("c2fdft recipes show ti", 3, ["tiny"]),
        ("c2fdft bench forward --recipe ti", 4, ["tiny"]),
        ("c2fdft restore --device c", 3, ["cpu", "cuda"]),
        ("c2fdft restore --precision t", 3, ["tf32"]),
        ("c2fdft restore --weights ./my", 3, []),  # the shell offers files
    ],
)
def test_the_shell_completes_names(words: str, position: int, offered: list[str]) -> None:
    environment = {
        "_C2FDFT_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(position),
    }
    assert CliRunner().invoke(app, [], env=environment).stdout.split() == offered


def test_a_subcommand_is_loaded_or_suggested_by_its_name() -> None:
    result = CliRunner().invoke(app, ["recipes", "lst"])
    assert result.exit_code == 2
    assert "did you mean c2fdft recipes list?" in result.stderr
    assert CliRunner().invoke(app, ["recipes", "list"]).exit_code == 0
