"""Weights, tensors and pictures by formula: the same on every machine, without a random source."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def fill(net: torch.nn.Module) -> Any:
    """Set weights by formula: for the k-th sorted name, w_i = sin(0.7 i + k), scaled by kind."""
    state = net.state_dict()
    for k, name in enumerate(sorted(state)):
        value = state[name]
        i = torch.arange(value.numel(), dtype=torch.float64)
        w = torch.sin(0.7 * i + k).reshape(value.shape)
        if name.endswith(".temperature"):
            w = 1 + 0.2 * w
        elif ".norm" in name:
            w = 1 + 0.1 * w if name.endswith("weight") else 0.1 * w
        elif name.endswith(".bias"):
            w = 0.05 * w
        else:
            w = w / value[0].numel() ** 0.5
        state[name] = w.float()
    net.load_state_dict(state)
    return net.eval()


def wave(shape: list[int], rate: float, function: Any = torch.sin) -> torch.Tensor:
    """Return a tensor of the values function(rate * i) in C order."""
    count = int(np.prod(shape))
    return function(rate * torch.arange(count, dtype=torch.float64)).reshape(shape).float()


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """Norm of the difference relative to the norm of `b`, in float64; shapes must be equal."""
    assert a.shape == b.shape
    a, b = a.double(), b.double()
    return ((a - b).norm() / b.norm().clamp_min(1e-30)).item()


def picture(height: int, width: int, number: int) -> np.ndarray:
    """A colourful picture, uint8 [h, w, 3], different for each number."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x * (0.05 + 0.01 * c) + y * 0.07 + number * (c + 1)) for c in range(3)]
    return (127.5 + 120 * np.stack(waves, axis=-1)).astype(np.uint8)


def photo(k: int, height: int = 24, width: int = 30, strength: int = 0) -> np.ndarray[Any, Any]:
    """Waves between 38 and 218, brightened by strength * (k + 1); uint8 [h, w, 3]."""
    y, x, c = np.mgrid[0:height, 0:width, 0:3]
    clean = 128 + 90 * np.sin(0.3 * x + 0.7 * k) * np.cos(0.25 * y + c)
    return (clean + strength * (k + 1)).clip(0, 255).round().astype(np.uint8)
