"""Rain as it looks in photographs: soft streaks that cover a part of the light behind them.

During its exposure a pixel sees a falling drop for a share a of the time, and the scene for the
rest, so in linear light it receives (1 - a) B + a A, A being the light that the drop refracts from
its surroundings (Garg and Nayar, "Vision and rain", IJCV 2007). In front of something dark a streak
is therefore bright, and hardly visible in front of the sky. Drops near the camera are out of focus,
and pictures are sharpened and compressed.
"""

from __future__ import annotations

import math

import numpy as np

from c2fdft_cli.data.pixels import Doubles, Pixels
from c2fdft_cli.data.synthesis.camera import jpeg
from c2fdft_cli.data.synthesis.linear_light import to_linear, to_srgb
from c2fdft_cli.data.synthesis.streak_process import StreakStyle, render

# Ranges chosen by eye from photographs of people in the rain, about 500 px wide.
LAYERS, SCALE, DEPTH = (1, 3), (0.5, 1.8), 1.0
"""Number of layers; scale of the rain, 1 for streaks of 14 px; binary logarithm of the factor by
which the farthest and the nearest layers differ from it."""
LENGTH, WIDTH, BLUR = 14.0, 1.6, (0.35, 1.1)
"""Median length and width in px, and the Gaussian blur's range, of a layer of scale 1."""
COVERAGE, SHARE, MOST = (0.015, 0.4), (0.06, 0.5), 0.95
"""Of a layer: covered pixels, mean share a of a covered pixel; the largest a of a pixel."""
LIGHT, TINT = (0.35, 1.0), 0.06
"""Linear light of the drops, and the largest deviation of a channel from grey."""
SHARPEN, QUALITY = 1.0, (60, 98)
"""Largest share of detail finer than 1 px that a camera adds, and the range of JPEG quality."""


def add_camera_rain(gt: Pixels, lean: float, rng: np.random.Generator) -> Pixels:
    """Return a picture of the scene in the rain, uint8 [h, w, 3] in and out.

    Only the rain is sharpened and compressed: what is added to `gt` is the difference between a
    rainy and a dry picture after these steps. So the network learns nothing about the traces that
    they leave in the scene itself.

    Args:
        gt: the dry scene.
        lean: largest tilt of the rain from the vertical, in degrees.
        rng: the only source of randomness.
    """
    import cv2

    h, w = gt.shape[:2]
    share = covered_share(lean, rng, h, w)[:, :, None].astype(np.float32)
    grey, tint = rng.uniform(*LIGHT), rng.uniform(-TINT, TINT, 3)
    scene = to_linear(gt)
    light = (grey * (1 + tint)).astype(np.float32)
    rain = to_srgb(scene + share * (light - scene)).astype(np.float32) - gt
    rain += np.float32(rng.uniform(0.0, SHARPEN)) * (rain - cv2.GaussianBlur(rain, (0, 0), 1.0))
    quality = int(rng.integers(*QUALITY, endpoint=True))
    rainy = np.clip(np.rint(gt + rain), 0, 255).astype(np.uint8)
    difference = jpeg(rainy, quality).astype(np.int16) - jpeg(gt, quality)
    result: Pixels = np.clip(gt + difference, 0, 255).astype(np.uint8)
    return result


def covered_share(lean: float, rng: np.random.Generator, h: int, w: int) -> Doubles:
    """Sample the share a of the exposure in which a drop is in front of each pixel, [h, w]."""
    import cv2

    wind = float(rng.triangular(-lean, 0.0, lean)) if lean else 0.0
    scale = math.exp(rng.uniform(*np.log(SCALE)))
    free = np.ones((h, w))
    for _ in range(rng.integers(*LAYERS, endpoint=True)):
        near = scale * 2 ** rng.uniform(-DEPTH, DEPTH)
        style = StreakStyle(
            tilt=wind + rng.normal(0.0, 4.0),
            jitter=rng.uniform(1.0, 8.0),
            coverage=math.exp(rng.uniform(*np.log(COVERAGE))),
            level=math.exp(rng.uniform(*np.log(SHARE))),
            length=LENGTH * near * rng.lognormal(0.0, 0.4),
            width=WIDTH * near**0.7,
            flat=rng.uniform(0.0, 0.7),
        )
        layer = cv2.GaussianBlur(render(style, rng, h, w), (0, 0), rng.uniform(*BLUR) * near**0.7)
        free *= 1 - np.minimum(layer, MOST)
    return 1 - free
