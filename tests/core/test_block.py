"""The block against the paper's own words, and its statistics at the edges of number formats."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

from c2fdft_cli.core.attention import gather_statistics
from c2fdft_cli.core.block import Attention
from tests.conftest import fill, relative, wave


class TextbookAttention(nn.Module):
    """DFSA as the paper writes it: NCHW, q and k normalised first."""

    def __init__(self, ours: Attention) -> None:
        super().__init__()
        self.ours = ours

    def forward(self, x):
        ours, (n, c, h, w) = self.ours, x.shape
        q, k, v = (
            z.reshape(n, ours.heads, c // ours.heads, h * w)
            for z in ours.qkv_dwconv(ours.qkv(x)).chunk(3, 1)
        )
        cosine = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        mixed = (cosine * ours.temperature).softmax(-1) @ v
        return ours.project_out(mixed.reshape(n, c, h, w))


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_attention_is_the_papers(heads, bias):
    attention = fill(Attention(16, heads, bias))
    x = wave([2, 16, 12, 8], 0.37)
    expected = TextbookAttention(attention)(x)
    pixels = x.permute(0, 2, 3, 1).contiguous()
    got = attention(pixels, torch.zeros_like(pixels)).permute(0, 3, 1, 2)
    assert relative(got, expected) < 1e-5


def test_statistics_add_up():
    attention = fill(Attention(16, 4, False))
    q, k = wave([1, 10, 8, 16], 0.3), wave([1, 10, 8, 16], 0.7)
    whole = attention.statistics(q, k)
    pieces = attention.statistics(q[:, :3], k[:, :3]) + attention.statistics(q[:, 3:], k[:, 3:])
    for a, b in zip(whole, pieces, strict=True):
        assert relative(b, a) < 1e-6


def test_gram_survives_half_precision():
    attention = fill(Attention(8, 1, False))
    large = torch.full((1, 64, 64, 8), 30.0, dtype=torch.float16)
    gram = attention.statistics(large, large).gram
    assert gram.dtype == torch.float32
    assert torch.isfinite(gram).all()
    assert gram.max() > 65504


def test_gradient_at_zero_is_finite():
    attention = fill(Attention(8, 2, False))
    x = torch.zeros(1, 8, 8, 8, requires_grad=True)
    attention(x, x).sum().backward()
    assert torch.isfinite(x.grad).all()


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
            gather_statistics(q, q, 2)
        return count.calls

    assert calls(128, "cpu") > calls(16, "cpu")
    assert calls(512, "meta") == calls(16, "meta")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_compilation_serves_all_sizes(dtype):
    torch._dynamo.reset()
    count = CompileCounter()
    compiled = torch.compile(gather_statistics, dynamic=True, backend=count)
    for side in (16, 24, 40, 64, 80, 128):
        q = torch.zeros(1, side, side + 8, 16, dtype=dtype)
        compiled(q, q, 2)
    assert count.frame_count <= 2  # the first size, then any


def test_pieces_add_up_to_the_sums():
    q, k = wave([2, 50, 60, 16], 0.3).bfloat16(), wave([2, 50, 60, 16], 0.7).bfloat16()
    for pieces, whole in zip(
        gather_statistics(q, k, 4), gather_statistics(q.float(), k.float(), 4), strict=True
    ):
        assert relative(pieces, whole) < 1e-6
