"""From the scores of a sweep to its table: means, Pareto front, the chosen schedule."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from c2fdft_cli.engine.sampling.scoring import Scored, finite_or_none
from c2fdft_cli.engine.sweep.log import SweepLog, Trial
from c2fdft_cli.engine.sweep.options import Rule, Timesteps


@dataclass(frozen=True)
class Row:
    """One schedule of the table; the names are the keys of sweep.json and the columns of the CSV.

    Args:
        calls: sampling steps, each one evaluation of the network.
        grid: their timesteps.
        label: where the schedule comes from.
        psnr, ssim: means over images and seeds; NaN where a restoration is not finite.
        spread: standard deviation over the seeds of the mean PSNR; None with one seed.
        seconds: for an image, median.
        trials: images x seeds.
        pareto: no schedule with as few steps scores as much.
        chosen: by the rule.
        trained: the timesteps that the weights were fine-trained on.
        current: the timesteps that the checkpoint held before the sweep.
    """

    calls: int
    grid: Timesteps
    label: str
    psnr: float
    ssim: float
    spread: float | None = None
    seconds: float = 0.0
    trials: int = 0
    pareto: bool = False
    chosen: bool = False
    trained: bool = False
    current: bool = False

    def as_json(self) -> dict[str, Any]:
        """For sweep.json and --json: an infinite or missing score is null."""
        return {key: finite_or_none(value) for key, value in asdict(self).items()} | {
            "grid": list(self.grid),
            "first_t": self.grid[0],
        }


def make_table(
    schedules: Mapping[Timesteps, str],
    log: SweepLog,
    names: Sequence[str],
    seeds: Sequence[int],
    rule: Rule,
    trained: Sequence[int] | None = None,
    current: Sequence[int] | None = None,
) -> list[Row]:
    """The rows of all schedules, given with their labels, by number of steps and first timestep."""
    rows = [
        _row(grid, label, log.of_schedule(grid, names, seeds)) for grid, label in schedules.items()
    ]
    rows.sort(key=lambda row: (row.calls, [-t for t in row.grid]))
    chosen = choose(rows, rule)
    return [
        replace(
            row,
            pareto=on_front,
            chosen=row is chosen,
            trained=trained is not None and list(row.grid) == list(trained),
            current=current is not None and list(row.grid) == list(current),
        )
        for row, on_front in zip(rows, pareto(rows), strict=True)
    ]


def _row(grid: Timesteps, label: str, scores: Mapping[Trial, Scored]) -> Row:
    return Row(
        calls=len(grid),
        grid=grid,
        label=label,
        psnr=statistics.fmean(one.psnr for one in scores.values()),
        ssim=statistics.fmean(one.ssim for one in scores.values()),
        spread=_spread(scores),
        seconds=statistics.median(one.seconds for one in scores.values()),
        trials=len(scores),
    )


def _spread(scores: Mapping[Trial, Scored]) -> float | None:
    """Standard deviation over the seeds of the mean PSNR; None with one, NaN without a number."""
    seeds = sorted({trial.seed for trial in scores})
    if len(seeds) < 2:
        return None
    means = [
        statistics.fmean(one.psnr for trial, one in scores.items() if trial.seed == seed)
        for seed in seeds
    ]
    return statistics.stdev(means) if all(map(math.isfinite, means)) else math.nan


def choose(rows: Sequence[Row], rule: Rule) -> Row | None:
    """The schedule that the rule chooses, None when no row is finite.

    Equal scores go to fewer steps, equal numbers of steps to the better PSNR.
    """
    usable = [row for row in rows if not math.isnan(row.psnr)]
    if not usable:
        return None
    if rule.kind == "within":
        limit = max(row.psnr for row in usable) - rule.decibels
        near = [row for row in usable if row.psnr >= limit]
        return min(near, key=lambda row: (row.calls, -row.psnr))
    return min(usable, key=lambda row: (-getattr(row, rule.kind), row.calls))


def pareto(rows: Sequence[Row]) -> list[bool]:
    """Which rows no other row beats: at most as many steps, at least its PSNR, and one better."""

    def beats(a: Row, b: Row) -> bool:
        no_worse = a.calls <= b.calls and a.psnr >= b.psnr
        return no_worse and (a.calls < b.calls or a.psnr > b.psnr)

    return [
        not math.isnan(row.psnr) and not any(beats(other, row) for other in rows) for row in rows
    ]
