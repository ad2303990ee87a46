"""Score weights on the validation pairs of shards, or on other pairs that are named."""

from __future__ import annotations

import statistics
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from c2fdft_cli.core.diffusion import check_grid
from c2fdft_cli.data.images.tensors import as_tensor, to_uint8, to_unit
from c2fdft_cli.engine.evaluate.sidd import PROTOCOL, BlockPairs
from c2fdft_cli.engine.evaluate.types import (
    EvalOptions,
    EvalResult,
    EvalRow,
    Images,
    Scored,
    pixels_of,
    score_images,
)
from c2fdft_cli.engine.sampling.restorer import Restorer
from c2fdft_cli.engine.sampling.scoring import spread_indices
from c2fdft_cli.engine.sampling.subject import Loaded, open_bench, open_weights, trained_grid
from c2fdft_cli.errors import CheckpointError, UsageError
from c2fdft_cli.metrics.protocols import MAX_VALUE
from c2fdft_cli.progress import Job


class Pairs(Protocol):
    """Degraded images and their targets."""

    def __len__(self) -> int: ...

    @property
    def names(self) -> Sequence[str]:
        """Of the pairs."""
        ...

    def pair(self, i: int) -> tuple[Any, Any]:
        """`[h, w, 3]` in 8-bit levels: lq (uint8, or float32 where it is not rounded), uint8 gt."""
        ...


class NamedPairs(Pairs, Protocol):
    """Pairs that do not come from shards, with words for people."""

    @property
    def found_by(self) -> str:
        """How the pairs were found."""
        ...

    @property
    def note(self) -> str | None:
        """What else people should know of them."""
        ...

    def file(self, i: int) -> str:
        """The file name by which `restore` would draw the noise of pair i."""
        ...

    @property
    def unit(self) -> str:
        """What one is called."""
        ...


@dataclass(frozen=True)
class WeightsOptions:
    """Which weights are scored on which pairs.

    Args:
        checkpoint: the weights.
        data: folder of shards; None for those that the weights were trained on.
        pairs: what to take instead of shards.
        images: how many pairs, 0 for all.
        seeds: noises for each image, from `seed` up.
        grid: times instead of the checkpoint's own.
        device, precision: as `make_runtime`.
    """

    checkpoint: Path
    data: Path | None = None
    pairs: NamedPairs | None = None
    images: int = 0
    seeds: int = 1
    seed: int = 0
    grid: tuple[int, ...] | None = None
    device: str = "auto"
    precision: str = "auto"


def evaluate_weights(weights: WeightsOptions, options: EvalOptions) -> Job[Scored, EvalResult]:
    """Restore the validation pairs of shards (or those named), score them and the inputs.

    On the rounded output, except for protocols that take it unrounded.

    Raises:
        UsageError, ResourceError, CheckpointError, DataError: whichever is met first.
    """
    loaded, pairs, indices = _open(weights, options)
    grid = grid_in_use(loaded, weights)
    mine = options.share(indices)
    work = _score_weights(loaded, pairs, mine, grid, weights, options)
    unit = "image" if weights.pairs is None else weights.pairs.unit
    return Job(work, total=len(mine), title="eval", unit=unit)


def _open(weights: WeightsOptions, options: EvalOptions) -> tuple[Loaded, Pairs, list[int]]:
    """The weights, what they restore, and which of it."""
    path, device, precision = weights.checkpoint, weights.device, weights.precision
    if weights.pairs is None:
        bench = open_bench(
            path,
            data=weights.data,
            images=weights.images,
            protocol=options.protocol,
            device=device,
            precision=precision,
        )
        return bench, bench.pairs, bench.indices
    of_blocks = PROTOCOL if isinstance(weights.pairs, BlockPairs) else None
    protocol = options.protocol or of_blocks
    loaded = open_weights(path, protocol=protocol, device=device, precision=precision)
    return loaded, weights.pairs, spread_indices(len(weights.pairs), weights.images)


def grid_in_use(bench: Loaded, weights: WeightsOptions) -> list[int]:
    """The times asked for, else the checkpoint's; UsageError for a grid that is none."""
    if weights.grid is None:
        return bench.checkpoint.grid()
    try:
        return check_grid(weights.grid, bench.checkpoint.meta.diffusion.timesteps)
    except ValueError as error:
        raise UsageError(str(error), where="--grid") from error


def _score_weights(
    bench: Loaded,
    pairs: Pairs,
    indices: Sequence[int],
    grid: Sequence[int],
    weights: WeightsOptions,
    options: EvalOptions,
) -> Generator[Scored, None, EvalResult]:
    seeds = range(weights.seed, weights.seed + weights.seeds)
    restorers = [
        Restorer(
            bench.predict_noise, bench.alpha_bar, grid, bench.runtime, eta=bench.eta, seed=seed
        )
        for seed in seeds
    ]
    rows: list[EvalRow] = []
    names, source = pairs.names, weights.pairs
    for i in indices:
        file = names[i] if source is None else source.file(i)
        scored = _restore_and_score(bench, restorers, names[i], file, pairs.pair(i), options)
        rows.append(scored.row)
        yield scored
    depth = "unrounded" if bench.protocol.unrounded else "8 bit"
    return EvalResult(
        protocol=bench.protocol,
        rows=rows,
        scored_on=f"network output, {depth}",
        border=options.border,
        found_by="shards" if source is None else source.found_by,
        notes=[*_grid_notes(bench, grid), *([source.note] if source and source.note else [])],
        recipe=bench.checkpoint.meta.recipe,
    )


def _grid_notes(bench: Loaded, grid: Sequence[int]) -> list[str]:
    """The times in use; fine weights are bound to those of their training."""
    calls = f"{len(grid)} network call{'s' if len(grid) > 1 else ''}"
    notes = [f"grid: {', '.join(map(str, grid))} ({calls})"]
    trained = trained_grid(bench.checkpoint)
    if trained is not None and trained != list(grid):
        times = ", ".join(map(str, trained))
        notes.append(f"note: these fine weights were trained on another grid: {times}")
    return notes


def _restore_and_score(
    bench: Loaded,
    restorers: Sequence[Restorer],
    name: str,
    file: str,
    pair: tuple[Any, Any],
    options: EvalOptions,
) -> Scored:
    """One pair's row, its scores averaged over the seeds."""
    lq, gt = (as_tensor(pixels) for pixels in pair)
    target = gt.double()
    scores, more = [], []
    image = lq.double()
    for restorer in restorers:
        unit = restorer(to_unit(lq), [file]).cpu()
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
        tuple(one.psnr for one in scores) if len(scores) > 1 else (),
    )
    pixels = Images(pixels_of(lq), pixels_of(image), pixels_of(gt))
    return Scored(row, pixels)
