"""Statistics over the rows of an evaluation, and the paired comparison of two evaluations."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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
        mean: mean of the finite differences; None if there are none.
        low, high: 95 % confidence interval of that mean; None for fewer than two differences.
        wins, losses, ties: number of images on which A is better, worse or equal; an image without
            a score on one side counts in none of them.
        images: number of finite differences; an infinite PSNR counts only in wins, losses or ties.
        mean_a, mean_b: the means of A and B over all compared images, as in `Summary`.
    """

    mean: float | None
    low: float | None
    high: float | None
    wins: int
    losses: int
    ties: int
    images: int
    mean_a: float | None
    mean_b: float | None


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


def compare(a: Sequence[float], b: Sequence[float], *, lower_wins: bool = False) -> Comparison:
    """Compare two results over the same images, image by image.

    The interval is Student's t for paired differences: mean +/- t * std / sqrt(n).

    Args:
        a, b: scores of the images, in the same order.
        lower_wins: whether the smaller of two scores is the better one.

    Raises:
        ValueError: different lengths, or no images.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} scores against {len(b)}")
    pairs = list(zip(a, b, strict=True))
    finite = [x - y for x, y in pairs if math.isfinite(x) and math.isfinite(y)]
    mean = statistics.fmean(finite) if finite else None
    low = high = None
    if mean is not None and len(finite) > 1:
        # Not the bootstrap, whose interval is too short for few images: see docs/metrics.md.
        half = student_t(len(finite) - 1) * statistics.stdev(finite) / math.sqrt(len(finite))
        low, high = mean - half, mean + half
    higher = sum(x > y for x, y in pairs)
    lower = sum(x < y for x, y in pairs)
    wins, losses = (lower, higher) if lower_wins else (higher, lower)
    ties = sum(x == y for x, y in pairs)
    means = [summarise(side).mean for side in (a, b)]
    return Comparison(mean, low, high, wins, losses, ties, len(finite), *means)


def student_t(freedom: int) -> float:
    """Return the bound that |t| stays within with the probability `CONFIDENCE`.

    Args:
        freedom: degrees of freedom of Student's t distribution, at least 1.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):  # bisection, to the precision of a float
        angle = (low + high) / 2
        low, high = (angle, high) if _share_within(angle, freedom) < CONFIDENCE else (low, angle)
    return math.sqrt(freedom) * math.tan(low)


def _share_within(angle: float, freedom: int) -> float:
    """Return the probability of |t| <= sqrt(freedom) * tan(angle).

    It is a finite sum: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 for odd
    and 26.7.4 for even degrees of freedom.
    """
    odd = freedom % 2
    cosine = math.cos(angle)
    k = np.arange(2 + odd, freedom - 1, 2)
    terms = math.sin(angle) * (1 + float(np.cumprod((k - 1) / k * cosine**2).sum()))
    if not odd:
        return terms
    return 2 / math.pi * (angle + (terms * cosine if freedom > 1 else 0))
