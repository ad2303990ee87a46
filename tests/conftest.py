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

from c2fdft_cli.core.network import DFT

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


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the installed one of packaged weights; it is empty."""
    from c2fdft_cli.engine.weights import catalogue as weights_catalogue

    folder = tmp_path / "packaged"
    folder.mkdir()
    monkeypatch.setattr(weights_catalogue, "weights_folder", lambda: folder)
    return folder


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


@pytest.fixture(scope="session")
def shard_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of twelve small pairs by formula, two of them for validation."""
    from c2fdft_cli.data.images.picture import save_rgb8
    from c2fdft_cli.engine.prepare.job import PrepareOptions, prepare

    root = tmp_path_factory.mktemp("pairs")
    for split, count in (("train", 10), ("val", 2)):
        for kind in ("rainy", "clean"):
            (root / split / kind).mkdir(parents=True)
        for number in range(count):
            gt = picture(40 + 8 * (number % 3), 56, number + 100 * (split == "val"))
            save_rgb8(root / split / "clean" / f"{number}.png", gt)
            lq = np.clip(
                gt.astype(int) + 40 * (np.arange(56) % 7 == number % 7)[None, :, None], 0, 255
            )
            save_rgb8(root / split / "rainy" / f"{number}.png", lq.astype(np.uint8))
    out = tmp_path_factory.mktemp("shards")
    prepare(PrepareOptions(source=root, out=out / "set")).run()
    return out / "set"


def picture(height: int, width: int, number: int) -> np.ndarray:
    """A colourful picture by formula, uint8 [h, w, 3]."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x * (0.05 + 0.01 * c) + y * 0.07 + number * (c + 1)) for c in range(3)]
    return (127.5 + 120 * np.stack(waves, axis=-1)).astype(np.uint8)


MINI = (
    "network.dim=8",
    "network.blocks=[1,1,1,1]",
    "coarse.patches=[16,24]",
    "coarse.batches=[4,2]",
    "coarse.switch_every=3",
    "coarse.cycles=2",
    "coarse.iterations=12",
    "coarse.periods=[{length: 12, floor: 1.0e-5}]",
    "fine.patches=[16,24]",
    "fine.batches=[4,2]",
    "fine.switch_every=3",
    "fine.cycles=2",
    "fine.iterations=8",
    "fine.periods=[{length: 8, floor: 0.0}]",
    "fine.ssim=paper",
    "sampling.grid=[999,500]",
    "train.log_every=2",
    "train.save_every=2",
    "train.validate_every=4",
    "train.validation_images=2",
    "train.micro_batch=4",
)
"""Overrides that make a training of seconds."""
