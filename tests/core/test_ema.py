"""The moving average of the weights."""

from __future__ import annotations

import copy

import pytest
import torch

from c2fdft_cli.core.ema import ema_decay, ema_update


def test_an_update_equals_the_formula(tiny_net):
    average, net = tiny_net(), tiny_net()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    before = copy.deepcopy(average)
    ema_update(average, net, 0.9)
    for old, new, target in zip(
        before.parameters(), average.parameters(), net.parameters(), strict=True
    ):
        assert torch.allclose(new, 0.9 * old + 0.1 * target, atol=1e-6)


def test_the_warm_up_grows_to_the_decay():
    decays = [ema_decay(step, 0.999) for step in range(1, 20000)]
    assert decays[0] == pytest.approx(2 / 11)
    assert decays == sorted(decays)
    assert decays[-1] == 0.999
    assert ema_decay(1, 0.999, warm_up=False) == 0.999
