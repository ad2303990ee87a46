"""The result of a sweep: as plain values, as CSV, as a plot, and stored in the checkpoint."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from c2fdft_cli.engine.sampling.subject import weights_digest
from c2fdft_cli.engine.sweep.options import Rule
from c2fdft_cli.engine.sweep.schedules import GIVEN, OWN, SINGLE
from c2fdft_cli.engine.sweep.table import SweepRow
from c2fdft_cli.engine.weights.checkpoint import load_checkpoint, replace_meta
from c2fdft_cli.errors import CheckpointError
from c2fdft_cli.files.writing import atomic_path, atomic_write_text
from c2fdft_cli.vocabulary import WeightsStage
from c2fdft_cli.words import many

COLUMNS = (
    "calls", "grid", "label", "first_t", "psnr", "ssim", "spread", "seconds", "trials",
    "pareto", "chosen", "trained", "current",
)  # fmt: skip


@dataclass(frozen=True)
class SweepResult:
    """The table of a sweep, its choice and the files written.

    Args:
        checkpoint: the path of the weights.
        stage: the weights' stage.
        protocol: the protocol of the scores.
        data: the folder of the shards.
        images, seeds: number of images, and of noise samples per image.
        rows: the rows of the table, one per schedule.
        chosen: the row of the chosen schedule.
        rule: the rule that chose it, in words.
        trained_grid: the timesteps that the weights were fine-trained on; None for other weights.
        calls_spent: sampling steps that this run computed, one network evaluation each.
        stamped: whether the chosen timesteps are stored in the checkpoint.
        files: the files that were written.
        notes: what the user should know about the runtime and the restorations.
    """

    checkpoint: Path
    stage: WeightsStage
    protocol: str
    data: Path
    images: int
    seeds: int
    rows: list[SweepRow]
    chosen: SweepRow
    rule: str
    trained_grid: list[int] | None
    calls_spent: int
    stamped: bool
    files: list[Path]
    notes: tuple[str, ...] = ()


def summary(result: SweepResult) -> dict[str, Any]:
    """Return the result as plain values, for sweep.json and --json."""
    return {
        "checkpoint": str(result.checkpoint),
        "stage": result.stage,
        "protocol": result.protocol,
        "data": str(result.data),
        "images": result.images,
        "seeds": result.seeds,
        "rule": result.rule,
        "grid": list(result.chosen.grid),
        "steps": result.chosen.calls,
        "trained_grid": result.trained_grid,
        "calls": {"spent": result.calls_spent},
        "rows": [row.as_json() for row in result.rows],
    }


def stamp(result: SweepResult, digest: str) -> None:
    """Store the chosen timesteps in the checkpoint, atomically.

    Args:
        result: the result of the sweep.
        digest: digest of the weights that were tried (`weights_digest`).

    Raises:
        CheckpointError: the file now holds other weights, such as last.pt of a run in progress.
    """
    # resolved, because renaming over a symbolic link would replace the link
    path = result.checkpoint.resolve()
    checkpoint, row = load_checkpoint(path), result.chosen
    meta = checkpoint.meta
    meta.grid, meta.grid_from = list(row.grid), "sweep"
    meta.metrics = {
        **meta.metrics,
        "sweep": {
            "protocol": result.protocol,
            "images": result.images,
            "psnr": row.as_json()["psnr"],
            "ssim": row.as_json()["ssim"],
            "rule": result.rule,
            "trained_grid": result.trained_grid,
        },
    }
    tried = weights_digest(checkpoint) == digest
    # `replace_meta` reads the file once more, and returns False if it holds other weights by then
    if not (tried and replace_meta(path, meta, checkpoint.ema)):
        raise CheckpointError(
            "the file now holds other weights than those that were tried",
            where=result.checkpoint,
            hint="the scores are in sweep.json; sweep a copy, or a file that no training replaces",
        )


def write_csv(path: Path, rows: Sequence[SweepRow]) -> None:
    """Write the rows as CSV; timesteps are separated by spaces, a missing value is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row.as_json(), "grid": " ".join(map(str, row.grid))} for row in rows)
    atomic_write_text(path, text.getvalue())


def draw_sweep(path: Path, rows: Sequence[SweepRow], rule: Rule, protocol: str) -> bool:
    """Plot quality over sampling steps, a line per family, to a PNG; False without matplotlib."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        return False
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    shown = [row for row in rows if math.isfinite(row.psnr)]
    for axes, key, unit in zip(figure.subplots(1, 2), ("psnr", "ssim"), (" (dB)", ""), strict=True):
        _draw_panel(axes, shown, key)
        axes.set_xlabel("sampling steps (network evaluations per image)")
        axes.set_ylabel(f"{key.upper()}{unit}, protocol {protocol}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        if key == "psnr" and shown and rule.kind == "within":
            best = max(row.psnr for row in shown)
            label = f"within {rule.decibels:g} dB of the best"
            axes.axhspan(best - rule.decibels, best, color="tab:green", alpha=0.15, label=label)
        if shown:
            axes.legend(fontsize=8)
    chosen = next((row for row in rows if row.chosen), None)
    if chosen is not None:
        figure.suptitle(_headline(chosen))
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return True


def _draw_panel(axes: Any, rows: Sequence[SweepRow], key: str) -> None:
    """Draw one line per family of schedules, the Pareto front, the chosen and trained schedules."""
    for label in dict.fromkeys(row.label for row in rows):
        family = [row for row in rows if row.label == label]
        values = [getattr(row, key) for row in family]
        style = "o" if label in (GIVEN, OWN, SINGLE) else "o-"
        axes.plot([row.calls for row in family], values, style, label=label, alpha=0.85)
    front = [row for row in rows if row.pareto]
    if key == "psnr" and front:
        calls, values = [row.calls for row in front], [row.psnr for row in front]
        axes.step(calls, values, where="post", color="0.4", ls=":", label="Pareto front")
    for row in rows:
        if row.trained:
            _mark(axes, row, key, "s", "none", "timesteps of the training")
        if row.chosen:
            _mark(axes, row, key, "*", "tab:red", f"chosen: {many(row.calls, 'step')}")


def _mark(axes: Any, row: SweepRow, key: str, marker: str, colour: str, label: str) -> None:
    size = 260 if marker == "*" else 140
    value = getattr(row, key)
    axes.scatter(
        [row.calls], [value], s=size, marker=marker, facecolors=colour, edgecolors="k", zorder=5,
        label=label,
    )  # fmt: skip


def _headline(row: SweepRow) -> str:
    listed = ", ".join(map(str, row.grid))
    scores = f"{row.psnr:.2f} dB, SSIM {row.ssim:.4f}, {row.seconds:.2g} s per image"
    return f"chosen: {many(row.calls, 'step')} at t = {listed}\n{scores}"
