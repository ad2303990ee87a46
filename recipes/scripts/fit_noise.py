"""Fit the camera of synthetic noise (kind "raw") to pairs of a noisy and a mean image.

    python recipes/scripts/fit_noise.py PolyU --pairs 30 --evaluations 100

PolyU holds `real/` and `mean/` with the same file names; the first pairs by name are used. Where
the mean image is flat, the difference real - mean gives the autocorrelation of brightness and of
colour, the correlation between channels, and the noise by brightness level, relative to the
picture's noise level. One camera is fitted to the medians of these over the pictures. Then each
picture's noise level gives its shot noise; the range of these is what to train on.
"""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from c2fdft_cli.cli.app import report
from c2fdft_cli.data.images.picture import list_images, read_rgb8
from c2fdft_cli.data.synthesis.camera import LUMA, Camera, jpeg, photograph
from c2fdft_cli.errors import C2fdftError, DataError

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]

LAGS = ((0, 1), (0, 2), (0, 4), (0, 8), (1, 0), (2, 0), (4, 0), (1, 1), (2, 2))
LEVELS = (0, 32, 64, 112, 160, 208, 250)
CROP, LEAST_PIXELS, QUALITY = 320, 800, 95
START = {"read": 0.02, "red": 2.1, "blue": 1.8, "luma": 0.45, "chroma": 1.6, "sharpen": 0.4,
         "tone": 0.85}  # fmt: skip
STEPS = (0.02, 0.3, 0.3, 0.1, 0.3, 0.3, -0.2)
SHOT = 2e-3
log = logging.getLogger("fit_noise")


@dataclass(frozen=True)
class Statistics:
    """Statistics of one picture's noise: `level` in 8-bit levels, the others without a unit."""

    level: float
    spatial: Floats  # [3, lags]: brightness, red - brightness, blue - brightness
    channels: Floats  # [3]: red and green, green and blue, red and blue
    colour: Floats  # [2]: deviation of red - and blue - brightness, in levels of brightness
    by_level: Floats  # [3, levels]: deviation of each channel, in levels of brightness


def statistics(noisy: Pixels, mean: Pixels, flat: NDArray[np.bool_]) -> Statistics:
    """Measure the noise of uint8 [h, w, 3] on the flat pixels [h, w]."""
    noise = noisy.astype(np.float32) - mean
    noise -= cv2.GaussianBlur(noise, (0, 0), 16)
    brightness = noise @ LUMA
    planes = (brightness, noise[..., 0] - brightness, noise[..., 2] - brightness)
    level = float(brightness[flat].std())
    around = cv2.GaussianBlur(mean, (0, 0), 2)
    ranges = list(pairwise(LEVELS))
    by_level = np.full((3, len(ranges)), np.nan)
    for channel in range(3):
        for k, (low, high) in enumerate(ranges):
            inside = flat & (around[..., channel] >= low) & (around[..., channel] < high)
            if inside.sum() >= LEAST_PIXELS:
                by_level[channel, k] = noise[..., channel][inside].std() / level
    together = np.corrcoef(noise[flat].T)
    return Statistics(
        level,
        np.array([[autocorrelation(plane, flat, *lag) for lag in LAGS] for plane in planes]),
        together[(0, 1, 0), (1, 2, 2)],
        np.array([plane[flat].std() / level for plane in planes[1:]]),
        by_level,
    )


def autocorrelation(
    plane: NDArray[np.floating], flat: NDArray[np.bool_], dy: int, dx: int
) -> float:
    """Correlation of flat pixels with those dy below and dx to the right."""
    h, w = plane.shape
    both = flat[: h - dy, : w - dx] & flat[dy:, dx:]
    product = plane[: h - dy, : w - dx] * plane[dy:, dx:]
    return float(product[both].mean() / np.square(plane[flat]).mean())


def medians(all_of: list[Statistics]) -> dict[str, Floats]:
    """Return the median over pictures of each statistic that has no unit."""
    return {
        name: np.nanmedian([getattr(one, name) for one in all_of], axis=0)
        for name in ("spatial", "channels", "colour", "by_level")
    }


def flat_pixels(mean: Pixels) -> NDArray[np.bool_]:
    """Mask the pixels whose surroundings are flat.

    Elsewhere a slight shift of the camera between exposures would count as noise.
    """
    image = mean.astype(np.float32)
    rough = np.abs(image - cv2.GaussianBlur(image, (0, 0), 2)).max(axis=2)
    smooth: Pixels = cv2.erode((rough < 2.5).astype(np.uint8), np.ones((3, 3), np.uint8))
    return smooth > 0


def camera(values: Floats, shot: float) -> Camera:
    """Return the camera with the fitted values, in the order of START, clipped to their ranges."""
    low = np.array([0.0, 1.0, 1.0, 0.0, 0.2, 0.0, 0.0])
    high = np.array([1.0, 4.0, 4.0, 4.0, 8.0, 3.0, 1.0])
    named = dict(zip(START, np.clip(values, low, high).tolist(), strict=True))
    return Camera(shot=shot, **{**named, "read": named["read"] * shot})


def made(
    values: Floats, shot: float, mean: Pixels, flat: NDArray[np.bool_], seed: int
) -> Statistics:
    """Synthesise noise on the mean image, and return its statistics."""
    noisy = photograph(mean, camera(values, shot), np.random.default_rng(seed))
    return statistics(jpeg(noisy, QUALITY), mean, flat)


def main() -> None:
    """Fit, then print the statistics of real and synthetic noise side by side."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--evaluations", type=int, default=100)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    np.set_printoptions(precision=2, suppress=True, linewidth=120)
    real, means = [], []
    for path in list_images(given.folder / "real")[: given.pairs]:
        noisy, mean = read_rgb8(path), read_rgb8(given.folder / "mean" / path.name)
        place = tuple(slice((side - CROP) // 2, (side + CROP) // 2) for side in mean.shape[:2])
        flat = flat_pixels(mean[place])
        if flat.mean() > 0.1:
            real.append(statistics(noisy[place], mean[place], flat))
            means.append((mean[place], flat))
    if not real:
        raise DataError("no picture has enough flat pixels", where=given.folder / "real")
    wanted, part = medians(real), range(0, len(real), 3)

    def cost(values: Floats) -> float:
        got = medians([made(values, SHOT, *means[i], seed=i) for i in part])
        return float(sum(np.nansum((got[key] - wanted[key]) ** 2) for key in wanted))

    start = np.array(list(START.values()))
    simplex = np.vstack([start, start + np.diag(STEPS)])
    settings = {"maxfev": given.evaluations, "initial_simplex": simplex}
    found = minimize(cost, start, method="Nelder-Mead", options=settings)
    log.info("%d pictures, cost %.3f -> %.3f", len(real), cost(start), found.fun)
    log.info("%s", camera(found.x, SHOT))
    again = [made(found.x, SHOT, *pair, seed=100 + i) for i, pair in enumerate(means)]
    for key, value in medians(again).items():
        log.info(
            "%s\n real      %s\n synthetic %s", key, *map(np.array2string, (wanted[key], value))
        )
    shots = [SHOT * (a.level / b.level) ** 2 for a, b in zip(real, again, strict=True)]
    ends = np.percentile(shots, [0, 10, 50, 90, 100])
    log.info("shot noise: %s", ", ".join(f"{one:.2g}" for one in ends))


if __name__ == "__main__":
    try:
        main()
    except C2fdftError as error:
        sys.exit(report(error))
