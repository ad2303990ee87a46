"""Structural similarity, behind the scores and the fine loss: docs/paper.md, eq. (22)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW = 11
SIGMA = 1.5


def gaussian_window(size: int, sigma: float, like: Tensor) -> Tensor:
    """Normalised Gaussian weights `[size]` centred on `size // 2`, as the released program has it.

    For an even size that is half a pixel off the middle.
    """
    i = torch.arange(size, dtype=like.dtype, device=like.device) - size // 2
    weights = torch.exp(-(i**2) / (2 * sigma**2))
    return weights / weights.sum()


def ssim_terms(
    a: Tensor, b: Tensor, max_val: float, window: int = WINDOW, sigma: float = SIGMA, pad: int = 0
) -> tuple[Tensor, Tensor]:
    """Mean SSIM and mean contrast-structure term of each channel of each image.

    Args:
        a: `[n, c, h, w]` in [0, max_val], sides of at least `window - 2 * pad`.
        b: as a.
        max_val: the data range L in C1 = (0.01 L)^2, C2 = (0.03 L)^2.
        window: side of the Gaussian window.
        sigma: its standard deviation, in pixels.
        pad: zero padding of the window's sums; 0 keeps the valid region only.

    Returns:
        SSIM and contrast-structure, each `[n, c]`.
    """
    n, c = a.shape[:2]
    weights = gaussian_window(window, sigma, torch.empty(0, dtype=a.dtype)).tolist()
    a, b = (x.flatten(0, 1) for x in (a, b))
    sums = torch.cat([a, b, a * a, b * b, a * b])
    for axis in (-2, -1):
        sums = _weighted(sums, weights, axis, pad)
    mu_a, mu_b, aa, bb, ab = sums.chunk(5)
    c1, c2 = (0.01 * max_val) ** 2, (0.03 * max_val) ** 2
    contrast = (2 * (ab - mu_a * mu_b) + c2) / ((aa - mu_a**2) + (bb - mu_b**2) + c2)
    luminance = (2 * mu_a * mu_b + c1) / (mu_a**2 + mu_b**2 + c1)
    means = [x.mean((1, 2)).view(n, c) for x in (luminance * contrast, contrast)]
    return means[0], means[1]


def _weighted(x: Tensor, weights: list[float], axis: int, pad: int) -> Tensor:
    """Sums of x along an axis, weighted, within a sliding window.

    Not a convolution: one with a single channel is slower, and may round to TF32 on a GPU, which
    leaves nothing of a variance that is a difference of such sums.
    """
    x = F.pad(x, (pad, pad) if axis == -1 else (0, 0, pad, pad))
    size = x.shape[axis] - len(weights) + 1
    total = weights[0] * x.narrow(axis, 0, size)
    for k, weight in enumerate(weights[1:], start=1):
        total = torch.add(total, x.narrow(axis, k, size), alpha=weight)
    return total
