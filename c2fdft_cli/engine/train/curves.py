"""curves.png: the loss and the scores of a run over its iterations."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterable, Mapping
from typing import Any

from c2fdft_cli.engine.train.folder import RunFolder
from c2fdft_cli.files.writing import atomic_path


def draw_curves(run: RunFolder) -> bool:
    """Draw curves.png from metrics.csv; return False if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.font_manager import FontProperties, findfont, get_font
    except ImportError:
        return False
    rows = run.read_metrics()
    figure = Figure(figsize=(9, 6), layout="constrained")
    loss_axes, score_axes = figure.subplots(2, 1, sharex=True)
    _plot(loss_axes, rows, "loss", "training loss")
    loss_axes.set_yscale("log")
    _plot(score_axes, rows, "val_psnr", "validation PSNR, dB", marker="o")
    score_axes.set_xlabel("iteration")
    # A folder's name may contain anything: bytes that are not UTF-8, characters that the font lacks
    # (matplotlib would warn), and dollar signs, which would start a formula.
    font = get_font(findfont(FontProperties()))
    characters = [(one, font.get_char_index(ord(one))) for one in run.path.name]
    name = "".join(one if known else f"\\u{ord(one):04x}" for one, known in characters)
    figure.suptitle(name, parse_math=False)
    with atomic_path(run.path / "curves.png") as temporary:
        figure.savefig(temporary, dpi=110)
    # A figure is a reference cycle of some megabytes, and training steps allocate too few objects
    # to trigger the garbage collector: without this call, a training grows by tens of megabytes
    # between two collections.
    del figure, loss_axes, score_axes
    gc.collect()
    return True


def _number(text: str) -> float:
    """Return the number in a cell; NaN, which leaves a gap in the plot, for any other text."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _plot(
    axes: Any, rows: Iterable[Mapping[str, str]], column: str, label: str, **style: Any
) -> None:
    points = [(int(r["iteration"]), _number(r[column])) for r in rows if r[column]]
    axes.plot([x for x, _ in points], [y for _, y in points], **style)
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
