"""`c2fdft weights list|path|average`: the packaged weights, and averages of weights."""

from __future__ import annotations

import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from c2fdft_cli.cli import console
from c2fdft_cli.cli.command_list import Command, Group
from c2fdft_cli.cli.options import Json, Overwrite, path_of, weights_file, weights_names
from c2fdft_cli.words import binary_size, many

if TYPE_CHECKING:
    from c2fdft_cli.engine.weights.catalogue import PackagedWeights, PublishedScore

weights = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    help="List the packaged weights with their scores; average the weights of trainings.",
)
Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A name that `c2fdft weights list` shows.",
        autocompletion=weights_names,
    ),
]


@weights.command("list", cls=Command)
def list_weights(json: Json = False) -> None:
    """List the packaged weights: task, size, sampling steps, training data, scores, licence.

    Example: c2fdft weights list
    """
    from c2fdft_cli.engine.weights.catalogue import read_catalogue

    entries = list(read_catalogue().values())
    if json:
        console.emit([_document(entry) for entry in entries])
        return
    if not entries:
        console.stdout().print("no weights come with this version")
        console.say_next(console.command("train-coarse", "--recipe", "derain", "--data", "SHARDS"))
        return
    for entry in entries:
        _tell(entry)
    # At the end, because the texts above it fill more than a screen.
    columns = ("name", "task", "size", "steps", "s / megapixel")
    console.table("", columns, [_row(entry) for entry in entries])
    console.say_next(console.command("restore", "IN", "OUT", "--weights", entries[0].name))


@weights.command("path", cls=Command)
def path(name: Name, json: Json = False) -> None:
    """Print the path of packaged weights, after checking that the file is intact.

    Example: c2fdft weights path derain
    """
    from c2fdft_cli.engine.weights.choose import packaged_file

    file = packaged_file(name)
    if json:
        console.emit({"name": name, "path": file})
    else:
        sys.stdout.write(f"{file}\n")


@weights.command("average", cls=Command)
def average(
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            metavar="CKPT",
            help="Two or more checkpoints that were trained from the same weights, or names of "
            "packaged weights.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", parser=path_of, metavar="FILE", help="The checkpoint to write.")
    ],
    shares: Annotated[
        str | None,
        typer.Option(
            "--shares",
            metavar="LIST",
            help="Share of each checkpoint, such as 0.7,0.3; each is divided by their sum "
            "(default: equal).",
        ),
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Average the weights of trainings that started from the same weights.

    The average often scores higher than each of them.

    Example: c2fdft weights average a/fine.pt b/fine.pt --out mean.pt
    """
    from c2fdft_cli.engine.weights import average as averaging

    parts = None if shares is None else averaging.parse_shares(shares)
    found = [weights_file(spec, json) for spec in checkpoints]
    averaged = averaging.average(found, out, parts, overwrite=overwrite)
    size = out.stat().st_size
    following = console.command("eval", "--weights", out, "SET")
    if json:
        console.emit({"out": out, "sources": averaged, "bytes": size, "next": following})
        return
    total = 1.0 if parts is None else sum(parts)
    if not math.isclose(total, 1):
        console.remark(f"note: --shares add up to {total:g}; each was divided by that")
    for source, part in averaged.items():
        console.stdout().print(f"{part:.3f} of {source}")
    console.stdout().print(f"written: {out} ({binary_size(size)})")
    console.say_next(following)


def _document(entry: PackagedWeights) -> dict[str, Any]:
    return {**asdict(entry), "calls": len(entry.grid)}


def _row(entry: PackagedWeights) -> tuple[str, ...]:
    seconds = f"{entry.seconds_per_megapixel:.3g}"
    size = binary_size(entry.bytes)
    return entry.name, entry.task, size, str(len(entry.grid)), seconds


def _words(score: PublishedScore) -> str:
    before = f"{score.input_psnr:.2f} dB / {score.input_ssim:.4f}"
    after = f"{score.psnr:.2f} dB / {score.ssim:.4f}"
    about = f"{many(score.images, 'image')}, protocol {score.protocol}"
    return f"{score.set} ({about}): {before} -> {after}"


def _tell(entry: PackagedWeights) -> None:
    lines = (
        entry.name,
        f"  good for: {entry.good_for}",
        f"  bad at: {entry.bad_at}",
        *(f"  {_words(score)}" for score in entry.scores),
        f"  licence: {entry.licence}",
        f"  trained on {entry.trained_on}",
        f"  timed on {entry.timed_on}; {entry.parameters:,} parameters",
        f"  model card: {entry.card}",
    )
    for line in lines:
        sys.stdout.write(console.wrapped(line, sys.stdout) + "\n")
