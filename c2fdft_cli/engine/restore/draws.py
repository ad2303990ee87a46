"""Several draws of the sampler for one image: their mean, and how far they spread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from c2fdft_cli.data.symmetries import SYMMETRIES, TURNS, inverse

Restore: TypeAlias = Callable[[Tensor, Sequence[str], int], Tensor]
"""Restored images of (lq: `[n, 3, h, w]` in [0, 1], names, number of the draw)."""


POSITIONS = (0, 1, 2, 3, 4, 5, 6, 7)
UPRIGHT = (0, 2, 4, 6)
"""The positions that leave what falls vertical: rain turned on its side is not rain."""


def ensemble_positions(task: str | None) -> tuple[int, ...]:
    """The positions of a self-ensemble for weights of a task."""
    return UPRIGHT if task == "derain" else POSITIONS


class Restored(NamedTuple):
    """What came out for a batch.

    image: `[n, 3, h, w]` float32 in [0, 1], the mean over all runs.
    spread: `[n, 1, h, w]` float32, the standard deviation over the runs, root mean square over
        the colours; None for a single run.
    """

    image: Tensor
    spread: Tensor | None


def draw(
    restore: Restore,
    lq: Tensor,
    names: Sequence[str],
    draws: int,
    positions: Sequence[int] = (0,),
) -> Restored:
    """Restore a batch by `draws` runs of the sampler, each in the given positions.

    Args:
        restore: one run; the number of the run decides its noise, and run 0 is the plain one.
        lq: `[n, 3, h, w]` in [0, 1].
        names: the images' names.
        draws: K, at least 1.
        positions: each input is turned and flipped so (see `turn`), and the result back.
    """
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
    return _transformed(x, TURNS[position])


def turn_back(x: Tensor, position: int) -> Tensor:
    """Undo `turn`."""
    return _transformed(x, inverse(TURNS[position]))


def _transformed(x: Tensor, symmetry: int) -> Tensor:
    transpose, rows, columns = SYMMETRIES[symmetry]
    x = x.mT if transpose else x
    return x.flip([dim for dim, flip in ((-2, rows), (-1, columns)) if flip])
