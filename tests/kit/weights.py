"""Helpers for the tests of packaged weights: catalogue entries and weights files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from c2fdft_cli.core.network import DFT
from c2fdft_cli.engine.weights.build import make_network
from c2fdft_cli.engine.weights.checkpoint import Meta, save_checkpoint
from c2fdft_cli.recipe.schema import Network, Recipe
from recipes.scripts.pack_weights import add_entry
from tests.kit.sharing import made_once

FACTS: dict[str, Any] = {
    "task": "derain",
    "trained_on": "eight waves",
    "schedule": "none at all",
    "trained_for": "no time",
    "scores": [
        {
            "set": "Waves",
            "protocol": "derain",
            "images": 8,
            "input_psnr": 26.9,
            "input_ssim": 0.8384,
            "psnr": 33.75,
            "ssim": 0.9512,
        }
    ],
    "seconds_per_megapixel": 12.5,
    "timed_on": "2 CPU cores",
    "licence": "for research and non-commercial use",
    "good_for": "thin streaks",
    "bad_at": "drops on the lens",
    "card": "docs/models/derain.md",
}


def write_facts(path: Path, **changes: Any) -> Path:
    """Write the facts that authors state about weights, as JSON."""
    path.write_text(json.dumps({**FACTS, **changes}))
    return path


def write_packed(
    path: Path, net: DFT, grid: list[int] | None, *, said: Any = None, **content: Any
) -> Path:
    """Write a checkpoint in the packaged format: params_ema in bf16, and meta."""
    ema = {name: tensor.bfloat16() for name, tensor in net.state_dict().items()}
    meta = Meta(Network(dim=net.dim, blocks=[1, 1, 1, 1]), stage="fine", grid=grid, **(said or {}))
    torch.save({"params_ema": ema, "meta": meta.to_json(), **content}, path)
    return path


def write_random(
    path: Path, *, seed: int = 0, protocol: str | None = None, data: Path | None = None, **said: Any
) -> Path:
    """Write a checkpoint of a small network with random weights, with its recipe."""
    network = Network(dim=8, blocks=[1, 1, 1, 1])
    recipe = Recipe(network=network)
    recipe.train.protocol = protocol or recipe.train.protocol
    torch.manual_seed(seed)
    state = make_network(network).state_dict()
    values = {"recipe": recipe.to_dict(), "data": data and str(data), **said}
    save_checkpoint(path, state, state, Meta(network, **values))
    return path


def package(folder: Path, name: str, net: DFT, grid: list[int], **changes: Any) -> Path:
    """Add weights to a folder of packaged ones; return the path of their file."""
    aside = folder.parent / "aside"
    aside.mkdir(exist_ok=True)
    facts = write_facts(aside / f"{name}.json", **changes)
    entry = add_entry(
        name, write_packed(aside / f"{name}.pt", net, grid), facts, folder, overwrite=True
    )
    return folder / entry.file


def packaged_once(
    factory: pytest.TempPathFactory, name: str, folder: Path, package_all: Callable[[Path], object]
) -> None:
    """Copy packaged weights into a folder; `package_all` makes them, once in a run of the tests."""

    def make(root: Path) -> None:
        (root / "packaged").mkdir(parents=True)
        package_all(root / "packaged")

    made = made_once(factory, name, make) / "packaged"
    shutil.copytree(made, folder, dirs_exist_ok=True)
