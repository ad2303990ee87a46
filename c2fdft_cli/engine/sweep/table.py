"""From the trials of a sweep to its table: means, spread, Pareto front, the choice."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from c2fdft_cli.engine.sampling.scoring import finite_or_none
from c2fdft_cli.engine.sweep.log import SweepLog, Trial
from c2fdft_cli.engine.sweep.schedules import Grid, NamedGrid, Quality, Rule, choose, pareto


@dataclass(frozen=True)
class GridRow:
    """One set of timesteps in the table.

    Args:
        calls: sampling steps for an image.
        grid: their timesteps.
        label: where they come from.
        psnr, ssim: means over images and seeds; NaN where a restoration is not finite.
        spread: standard deviation over the seeds of the mean PSNR; None with one seed.
        seconds: for an image, median.
        trials: images x seeds that were restored.
        pareto: nothing with as few steps scores as much.
        chosen: by the rule.
        trained: the timesteps that the weights were fine-trained on.
    """

    calls: int
    grid: Grid
    label: str
    psnr: float
    ssim: float
    spread: float | None
    seconds: float
    trials: int
    pareto: bool = False
    chosen: bool = False
    trained: bool = False

    def as_json(self) -> dict[str, Any]:
        """For sweep.json and --json: an infinite or missing score is null."""
        return {key: finite_or_none(value) for key, value in asdict(self).items()} | {
            "grid": list(self.grid),
            "first_t": self.grid[0],
        }


def make_table(
    grids: Sequence[NamedGrid],
    log: SweepLog,
    names: Sequence[str],
    seeds: Sequence[int],
    rule: Rule,
    trained: Sequence[int] | None,
) -> list[GridRow]:
    """The rows of all timesteps that were tried, by their number and the first of them."""
    rows = [_row(grid, log.of_grid(grid.times, names, seeds), trained) for grid in grids]
    rows.sort(key=lambda row: (row.calls, [-t for t in row.grid]))
    qualities = [Quality(row.calls, row.psnr, row.ssim) for row in rows]
    chosen = choose(qualities, rule)
    return [
        replace(row, pareto=front, chosen=i == chosen)
        for i, (row, front) in enumerate(zip(rows, pareto(qualities), strict=True))
    ]


def _row(
    grid: NamedGrid,
    trials: Mapping[tuple[str, int], Trial],
    trained: Sequence[int] | None,
) -> GridRow:
    return GridRow(
        calls=grid.calls,
        grid=grid.times,
        label=grid.label,
        psnr=statistics.fmean(trial.psnr for trial in trials.values()),
        ssim=statistics.fmean(trial.ssim for trial in trials.values()),
        spread=_spread(trials),
        seconds=statistics.median(trial.seconds for trial in trials.values()),
        trials=len(trials),
        trained=trained is not None and list(grid.times) == list(trained),
    )


def _spread(trials: Mapping[tuple[str, int], Trial]) -> float | None:
    """Standard deviation over the seeds of the mean PSNR; None with one, NaN without a number."""
    seeds = sorted({seed for _, seed in trials})
    if len(seeds) < 2:
        return None
    means = [
        statistics.fmean(t.psnr for (_, s), t in trials.items() if s == seed) for seed in seeds
    ]
    return statistics.stdev(means) if all(map(math.isfinite, means)) else math.nan
