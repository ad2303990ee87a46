"""The compiled passes of a block equal the paper's formula up to rounding."""

from __future__ import annotations

from functools import reduce
from operator import add

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from c2fdft_cli.core.block import Block
from c2fdft_cli.execution.native.block import NativeBlock
from c2fdft_cli.execution.native.library import Kernels
from tests.kit.formula import fill, relative, wave

# The largest relative error of a block: bfloat16 has 8 bits, of which rounding takes half a unit.
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 4e-3}


def run(block: NativeBlock, x: torch.Tensor, time: torch.Tensor, rows: int) -> torch.Tensor:
    z, v = x.clone(), torch.full_like(x, float("nan"), dtype=block.kernels.dtype)
    strips = [(top, min(top + rows, x.shape[1])) for top in range(0, x.shape[1], rows)]
    sums = [block.gather(z, v, time, *strip) for strip in strips]
    mixing = block.mixing(reduce(add, sums))
    for top, bottom in strips:
        block.apply(z[:, top:bottom], v[:, top:bottom], time, mixing)
    return z


# whole vectors and remainders; one head and several; groups of heads
WIDTHS = [(6, 1), (8, 2), (16, 1), (24, 3), (40, 5), (48, 1), (96, 1), (96, 2), (192, 4)]


@pytest.mark.parametrize("norm", ["with_bias", "bias_free"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("width", "heads"), WIDTHS)
def test_a_block_equals_the_papers_formula(
    both_kernels: Kernels, width: int, heads: int, bias: bool, norm: str
) -> None:
    plain = fill(Block(width, heads, 4.0 if width > 6 else 1.5, bias, norm))
    x, time = wave([2, 35, 13, width], 0.37), wave([2, width], 0.9)
    with torch.inference_mode():
        ours = run(NativeBlock.of(plain, both_kernels), x, time, 17)
        assert relative(ours, plain(x, time)) < TOLERANCE[both_kernels.dtype]


@given(
    n=st.integers(1, 2),
    h=st.integers(1, 70),
    w=st.integers(1, 70),
    rows=st.integers(1, 80),
    times=st.integers(1, 2),
)
@settings(max_examples=40, deadline=None)
def test_every_size_and_strip_height_equals_the_formula(
    both_kernels: Kernels, n: int, h: int, w: int, rows: int, times: int
) -> None:
    plain = fill(Block(16, 2, 4.0, True, "with_bias"))
    x, time = wave([n, h, w, 16], 0.37), wave([min(n, times), 16], 0.9)
    with torch.inference_mode():
        ours = run(NativeBlock.of(plain, both_kernels), x, time, rows)
        # Attention over a few pixels amplifies the rounding of q and k: 4.7e-3 at 1x3, and at most
        # 1.6e-3 from 16 pixels on.
        few = both_kernels.dtype == torch.bfloat16 and h * w < 16
        assert relative(ours, plain(x, time)) < TOLERANCE[both_kernels.dtype] * (2 if few else 1)


def test_a_row_wider_than_the_ring_is_cut_into_columns(both_kernels: Kernels) -> None:
    plain = fill(Block(48, 1, 4.0, False, "with_bias"))
    x, time = wave([1, 5, 700, 48], 0.37), wave([1, 48], 0.9)
    with torch.inference_mode():
        ours = run(NativeBlock.of(plain, both_kernels), x, time, 5)
        assert relative(ours, plain(x, time)) < TOLERANCE[both_kernels.dtype]


def test_the_number_of_threads_changes_no_bit(both_kernels: Kernels) -> None:
    block = NativeBlock.of(fill(Block(96, 2, 4.0, True, "with_bias")), both_kernels)
    x, time = wave([1, 67, 45, 96], 0.37), wave([1, 96], 0.9)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            with torch.inference_mode():
                results.append(run(block, x, time, 40))
    finally:
        torch.set_num_threads(before)
    # torch computes the small matrices between the passes, in one thread at these sizes
    assert all(torch.equal(result, results[0]) for result in results[1:])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_stay_so(both_kernels: Kernels, bad: float) -> None:
    block = NativeBlock.of(fill(Block(16, 1, 4.0, False, "with_bias")), both_kernels)
    x = wave([1, 9, 9, 16], 0.37)
    x[0, 4, 4, 4] = bad
    with torch.inference_mode():
        assert not torch.isfinite(run(block, x, wave([1, 16], 0.9), 9)[0, 4, 4]).any()


def test_channels_of_zeros_are_not_divided_by_zero(both_kernels: Kernels) -> None:
    plain = fill(Block(16, 2, 4.0, False, "with_bias"))
    with torch.no_grad():
        plain.attn.qkv.weight[[3, 18, 20]] = 0.0
    x, time = wave([1, 5, 7, 16], 0.37), wave([1, 16], 0.9)
    with torch.inference_mode():
        ours = run(NativeBlock.of(plain, both_kernels), x, time, 3)
        assert relative(ours, plain(x, time)) < TOLERANCE[both_kernels.dtype]
