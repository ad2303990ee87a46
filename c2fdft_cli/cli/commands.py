"""The list of commands, in the order in which a researcher meets them."""

from __future__ import annotations

import typer

from c2fdft_cli.cli.bench import bench
from c2fdft_cli.cli.demo import demo
from c2fdft_cli.cli.doctor import doctor
from c2fdft_cli.cli.evaluate import evaluate
from c2fdft_cli.cli.info import info
from c2fdft_cli.cli.prepare import prepare
from c2fdft_cli.cli.recipes import recipes
from c2fdft_cli.cli.restore import restore
from c2fdft_cli.cli.sweep import sweep_steps
from c2fdft_cli.cli.train import train_coarse, train_fine

TRAINING = "Training"
USING = "Using"
HELPING = "Looking around"


def add_commands(app: typer.Typer) -> None:
    """Put every command into the program."""
    app.command("prepare", rich_help_panel=TRAINING)(prepare)
    app.command("train-coarse", rich_help_panel=TRAINING)(train_coarse)
    app.command("sweep-steps", rich_help_panel=TRAINING)(sweep_steps)
    app.command("train-fine", rich_help_panel=TRAINING)(train_fine)
    app.command("restore", rich_help_panel=USING)(restore)
    app.command("eval", rich_help_panel=USING)(evaluate)
    app.command("demo", rich_help_panel=HELPING)(demo)
    app.add_typer(recipes, name="recipes", rich_help_panel=HELPING)
    app.command("info", rich_help_panel=HELPING)(info)
    app.command("bench", rich_help_panel=HELPING)(bench)
    app.command("doctor", rich_help_panel=HELPING)(doctor)
