"""Several draws of the sampler for one image: their mean, and how far they spread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

Restore: TypeAlias = Callable[[Tensor, Sequence[str], int], Tensor]
"""Restored images of (lq: `[n, 3, h, w]` in [0, 1], names, number of the draw)."""


class Restored(NamedTuple):
    """What came out for a batch.

    image: `[n, 3, h, w]` float32 in [0, 1], the mean over all runs.
    spread: `[n, 1, h, w]` float32, the standard deviation over the runs, root mean square over
        the colours; None for a single run.
    """

    image: Tensor
    spread: Tensor | None


def draw(
    restore: Restore, lq: Tensor, names: Sequence[str], draws: int, *, self_ensemble: bool = False
) -> Restored:
    """Restore a batch by `draws` runs of the sampler, each in all 8 positions if asked.

    Args:
        restore: one run; the number of the run decides its noise, and run 0 is the plain one.
        lq: `[n, 3, h, w]` in [0, 1].
        names: the images' names.
        draws: K, at least 1.
        self_ensemble: turn and flip each input, and turn and flip the result back.
    """
    positions = range(8) if self_ensemble else range(1)
    mean: Tensor | None = None
    squares: Tensor | None = None
    count = 0
    for number in range(draws):
        for position in positions:
            turned = turn(lq, position)
            run = number * len(positions) + position
            image = turn_back(restore(turned, names, run), position)
            count += 1
            if mean is None:
                mean = image
                continue
            # Welford's running mean and sum of squared deviations
            squares = torch.zeros_like(mean) if squares is None else squares
            change = image - mean
            mean = mean + change / count
            squares = squares + change * (image - mean)
    if mean is None:
        raise ValueError(f"draws is at least 1, got {draws}")
    if squares is None:
        return Restored(mean, None)
    return Restored(mean, (squares / (count - 1)).mean(1, keepdim=True).sqrt())


def turn(x: Tensor, position: int) -> Tensor:
    """`[..., h, w]` in one of 8 positions: quarter turns 0 to 3, then the same mirrored."""
    if position >= 4:
        x = x.flip(-1)
    return x.rot90(position % 4, (-2, -1))


def turn_back(x: Tensor, position: int) -> Tensor:
    """Undo `turn`."""
    x = x.rot90(-(position % 4), (-2, -1))
    return x.flip(-1) if position >= 4 else x
