"""Structural similarity, the one implementation behind the scores and the fine loss."""

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
    weights = gaussian_window(window, sigma, a)

    def blur(x: Tensor) -> Tensor:
        x = F.conv2d(x, weights.view(1, 1, -1, 1), padding=(pad, 0))
        return F.conv2d(x, weights.view(1, 1, 1, -1), padding=(0, pad))

    a, b = (x.flatten(0, 1)[:, None] for x in (a, b))
    mu_a, mu_b, aa, bb, ab = blur(torch.cat([a, b, a * a, b * b, a * b])).chunk(5)
    c1, c2 = (0.01 * max_val) ** 2, (0.03 * max_val) ** 2
    contrast = (2 * (ab - mu_a * mu_b) + c2) / ((aa - mu_a**2) + (bb - mu_b**2) + c2)
    luminance = (2 * mu_a * mu_b + c1) / (mu_a**2 + mu_b**2 + c1)
    means = [x.mean((1, 2, 3)).view(n, c) for x in (luminance * contrast, contrast)]
    return means[0], means[1]
