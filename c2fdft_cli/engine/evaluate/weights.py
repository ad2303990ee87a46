"""Score weights on the validation pairs of shards, or on other pairs that are named."""

from __future__ import annotations

import statistics
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from c2fdft_cli.core.diffusion import check_grid
from c2fdft_cli.engine.evaluate.sidd import PROTOCOL, BlockPairs
from c2fdft_cli.engine.evaluate.types import (
    EvalOptions,
    EvalResult,
    EvalRow,
    Images,
    ScoredRow,
    score_images,
)
from c2fdft_cli.engine.sampling.pairs import PairSource
from c2fdft_cli.engine.sampling.restorer import Restorer
from c2fdft_cli.engine.sampling.scoring import mean_score, restore_and_score, spread_indices
from c2fdft_cli.engine.sampling.subject import (
    Subject,
    open_pairs,
    open_subject,
    trained_grid,
)
from c2fdft_cli.engine.weights.checkpoint import Checkpoint
from c2fdft_cli.errors import CheckpointError, UsageError
from c2fdft_cli.progress import Job


@dataclass(frozen=True)
class WeightsOptions:
    """Which weights are scored on which pairs.

    Args:
        checkpoint: the weights.
        data: folder of shards; None for those that the weights were trained on.
        pairs: what to take instead of shards.
        images: how many pairs, 0 for all.
        seeds: noises for each image, from `seed` up.
        grid: timesteps instead of the checkpoint's own.
        device, precision: as `make_runtime`.
    """

    checkpoint: Path
    data: Path | None = None
    pairs: PairSource | None = None
    images: int = 0
    seeds: int = 1
    seed: int = 0
    grid: tuple[int, ...] | None = None
    device: str = "auto"
    precision: str = "auto"


def evaluate_weights(weights: WeightsOptions, options: EvalOptions) -> Job[ScoredRow, EvalResult]:
    """Restore the validation pairs of shards (or those named), score them and the inputs.

    On the rounded output, except for protocols that take it unrounded.

    Raises:
        UsageError, ResourceError, CheckpointError, DataError: whichever is met first.
    """
    of_blocks = PROTOCOL if isinstance(weights.pairs, BlockPairs) else None
    subject = open_subject(
        weights.checkpoint,
        protocol=options.protocol or of_blocks,
        device=weights.device,
        precision=weights.precision,
    )
    pairs = weights.pairs or open_pairs(subject, weights.data)
    grid = _timesteps(subject, weights.grid)
    mine = options.share(spread_indices(len(pairs), weights.images))
    seeds = range(weights.seed, weights.seed + weights.seeds)
    work = _score_weights(subject, pairs, mine, grid, seeds, options)
    return Job(work, total=len(mine), title="eval", unit=pairs.unit)


def _timesteps(subject: Subject, asked: Sequence[int] | None) -> list[int]:
    """The timesteps asked for, else the checkpoint's; UsageError for those that cannot be."""
    if asked is None:
        return subject.checkpoint.grid()
    try:
        return check_grid(asked, subject.checkpoint.meta.diffusion.timesteps)
    except ValueError as error:
        raise UsageError(f"--grid cannot be used: {error}") from error


def _score_weights(
    subject: Subject,
    pairs: PairSource,
    indices: Sequence[int],
    grid: Sequence[int],
    seeds: Sequence[int],
    options: EvalOptions,
) -> Generator[ScoredRow, None, EvalResult]:
    restorers = [subject.restorer(grid, seed) for seed in seeds]
    rows: list[EvalRow] = []
    for i in indices:
        scored = _score_pair(subject, pairs, i, restorers, options)
        rows.append(scored.row)
        yield scored
    depth = "unrounded" if subject.protocol.unrounded else "8 bit"
    return EvalResult(
        protocol=subject.protocol,
        rows=rows,
        scored_on=f"network output, {depth}",
        border=options.border,
        found_by=pairs.found_by,
        notes=[*_grid_notes(subject.checkpoint, grid), *([pairs.note] if pairs.note else [])],
        recipe=subject.checkpoint.meta.recipe,
    )


def _grid_notes(checkpoint: Checkpoint, grid: Sequence[int]) -> list[str]:
    """The timesteps in use; fine weights are bound to those of their training."""
    steps = f"{len(grid)} sampling step{'s' if len(grid) > 1 else ''}"
    notes = [f"timesteps: {', '.join(map(str, grid))} ({steps})"]
    trained = trained_grid(checkpoint)
    if trained is not None and trained != list(grid):
        times = ", ".join(map(str, trained))
        notes.append(f"note: these fine weights were trained at other timesteps: {times}")
    return notes


def _score_pair(
    subject: Subject,
    pairs: PairSource,
    index: int,
    restorers: Sequence[Restorer],
    options: EvalOptions,
) -> ScoredRow:
    """One pair's row, its scores averaged over the seeds."""
    scores, more = [], []
    for scored in restore_and_score(pairs, index, restorers, subject.protocol, options.border):
        if not scored.is_finite:
            raise CheckpointError(
                f"the network produced NaN or infinite values at image {scored.name}",
                where=subject.checkpoint.path,
                hint="try --precision fp32, or other weights",
            )
        target = scored.gt.double()
        scores.append(scored.score)
        more.append({key: of(scored.restored, target) for key, of in options.metrics.items()})
    mean = mean_score(scores)
    row = EvalRow(
        scored.name,
        mean.psnr,
        mean.ssim,
        {key: statistics.fmean(one[key] for one in more) for key in options.metrics},
        score_images(scored.lq.double(), target, subject.protocol, options.border),
        tuple(one.psnr for one in scores) if len(scores) > 1 else (),
    )
    return ScoredRow(row, Images(scored.lq, scored.restored, scored.gt))
