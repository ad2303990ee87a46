"""`c2fdft sweep-steps`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from c2fdft_cli.cli import console
from c2fdft_cli.cli.options import (
    Json,
    refuse_several_processes,
    takes_settings,
    weights_file,
)
from c2fdft_cli.engine.sweep.options import Rule, SweepOptions
from c2fdft_cli.words import many

if TYPE_CHECKING:
    from c2fdft_cli.engine.sweep.job import Tried
    from c2fdft_cli.engine.sweep.report import SweepResult
    from c2fdft_cli.engine.sweep.table import SweepRow

SHOWN_TIMES = 4
"""The table shows schedules of at most this many timesteps in full; sweep.csv has them all."""


@takes_settings
def sweep_steps(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CKPT",
            help="Coarse or fine weights: a file, or the name of packaged weights.",
        ),
    ],
    options: SweepOptions,
    json: Json = False,
) -> None:
    """Choose the number of sampling steps and store the timesteps in the checkpoint.

    Restores the validation pairs with every schedule and prints steps, timesteps and scores. By
    default it chooses the fewest steps whose PSNR is within 0.2 dB of the best. The timesteps in
    the checkpoint are always tried too, and, for coarse weights, one step at 300, 500 and 700. If
    it is stopped, the same command resumes.

    Example: c2fdft sweep-steps runs/derain-coarse/coarse.pt --steps 1-4
    """
    refuse_several_processes("sweep-steps")
    with console.loading():
        from c2fdft_cli.engine.sweep.job import sweep
        from c2fdft_cli.engine.sweep.report import summary

    job = sweep(weights_file(checkpoint, json), options)
    result = console.draw(job, _note)
    following = _next_command(result, options.data)
    if json:
        files = [str(path) for path in result.files]
        extra: dict[str, Any] = {"stamped": result.stamped, "files": files, "next": following}
        console.emit({**summary(result), **extra})
        return
    _tell(result)
    console.say_next(following)


def _note(event: Tried) -> str:
    name, steps = event.trial.name, len(event.trial.timesteps)
    return f"{name}: {many(steps, 'step')}, {event.scored.psnr:.2f} dB"


def _next_command(result: SweepResult, data: Path | None) -> str:
    """Return the command to run next: train-fine for coarse weights, restore for others."""
    listed = ",".join(map(str, result.chosen.grid))
    if result.stage == "coarse":
        words: list[object] = [] if data is None else ["--data", data]
        words += [] if result.stamped else [f"sampling.grid=[{listed}]"]
        return console.command("train-fine", "--from", result.checkpoint, *words)
    words = [] if result.stamped else ["--grid", listed]
    return console.command("restore", "IN", "OUT", "--weights", result.checkpoint, *words)


def _tell(result: SweepResult) -> None:
    seeds = result.seeds > 1
    images = f"{many(result.images, 'image')} of {result.data}"
    title = f"{result.checkpoint}: {images}, protocol {result.protocol}"
    columns = ["steps", "timesteps", "first t", "PSNR", "SSIM", "s / image", "mark"]
    if seeds:
        columns.insert(4, "+/-")
    console.table(title, columns, [_cells(row, seeds) for row in result.rows])
    _tell_choice(result)
    out = console.stdout()
    out.print(f"network evaluations: {result.calls_spent}")
    for note in result.notes:
        console.remark(f"note: {note}")
    if not any(path.suffix == ".png" for path in result.files):
        console.remark("no sweep.png: it needs matplotlib (pip install 'c2fdft[plots]')")
    if result.stamped:
        out.print(f"timesteps stored in {result.checkpoint}")
    out.print(f"written: {', '.join(map(str, result.files))}")


def _tell_choice(result: SweepResult) -> None:
    """Print the chosen schedule and the one with the highest PSNR, which may be another."""
    from c2fdft_cli.engine.sweep.table import choose

    out, chosen, top = console.stdout(), result.chosen, choose(result.rows, Rule("psnr"))
    out.print("P: on the Pareto front (no schedule with as few steps has a higher PSNR)")
    if top is not None:
        out.print(f"highest PSNR: {_words(top)}")
    out.print(f"chosen: {_words(chosen)} ({result.rule})")
    if result.trained_grid is not None and not chosen.trained:
        trained = ", ".join(map(str, result.trained_grid))
        console.remark(f"note: these fine weights were trained at other timesteps: {trained}")


def _words(row: SweepRow) -> str:
    steps = many(row.calls, "step")
    return f"{steps} at {', '.join(map(str, row.grid))}, {row.psnr:.2f} dB"


def _cells(row: SweepRow, seeds: bool) -> list[object]:
    marks = [
        "chosen" if row.chosen else "",
        "P" if row.pareto else "",
        "trained" if row.trained else "",
        "in the checkpoint" if row.current else "",
    ]
    psnr = f"{row.psnr:.2f}"
    spread = [f"{row.spread:.3f}" if row.spread is not None else "-"] if seeds else []
    text = ", ".join(mark for mark in marks if mark)
    listed = " ".join(map(str, row.grid))
    if row.calls > SHOWN_TIMES:
        listed = f"{row.grid[0]} {row.grid[1]} ... {row.grid[-1]}"
    seconds = f"{row.seconds:.3g}"
    return [row.calls, listed, row.grid[0], psnr, *spread, f"{row.ssim:.4f}", seconds, text]
