"""Random paths of a hand that holds a camera."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]

POINTS = 512
JERK_SHARE, JERK_FACTOR = 0.01, 6.0


def random_path(axes: int, inertia: float, rng: np.random.Generator) -> Floats:
    """Sample a path [axes, POINTS] of arbitrary scale, evenly spaced in time over one exposure.

    The velocity is a random walk with memory, v' = rho v + e, rho = exp(-1 / (inertia * POINTS)),
    with a rare jerk in e; the path is its sum.
    """
    force = rng.normal(0.0, 1.0, (axes, POINTS))
    force *= np.where(rng.random(POINTS) < JERK_SHARE, JERK_FACTOR, 1.0)
    memory = np.exp(-np.arange(POINTS) / (inertia * POINTS))
    # The deviation of a walk that has gone on forever: the exposure begins in the middle of a
    # motion, not at rest.
    start = rng.normal(0.0, 1.0, axes) / math.sqrt(1.0 - memory[1] ** 2)
    velocity = np.stack([np.convolve(f, memory)[:POINTS] for f in force])
    path: Floats = np.cumsum(velocity + start[:, None] * memory, axis=1)
    return path
