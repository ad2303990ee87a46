"""Camera shake: the image averaged along a random trajectory, in linear light."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from c2fdft_cli.data.synthesis.linear_light import to_linear, to_srgb
from c2fdft_cli.data.synthesis.noise import gaussian_noise
from c2fdft_cli.data.synthesis.options import Number, Range, within
from c2fdft_cli.validation import STRICT

Pixels: TypeAlias = NDArray[np.uint8]
Floats: TypeAlias = NDArray[np.float64]

POINTS = 512
JERK_SHARE, JERK_FACTOR = 0.01, 6.0


@dataclass(frozen=True)
class BlurModel:
    """Uniform camera shake; each image draws its own trajectory.

    Attributes:
        size: range of the trajectory's larger extent in px; 0 is no shake.
        inertia: how long the camera keeps its velocity, as a share of the exposure: 0.05 trembles,
            0.3 bends, 2 is nearly straight.
        noise: range of the standard deviation of Gaussian noise added afterwards, 8-bit levels.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    size: Annotated[Range, within(0, 101)] = (5.0, 25.0)
    inertia: Annotated[Number, within(0.01, 10)] = 0.3
    noise: Annotated[Range, within(0, 50)] = (0.0, 2.0)


def add_blur(gt: Pixels, model: BlurModel, rng: np.random.Generator) -> Pixels:
    """Return the shaken image, uint8 [h, w, 3]; borders are mirrored (see `blur_margin`)."""
    kernel = shake_kernel(rng.uniform(*model.size), model.inertia, rng)
    shaken = apply_kernel(gt, kernel)
    sigma = rng.uniform(*model.noise)
    return gaussian_noise(shaken, sigma, rng) if sigma > 0 else shaken


def blur_margin(model: BlurModel) -> int:
    """How far in px a pixel can be smeared: what a crop needs around it to be exact."""
    return math.ceil(model.size[1]) + 1 if model.size[1] > 0 else 0


def shake_kernel(size: float, inertia: float, rng: np.random.Generator) -> Floats:
    """Draw a point-spread function [k, k], k odd, >= 0, sum 1, centroid on the middle pixel.

    The velocity is a random walk with memory, v' = rho v + e, rho = exp(-1 / (inertia * POINTS)),
    with a rare jerk in e; the path is its sum, scaled to `size` px and drawn with bilinear weights,
    so that its centroid and length are exact below the pixel.
    """
    force = rng.normal(0.0, 1.0, (2, POINTS))
    force *= np.where(rng.random(POINTS) < JERK_SHARE, JERK_FACTOR, 1.0)
    memory = np.exp(-np.arange(POINTS) / (inertia * POINTS))
    start = rng.normal(0.0, 1.0, 2) / math.sqrt(1.0 - memory[1] ** 2)
    velocity = np.stack([np.convolve(f, memory)[:POINTS] for f in force])
    path = np.cumsum(velocity + start[:, None] * memory, axis=1)
    path *= size / float(np.ptp(path, axis=1).max())
    return _rasterise(path - path.mean(axis=1, keepdims=True))


def _rasterise(path: Floats) -> Floats:
    """Splat points [2, n] (px from the middle) with bilinear weights into an odd square."""
    radius = math.ceil(float(np.abs(path).max()))
    if not radius:
        return np.ones((1, 1))
    side = 2 * radius + 1
    corner = np.minimum(np.floor(path), radius - 1)
    part = path - corner
    y, x = corner.astype(np.intp) + radius
    kernel = np.zeros(side * side)
    for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
        weight = np.abs(1 - dy - part[0]) * np.abs(1 - dx - part[1])
        kernel += np.bincount((y + dy) * side + x + dx, weights=weight, minlength=side * side)
    kernel /= path.shape[1]
    return kernel.reshape(side, side)


def apply_kernel(gt: Pixels, kernel: Floats) -> Pixels:
    """Convolve each channel with the kernel in linear light, borders mirrored."""
    import cv2

    if kernel.size == 1:
        return gt.copy()
    flipped = kernel[::-1, ::-1].astype(np.float32)
    linear = to_linear(gt)
    shaken = cv2.filter2D(linear, -1, flipped, borderType=cv2.BORDER_REFLECT)
    return to_srgb(shaken)
