"""Score weights on the validation pairs of shards."""

from __future__ import annotations

import statistics
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from c2fdft_cli.core.diffusion import check_grid
from c2fdft_cli.core.metrics import MAX_VALUE
from c2fdft_cli.engine.evaluate_types import (
    EvalOptions,
    EvalResult,
    EvalRow,
    Images,
    Scored,
    pixels_of,
    score_images,
)
from c2fdft_cli.engine.restorer import Restorer, to_uint8, to_unit
from c2fdft_cli.engine.sweep_bench import Bench, open_bench, trained_grid
from c2fdft_cli.engine.validation import as_tensor
from c2fdft_cli.errors import CheckpointError, UsageError
from c2fdft_cli.progress import Job


@dataclass(frozen=True)
class WeightsOptions:
    """Which weights are scored on which pairs.

    Args:
        checkpoint: the weights.
        data: folder of shards; None for those that the weights were trained on.
        images: how many pairs, 0 for all.
        seeds: noises for each image, from `seed` up.
        grid: times instead of the checkpoint's own.
        device, precision: as `make_runtime`.
    """

    checkpoint: Path
    data: Path | None = None
    images: int = 0
    seeds: int = 1
    seed: int = 0
    grid: tuple[int, ...] | None = None
    device: str = "auto"
    precision: str = "auto"


def evaluate_weights(weights: WeightsOptions, options: EvalOptions) -> Job[Scored, EvalResult]:
    """Restore the validation pairs of shards and score them, the untouched inputs beside.

    On the rounded output, except for protocols that take it unrounded.

    Raises:
        UsageError, ResourceError, CheckpointError, DataError: whichever is met first.
    """
    bench = open_bench(
        weights.checkpoint,
        data=weights.data,
        images=weights.images,
        protocol=options.protocol,
        device=weights.device,
        precision=weights.precision,
    )
    grid = grid_in_use(bench, weights)
    work = _score_weights(bench, grid, weights, options)
    return Job(work, total=len(bench.indices), title="eval", unit="image")


def grid_in_use(bench: Bench, weights: WeightsOptions) -> list[int]:
    """The times asked for, else the checkpoint's; UsageError for a grid that is none."""
    if weights.grid is None:
        return bench.checkpoint.grid()
    try:
        return check_grid(weights.grid, bench.checkpoint.meta.diffusion.timesteps)
    except ValueError as error:
        raise UsageError(str(error), where="--grid") from error


def _score_weights(
    bench: Bench, grid: Sequence[int], weights: WeightsOptions, options: EvalOptions
) -> Generator[Scored, None, EvalResult]:
    seeds = range(weights.seed, weights.seed + weights.seeds)
    restorers = [
        Restorer(
            bench.predict_noise, bench.alpha_bar, grid, bench.runtime, eta=bench.eta, seed=seed
        )
        for seed in seeds
    ]
    rows: list[EvalRow] = []
    by_seed: list[list[float]] = [[] for _ in restorers]
    for i in bench.indices:
        scored, psnrs = _restore_and_score(bench, restorers, i, options)
        for column, value in zip(by_seed, psnrs, strict=True):
            column.append(value)
        rows.append(scored.row)
        yield scored
    spread = statistics.stdev(map(statistics.fmean, by_seed)) if len(by_seed) > 1 else None
    depth = "unrounded" if bench.protocol.unrounded else "8 bit"
    return EvalResult(
        protocol=bench.protocol,
        rows=rows,
        scored_on=f"network output, {depth}",
        border=options.border,
        spread=spread,
        found_by="shards",
        notes=_grid_notes(bench, grid),
        recipe=bench.checkpoint.meta.recipe,
    )


def _grid_notes(bench: Bench, grid: Sequence[int]) -> list[str]:
    """The times in use; fine weights are bound to those of their training."""
    notes = [f"grid: {', '.join(map(str, grid))} ({len(grid)} network calls)"]
    trained = trained_grid(bench.checkpoint)
    if trained is not None and trained != list(grid):
        times = ", ".join(map(str, trained))
        notes.append(f"note: these fine weights were trained on another grid: {times}")
    return notes


def _restore_and_score(
    bench: Bench, restorers: Sequence[Restorer], i: int, options: EvalOptions
) -> tuple[Scored, list[float]]:
    """One pair's row, its scores averaged over the seeds, and the PSNR of each seed."""
    lq, gt = (as_tensor(pixels) for pixels in bench.pairs.pair(i))
    name, target = bench.pairs.names[i], gt.double()
    scores, more = [], []
    image = lq.double()
    for restorer in restorers:
        unit = restorer(to_unit(lq), [name]).cpu()
        if not unit.isfinite().all():
            where = bench.checkpoint.path
            raise CheckpointError("the weights restore to NaN", where=where, hint=f"image {name}")
        image = (unit * MAX_VALUE if bench.protocol.unrounded else to_uint8(unit)).double()
        scores.append(score_images(image, target, bench.protocol, options.border))
        more.append({key: metric(image, target) for key, metric in options.metrics.items()})
    row = EvalRow(
        name,
        statistics.fmean(one.psnr for one in scores),
        statistics.fmean(one.ssim for one in scores),
        {key: statistics.fmean(one[key] for one in more) for key in options.metrics},
        score_images(lq.double(), target, bench.protocol, options.border),
    )
    pixels = Images(pixels_of(lq), pixels_of(image), pixels_of(gt))
    return Scored(row, pixels), [one.psnr for one in scores]
