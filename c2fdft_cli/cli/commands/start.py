"""`c2fdft` without a command, `c2fdft help` and `c2fdft version`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from c2fdft_cli.cli import console
from c2fdft_cli.cli.options import Json
from c2fdft_cli.version import __version__
from c2fdft_cli.vocabulary import TRAINED_STAGES

PIPELINE = """\
Restore images (rain, blur, noise) with a coarse-to-fine diffusion Transformer.

Start here:
  c2fdft restore photos/ out/    remove rain, with the packaged weights
  c2fdft demo                    run the pipeline below on a small set
  c2fdft doctor                  show what this machine supports

Train on your own pairs of images (each command prints the next one):
  c2fdft prepare PAIRS/                            pack them into shards/PAIRS
  c2fdft train-coarse --recipe derain --data shards/PAIRS
  c2fdft sweep-steps runs/derain-coarse/coarse.pt  choose the sampling steps
  c2fdft train-fine --from runs/derain-coarse/coarse.pt
  c2fdft restore photos/ out/ --weights runs/derain-fine/fine.pt
  c2fdft eval out/ targets/ --protocol derain      score: PSNR and SSIM
"""
HELP = "All commands: c2fdft --help. One of them: c2fdft help COMMAND."
SHOWN = 2
"""The number of shard folders, and of checkpoints, in the current folder that are listed."""


def show_start() -> None:
    """Print, in at most 23 lines, the pipeline, the newest results here and how to get help."""
    for line in (*PIPELINE.split("\n"), *_found_here(), HELP):
        console.stdout().print(line)


def _found_here() -> list[str]:
    """List the newest shard folders and checkpoints in the current folder, one per line."""
    shards = {path.parent for path in Path().glob("shards/*/train-*.h5")}
    trained = {path for name in TRAINED_STAGES for path in Path().glob(f"runs/*/{name}.pt")}
    lines = []
    for paths in (shards, trained):
        newest = sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)
        lines += [f"  {path}" for path in newest[:SHOWN]]
    return ["Newest in this folder:", *lines, ""] if lines else []


def show_help(
    context: typer.Context,
    command: Annotated[
        list[str] | None, typer.Argument(metavar="COMMAND", help="A command, such as restore.")
    ] = None,
) -> None:
    """Show the help of a command.

    Example: c2fdft help restore
    """
    program = context.find_root().command
    program.main([*(command or []), "--help"])


def show_version(json: Json = False) -> None:
    """Show the version."""
    if json:
        console.emit({"version": __version__})
    else:
        sys.stdout.write(f"c2fdft {__version__}\n")
