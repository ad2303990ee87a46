"""Pixels as tensors. Each step rounds once, so that every device computes the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_DTYPES = {8: torch.uint8, 16: torch.uint16}


def to_unit(pixels: Tensor) -> Tensor:
    """uint8, uint16, or floats in 8-bit levels, to float32 in units of white."""
    white = 2**16 - 1 if pixels.dtype == torch.uint16 else 2**8 - 1
    return _divided(pixels.to(torch.float32, copy=True), white)


def to_uint8(image: Tensor) -> Tensor:
    """[0, 1] to uint8, rounded."""
    return (image * 255).round().clamp(0, 255).to(torch.uint8)


def to_integers(image: Tensor, depth: int, *, grey: bool = False) -> Tensor:
    """`[..., 3, h, w]` in [0, 1] to integers of 8 or 16 bits, rounded.

    Grey has one channel, the mean of the three.
    """
    if grey:
        red, green, blue = image.unbind(-3)
        image = _divided(red + green + blue, 3).unsqueeze(-3)
    return image.mul(2**depth - 1).round_().to(_DTYPES[depth])


def interleaved(planes: Tensor) -> npt.NDArray[np.unsignedinteger]:
    """`[3, h, w]` or, for grey, `[1, h, w]`, to pixels `[h, w, 3]`."""
    import cv2  # ten times as fast as a permutation

    return np.asarray(cv2.merge([plane.numpy() for plane in planes.expand(3, -1, -1)]))


def planes_of(pixels: Tensor) -> Tensor:
    """`[n, h, w, 3]` to `[n, 3, h, w]`."""
    return pixels.permute(0, 3, 1, 2).contiguous()


def as_tensor(pixels: Any) -> Tensor:
    """uint8 `[h, w, 3]` to `[1, 3, h, w]`."""
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]


def _divided(values: Tensor, number: int) -> Tensor:
    """`values` divided in place: by a tensor, since a GPU multiplies by a number's reciprocal."""
    return values.div_(torch.full((), number, dtype=values.dtype, device=values.device))
