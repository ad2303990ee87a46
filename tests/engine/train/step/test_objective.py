"""The objective of a stage: its loss and its use of memory are those that the recipe states."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector

from c2fdft_cli.core.block import Block
from c2fdft_cli.core.network import DFT
from c2fdft_cli.core.objectives import fine_loss
from c2fdft_cli.engine.train.setup import set_up
from c2fdft_cli.engine.train.step.objective import Objective, make_objective
from c2fdft_cli.engine.weights.build import alpha_bar_of_recipe
from c2fdft_cli.recipe.files import load_recipe
from c2fdft_cli.recipe.schema import FineStage
from c2fdft_cli.vocabulary import Recompute
from tests.kit.formula import wave
from tests.kit.training import request


@pytest.mark.parametrize(
    "terms",
    [
        {"ssim": "paper", "ssim_weight": 0.3, "l1_weight": 0.0},
        {"ssim": "none", "l1_weight": 0.7},
        {"ssim": "none", "l1_weight": 0.0, "fourier_weight": 0.4},
    ],
)
def test_the_fine_loss_is_weighted_as_the_recipe_states(
    tiny_net: Callable[[], DFT], terms: dict[str, Any]
) -> None:
    words = [f"fine.{key}={value}" for key, value in terms.items()]
    recipe = load_recipe("tiny", words)
    alpha_bar = alpha_bar_of_recipe(recipe.diffusion)
    lq, gt, noise = (wave([2, 3, 16, 16], rate) for rate in (0.1, 0.2, 0.3))
    net = tiny_net()
    with torch.no_grad():
        ours = Objective(net, alpha_bar, (recipe.fine, [500]))(lq, gt, noise, None)
        expected = fine_loss(net, alpha_bar, [500], lq, gt, noise, **terms)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(("recompute", "calls"), [("none", 2), ("call", 4), ("level", 4)])
def test_the_fine_stage_calls_the_network_again_only_if_the_recipe_asks_for_it(
    tiny_net: Callable[[], DFT], recompute: Recompute, calls: int
) -> None:
    net = tiny_net()
    stage = FineStage(recompute=recompute, ssim="none")
    alpha_bar = alpha_bar_of_recipe(load_recipe("tiny").diffusion)
    made: list[nn.Module] = []
    net.register_forward_pre_hook(lambda module, _: made.append(module))
    lq, gt, noise = (wave([1, 3, 16, 16], rate) for rate in (0.1, 0.2, 0.3))
    Objective(net, alpha_bar, (stage, [999, 500]))(lq, gt, noise, None).backward()
    assert len(made) == calls


def test_the_seed_of_the_recipe_decides_the_initial_weights(
    tmp_path: Path, shard_folder: Path
) -> None:
    def initial(seed: int) -> torch.Tensor:
        asked = request("coarse", shard_folder, tmp_path / "run", f"train.seed={seed}")
        return parameters_to_vector(make_objective(set_up(asked)).net.parameters())

    first = initial(1)
    assert torch.equal(initial(1), first)
    assert not torch.equal(initial(2), first)


def test_training_uses_the_hand_written_derivatives(tiny_net: Callable[[], DFT]) -> None:
    net = tiny_net()
    blocks = [module for module in net.modules() if isinstance(module, Block)]
    Objective(net, alpha_bar_of_recipe(load_recipe("tiny").diffusion), None)
    assert all("forward" in vars(block) for block in blocks)
