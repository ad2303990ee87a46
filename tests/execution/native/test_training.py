"""The compiled layers of training equal torch's operators, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from c2fdft_cli.core.attention import pixel_sums
from c2fdft_cli.execution.attention_passes import PassesInTorch
from c2fdft_cli.execution.native.library import Kernels
from c2fdft_cli.execution.native.training import (
    NativePasses,
    depthwise,
    feed_forward,
    linear,
    training_kernels,
)
from tests.kit.formula import relative, wave

# whole vectors and remainders, more than one slice of the summed dimension
WIDTHS = [1, 6, 16, 24, 40, 96, 400]
# one pixel, an edge of one pixel, several runs and items
SIZES = [(1, 1), (1, 9), (7, 1), (2, 2), (35, 67)]


def agree(ours: Callable[..., Tensor], plain: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Compare the result and all gradients with those of torch in float64.

    Some gradients are sums over pixels that nearly cancel, so the error may be a few times torch's.
    """
    found = [
        results(ours, *inputs),
        results(plain, *inputs),
        results(plain, *(x.double() for x in inputs)),
    ]
    for mine, single, exact in zip(*found, strict=True):
        assert relative(mine, exact) < 4 * relative(single, exact) + 2e-6


def results(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    y = function(*leaves)
    y.backward(wave(list(y.shape), 0.71).to(y.dtype))
    return [y.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("out", [1, 17, 48, 130])
def test_a_linear_layer(kernels: Kernels, width: int, out: int, bias: bool) -> None:
    inputs = [wave([2, 5, 23, width], 0.37), wave([out, width], 0.53)]
    if bias:
        inputs.append(wave([out], 0.9))
    agree(
        lambda x, w, b=None: linear(x, w, b, kernels),
        lambda x, w, b=None: F.linear(x, w, b),
        *inputs,
    )


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("width", "factor"), [(6, 1.5), (16, 4.0), (24, 4.0), (48, 3.0), (120, 4.0)]
)
def test_a_feed_forward_network(kernels: Kernels, width: int, factor: float, bias: bool) -> None:
    hidden = int(width * factor)
    inputs = [wave([2, 9, 31, width], 0.37), wave([2, 9, 31, width], 0.23)]
    inputs += [wave([hidden, width], 0.53) / width**0.5, wave([width, hidden], 0.43) / hidden**0.5]
    if bias:
        inputs += [wave([hidden], 0.9), wave([width], 0.8)]

    def ours(x: Tensor, stream: Tensor, widen: Tensor, narrow: Tensor, *biases: Tensor) -> Tensor:
        first, second = biases or (None, None)
        return feed_forward(x, stream, (widen, first), (narrow, second), kernels)

    def plain(x: Tensor, stream: Tensor, widen: Tensor, narrow: Tensor, *biases: Tensor) -> Tensor:
        first, second = biases or (None, None)
        return stream + F.linear(F.gelu(F.linear(x, widen, first)), narrow, second)

    agree(ours, plain, *inputs)


def test_the_slope_of_gelu_everywhere(kernels: Kernels) -> None:
    one = (torch.ones(1, 1), None)
    x = torch.cat([torch.linspace(-20, 20, 40001), torch.tensor([-1e30, -3e38, 1e30, 3e38])])
    x = x.view(1, 1, -1, 1).requires_grad_()
    exact = x.detach().double().requires_grad_()
    feed_forward(x, torch.zeros_like(x), one, one, kernels).sum().backward()
    F.gelu(exact).sum().backward()
    assert float((x.grad - exact.grad).abs().max()) < 3e-7


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_lost(kernels: Kernels, bad: float) -> None:
    widen, narrow = (wave([64, 16], 0.53), None), (wave([16, 64], 0.43), None)
    x = wave([1, 4, 4, 16], 0.37)
    x[0, 1, 2, 3] = bad
    leaf = x.clone().requires_grad_()
    y = feed_forward(leaf, torch.zeros_like(x), widen, narrow, kernels)
    y.backward(torch.ones_like(y))
    assert not torch.isfinite(y[0, 1, 2]).any()
    assert torch.isfinite(y[0, 3]).all()
    if bad != bad:
        assert not torch.isfinite(leaf.grad[0, 1, 2]).any()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("width", [1, 7, 16, 36])
@pytest.mark.parametrize("size", SIZES)
def test_a_depthwise_convolution(
    kernels: Kernels, size: tuple[int, int], width: int, bias: bool
) -> None:
    inputs = [wave([2, *size, width], 0.37), wave([width, 1, 3, 3], 0.53)]
    if bias:
        inputs.append(wave([width], 0.9))

    def plain(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1, groups=len(weight))
        return y.permute(0, 2, 3, 1)

    agree(lambda x, w, b=None: depthwise(x, w, b, kernels), plain, *inputs)


@given(
    n=st.integers(1, 3),
    h=st.integers(1, 40),
    w=st.integers(1, 70),
    heads=st.sampled_from([1, 2, 5]),
    width=st.sampled_from([3, 10, 25]),
)
@settings(max_examples=40, deadline=None)
def test_the_passes_of_attention(
    kernels: Kernels, n: int, h: int, w: int, heads: int, width: int
) -> None:
    c = width * heads
    qkv, grad = wave([n, h, w, 3 * c], 0.37), wave([n, h, w, c], 0.71)
    mixing, bias = wave([n, c, c], 0.53), wave([c], 0.9)
    d = pixel_sums(wave([n, 3, c], 0.2), wave([n, 3, c], 0.6), heads)
    ours, plain = NativePasses(kernels), PassesInTorch()
    for b in (None, bias):
        assert relative(ours.mixed(qkv, mixing, b, grad), plain.mixed(qkv, mixing, b, grad)) < 1e-6
    both = [one.qkv_grad(grad, qkv, mixing, d) for one in (ours, plain)]
    for part, expected in zip(*(one.chunk(3, dim=-1) for one in both), strict=True):
        assert relative(part, expected) < 2e-6


def test_the_passes_of_attention_in_another_layout(kernels: Kernels) -> None:
    qkv, grad, mixing = wave([2, 5, 7, 18], 0.37), wave([2, 5, 7, 6], 0.71), wave([2, 6, 6], 0.53)
    d = pixel_sums(wave([2, 3, 6], 0.2), wave([2, 3, 6], 0.6), 2)
    passes = NativePasses(kernels)

    def other(x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)

    mixed = passes.mixed(qkv, mixing, None, grad)
    assert torch.equal(passes.mixed(other(qkv), mixing, None, other(grad)), mixed)
    dqkv = passes.qkv_grad(grad, qkv, mixing, d)
    assert torch.equal(passes.qkv_grad(other(grad), other(qkv), mixing, d), dqkv)


def test_results_do_not_depend_on_the_number_of_threads(kernels: Kernels) -> None:
    widen, narrow = (wave([192, 48], 0.53), wave([192], 0.9)), (wave([48, 192], 0.43), None)
    x, taps = wave([1, 40, 40, 48], 0.37), wave([48, 1, 3, 3], 0.53)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            leaves = [x.clone().requires_grad_(), taps.clone().requires_grad_()]
            y = feed_forward(depthwise(*leaves, None, kernels), x, widen, narrow, kernels)
            y.backward(x)
            found.append([y, *(leaf.grad for leaf in leaves)])
    finally:
        torch.set_num_threads(before)
    for one, three in zip(*found, strict=True):
        assert torch.equal(one, three)


def test_only_float32_trains_with_compiled_kernels(kernels: Kernels) -> None:
    assert training_kernels(torch.zeros(1)) is not None
    assert training_kernels(torch.zeros(1, dtype=torch.float64)) is None
    assert training_kernels(torch.zeros(1, device="meta")) is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert training_kernels(torch.zeros(1)) is None


def test_counted_and_fake_operators_are_torchs(kernels: Kernels) -> None:
    weight = wave([4, 8], 0.53)
    with FlopCounterMode(display=False):
        assert training_kernels(torch.zeros(1)) is None
    with FakeTensorMode() as mode:
        assert training_kernels(torch.zeros(1)) is None
    assert training_kernels(mode.from_tensor(weight)) is None
    assert training_kernels(weight, weight.bfloat16()) is None
    assert training_kernels(weight[:0]) is None


def test_a_wrong_width_is_refused(kernels: Kernels) -> None:
    x, one = wave([1, 3, 3, 8], 0.37), (wave([4, 6], 0.53), None)
    with pytest.raises(ValueError, match=r"expected 6 channels, got \[1, 3, 3, 8\]"):
        linear(x, *one, kernels)
    with pytest.raises(ValueError, match="expected 6 channels"):
        feed_forward(x, x, one, one, kernels)
    with pytest.raises(ValueError, match="expected 5 channels"):
        depthwise(x, wave([5, 1, 3, 3], 0.53), None, kernels)
