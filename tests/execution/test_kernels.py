"""Sums over the pixels by the fastest operators of a device, plain and compiled."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

from c2fdft_cli.execution.kernels import sums_of_pixels
from tests.kit.formula import relative, wave


class _Count(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **(kwargs or {}))


def test_only_a_cpu_sums_half_precision_in_pieces():
    def calls(side, device):
        q = torch.empty(1, side, side, 8, dtype=torch.bfloat16, device=device)
        with _Count() as count:
            sums_of_pixels(q, q, 2)
        return count.calls

    assert calls(128, "cpu") > calls(16, "cpu")
    assert calls(512, "meta") == calls(16, "meta")


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.acceptance)]
)
def test_one_compilation_serves_all_sizes(dtype):
    torch._dynamo.reset()
    count = CompileCounter()
    compiled = torch.compile(sums_of_pixels, dynamic=True, backend=count)
    for side in (16, 24, 40, 64, 80, 128):
        q = torch.zeros(1, side, side + 8, 16, dtype=dtype)
        compiled(q, q, 2)
    assert count.frame_count <= 2  # the first size, and any other


def test_pieces_add_up_to_the_sums():
    q, k = wave([2, 50, 60, 16], 0.3).bfloat16(), wave([2, 50, 60, 16], 0.7).bfloat16()
    for pieces, whole in zip(
        sums_of_pixels(q, k, 4), sums_of_pixels(q.float(), k.float(), 4), strict=True
    ):
        assert relative(pieces, whole) < 1e-6
