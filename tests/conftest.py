"""Shared fixtures: weights and inputs by formula, the published numbers, small files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from c2fdft_cli.core.dft import DFT

NUMBERS = Path(__file__).parent / "numbers"


def fill(net: torch.nn.Module) -> Any:
    """Weights by formula: for the k-th sorted name, w_i = sin(0.7 i + k), scaled by kind."""
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
    """Values by formula: function(rate * i) in C order."""
    count = int(np.prod(shape))
    return function(rate * torch.arange(count, dtype=torch.float64)).reshape(shape).float()


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """Norm of the difference over the norm."""
    return ((a - b).norm() / b.norm()).item()


@pytest.fixture(scope="session")
def tiny_net() -> Callable[..., DFT]:
    """Makes a small network with weights by formula."""

    def make(**changes: Any) -> DFT:
        arguments: dict[str, Any] = {"dim": 8, "blocks": (1, 1, 1, 1), **changes}
        return fill(DFT(**arguments))

    return make


@pytest.fixture(scope="session")
def ramp() -> dict[str, Any]:
    """The released program's outputs for weights by formula."""
    cases = json.loads((NUMBERS / "ramp.json").read_text())
    with np.load(NUMBERS / "ramp.npz") as arrays:
        for name, case in cases.items():
            for key in ("output", "final"):
                if f"{name}.{key}" in arrays:
                    case[key] = torch.tensor(arrays[f"{name}.{key}"])
    return cases


@pytest.fixture(scope="session")
def misc() -> dict[str, Any]:
    """The released program's schedules, losses, metrics, learning rates and patch cycles."""
    numbers = json.loads((NUMBERS / "misc.json").read_text())
    with np.load(NUMBERS / "misc.npz") as arrays:
        numbers["arrays"] = {key: torch.tensor(arrays[key]) for key in arrays}
    return numbers


@pytest.fixture(scope="session")
def reference_folder() -> Path:
    """The folder of reference.pt; skips without it."""
    folder = os.environ.get("C2FDFT_REFERENCE")
    if not folder:
        pytest.skip("C2FDFT_REFERENCE is not set")
    return Path(folder)
