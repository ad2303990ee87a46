"""The outcome of a sweep: as plain values, and stamped into the checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from c2fdft_cli.engine.sweep.table import GridRow
from c2fdft_cli.engine.weights.checkpoint import load_checkpoint, save_checkpoint


@dataclass(frozen=True)
class SweepResult:
    """The table of a sweep and what became of it.

    Args:
        checkpoint, stage, protocol, images, seeds: what was tried on what.
        rows: one for each grid.
        chosen: the chosen row.
        rule: the rule that chose it, in words.
        trained_grid: the grid that the weights were fine-trained on.
        calls_spent: network calls of this run.
        calls_naive: calls if each image were restored anew for each grid.
        stamped: whether the chosen grid was written into the checkpoint.
        files: what was written.
    """

    checkpoint: Path
    stage: str
    protocol: str
    images: int
    seeds: int
    rows: list[GridRow]
    chosen: GridRow
    rule: str
    trained_grid: list[int] | None
    calls_spent: int
    calls_naive: int
    stamped: bool
    files: list[Path]


def summary(result: SweepResult) -> dict[str, Any]:
    """The outcome as plain values, for sweep.json and --json."""
    return {
        "checkpoint": str(result.checkpoint),
        "stage": result.stage,
        "protocol": result.protocol,
        "images": result.images,
        "seeds": result.seeds,
        "rule": result.rule,
        "grid": list(result.chosen.grid),
        "steps": result.chosen.calls,
        "trained_grid": result.trained_grid,
        "calls": {"spent": result.calls_spent, "naive": result.calls_naive},
        "rows": [row.as_json() for row in result.rows],
    }


def stamp(result: SweepResult) -> None:
    """Write the chosen grid into the checkpoint's meta, atomically: the one allowed overwrite."""
    path = result.checkpoint.resolve()
    checkpoint = load_checkpoint(path)
    meta, row = checkpoint.meta, result.chosen
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
    save_checkpoint(path, checkpoint.params, checkpoint.ema, meta)
