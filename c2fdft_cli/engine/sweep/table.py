"""From the trials of a sweep to its table: means, spread, Pareto front, the chosen grid."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from c2fdft_cli.engine.sampling.scoring import finite_or_none
from c2fdft_cli.engine.sweep.log import SweepLog, Trial
from c2fdft_cli.engine.sweep.schedules import Grid, NamedGrid, Quality, Rule, choose, pareto

MIN_PAIRED = 3
SURE = 3.0
"""A grid is given up when a rival leads by so many standard errors of their paired difference."""


@dataclass(frozen=True)
class GridRow:
    """One grid of the table.

    Args:
        calls: network calls for an image.
        grid: their times.
        label: where the grid comes from.
        psnr, ssim: means over images and seeds; NaN where a restoration is not finite.
        spread: standard deviation over the seeds of the mean PSNR; None with one seed.
        seconds: for an image, median.
        trials: images x seeds that were restored.
        complete: whether those were all.
        pareto: no grid with as few calls scores as much.
        chosen: by the rule.
        trained: the grid that the weights were fine-trained on.
    """

    calls: int
    grid: Grid
    label: str
    psnr: float
    ssim: float
    spread: float | None
    seconds: float
    trials: int
    complete: bool
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
    """The rows of all grids that have been tried, by number of calls and first time.

    Only grids that were tried on everything take part in the choice and in the Pareto front.
    """
    rows = []
    for grid in grids:
        trials = log.of_grid(grid.times, names, seeds)
        if trials:
            rows.append(_row(grid, trials, len(names) * len(seeds), trained))
    rows.sort(key=lambda row: (row.calls, [-t for t in row.grid]))
    whole = [row for row in rows if row.complete]
    qualities = [Quality(row.calls, row.psnr, row.ssim) for row in whole]
    chosen = choose(qualities, rule)
    marks = {
        row.grid: {"pareto": front, "chosen": i == chosen}
        for i, (row, front) in enumerate(zip(whole, pareto(qualities), strict=True))
    }
    return [GridRow(**{**vars(row), **marks.get(row.grid, {})}) for row in rows]


def _row(
    grid: NamedGrid,
    trials: Mapping[tuple[str, int], Trial],
    wanted: int,
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
        complete=len(trials) == wanted,
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


def cannot_pay(
    grid: NamedGrid, rivals: Sequence[NamedGrid], log: SweepLog, metric: str, among: Sequence[str]
) -> bool:
    """Whether a rival with no more calls surely scores higher: `SURE` standard errors, paired.

    Args:
        grid: the grid in question.
        rivals: the grids still tried.
        log: the trials so far.
        metric: "psnr" or "ssim".
        among: names of the images of this sweep.
    """
    own = _scores(grid, log, metric, among)
    for rival in rivals:
        if rival.times == grid.times or rival.calls > grid.calls:
            continue
        other = _scores(rival, log, metric, among)
        gains = [other[key] - own[key] for key in own.keys() & other.keys()]
        if len(gains) < MIN_PAIRED or not all(map(math.isfinite, gains)):
            continue
        error = statistics.stdev(gains) / math.sqrt(len(gains))
        if statistics.fmean(gains) > SURE * error:
            return True
    return False


def _scores(
    grid: NamedGrid, log: SweepLog, metric: str, among: Sequence[str]
) -> dict[tuple[str, int], float]:
    names = set(among)
    return {
        (key.name, key.seed): getattr(trial, metric)
        for key, trial in log.trials.items()
        if key.grid == grid.times and key.name in names
    }
