"""Restore pairs and score the results: the loop that validation, sweep and evaluation share."""

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
from c2fdft_cli.data.images.samples import to_8bit
from c2fdft_cli.data.images.tensors import as_tensor, interleaved, to_integers, to_unit
from c2fdft_cli.data.pixels import Pixels
from c2fdft_cli.engine.sampling.executor import Restored
from c2fdft_cli.engine.sampling.pairs import DecodedPair, PairSource
from c2fdft_cli.errors import DataError
from c2fdft_cli.metrics.protocols import MAX_VALUE, Protocol, Score, crop, score, score_crops

Metric = Callable[[Tensor, Tensor], float]
"""An additional score of (restored, target), both `[1, 3, h, w]` on the scale 0 .. 255."""


Restore = Callable[[Tensor, Sequence[str]], Restored]
"""Restores (`lq: [1, 3, h, w]` in [0, 1], list of its name); the result is on the CPU."""


@dataclass(frozen=True)
class Pictures:
    """The pixels that a record was computed from, uint8 `[h, w, 3]`; None if not known."""

    degraded: Pixels | None
    restored: Pixels
    target: Pixels | None


@dataclass(frozen=True)
class Scored:
    """The scores of one image.

    Args:
        name: the image's name.
        psnr: dB, infinite for equal images; NaN without a target or if the restored image is not
            finite.
        ssim: in [-1, 1]; NaN in the same cases.
        more: additional metrics by name.
        degraded: PSNR and SSIM of the input, if requested and the input is known.
        by_seed: PSNR for each seed, if the scores are means over several.
        seconds: how long the restoration took; 0 for saved files.
        pictures: the pixels, if requested.
        notes: unexpected events during the restoration.
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
        protocol: the protocol of PSNR and SSIM.
        border: pixels to skip on each side, in addition to the protocol's border.
        metrics: additional metrics by name, of the pixels that PSNR and SSIM score.
        inputs: whether to score the degraded inputs too.
        pictures: whether to keep the pixels.
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
        """Score one image; all images are `[1, 3, h, w]` RGB on the scale 0 .. 255.

        Raises:
            DataError: the image without its border is smaller than SSIM's window.
        """
        height, width = target.shape[-2:]
        refuse_small(name, height, width, self.border + self.protocol.border)
        crops = crop(restored, target, self.protocol, self.border)
        own = score_crops(*crops, self.protocol)[0]
        return Scored(
            name,
            own.psnr,
            own.ssim,
            {key: metric(*crops) for key, metric in self.metrics.items()},
            score(degraded, target, self.protocol, self.border)[0]
            if self.inputs and degraded is not None
            else None,
            pictures=pictures_of(restored, target, degraded) if self.pictures else None,
        )


def refuse_small(name: str, height: int, width: int, border: int) -> None:
    """Raise DataError if an image without its border is smaller than SSIM's window."""
    if min(height, width) - 2 * border < WINDOW:
        inside = f" inside a border of {border} px" if border else ""
        raise DataError(
            f"{width} x {height} px, but SSIM needs {WINDOW} x {WINDOW}{inside}",
            where=name,
            hint="remove small images from the set",
        )


def refuse_small_pairs(pairs: PairSource, indices: Iterable[int], protocol: Protocol) -> None:
    """Raise DataError, before hours of work, if one of the pairs is smaller than SSIM's window."""
    for i in indices:
        refuse_small(pairs.names[i], *pairs.size(i), protocol.border)


def restore_and_score(
    source: PairSource, indices: Iterable[int], restorers: Sequence[Restore], scorer: Scorer
) -> Iterator[Scored]:
    """Restore each pair with every restorer, and score the results.

    The output is rounded first as it is when saved, unless the protocol is for unrounded output.

    Yields:
        For each pair, one record per restorer, in their order. The scores are NaN if the restored
        image has a value that is not finite.

    Raises:
        DataError: a pair cannot be read or is smaller than SSIM's window.
    """
    for i in indices:
        pair = source.pair(i)
        lq, gt = (levels(pixels, scorer.protocol) for pixels in (pair.lq, pair.gt))
        for restorer in restorers:
            started = time.perf_counter()
            restored = restorer(to_unit(as_tensor(pair.lq)), [pair.noise_name])
            seconds = time.perf_counter() - started
            image, notes = restored.image, tuple(restored.notes)
            if not image.isfinite().all():
                yield Scored(pair.name, math.nan, math.nan, seconds=seconds, notes=notes)
                continue
            image = _as_saved(image, pair, scorer.protocol)
            yield replace(scorer(pair.name, image, gt, lq), seconds=seconds, notes=notes)


def _as_saved(image: Tensor, pair: DecodedPair, protocol: Protocol) -> Tensor:
    """Convert `[1, 3, h, w]` in [0, 1] to the levels that a file made by `restore` would have.

    The file is grey and has 16 bits if the degraded one is and has. With a protocol for unrounded
    output, nothing is rounded.
    """
    if protocol.unrounded:
        return MAX_VALUE * (image.mean(1, keepdim=True).expand_as(image) if pair.grey else image)
    depth = 16 if pair.lq.dtype == np.uint16 else 8
    return levels(interleaved(to_integers(image[0], depth, grey=pair.grey)), protocol)


def levels(pixels: np.ndarray[Any, Any], protocol: Protocol) -> Tensor:
    """Convert pixels `[h, w, 3]` to `[1, 3, h, w]` on the scale 0 .. 255, as they are scored.

    16 bits are rounded to 8, except with a protocol for unrounded output.
    """
    if pixels.dtype != np.uint16:
        return as_tensor(pixels)
    # 65535 = 255 * 257
    return as_tensor(pixels / 257.0 if protocol.unrounded else to_8bit(pixels))


def notes_of(scored: Iterable[Scored]) -> list[str]:
    """Return the notes of all records, each of them once."""
    return list(dict.fromkeys(note for one in scored for note in one.notes))


def pictures_of(restored: Tensor, target: Tensor | None, degraded: Tensor | None) -> Pictures:
    """Convert images, `[1, 3, h, w]` on the scale 0 .. 255, to pixels."""
    return Pictures(
        None if degraded is None else _pixels(degraded),
        _pixels(restored),
        None if target is None else _pixels(target),
    )


def _pixels(image: Tensor) -> Pixels:
    whole = image if image.dtype == torch.uint8 else image.round().clamp(0, 255).to(torch.uint8)
    return whole[0].permute(1, 2, 0).contiguous().numpy()


def spread_indices(count: int, wanted: int) -> list[int]:
    """Return up to `wanted` indices spread evenly over `count` pairs; all if `wanted` is 0."""
    if wanted <= 0 or wanted >= count:
        return list(range(count))
    return [i * count // wanted for i in range(wanted)]


def mean_scores(scored: Iterable[Scored | Score]) -> dict[str, float]:
    """Return the mean PSNR and SSIM; an infinite PSNR makes the mean infinite."""
    scored = list(scored)
    return {
        "psnr": statistics.fmean(one.psnr for one in scored),
        "ssim": statistics.fmean(one.ssim for one in scored),
    }
