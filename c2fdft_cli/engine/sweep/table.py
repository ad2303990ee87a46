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
from c2fdft_cli.engine.sweep.schedules import Schedule


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
    schedules: Sequence[Schedule],
    log: SweepLog,
    names: Sequence[str],
    seeds: Sequence[int],
    rule: Rule,
    trained: Sequence[int] | None = None,
    current: Sequence[int] | None = None,
) -> list[Row]:
    """The rows of all schedules, by number of steps and first timestep."""
    rows = [_row(one, log.of_schedule(one.timesteps, names, seeds)) for one in schedules]
    rows.sort(key=lambda row: (row.calls, [-t for t in row.grid]))
    chosen, front = choose(rows, rule), pareto(rows)
    return [
        replace(
            row,
            pareto=front[i],
            chosen=i == chosen,
            trained=trained is not None and list(row.grid) == list(trained),
            current=current is not None and list(row.grid) == list(current),
        )
        for i, row in enumerate(rows)
    ]


def _row(schedule: Schedule, scores: Mapping[Trial, Scored]) -> Row:
    return Row(
        calls=len(schedule.timesteps),
        grid=schedule.timesteps,
        label=schedule.label,
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


def best(rows: Sequence[Row]) -> Row | None:
    """The row of the highest PSNR, of equal ones that with fewer steps; None without a number."""
    index = choose(rows, Rule("psnr"))
    return None if index is None else rows[index]


def choose(rows: Sequence[Row], rule: Rule) -> int | None:
    """Index of the schedule that the rule chooses, None when no row is finite.

    Equal scores go to fewer steps, equal numbers of steps to the better PSNR.
    """
    usable = [i for i, row in enumerate(rows) if not math.isnan(row.psnr)]
    if not usable:
        return None
    if rule.kind == "within":
        limit = max(rows[i].psnr for i in usable) - rule.decibels
        near = [i for i in usable if rows[i].psnr >= limit]
        return min(near, key=lambda i: (rows[i].calls, -rows[i].psnr))
    return min(usable, key=lambda i: (-getattr(rows[i], rule.kind), rows[i].calls))


def pareto(rows: Sequence[Row]) -> list[bool]:
    """Which rows no other row beats: at most as many steps, at least its PSNR, and one better."""

    def beats(a: Row, b: Row) -> bool:
        no_worse = a.calls <= b.calls and a.psnr >= b.psnr
        return no_worse and (a.calls < b.calls or a.psnr > b.psnr)

    return [
        not math.isnan(row.psnr) and not any(beats(other, row) for other in rows) for row in rows
    ]
