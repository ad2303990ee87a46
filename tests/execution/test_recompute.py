"""Recomputed levels: the same numbers with less memory."""

import pytest
import torch

from c2fdft_cli.execution.recompute import recompute_levels
from tests.kit.formula import wave


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_recomputing_levels_changes_nothing(tiny_net, precision):
    """Outputs and gradients are equal bit for bit, also under autocast; parameter names stay."""
    x, t = wave([2, 6, 16, 16], 0.3), torch.tensor([3.0, 900.0])
    seen = []
    for recompute in (False, True):
        net = tiny_net(blocks=(2, 1, 1, 2))
        recompute_levels(net, recompute)
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            out = net(x, t)
        out.square().sum().backward()
        seen.append([out, *(p.grad for p in net.parameters())])
        assert set(net.state_dict()) == set(tiny_net(blocks=(2, 1, 1, 2)).state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_recomputed_levels_save_only_their_inputs_until_they_are_plain_again(tiny_net):
    net, counts = tiny_net(), []
    for recompute in (False, True, False):
        kept = []
        recompute_levels(net, recompute)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, k=kept: k.append(1) or x, lambda x: x
        ):
            net(wave([1, 6, 16, 16], 0.3), torch.tensor([3.0]))
        counts.append(len(kept))
    assert counts[1] < counts[0] / 5
    assert counts[2] == counts[0]
