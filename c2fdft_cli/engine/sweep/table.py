"""Turns the scores of a sweep into its table: means, Pareto front, the chosen schedule."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from c2fdft_cli.engine.sampling.scoring import Scored, mean_scores
from c2fdft_cli.engine.sweep.log import Trial
from c2fdft_cli.engine.sweep.options import Rule, Timesteps
from c2fdft_cli.words import finite_or_none


@dataclass(frozen=True)
class SweepRow:
    """One schedule of the table; the names are the keys of sweep.json and the columns of the CSV.

    Args:
        calls: number of sampling steps, each of which evaluates the network once.
        grid: the timesteps.
        label: the origin of the schedule.
        psnr, ssim: means over images and seeds; NaN if a restoration has non-finite values.
        spread: standard deviation, over the seeds, of the mean PSNR; None with one seed, NaN if a
            mean is not finite.
        seconds: median time per image.
        trials: number of restorations, images x seeds.
        pareto: whether no other schedule is as good in steps and PSNR, and better in one of them.
        chosen: whether the rule chose it.
        trained: whether the weights were fine-trained on these timesteps.
        current: whether the checkpoint held these timesteps before the sweep.
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
        """Return the row for sweep.json and --json; an infinite or missing score is null."""
        return {key: finite_or_none(value) for key, value in asdict(self).items()} | {
            "grid": list(self.grid),
            "first_t": self.grid[0],
        }


def make_table(
    schedules: Mapping[Timesteps, str],
    scores: Mapping[Trial, Scored],
    names: Sequence[str],
    seeds: Sequence[int],
    rule: Rule,
    trained: Sequence[int] | None = None,
    current: Sequence[int] | None = None,
) -> list[SweepRow]:
    """Return the rows of all schedules, by number of steps, then by timesteps, largest first.

    Args:
        schedules: the label of each schedule, by its timesteps.
        scores: the score of each trial.
        names: the images.
        seeds: the seeds of the noise.
        rule: how a schedule is chosen.
        trained: the timesteps that the weights were fine-trained on.
        current: the timesteps that the checkpoint held before the sweep.
    """
    rows = [
        _row(
            timesteps,
            label,
            [[scores[Trial(name, seed, timesteps)] for name in names] for seed in seeds],
        )
        for timesteps, label in schedules.items()
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


def _row(timesteps: Timesteps, label: str, by_seed: Sequence[Sequence[Scored]]) -> SweepRow:
    scores = [one for of_seed in by_seed for one in of_seed]
    mean = mean_scores(scores)
    means = [mean_scores(of_seed)["psnr"] for of_seed in by_seed]
    spread = None
    if len(means) > 1:
        spread = statistics.stdev(means) if all(map(math.isfinite, means)) else math.nan
    return SweepRow(
        calls=len(timesteps),
        grid=timesteps,
        label=label,
        psnr=mean["psnr"],
        ssim=mean["ssim"],
        spread=spread,
        seconds=statistics.median(one.seconds for one in scores),
        trials=len(scores),
    )


def choose(rows: Sequence[SweepRow], rule: Rule) -> SweepRow | None:
    """Return the row that the rule chooses; None if the PSNR of every row is NaN.

    Of equal scores the one with fewer steps is chosen; "within" chooses the better PSNR of equal
    numbers of steps.
    """
    usable = [row for row in rows if not math.isnan(row.psnr)]
    if not usable:
        return None
    if rule.kind == "within":
        limit = max(row.psnr for row in usable) - rule.decibels
        near = [row for row in usable if row.psnr >= limit]
        return min(near, key=lambda row: (row.calls, -row.psnr))
    return min(usable, key=lambda row: (-getattr(row, rule.kind), row.calls))


def pareto(rows: Sequence[SweepRow]) -> list[bool]:
    """Return, for each row, whether no other row beats it in sampling steps and PSNR.

    A row beats another if it is no worse in both and better in one. Rows with NaN are False.
    """

    def beats(a: SweepRow, b: SweepRow) -> bool:
        no_worse = a.calls <= b.calls and a.psnr >= b.psnr
        return no_worse and (a.calls < b.calls or a.psnr > b.psnr)

    return [
        not math.isnan(row.psnr) and not any(beats(other, row) for other in rows) for row in rows
    ]
