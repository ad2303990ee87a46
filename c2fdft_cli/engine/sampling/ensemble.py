"""The mean over several samples of one image and over its flips and turns (self-ensemble)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from c2fdft_cli.data.symmetries import SYMMETRIES, TURNS, inverse

TRANSFORMS = (0, 1, 2, 3, 4, 5, 6, 7)
UPRIGHT_TRANSFORMS = (0, 2, 4, 6)
"""Those that keep what falls vertical: rain turned on its side is not rain."""


def ensemble_transforms(task: str | None) -> tuple[int, ...]:
    """The transforms of a self-ensemble for weights of a task."""
    return UPRIGHT_TRANSFORMS if task == "derain" else TRANSFORMS


def mean_and_deviation(
    restore: Callable[[Tensor, int], Tensor],
    lq: Tensor,
    samples: int,
    transforms: Sequence[int] = (0,),
) -> tuple[Tensor, Tensor | None]:
    """Restore a batch `samples` times under each of the transforms.

    Args:
        restore: restored images of (lq, number of the sample); the number decides the noise, and
            sample 0 is the plain one.
        lq: `[n, 3, h, w]` in [0, 1].
        samples: at least 1.
        transforms: each input is turned and flipped so (see `transform`), and its result back.

    Returns:
        The mean, `[n, 3, h, w]`, and the per-pixel standard deviation, root mean square over the
        colours, `[n, 1, h, w]`; None where there is one result only.
    """
    numbers = max(transforms, default=0) + 1  # each run has a number, and so a noise, of its own
    runs = [(i * numbers + k, k) for i in range(samples) for k in transforms]
    if not runs:
        raise ValueError(f"samples must be at least 1, got {samples}")
    mean, squares = torch.zeros(()), torch.zeros(())
    for count, (number, k) in enumerate(runs, start=1):
        image = undo_transform(restore(transform(lq, k), number), k)
        if count == 1:
            mean, squares = image, torch.zeros_like(image)
            continue
        # Welford's running mean and sum of squared deviations: squares summed less the squared mean
        # would cancel in float32 where samples hardly differ
        change = image - mean
        mean = mean + change / count
        squares = squares + change * (image - mean)
    if len(runs) == 1:
        return mean, None
    return mean, (squares / (len(runs) - 1)).mean(1, keepdim=True).sqrt()


def transform(x: Tensor, number: int) -> Tensor:
    """`[..., h, w]` under one of 8 transforms: 0 to 3 quarter turns, then the same mirrored."""
    return _transformed(x, TURNS[number])


def undo_transform(x: Tensor, number: int) -> Tensor:
    """The inverse of `transform`."""
    return _transformed(x, inverse(TURNS[number]))


def _transformed(x: Tensor, symmetry: int) -> Tensor:
    transpose, rows, columns = SYMMETRIES[symmetry]
    x = x.mT if transpose else x
    return x.flip([dim for dim, flip in ((-2, rows), (-1, columns)) if flip])
