"""Statistics over the rows of an evaluation, and the paired comparison of two evaluations."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
CONFIDENCE = 0.95
WORST = 5


@dataclass(frozen=True)
class Summary:
    """Mean, median (either may be infinite) and standard deviation (n - 1) of a score.

    A field is None if it cannot be computed.
    """

    mean: float | None
    median: float | None
    std: float | None


@dataclass(frozen=True)
class Comparison:
    """Paired difference A - B of a score.

    Args:
        mean: mean of the differences.
        low, high: bootstrap confidence interval of that mean.
        wins, losses, ties: number of images on which A is better, worse or equal; an image without
            a score on one side counts in none of them.
        images: number of finite differences; an infinite PSNR counts only in wins, losses or ties.
    """

    mean: float
    low: float
    high: float
    wins: int
    losses: int
    ties: int
    images: int


def summarise(values: Sequence[float]) -> Summary:
    """Compute the statistics of one score over all images.

    An infinite value makes the mean infinite; if any image has no value (NaN), all are None.
    """
    if any(map(math.isnan, values)):
        return Summary(None, None, None)
    mean, median = statistics.fmean(values), statistics.median(values)
    finite = all(map(math.isfinite, values))
    std = statistics.stdev(values) if finite and len(values) > 1 else None
    return Summary(mean, median, std)


def worst(names: Sequence[str], values: Sequence[float]) -> list[str]:
    """Return the names of the `WORST` images with the lowest scores, lowest first.

    Images without a score (NaN), whose pixels are not finite, come before all others.
    """
    lowest = [-math.inf if math.isnan(value) else value for value in values]
    order = sorted(range(len(names)), key=lambda i: (lowest[i], names[i]))
    return [names[i] for i in order[:WORST]]


def compare(
    a: Sequence[float], b: Sequence[float], seed: int = 0, *, lower_wins: bool = False
) -> Comparison:
    """Compare two results over the same images, image by image.

    The interval is the 2.5 % to 97.5 % range of the mean difference over 10,000 resamples of the
    images (percentile bootstrap).

    Args:
        a, b: scores of the images, in the same order.
        seed: seed of the resampling.
        lower_wins: whether the smaller of two scores is the better one.

    Raises:
        ValueError: different lengths, or no image with a finite difference.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} scores against {len(b)}")
    finite = np.array(
        [x - y for x, y in zip(a, b, strict=True) if math.isfinite(x) and math.isfinite(y)]
    )
    if not len(finite):
        raise ValueError("no image has a finite score on both sides")
    rng = np.random.default_rng(seed)
    # Sample indices in blocks of 80 MB, however many images there are.
    block = max(1, 10_000_000 // len(finite))
    means: list[float] = []
    while len(means) < RESAMPLES:
        rows = min(block, RESAMPLES - len(means))
        picks = rng.integers(0, len(finite), (rows, len(finite)))
        means += finite[picks].mean(1).tolist()
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    higher = sum(x > y for x, y in zip(a, b, strict=True))
    lower = sum(x < y for x, y in zip(a, b, strict=True))
    wins, losses = (lower, higher) if lower_wins else (higher, lower)
    ties = sum(x == y for x, y in zip(a, b, strict=True))
    return Comparison(
        float(finite.mean()), float(low), float(high), wins, losses, ties, len(finite)
    )
