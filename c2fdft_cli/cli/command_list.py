"""The list of commands, in the order in which a user needs them.

A command's module is imported only when that command is called. The list, the main help and the
completion of command names need none of these modules.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

TRAINING = "Training"
USING = "Using"
HELPING = "Tools and help"


class ListedCommand(NamedTuple):
    """An entry of the list of commands.

    panel: the heading under which the help lists it.
    source: "module:name", where name is the command's function or the Typer of a group.
    help: the first line of the command's own help.
    """

    panel: str
    name: str
    source: str
    help: str


COMMANDS = (
    ListedCommand(TRAINING, "prepare", "prepare:prepare",
          "Pack image pairs into shards that training reads without decoding."),
    ListedCommand(TRAINING, "train-coarse", "train:train_coarse",
          "Stage 1: train the network to predict noise."),
    ListedCommand(TRAINING, "sweep-steps", "sweep:sweep_steps",
          "Choose the number of sampling steps and store the timesteps in the checkpoint."),
    ListedCommand(TRAINING, "train-fine", "train:train_fine",
          "Stage 2: train through the few-step sampler, from pure noise to the restored image."),
    ListedCommand(USING, "restore", "restore:restore", "Restore images and videos of any sizes."),
    ListedCommand(USING, "eval", "evaluate:evaluate",
          "Score restored images against their targets, paired by name."),
    ListedCommand(USING, "convert", "convert:convert",
          "Convert weights to another format: checkpoint, official, safetensors, ONNX."),
    ListedCommand(HELPING, "demo", "demo:demo",
          "Run the whole pipeline in minutes: prepare, train, sweep, fine-tune, restore, score."),
    ListedCommand(HELPING, "info", "info:info",
          "Show the contents of a checkpoint, a shard folder or a run folder."),
    ListedCommand(HELPING, "bench", "bench:bench",
          "Measure the speed of this machine: network, training step, restoring, data loading."),
    ListedCommand(HELPING, "doctor", "doctor:doctor",
          "Show what this machine supports: device, precision, optional packages, disk."),
    ListedCommand(HELPING, "weights", "weights:weights",
          "List the packaged weights with their scores; average the weights of trainings."),
    ListedCommand(HELPING, "recipes", "recipes:recipes", "List, show, copy and check recipes."),
    ListedCommand(HELPING, "help", "start:show_help", "Show the help of a command."),
    ListedCommand(HELPING, "version", "start:show_version", "Show the version."),
)  # fmt: skip


def _without_types(parameters: list[Any]) -> list[Any]:
    """Hide the types of flags and arguments in a help text.

    Typer would write `--overwrite <bool>`, as if a value had to follow, and `IN <list[str]>`.
    """
    for one in parameters:
        if one.param_type_name == "argument" or one.is_flag:
            one.display_type_rich = lambda ctx: ""
    return parameters


class Command(TyperCommand):
    """A command whose help shows no types of flags and arguments."""

    def get_params(self, ctx: Any) -> Any:
        """Return the parameters, as the help shows them."""
        return _without_types(super().get_params(ctx))


class Group(TyperGroup):
    """A group of commands whose flags default to False instead of None.

    For a default of None Typer imports the library with which it validates values. That would slow
    down the help of every command, because the flags of its groups are parsed first.
    """

    def get_params(self, ctx: Any) -> Any:
        """Return the group's options, with False as the default of flags."""
        options = super().get_params(ctx)
        for option in options:
            if getattr(option, "is_flag", False) and option.default is None:
                option.default = False
        return _without_types(options)


def list_commands(app: typer.Typer) -> None:
    """Register the name, panel and help of every command, without importing it."""
    for entry in COMMANDS:
        app.command(entry.name, rich_help_panel=entry.panel, help=entry.help)(_listed)


def load_command(name: str) -> Any:
    """Import a command of the list and return the parser's object for it."""
    entry = next(entry for entry in COMMANDS if entry.name == name)
    module, _, attribute = entry.source.partition(":")
    found = getattr(import_module(f"c2fdft_cli.cli.commands.{module}"), attribute)
    if not isinstance(found, typer.Typer):
        alone = typer.Typer(add_completion=False)
        alone.command(name, cls=Command, help=_flowing(found.__doc__ or ""))(found)
        found = alone
    return get_command(found)


def _flowing(text: str) -> str:
    """Put each paragraph on one line, so that it is wrapped to the width of the terminal."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def _listed() -> None:
    """The placeholder for a command that is not imported."""
