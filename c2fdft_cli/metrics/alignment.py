"""The sub-pixel shift between two images: blind deblurring fixes an image only up to a shift."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

STEPS_PER_PIXEL = 4
"""Shifts are searched in quarters of a pixel, as in Levin et al., CVPR 2009 (comp_upto_shift.m)."""


def align(a: Tensor, b: Tensor, reach: int) -> Tensor:
    """Shift `a` bilinearly to where it fits `b` best: the smallest sum of squared differences.

    All shifts of up to `reach` px in each direction are compared, in steps of a quarter pixel.

    Args:
        a: `[c, h + 2 reach, w + 2 reach]`: the image with `reach` px of its surroundings.
        b: `[c, h, w]`: the image that it is compared with.
        reach: the largest shift in px, at least 1.

    Returns:
        `[c, h, w]` float64.
    """
    a, b = a.double(), b.double()
    shifts = torch.arange(2 * reach * STEPS_PER_PIXEL + 1, dtype=torch.float64) / STEPS_PER_PIXEL
    # A bilinear shift reads one pixel beyond its base. So the last shift is not a base of its own,
    # but the base before it shifted by a whole pixel.
    base = shifts.floor().clamp(max=2 * reach - 1)
    part = shifts - base
    error = _squared_errors(a, b, base.long(), part)
    y, x = divmod(int(error.argmin()), len(shifts))
    h, w = b.shape[-2:]
    top, left = int(base[y]), int(base[x])
    window = a[:, top : top + h + 1, left : left + w + 1]
    rows = window[:, :-1] * (1 - part[y]) + window[:, 1:] * part[y]
    return rows[:, :, :-1] * (1 - part[x]) + rows[:, :, 1:] * part[x]


def _squared_errors(a: Tensor, b: Tensor, base: Tensor, part: Tensor) -> Tensor:
    """Return the sum of (shifted a - b)^2 for each pair of shifts, `[n, n]`, less the sum of b^2.

    A bilinear shift is a sum of four windows of `a`, w_00 a_00 + w_01 a_01 + w_10 a_10 + w_11 a_11,
    so its error is a quadratic form in their products, which are needed only per whole pixel.
    """
    size = b.shape[-2:]

    def at(products: Tensor, dy: int, dx: int) -> Tensor:
        return products[base + dy][:, base + dx]

    ends = (1 - part, part)
    weight = {(dy, dx): ends[dy][:, None] * ends[dx] for dy in (0, 1) for dx in (0, 1)}
    with_b = _windows_times(a, b)
    squares = _window_sums(a * a, size)
    error = torch.zeros_like(weight[0, 0])
    for (dy, dx), w in weight.items():
        error += w * w * at(squares, dy, dx) - 2 * w * at(with_b, dy, dx)
    right = _window_sums(a[:, :, :-1] * a[:, :, 1:], size)
    below = _window_sums(a[:, :-1] * a[:, 1:], size)
    falling = _window_sums(a[:, :-1, :-1] * a[:, 1:, 1:], size)
    rising = _window_sums(a[:, 1:, :-1] * a[:, :-1, 1:], size)
    for products, dy, dx, one, other in (
        (right, 0, 0, (0, 0), (0, 1)),
        (right, 1, 0, (1, 0), (1, 1)),
        (below, 0, 0, (0, 0), (1, 0)),
        (below, 0, 1, (0, 1), (1, 1)),
        (falling, 0, 0, (0, 0), (1, 1)),
        (rising, 0, 0, (1, 0), (0, 1)),
    ):
        error += 2 * weight[one] * weight[other] * at(products, dy, dx)
    return error


def _window_sums(image: Tensor, size: torch.Size) -> Tensor:
    """Return the sums of `[c, h, w]` over every window of this size and all channels."""
    # A window's sum is a difference of large numbers, the four corners in one table. Here it is
    # exact: 8-bit values and their products are integers, and float64 holds all up to 2^53.
    summed = F.pad(image.sum(0), (1, 0, 1, 0)).cumsum(0).cumsum(1)
    h, w = size
    return summed[h:, w:] - summed[:-h, w:] - summed[h:, :-w] + summed[:-h, :-w]


def _windows_times(a: Tensor, b: Tensor) -> Tensor:
    """Return the sum of a * b for every position of `b` within the larger `a`."""
    h, w = b.shape[-2:]
    places = [size - part + 1 for size, part in zip(a.shape[-2:], (h, w), strict=True)]
    products = [
        torch.dot(a[:, y : y + h, x : x + w].flatten(), b.flatten())
        for y in range(places[0])
        for x in range(places[1])
    ]
    return torch.stack(products).view(places)
