"""Noise: white Gaussian on 8-bit values, or a camera's (Poisson-Gaussian in linear light)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from c2fdft_cli.data.synthesis.linear_light import to_linear, to_srgb
from c2fdft_cli.data.synthesis.options import Number, Range, within
from c2fdft_cli.validation import STRICT

Pixels: TypeAlias = NDArray[np.uint8]
Floats: TypeAlias = NDArray[np.float32]

# Brooks et al., "Unprocessing images for learned raw denoising", CVPR 2019, section 3.1:
# log(read variance) = 2.18 log(shot) + 1.2, +- 0.26, fitted to a real camera's noise.
READ_SLOPE, READ_OFFSET, READ_SPREAD = 2.18, 1.2, 0.26


@dataclass(frozen=True)
class NoiseModel:
    """Gaussian or camera noise; each image draws its own level from the range.

    Attributes:
        kind: "gaussian" (white, on sRGB values), "camera" (shot and read noise in linear light), or
            "either": each image draws which.
        sigma: gaussian: standard deviation in 8-bit levels.
        shot: camera: variance per unit of linear light, drawn evenly in its logarithm.
        correlated: camera: neighbours share noise, as they do after demosaicing.
        camera_share: either: the share of images with camera noise.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    kind: Literal["gaussian", "camera", "either"] = "gaussian"
    sigma: Annotated[Range, within(0, 255)] = (5.0, 50.0)
    shot: Annotated[Range, within(1e-6, 1)] = (1e-4, 1.2e-2)
    correlated: bool = True
    camera_share: Annotated[Number, within(0, 1)] = 0.5


def add_noise(gt: Pixels, model: NoiseModel, rng: np.random.Generator) -> Pixels:
    """Return the noisy image, rounded and clipped; uint8 [h, w, 3] in and out."""
    camera = model.kind == "camera"
    if model.kind == "either":
        camera = rng.random() < model.camera_share
    if camera:
        log_shot = rng.uniform(*np.log(model.shot))
        read = READ_SLOPE * log_shot + READ_OFFSET + rng.normal(0.0, READ_SPREAD)
        shot, read = math.exp(log_shot), math.exp(read)
        return to_srgb(camera_noise(to_linear(gt), shot, read, rng, correlated=model.correlated))
    return gaussian_noise(gt, rng.uniform(*model.sigma), rng)


def gaussian_noise(gt: Pixels, sigma: float, rng: np.random.Generator) -> Pixels:
    """Return clip(round(gt + sigma * n)), n ~ N(0, I); sigma in 8-bit levels."""
    noisy = rng.standard_normal(gt.shape, dtype=np.float32)
    noisy *= np.float32(sigma)
    noisy += gt
    return np.clip(np.rint(noisy, out=noisy), 0, 255).astype(np.uint8)


def camera_noise(
    linear: Floats, shot: float, read: float, rng: np.random.Generator, *, correlated: bool
) -> Floats:
    """Return x + sqrt(shot * x + read) * n for linear light x, float32 [h, w, 3], not clipped.

    Args:
        linear: x in [0, 1].
        shot: variance per unit of light.
        read: variance without light.
        rng: the only source of randomness.
        correlated: filter n as bilinear demosaicing would, at the same variance.
    """
    h, w = linear.shape[:2]
    n = _demosaiced(rng, h, w) if correlated else rng.standard_normal((h, w, 3), dtype=np.float32)
    deviation = np.sqrt(np.float32(shot) * linear + np.float32(read))
    noisy: Floats = linear + deviation * n
    return noisy


def _demosaiced(rng: np.random.Generator, h: int, w: int) -> Floats:
    """Unit-variance noise with the neighbourhoods of bilinear Bayer interpolation.

    Red and blue (a quarter of the sites): [1 2 1] x [1 2 1]; green (half): 4 and a cross of 1.
    """
    n = rng.standard_normal((h + 2, w + 2, 3), dtype=np.float32)
    rows = n[:-2] + 2 * n[1:-1] + n[2:]
    square = rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]
    cross = rows[:, 1:-1, 1] + 2 * n[1:-1, 1:-1, 1] + n[1:-1, :-2, 1] + n[1:-1, 2:, 1]
    mixed: Floats = square / np.float32(6.0)
    mixed[:, :, 1] = cross / np.float32(math.sqrt(20.0))
    return mixed
