"""Restore pairs and score the results: the one loop of validation, sweep and evaluation."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from c2fdft_cli.core.ssim import WINDOW
from c2fdft_cli.data.images.tensors import as_tensor, to_uint8, to_unit
from c2fdft_cli.engine.sampling.executor import Restored
from c2fdft_cli.engine.sampling.pairs import PairSource
from c2fdft_cli.errors import DataError
from c2fdft_cli.metrics.protocols import MAX_VALUE, Protocol, Score, score

Metric = Callable[[Tensor, Tensor], float]
"""A further score of (restored, target), both `[1, 3, h, w]` on the scale 0 .. 255."""


Restore = Callable[[Tensor, Sequence[str]], Restored]
"""`lq: [1, 3, h, w]` in [0, 1] and its name to the restored image, on the CPU."""


@dataclass(frozen=True)
class Pictures:
    """The pixels that a record was computed from, uint8 `[h, w, 3]`; None where unknown."""

    degraded: np.ndarray[Any, Any] | None
    restored: np.ndarray[Any, Any]
    target: np.ndarray[Any, Any] | None


@dataclass(frozen=True)
class Scored:
    """The scores of one image.

    Args:
        name: of the image.
        psnr: dB, infinite for equal images; NaN without a target or a finite restoration.
        ssim: in [-1, 1]; NaN as `psnr`.
        more: further metrics by name.
        degraded: PSNR and SSIM of the input, where they were asked for and it is known.
        by_seed: PSNR of each seed, where the scores are means over several.
        seconds: that restoring took; 0 for saved files.
        pictures: the pixels, where they were asked for.
        notes: what did not go as planned while it was restored.
    """

    name: str
    psnr: float
    ssim: float
    more: dict[str, float] = field(default_factory=dict)
    degraded: Score | None = None
    by_seed: tuple[float, ...] = ()
    seconds: float = field(default=0.0, compare=False)
    pictures: Pictures | None = field(default=None, compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Scorer:
    """How images are scored, wherever they come from.

    Args:
        protocol: of PSNR and SSIM.
        border: pixels that are skipped on each side, for PSNR and SSIM, besides the protocol's.
        metrics: further metrics by name.
        inputs: score the degraded inputs too.
        pictures: keep the pixels.
    """

    protocol: Protocol
    border: int = 0
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    inputs: bool = False
    pictures: bool = False

    def __call__(
        self,
        name: str,
        restored: Tensor,
        target: Tensor,
        degraded: Tensor | None = None,
    ) -> Scored:
        """Score one image, `[1, 3, h, w]` RGB on the scale 0 .. 255 as all that it is given.

        Raises:
            DataError: the image without its border is smaller than SSIM's window.
        """
        height, width = target.shape[-2:]
        border = self.border + self.protocol.border
        if min(height, width) - 2 * border < WINDOW:
            inside = f" inside a border of {border} px" if border else ""
            raise DataError(
                f"{width} x {height} px, but SSIM needs {WINDOW} x {WINDOW}{inside}",
                where=name,
                hint="leave small images out",
            )
        own = score(restored, target, self.protocol, self.border)[0]
        return Scored(
            name,
            own.psnr,
            own.ssim,
            {key: metric(restored, target) for key, metric in self.metrics.items()},
            score(degraded, target, self.protocol, self.border)[0]
            if self.inputs and degraded is not None
            else None,
            pictures=pictures_of(restored, target, degraded) if self.pictures else None,
        )


def restore_and_score(
    source: PairSource, indices: Iterable[int], restorers: Sequence[Restore], scorer: Scorer
) -> Iterator[Scored]:
    """Restore pairs, each by every restorer, and score the results.

    On 8 bits, or on the unrounded output where the protocol wants it.

    Yields:
        For each pair, one record a restorer, in their order. The scores are NaN where the
        restoration has a value that is not finite.

    Raises:
        DataError: a pair that cannot be read or is smaller than SSIM's window.
    """
    for i in indices:
        pair = source.pair(i)
        lq, gt = as_tensor(pair.lq), as_tensor(pair.gt)
        for restorer in restorers:
            started = time.perf_counter()
            restored = restorer(to_unit(lq), [pair.noise_name])
            seconds = time.perf_counter() - started
            image, notes = restored.image, tuple(restored.notes)
            if not image.isfinite().all():
                yield Scored(pair.name, math.nan, math.nan, seconds=seconds, notes=notes)
                continue
            image = image * MAX_VALUE if scorer.protocol.unrounded else to_uint8(image)
            yield replace(scorer(pair.name, image, gt, lq), seconds=seconds, notes=notes)


def notes_of(scored: Iterable[Scored]) -> list[str]:
    """What did not go as planned, each note once."""
    return list(dict.fromkeys(note for one in scored for note in one.notes))


def pictures_of(restored: Tensor, target: Tensor | None, degraded: Tensor | None) -> Pictures:
    """`[1, 3, h, w]` on the scale 0 .. 255 as pixels."""
    return Pictures(
        None if degraded is None else _pixels(degraded),
        _pixels(restored),
        None if target is None else _pixels(target),
    )


def _pixels(image: Tensor) -> np.ndarray[Any, Any]:
    whole = image if image.dtype == torch.uint8 else image.round().clamp(0, 255).to(torch.uint8)
    return whole[0].permute(1, 2, 0).contiguous().numpy()


def spread_indices(count: int, wanted: int) -> list[int]:
    """Up to `wanted` indices spread evenly over `count` pairs; all of them when wanted is 0."""
    if wanted <= 0 or wanted >= count:
        return list(range(count))
    return [i * count // wanted for i in range(wanted)]


def mean_scores(scored: Iterable[Scored]) -> dict[str, float]:
    """Mean PSNR and SSIM; an infinite PSNR makes the mean infinite."""
    scored = list(scored)
    return {
        "psnr": statistics.fmean(one.psnr for one in scored),
        "ssim": statistics.fmean(one.ssim for one in scored),
    }


def finite_or_none(value: Any) -> Any:
    """A value, or nested dictionaries and lists of such, for JSON, which has no infinity."""
    if isinstance(value, dict):
        return {key: finite_or_none(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite_or_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
