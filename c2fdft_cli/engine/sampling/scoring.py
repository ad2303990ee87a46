"""Restore pairs and score them: the one loop behind validation, sweep and eval."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from c2fdft_cli.core.ssim import WINDOW
from c2fdft_cli.data.images.tensors import as_tensor, to_uint8, to_unit
from c2fdft_cli.engine.sampling.pairs import PairSource
from c2fdft_cli.engine.sampling.restorer import Restorer
from c2fdft_cli.errors import DataError
from c2fdft_cli.metrics.protocols import MAX_VALUE, Protocol, Score, score


@dataclass(frozen=True)
class Scored:
    """A pair that was restored once, and its score.

    Args:
        name: of the pair.
        score: NaN in both where the restoration is not finite.
        seconds: of the restoration.
        lq, gt: as the source has them, `[1, 3, h, w]` in 8-bit levels.
        restored: as it was scored, `[1, 3, h, w]` float64 on the scale 0 .. 255: rounded, or not
            where the protocol takes it unrounded.
    """

    name: str
    score: Score
    seconds: float
    lq: Tensor
    gt: Tensor
    restored: Tensor

    @property
    def is_finite(self) -> bool:
        """Whether the network produced no NaN or infinite value."""
        return not math.isnan(self.score.ssim)


def restore_and_score(
    source: PairSource,
    index: int,
    restorers: Iterable[Restorer],
    protocol: Protocol,
    border: int = 0,
) -> Iterator[Scored]:
    """Restore one pair by each of the restorers in turn and score the results.

    Args:
        source: holds the pair.
        index: of the pair.
        restorers: they may differ in timesteps and seed; each is asked for when it is due.
        protocol: of the score.
        border: pixels left out on each side.

    Raises:
        DataError: an image that cannot be read or is too small to be scored.
    """
    name, noise_name = source.names[index], source.noise_name(index)
    pair: tuple[Tensor, Tensor] | None = None
    for restorer in restorers:
        if pair is None:
            degraded, target = source.pair(index)
            pair = as_tensor(degraded), as_tensor(target)
            check_scorable(pair[1], border, name)
        lq, gt = pair
        began = time.perf_counter()
        unit = restorer(to_unit(lq), [noise_name]).cpu()
        seconds = time.perf_counter() - began
        restored = (unit * MAX_VALUE if protocol.unrounded else to_uint8(unit)).double()
        result = Score(math.nan, math.nan)
        if unit.isfinite().all():
            result = score(restored, gt.double(), protocol, border)[0]
        yield Scored(name, result, seconds, lq, gt, restored)


def check_scorable(image: Tensor, border: int, name: str | None = None) -> None:
    """DataError for an image `[..., h, w]` whose inside is smaller than SSIM's window."""
    height, width = image.shape[-2:]
    if min(height, width) - 2 * border < WINDOW:
        inside = f" inside a border of {border} px" if border else ""
        raise DataError(
            f"SSIM needs {WINDOW} x {WINDOW} px{inside}, the image has {width} x {height}",
            where=name,
            hint="leave small images out",
        )


def spread_indices(count: int, wanted: int) -> list[int]:
    """Up to `wanted` indices spread evenly over `count` pairs; all of them when wanted is 0."""
    if wanted <= 0 or wanted >= count:
        return list(range(count))
    return [i * count // wanted for i in range(wanted)]


def mean_score(scores: Iterable[Score]) -> Score:
    """Mean PSNR and SSIM; an infinite PSNR makes the mean infinite."""
    scores = list(scores)
    return Score(
        statistics.fmean(one.psnr for one in scores), statistics.fmean(one.ssim for one in scores)
    )


def finite_or_none(value: Any) -> Any:
    """JSON has no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
