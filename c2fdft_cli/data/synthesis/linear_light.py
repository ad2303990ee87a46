"""Convert between sRGB and linear light (IEC 61966-2-1) by table."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Near black one 8-bit level is 1/3295 of linear light, about five of these steps. So every stored
# value survives the round trip, even through an S-curve, which is flat at its ends.
STEPS = 16384

_V, _X = np.arange(256) / 255, np.arange(STEPS) / (STEPS - 1)
_DECODING: NDArray[np.float32] = np.where(
    _V <= 0.04045, _V / 12.92, ((_V + 0.055) / 1.055) ** 2.4
).astype(np.float32)
"""Linear light of each 8-bit level."""
SRGB_CURVE: NDArray[np.float64] = np.where(
    _X <= 0.0031308, 12.92 * _X, 1.055 * _X ** (1 / 2.4) - 0.055
)
"""The sRGB value in [0, 1] of each of STEPS values of linear light."""
_ENCODING: NDArray[np.uint8] = np.rint(SRGB_CURVE * 255).astype(np.uint8)
"""The nearest 8-bit level of each of them."""


def to_linear(srgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return linear light in [0, 1], float32, for 8-bit sRGB of any shape."""
    return _DECODING[srgb]


def to_srgb(
    linear: NDArray[np.float32], encoding: NDArray[np.uint8] = _ENCODING
) -> NDArray[np.uint8]:
    """Return 8-bit sRGB, clipped, for linear light; `to_srgb(to_linear(v)) == v` for every v.

    encoding: for a camera with its own tone curve, the level of each of STEPS values of light.
    """
    index = np.clip(linear * np.float32(STEPS - 1) + np.float32(0.5), 0, STEPS - 1)
    levels: NDArray[np.uint8] = encoding[index.astype(np.uint16)]
    return levels
