"""The restoration as an `nn.Module`: the restorer's results, gradients, and devices."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import c2fdft_cli as c2fdft
from c2fdft_cli.api.restorer import Restorer
from c2fdft_cli.core.network import DFT
from tests.kit.formula import relative, wave
from tests.kit.restore import write_checkpoint


@pytest.fixture(scope="module")
def restorer(tmp_path_factory: pytest.TempPathFactory, tiny_net: Callable[..., DFT]) -> Restorer:
    path = write_checkpoint(tmp_path_factory.mktemp("weights") / "w.pt", tiny_net())
    return c2fdft.load(path, device="cpu", precision="fp32", grid=(500, 100), seed=3)


def test_the_module_equals_the_restorer_up_to_rounding(restorer):
    lq = (wave([2, 3, 21, 30], 0.37) + 1) / 2
    with torch.no_grad():
        restored = restorer.module()(lq)
    assert restored.shape == lq.shape
    assert relative(restored, restorer(lq)) < 1e-5
    assert restorer.module()(lq.double()).dtype == torch.float64


def test_the_module_is_differentiable_and_can_be_copied(restorer):
    module = restorer.module()
    pipeline = torch.nn.Sequential(torch.nn.Identity(), module)
    lq = ((wave([1, 3, 16, 16], 0.37) + 1) / 2).requires_grad_()
    pipeline(lq).mean().backward()
    assert lq.grad is not None
    assert lq.grad.abs().max() > 0
    assert all(p.grad is not None for p in module.parameters())
    before = restorer(lq.detach())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert torch.equal(restorer(lq.detach()), before)


@pytest.mark.parametrize("lq", [
    torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(3, 8, 8), torch.zeros(0, 3, 8, 8),
    torch.zeros(1, 1, 8, 8), torch.zeros(1, 3, 8, 8).to_sparse(),
    np.zeros((1, 3, 8, 8), np.float32), None,
])  # fmt: skip
def test_invalid_tensors_are_refused(restorer, lq):
    """Without the check, tensors of bytes would be returned as zeros and ones."""
    with pytest.raises(c2fdft.UsageError, match="the module takes floating tensors"):
        restorer.module()(lq)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_weights_that_are_not_float32_are_refused(restorer, dtype):
    module = restorer.module().to(dtype)
    with pytest.raises(c2fdft.UsageError, match=rf"must be float32, got {dtype}"):
        module(torch.zeros(1, 3, 8, 8, dtype=dtype))


def test_a_file_of_its_state_restores_the_same_with_its_timesteps(restorer, tmp_path):
    lq, module = (wave([1, 3, 16, 24], 0.37) + 1) / 2, restorer.module()
    torch.save(module.state_dict(), tmp_path / "mine.pth")
    settings = {"device": "cpu", "precision": "fp32", "seed": 3}
    again = c2fdft.load(tmp_path / "mine.pth", grid=module.grid, **settings)
    assert torch.equal(again(lq), restorer(lq))
