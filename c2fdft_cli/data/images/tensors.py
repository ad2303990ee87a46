"""Convert pixels and tensors. Each step rounds once, so that all devices compute the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_DTYPES = {8: torch.uint8, 16: torch.uint16}


def to_unit(pixels: Tensor) -> Tensor:
    """Convert uint8, uint16, or floats in 8-bit levels to float32, with white at 1."""
    white = 2**16 - 1 if pixels.dtype == torch.uint16 else 2**8 - 1
    return _divided(pixels.to(torch.float32, copy=True), white)


def to_integers(image: Tensor, depth: int, *, grey: bool = False) -> Tensor:
    """Convert `[..., 3, h, w]` in [0, 1] to integers of 8 or 16 bits, rounded.

    With `grey` the result has one channel, the mean of the three.
    """
    if grey:
        red, green, blue = image.unbind(-3)
        image = _divided(red + green + blue, 3).unsqueeze(-3)
    return image.mul(2**depth - 1).round_().to(_DTYPES[depth])


def interleaved(planes: Tensor) -> npt.NDArray[np.unsignedinteger]:
    """Convert planes `[3, h, w]` or, for grey, `[1, h, w]` to pixels `[h, w, 3]`."""
    import cv2  # ten times as fast as a permutation

    return np.asarray(cv2.merge([plane.numpy() for plane in planes.expand(3, -1, -1)]))


def planes_of(pixels: Tensor) -> Tensor:
    """Convert pixels `[n, h, w, 3]` to planes `[n, 3, h, w]`."""
    return pixels.permute(0, 3, 1, 2).contiguous()


def as_tensor(pixels: Any) -> Tensor:
    """Convert pixels `[h, w, 3]` to a tensor `[1, 3, h, w]` of the same type."""
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]


def _divided(values: Tensor, number: int) -> Tensor:
    """Divide in place, by a tensor: by a plain number, a GPU would multiply by its reciprocal."""
    return values.div_(torch.full((), number, dtype=values.dtype, device=values.device))
