"""The list of commands, in the order in which a researcher meets them."""

from __future__ import annotations

import typer

from c2fdft_cli.cli.doctor import doctor
from c2fdft_cli.cli.info import info
from c2fdft_cli.cli.prepare import prepare
from c2fdft_cli.cli.recipes import recipes
from c2fdft_cli.cli.train import train_coarse, train_fine

TRAINING = "Training"
USING = "Using"
HELPING = "Looking around"


def add_commands(app: typer.Typer) -> None:
    """Put every command into the program."""
    app.command("prepare", rich_help_panel=TRAINING)(prepare)
    app.command("train-coarse", rich_help_panel=TRAINING)(train_coarse)
    app.command("train-fine", rich_help_panel=TRAINING)(train_fine)
    app.add_typer(recipes, name="recipes", rich_help_panel=HELPING)
    app.command("info", rich_help_panel=HELPING)(info)
    app.command("doctor", rich_help_panel=HELPING)(doctor)
