"""Scores by protocol: docs/paper.md, "Scoring". Images: `[n, 3, h, w]` RGB on the 8-bit scale."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from c2fdft_cli.core.ssim import SIGMA, WINDOW, gaussian_window
from c2fdft_cli.metrics.alignment import align

MAX_VALUE = 255.0
_STRIP = 64  # rows at a time, whose local sums stay in a core's cache


@dataclass(frozen=True)
class Protocol:
    """How a task's results are scored.

    name: the name that is printed beside the score.
    describes: the formula in words.
    luma: score the BT.601 studio-range Y channel instead of RGB.
    round_luma: round Y, as MATLAB does for uint8.
    unrounded: score the float output, if it is available, instead of the saved 8-bit image.
    border: pixels that are skipped on each side, in addition to those that the caller skips.
    reach: before scoring, shift the restored image to its best position, up to this many px.
    """

    name: str
    describes: str
    luma: bool = False
    round_luma: bool = False
    unrounded: bool = False
    border: int = 0
    reach: int = 0


PROTOCOLS = {
    p.name: p
    for p in (
        Protocol("derain", "Y channel (BT.601 studio), 8-bit images", luma=True),
        Protocol(
            "derain-matlab", "Y channel rounded as MATLAB, 8-bit images", luma=True, round_luma=True
        ),
        Protocol("deblur", "RGB, 8-bit images"),
        Protocol("denoise", "RGB, unrounded if available", unrounded=True),
        Protocol("rgb", "RGB, 8-bit images"),
        Protocol("y", "Y channel (BT.601 studio), 8-bit images", luma=True),
        Protocol(
            "levin",
            "RGB, 8-bit images, best shift up to 5 px in quarters, border of 15 px skipped",
            border=15,
            reach=5,
        ),
    )
}


@dataclass(frozen=True)
class Score:
    """PSNR in dB (infinite for equal images) and SSIM in [-1, 1] of one image."""

    psnr: float
    ssim: float


def luma(rgb: Tensor) -> Tensor:
    """Compute BT.601 studio Y = 16 + (65.481 R + 128.553 G + 24.966 B) / 255, not rounded.

    Args:
        rgb: `[n, 3, h, w]` in [0, 255].

    Returns:
        `[n, 1, h, w]` float64 in [16, 235].
    """
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=torch.float64, device=rgb.device)
    return 16 + (rgb.double() * weights.view(1, 3, 1, 1)).sum(1, keepdim=True) / 255


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each image, over all its channels and pixels.

    Args:
        a: `[n, c, h, w]` on the scale 0 .. 255.
        b: as a.

    Returns:
        `[n]` float64; infinite for equal images.

    Raises:
        ValueError: different shapes.
    """
    _check_shapes(a, b)
    error = (a.double() - b.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(MAX_VALUE**2 / error)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of each image: 11x11 Gaussian, sigma 1.5, valid region, channel mean.

    Args:
        a: `[n, c, h, w]` on the scale 0 .. 255, sides of at least 11.
        b: as a.

    Returns:
        `[n]` float64.

    Raises:
        ValueError: different shapes, or sides under 11.
    """
    _check_shapes(a, b)
    if min(a.shape[-2:]) < WINDOW:
        raise ValueError(f"SSIM needs sides of at least {WINDOW}, got {list(a.shape[-2:])}")
    n, c, h, w = a.shape
    planes = [x.detach().cpu().double().reshape(n * c, h, w).numpy() for x in (a, b)]
    means = [_mean_ssim(*pair) for pair in zip(*planes, strict=True)]
    return torch.tensor(means, dtype=torch.float64, device=a.device).view(n, c).mean(1)


def _mean_ssim(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """Return mean SSIM of one channel `[h, w]`: `ssim_terms` without gradients, and much faster."""
    weights = gaussian_window(WINDOW, SIGMA, torch.empty(0, dtype=torch.float64)).numpy()
    half = WINDOW // 2
    height, width = (side - 2 * half for side in a.shape)
    c1, c2 = (0.01 * MAX_VALUE) ** 2, (0.03 * MAX_VALUE) ** 2
    total = 0.0
    # The plain formula, whose variances are differences of large numbers: float64 has enough
    # digits. The loss is in float32, and therefore uses sum and difference of the images
    # (`core.ssim`).
    for top in range(0, height, _STRIP):
        x, y = (plane[top : top + _STRIP + 2 * half] for plane in (a, b))
        mu_x, mu_y, squares, products = (
            # Crop to the valid region: near the border the filter extrapolates the image.
            cv2.sepFilter2D(values, cv2.CV_64F, weights, weights)[half:-half, half:-half]
            for values in (x, y, x * x + y * y, x * y)
        )
        mu_squares, mu_products = mu_x * mu_x + mu_y * mu_y, mu_x * mu_y
        contrast = (2 * (products - mu_products) + c2) / (squares - mu_squares + c2)
        total += float(((2 * mu_products + c1) / (mu_squares + c1) * contrast).sum())
    return float(total / (height * width))


def score(a: Tensor, b: Tensor, protocol: Protocol, border: int = 0) -> list[Score]:
    """Score each image of a batch against its target.

    Args:
        a: restored, `[n, 3, h, w]` RGB on the scale 0 .. 255 (uint8, or float if unrounded).
        b: target, as a.
        protocol: one of `PROTOCOLS`.
        border: pixels to skip on each side, in addition to the protocol's own.

    Raises:
        ValueError: different shapes, or nothing left to score.
    """
    return score_crops(*crop(a, b, protocol, border), protocol)


def crop(a: Tensor, b: Tensor, protocol: Protocol, border: int = 0) -> tuple[Tensor, Tensor]:
    """Return the pixels that a protocol scores: without the border, and at the best shift.

    Args:
        a, b, protocol, border: as for `score`.

    Returns:
        Both images, `[n, 3, h - 2 borders, w - 2 borders]`; the restored one is float64 if the
        protocol searches for the best shift.

    Raises:
        ValueError: different shapes, or nothing left to score.
    """
    _check_shapes(a, b)
    border += protocol.border
    height, width = b.shape[-2:]
    if min(height, width) <= 2 * border:
        size = f"{width} x {height} px"
        raise ValueError(f"nothing is left to score of {size} inside a border of {border} px")
    if protocol.reach:
        # The restored image keeps `reach` more pixels on each side, which a shift can move into
        # the scored area.
        a = _crop(a, border - protocol.reach)
        b = _crop(b, border)
        return torch.stack([align(*pair, protocol.reach) for pair in zip(a, b, strict=True)]), b
    return _crop(a, border), _crop(b, border)


def score_crops(a: Tensor, b: Tensor, protocol: Protocol) -> list[Score]:
    """Score images that `crop` returned."""
    if protocol.luma:
        a, b = luma(a), luma(b)
        if protocol.round_luma:
            a, b = a.round(), b.round()
    pairs = zip(psnr(a, b).tolist(), ssim(a, b).tolist(), strict=True)
    return [Score(p, s) for p, s in pairs]


def _crop(image: Tensor, border: int) -> Tensor:
    h, w = image.shape[-2:]
    return image[..., border : h - border, border : w - border]


def _check_shapes(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape or a.dim() != 4:
        raise ValueError(f"expected one shape [n, c, h, w], got {list(a.shape)}, {list(b.shape)}")
