"""The bytes that a forward and backward pass holds, compared with what autograd saves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from c2fdft_cli.core.diffusion import spaced_timesteps
from c2fdft_cli.engine.tools.live_bytes import LiveBytes, held_bytes
from c2fdft_cli.engine.train.step.memory import saved_bytes
from c2fdft_cli.engine.train.step.objective import Objective
from c2fdft_cli.engine.weights.build import alpha_bar_of_recipe, make_network
from c2fdft_cli.recipe.schema import Diffusion, FineStage, Network

CPU = torch.device("cpu")
SMALL = Network(dim=8, blocks=[1, 1, 1, 1])
KIB = 1024


def test_allocated_and_freed_bytes_are_counted():
    old = torch.ones(256)
    with LiveBytes() as live:
        a = old + 1
        assert live.now == KIB
        b = a.view(16, 16)
        old.add_(1)
        assert live.now == KIB  # a view and an in-place operation allocate nothing
        c = torch.cat([a, a])
        assert live.now == 3 * KIB
        del c
        assert live.now == KIB
        del a
        assert live.now == KIB
        del b
        assert live.now == 0
    assert live.peak == 3 * KIB


def test_a_chain_holds_what_its_backward_pass_needs():
    net = nn.Linear(1, 1)
    x = torch.ones(256, requires_grad=True)
    held = held_bytes(net, lambda: x.exp().exp().sum(), CPU)
    assert held.after_forward == 2 * KIB + 4
    assert held.peak >= 3 * KIB


def held(recompute: str, calls: int):
    net = make_network(SMALL)
    stage = FineStage(recompute=recompute, ssim="none")
    objective = Objective(net, alpha_bar_of_recipe(Diffusion()), (stage, spaced_timesteps(calls)))
    lq, gt, noise = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32), torch.randn(1, 3, 32, 32)
    return held_bytes(net, lambda: objective(lq, gt, noise, None), CPU)


@pytest.mark.acceptance
def test_with_recomputing_memory_does_not_grow_with_the_steps():
    none, call, level = (held(recompute, 4).peak for recompute in ("none", "call", "level"))
    assert call < none / 2
    assert level < call
    assert held("none", 8).peak > 1.8 * none
    assert held("call", 8).peak < 1.05 * call
    assert held("level", 8).peak < 1.05 * level


@pytest.mark.parametrize(("recompute", "levels"), [("none", False), ("level", True)])
def test_the_estimate_is_near_the_bytes_held(recompute, levels):
    peak = held(recompute, 1).peak
    assert 0.75 * peak < saved_bytes(SMALL, 32, levels) < 1.15 * peak
