"""Scores of restored validation pairs: what training, sweep and eval share."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from c2fdft_cli.data.images.tensors import as_tensor, to_uint8, to_unit
from c2fdft_cli.engine.sampling.pairs import ValidationPairs
from c2fdft_cli.engine.sampling.restorer import Restorer
from c2fdft_cli.metrics.protocols import MAX_VALUE, Protocol, Score, score


@dataclass(frozen=True)
class Row:
    """One image's score."""

    name: str
    psnr: float
    ssim: float


@dataclass(frozen=True)
class PairImages:
    """One validation pair and its restoration, `[1, 3, h, w]`: uint8 lq and gt, [0, 1] restored."""

    name: str
    lq: Tensor
    gt: Tensor
    restored: Tensor


def restore_pairs(
    pairs: ValidationPairs, restorer: Restorer, indices: Sequence[int]
) -> Iterator[PairImages]:
    """Restore validation pairs, one after the other."""
    for i in indices:
        lq, gt = (as_tensor(pixels) for pixels in pairs.pair(i))
        name = pairs.names[i]
        yield PairImages(name, lq, gt, restorer(to_unit(lq), [name]).cpu())


def score_restored(restored: Tensor, gt: Tensor, protocol: Protocol, border: int = 0) -> Score:
    """Score one restored image in [0, 1] against uint8 gt, on 8 bit or unrounded as stated."""
    image = restored * MAX_VALUE if protocol.unrounded else to_uint8(restored)
    return score(image.double(), gt.double(), protocol, border)[0]


def spread_indices(count: int, wanted: int) -> list[int]:
    """Up to `wanted` indices spread evenly over `count` pairs; all of them when wanted is 0."""
    if wanted <= 0 or wanted >= count:
        return list(range(count))
    return [i * count // wanted for i in range(wanted)]


def mean_scores(rows: Iterable[Row]) -> dict[str, float]:
    """Mean PSNR and SSIM; an infinite PSNR makes the mean infinite."""
    rows = list(rows)
    return {
        "psnr": statistics.fmean(r.psnr for r in rows),
        "ssim": statistics.fmean(r.ssim for r in rows),
    }


def finite_or_none(value: Any) -> Any:
    """JSON has no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
