"""The list of commands, in the order in which a researcher meets them.

A command's module is imported when that command is called: the list itself, its help and the
completion of names take no module of theirs.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

import typer
from typer.core import TyperGroup
from typer.main import get_command

TRAINING = "Training"
USING = "Using"
HELPING = "Looking around"


class Entry(NamedTuple):
    """A command in the list.

    source: module of this package and the function in it, or the Typer of a group.
    help: the first line of its own help.
    """

    panel: str
    name: str
    source: str
    help: str


COMMANDS = (
    Entry(
        TRAINING,
        "prepare",
        "prepare:prepare",
        "Pack image pairs into shards that training reads without decoding.",
    ),
    Entry(
        TRAINING,
        "train-coarse",
        "train:train_coarse",
        "Stage 1: train the network to predict noise.",
    ),
    Entry(
        TRAINING,
        "sweep-steps",
        "sweep:sweep_steps",
        "Choose the number of sampling steps and store the timesteps in the checkpoint.",
    ),
    Entry(
        TRAINING,
        "train-fine",
        "train:train_fine",
        "Stage 2: train through the few-step sampler, from pure noise to the restored image.",
    ),
    Entry(USING, "restore", "restore:restore", "Restore images and videos of any sizes."),
    Entry(
        USING,
        "eval",
        "evaluate:evaluate",
        "Score restored images against their targets, paired by name.",
    ),
    Entry(
        USING,
        "convert",
        "convert:convert",
        "Convert weights to another format: checkpoint, official, safetensors, ONNX.",
    ),
    Entry(
        HELPING,
        "demo",
        "demo:demo",
        "Run the whole pipeline in minutes: prepare, train, sweep, fine-tune, restore, score.",
    ),
    Entry(
        HELPING,
        "info",
        "info:info",
        "Show what a checkpoint, a shard folder or a run folder holds.",
    ),
    Entry(
        HELPING,
        "bench",
        "bench:bench",
        "Time a part on this machine, relative to its matrix products.",
    ),
    Entry(
        HELPING,
        "doctor",
        "doctor:doctor",
        "Show what this machine offers: device, precision, optional packages, disk.",
    ),
    Entry(
        HELPING,
        "weights",
        "weights:weights",
        "List the weights that come with the program; average trainings.",
    ),
    Entry(HELPING, "recipes", "recipes:recipes", "List, show, copy and check recipes."),
    Entry(HELPING, "help", "start:show_help", "Show the help of a command."),
    Entry(HELPING, "version", "start:show_version", "Show the version."),
)


class Group(TyperGroup):
    """Has flags that are False, not None, when they are not given.

    For a None Typer loads the library that it validates values with, and the way to the help of
    a command leads through the flags of the groups above it.
    """

    def get_params(self, ctx: Any) -> Any:
        """The group's own options."""
        options = super().get_params(ctx)
        for option in options:
            if getattr(option, "is_flag", False) and option.default is None:
                option.default = False
        return options


def list_commands(app: typer.Typer) -> None:
    """Put the name, panel and line of every command into the program."""
    for entry in COMMANDS:
        app.command(entry.name, rich_help_panel=entry.panel, help=entry.help)(_listed)


def load_command(name: str) -> Any:
    """Import a command of the list: the parser's own object, ready to be called."""
    entry = next(entry for entry in COMMANDS if entry.name == name)
    module, _, attribute = entry.source.partition(":")
    found = getattr(import_module(f"c2fdft_cli.cli.commands.{module}"), attribute)
    if not isinstance(found, typer.Typer):
        alone = typer.Typer(add_completion=False)
        alone.command(name, help=_flowing(found.__doc__ or ""))(found)
        found = alone
    return get_command(found)


def _flowing(text: str) -> str:
    """Each paragraph on one line, for a terminal of any width to break."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def _listed() -> None:
    """Stands in the list for a command that is not imported."""
