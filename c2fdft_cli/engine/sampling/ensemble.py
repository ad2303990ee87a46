"""Average over several samples of an image, and over its flips and rotations (self-ensemble)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from c2fdft_cli.data.symmetries import SYMMETRIES, TURNS, inverse
from c2fdft_cli.vocabulary import TASKS

TRANSFORMS = (0, 1, 2, 3, 4, 5, 6, 7)
UPRIGHT_TRANSFORMS = (0, 2, 4, 6)
"""The transforms without a quarter turn."""


def transforms_for(task: str | None, self_ensemble: bool) -> tuple[int, ...]:
    """Return the transforms to average over with weights of a task.

    Without self-ensemble this is the identity alone.
    """
    if not self_ensemble:
        return (0,)
    is_upright = task in TASKS and TASKS[task].is_upright
    return UPRIGHT_TRANSFORMS if is_upright else TRANSFORMS


def mean_and_deviation(
    restore: Callable[[Tensor, int], Tensor],
    lq: Tensor,
    samples: int,
    transforms: Sequence[int] = (0,),
) -> tuple[Tensor, Tensor | None]:
    """Restore a batch `samples` times under each transform; return mean and standard deviation.

    Args:
        restore: restores (lq, number of the run); the number decides the noise, and number 0 is
            what a single restoration uses.
        lq: `[n, 3, h, w]` in [0, 1].
        samples: at least 1.
        transforms: numbers for `transform`, which is applied to the inputs and undone on the
            results.

    Returns:
        The mean, `[n, 3, h, w]`, and the per-pixel standard deviation, root mean square over the
        colours, `[n, 1, h, w]`; None instead if there is only one result.
    """
    numbers = max(transforms, default=0) + 1  # every run gets a different number, so other noise
    runs = [(i * numbers + k, k) for i in range(samples) for k in transforms]
    if not runs:
        raise ValueError(f"samples must be at least 1, got {samples}")
    mean = squares = torch.empty(0, dtype=torch.float32)
    for count, (number, k) in enumerate(runs, start=1):
        image = undo_transform(restore(transform(lq, k), number), k)
        if count == 1:
            mean, squares = image, torch.zeros_like(image)
        else:
            mean, squares = _with_one_more(mean, squares, image, count)
        del image  # not kept during the next run
    if len(runs) == 1:
        return mean, None
    return mean, (squares / (len(runs) - 1)).mean(1, keepdim=True).sqrt()


def _with_one_more(
    mean: Tensor, squares: Tensor, image: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Return Welford's running mean and sum of squared deviations after the image number `count`.

    The difference between the mean of the squares and the squared mean would cancel in float32 if
    the samples hardly differ.
    """
    change = image - mean
    mean = mean + change / count
    return mean, squares + change * (image - mean)


def transform(x: Tensor, number: int) -> Tensor:
    """Apply transform 0 to 7 to `[..., h, w]`: 0 to 3 quarter turns, then the same mirrored."""
    return _transformed(x, TURNS[number])


def undo_transform(x: Tensor, number: int) -> Tensor:
    """Apply the inverse of `transform`."""
    return _transformed(x, inverse(TURNS[number]))


def _transformed(x: Tensor, symmetry: int) -> Tensor:
    transpose, rows, columns = SYMMETRIES[symmetry]
    x = x.mT if transpose else x
    flipped = [dim for dim, flip in ((-2, rows), (-1, columns)) if flip]
    return x.flip(flipped) if flipped else x  # without axes, `flip` copies
