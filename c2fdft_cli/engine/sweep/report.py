"""A sweep as a table file and as a picture."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from c2fdft_cli.engine.sweep.schedules import Rule
from c2fdft_cli.engine.sweep.table import GridRow
from c2fdft_cli.files import atomic_path, atomic_write_text

COLUMNS = (
    "calls", "grid", "label", "first_t", "psnr", "ssim", "spread", "seconds", "trials",
    "complete", "pareto", "chosen", "trained",
)  # fmt: skip


def write_csv(path: Path, rows: Sequence[GridRow]) -> None:
    """The rows as CSV; a grid is its times with spaces between, a missing value is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        values = {**row.as_json(), "grid": " ".join(map(str, row.grid))}
        writer.writerow(["" if values[key] is None else values[key] for key in COLUMNS])
    atomic_write_text(path, text.getvalue())


def draw_sweep(path: Path, rows: Sequence[GridRow], rule: Rule, protocol: str) -> bool:
    """Write sweep.png: quality over calls, one line a family; False without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        return False
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    shown = [row for row in rows if math.isfinite(row.psnr)]
    for axes, key, unit in zip(figure.subplots(1, 2), ("psnr", "ssim"), (" (dB)", ""), strict=True):
        _draw_panel(axes, shown, key)
        axes.set_xlabel("network calls per image")
        axes.set_ylabel(f"{key.upper()}{unit}, protocol {protocol}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        if key == "psnr" and shown and rule.kind == "within":
            best = max(row.psnr for row in shown if row.complete)
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


def _draw_panel(axes: Any, rows: Sequence[GridRow], key: str) -> None:
    """One line for each family of grids, the Pareto front, the chosen and the trained grid."""
    for label in dict.fromkeys(row.label for row in rows):
        family = [row for row in rows if row.label == label]
        values = [getattr(row, key) for row in family]
        style = "o" if label == "given" else "o-"
        axes.plot([row.calls for row in family], values, style, label=label, alpha=0.85)
    front = [row for row in rows if row.pareto]
    if key == "psnr" and front:
        calls, values = [row.calls for row in front], [row.psnr for row in front]
        axes.step(calls, values, where="post", color="0.4", ls=":", label="Pareto front")
    for row in rows:
        if row.trained:
            _mark(axes, row, key, "s", "none", "grid of the training")
        if row.chosen:
            _mark(axes, row, key, "*", "tab:red", f"chosen: {row.calls} calls")


def _mark(axes: Any, row: GridRow, key: str, marker: str, colour: str, label: str) -> None:
    size = 260 if marker == "*" else 140
    value = getattr(row, key)
    axes.scatter(
        [row.calls], [value], s=size, marker=marker, facecolors=colour, edgecolors="k", zorder=5,
        label=label,
    )  # fmt: skip


def _headline(row: GridRow) -> str:
    times = ", ".join(map(str, row.grid))
    scores = f"{row.psnr:.2f} dB, SSIM {row.ssim:.4f}, {row.seconds:.2g} s per image"
    return f"chosen: {row.calls} calls at t = {times}\n{scores}"
