"""Pixels as tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 to float32 in [0, 1]."""
    return pixels.float() / 255


def to_uint8(image: Tensor) -> Tensor:
    """[0, 1] to uint8, rounded."""
    return (image * 255).round().clamp(0, 255).to(torch.uint8)


def as_tensor(pixels: Any) -> Tensor:
    """uint8 `[h, w, 3]` to `[1, 3, h, w]`."""
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
