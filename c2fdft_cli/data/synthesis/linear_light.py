"""sRGB <-> linear light (IEC 61966-2-1) by table."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# Near black one 8-bit level is 1/3295 of linear light: this many steps keep it apart five times,
# and bring every stored value back through an S-curve too, though that is flat at its ends.
STEPS = 16384


@lru_cache(maxsize=1)
def _decoding() -> NDArray[np.float32]:
    """Linear light of each 8-bit level."""
    v = np.arange(256) / 255
    light = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    return np.asarray(light, dtype=np.float32)


@lru_cache(maxsize=1)
def srgb_curve() -> NDArray[np.float64]:
    """The sRGB value in [0, 1] of each of STEPS values of linear light."""
    x = np.arange(STEPS) / (STEPS - 1)
    return np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055)


@lru_cache(maxsize=1)
def _encoding() -> NDArray[np.uint8]:
    """The nearest 8-bit level of each of STEPS values of linear light."""
    levels: NDArray[np.uint8] = np.rint(srgb_curve() * 255).astype(np.uint8)
    return levels


def to_linear(srgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return linear light in [0, 1], float32, for 8-bit sRGB of any shape."""
    return _decoding()[srgb]


def to_srgb(linear: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return 8-bit sRGB, clipped, for linear light; `to_srgb(to_linear(v)) == v` for every v."""
    index = np.clip(linear * np.float32(STEPS - 1) + np.float32(0.5), 0, STEPS - 1)
    levels: NDArray[np.uint8] = _encoding()[index.astype(np.uint16)]
    return levels
