"""The learning rate of the official recipes: docs/paper.md, eq. (19)."""

from __future__ import annotations

import math
from collections.abc import Sequence


def learning_rate(iteration: int, lr: float, periods: Sequence[tuple[int, float]]) -> float:
    """Return the learning rate: in each period a cosine from lr down to that period's floor.

    Args:
        iteration: finished iterations, from 0; iteration k of the training uses `k - 1`.
        lr: the rate at the start of each period.
        periods: (length in iterations, floor) of each period.

    Returns:
        The rate; after the last period, its floor.
    """
    floor = lr
    for length, period_floor in periods:
        floor = period_floor
        if iteration < length:
            return floor + 0.5 * (lr - floor) * (1 + math.cos(math.pi * iteration / length))
        iteration -= length
    return floor
