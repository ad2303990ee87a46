"""`c2fdft sweep-steps`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from c2fdft_cli.cli import console
from c2fdft_cli.cli.options import Device, Json, Overwrite, Precision, Seed, Shards, weights_file

if TYPE_CHECKING:
    from c2fdft_cli.engine.sweep.job import Tried
    from c2fdft_cli.engine.sweep.report import SweepResult
    from c2fdft_cli.engine.sweep.table import Row

SHOWN_TIMES = 4
"""Timesteps of a schedule that the table shows in full; sweep.csv has them all."""


def sweep_steps(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CKPT", help="Coarse or fine weights: a file, or the name of packaged ones."
        ),
    ],
    data: Shards = None,
    steps: Annotated[
        str, typer.Option("--steps", metavar="COUNTS", help="Sampling steps to try: 1-10 or 2,4,8.")
    ] = "1-10",
    spacing: Annotated[
        str,
        typer.Option(
            "--spacing", metavar="NAMES", help="linspace, leading, trailing; several with commas."
        ),
    ] = "linspace",
    start: Annotated[
        str | None,
        typer.Option(
            "--start", metavar="TIMES", help="First timesteps to try: 999,750 (else 999)."
        ),
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            "--grid", metavar="TIMES", help="Timesteps to try besides: 999,500. Repeatable."
        ),
    ] = None,
    images: Annotated[
        int, typer.Option("--images", help="Validation pairs to take, 0 for all.", min=0)
    ] = 0,
    seeds: Annotated[
        int,
        typer.Option("--seeds", help="Noise samples per image, for a deviation.", min=1, max=1000),
    ] = 1,
    choose: Annotated[
        str,
        typer.Option(
            "--choose", metavar="RULE", help="psnr, ssim, or fewest steps within:XdB of the best."
        ),
    ] = "within:0.2dB",
    protocol: Annotated[
        str | None,
        typer.Option(
            "--protocol", metavar="NAME", help="Of the scores (else the recipe's, or rgb)."
        ),
    ] = None,
    no_stamp: Annotated[
        bool, typer.Option("--no-stamp", help="Leave the checkpoint as it is.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for sweep.json/.csv/.png (else the checkpoint's)."),
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    seed: Seed = 0,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Choose the number of sampling steps and store the timesteps in the checkpoint.

    Restores the validation pairs by every schedule, prints steps, timesteps and scores, and
    chooses: not the best PSNR but the fewest steps within 0.2 dB of it. The timesteps in the
    checkpoint are always tried too, and with coarse weights one step at 300, 500 and 700.
    Stopped, the same command resumes.

    Example: c2fdft sweep-steps runs/derain-coarse/coarse.pt --spacing linspace,trailing
    """
    from c2fdft_cli.engine.sweep.job import SweepOptions, sweep
    from c2fdft_cli.engine.sweep.report import summary
    from c2fdft_cli.engine.sweep.schedules import (
        parse_rule,
        parse_spacings,
        parse_steps,
    )
    from c2fdft_cli.vocabulary import parse_numbers

    options = SweepOptions(
        data=data,
        steps=tuple(parse_steps(steps)),
        spacings=tuple(parse_spacings(spacing)),
        starts=() if start is None else tuple(parse_numbers("--start", start, "999,750")),
        schedules=tuple(tuple(parse_numbers("--grid", text, "999,500")) for text in grid or ()),
        images=images,
        seeds=seeds,
        seed=seed,
        rule=parse_rule(choose),
        protocol=protocol,
        stamp=not no_stamp,
        out=out,
        overwrite=overwrite,
        device=device,
        precision=precision,
        # last: a wrong option is told before a missing file
        checkpoint=weights_file(checkpoint, json),
    )

    result = console.draw(sweep(options), _note)
    following = _next_command(result)
    if json:
        files = [str(path) for path in result.files]
        extra: dict[str, Any] = {"stamped": result.stamped, "files": files, "next": following}
        console.emit({**summary(result), **extra})
        return
    _tell(result)
    console.say_next(following)


def _note(event: Tried) -> str:
    name, steps = event.trial.name, len(event.trial.timesteps)
    return f"{name}: {steps} steps {event.scored.psnr:.2f} dB"


def _next_command(result: SweepResult) -> str:
    """train-fine for coarse weights, restore for the others."""
    grid: list[object] = []
    if result.stage == "coarse":
        if not result.stamped:
            grid = [f"sampling.grid=[{','.join(map(str, result.chosen.grid))}]"]
        return console.command("train-fine", "--from", result.checkpoint, *grid)
    if not result.stamped:
        grid = ["--grid", ",".join(map(str, result.chosen.grid))]
    weights = shlex.quote(str(result.checkpoint))
    return " ".join(["c2fdft restore IN OUT --weights", weights, *map(str, grid)])


def _tell(result: SweepResult) -> None:
    seeds = result.seeds > 1
    title = f"{result.checkpoint}: {result.images} images, protocol {result.protocol}"
    columns = ["steps", "timesteps", "first t", "PSNR", "SSIM", "s / image", "mark"]
    if seeds:
        columns.insert(4, "+/-")
    console.table(title, columns, [_cells(row, seeds) for row in result.rows])
    _tell_choice(result)
    out = console.stdout()
    out.print(f"network evaluations: {result.calls_spent}")
    if not any(path.suffix == ".png" for path in result.files):
        console.remark("no sweep.png: it needs matplotlib (pip install 'c2fdft[plots]')")
    if result.stamped:
        out.print(f"timesteps stored in {result.checkpoint}")
    out.print(f"written: {', '.join(map(str, result.files))}")


def _tell_choice(result: SweepResult) -> None:
    """The chosen schedule beside the best one, which by default it need not be."""
    from c2fdft_cli.engine.sweep.table import best

    out, chosen, top = console.stdout(), result.chosen, best(result.rows)
    out.print("P: on the Pareto front (no schedule with as few steps scores as much)")
    if top is not None:
        out.print(f"highest PSNR: {_words(top)}")
    out.print(f"chosen: {_words(chosen)} ({result.rule})")
    if result.trained_grid is not None and not chosen.trained:
        trained = ", ".join(map(str, result.trained_grid))
        console.remark(f"note: these fine weights were trained at other timesteps: {trained}")


def _words(row: Row) -> str:
    steps = f"{row.calls} step{'s' if row.calls > 1 else ''}"
    return f"{steps} at {', '.join(map(str, row.grid))}, {row.psnr:.2f} dB"


def _cells(row: Row, seeds: bool) -> list[object]:
    marks = [
        "chosen" if row.chosen else "",
        "P" if row.pareto else "",
        "trained" if row.trained else "",
        "in the checkpoint" if row.current else "",
    ]
    psnr = f"{row.psnr:.2f}"
    spread = [f"{row.spread:.3f}" if row.spread is not None else "-"] if seeds else []
    text = ", ".join(mark for mark in marks if mark)
    times = " ".join(map(str, row.grid))
    if row.calls > SHOWN_TIMES:
        times = f"{row.grid[0]} {row.grid[1]} ... {row.grid[-1]}"
    seconds = f"{row.seconds:.3g}"
    return [row.calls, times, row.grid[0], psnr, *spread, f"{row.ssim:.4f}", seconds, text]
