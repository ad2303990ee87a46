"""The compiled layers of training equal torch's operators, forward and backward."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from c2fdft_cli.core.attention import Attention
from c2fdft_cli.core.block import FeedForward
from c2fdft_cli.core.layers import Conv1x1, PixelNorm
from c2fdft_cli.execution.native.library import Kernels
from c2fdft_cli.execution.native.training import (
    attend,
    feed_forward,
    linear,
    training_kernels,
)
from tests.kit.formula import relative, wave

# whole vectors and remainders, more than one slice of the summed dimension
WIDTHS = [1, 6, 16, 24, 40, 96, 400]
# one pixel, an edge of one pixel, several runs and items
SIZES = [(1, 1), (1, 9), (7, 1), (2, 2), (35, 67)]


def agree(
    ours: Callable[..., Tensor], plain: Callable[..., Tensor], *inputs: Tensor, within: float = 2e-6
) -> None:
    """Compare the result and all gradients with those of torch in float64.

    Some gradients are sums over pixels that nearly cancel, so the error may be a few times torch's.
    """
    found = [
        results(ours, *inputs),
        results(plain, *inputs),
        results(plain, *(x.double() for x in inputs)),
    ]
    for mine, single, exact in zip(*found, strict=True):
        assert relative(mine, exact) < 4 * relative(single, exact) + within


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


NORMS = ["with_bias", "bias_free"]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("width", "factor"), [(6, 1.5), (16, 4.0), (24, 4.0), (48, 3.0), (120, 4.0)]
)
def test_a_feed_forward_network(
    kernels: Kernels, width: int, factor: float, bias: bool, norm: str
) -> None:
    agree_in(feed_forward, kernels, parts(norm, FeedForward(width, factor, bias)), 2, (9, 31))


def attention_cases() -> Iterator[Any]:
    """All combinations; most of the largest are slow repetitions of those with fewer pixels."""
    shapes = [(2, 3), (1, 10), (5, 25)]
    for case in itertools.product(SIZES, shapes, [False, True], NORMS):
        slow = case[:2] == (SIZES[-1], shapes[-1]) and case[2:] != (True, "with_bias")
        yield pytest.param(*case, marks=[pytest.mark.acceptance] if slow else [])


@pytest.mark.parametrize(("size", "shape", "bias", "norm"), [*attention_cases()])
def test_attention(
    kernels: Kernels, size: tuple[int, int], shape: tuple[int, int], bias: bool, norm: str
) -> None:
    heads, d = shape
    agree_in(attend, kernels, parts(norm, Attention(heads * d, heads, bias)), 2, size)


@pytest.mark.parametrize(("heads", "d"), [(1, 1), (3, 1), (1, 120), (4, 100)])
def test_attention_between_few_and_many_channels(kernels: Kernels, heads: int, d: int) -> None:
    agree_in(attend, kernels, parts("with_bias", Attention(heads * d, heads, True)), 2, (5, 9))


@given(
    n=st.integers(1, 3),
    h=st.integers(1, 40),
    w=st.integers(1, 70),
    heads=st.sampled_from([1, 2, 5]),
    d=st.sampled_from([3, 10, 25]),
)
# The same examples in each run: where the gradient of a temperature nearly cancels, such as for
# n=2, h=7, w=52, heads=5, d=25, its error is 2e-4.
@settings(max_examples=20, deadline=None, derandomize=True)
def test_attention_of_any_size(
    kernels: Kernels, n: int, h: int, w: int, heads: int, d: int
) -> None:
    agree_in(attend, kernels, parts("with_bias", Attention(heads * d, heads, True)), n, (h, w))


@pytest.mark.parametrize("d", [5, 16, 50])
@pytest.mark.parametrize("temperature", [1.0, 30.0, -30.0, 1e3, -1e5, 1e10, 1e20])
def test_the_softmax_of_scores_of_any_size(kernels: Kernels, d: int, temperature: float) -> None:
    gram, one = wave([d, d], 0.37), torch.ones(2 * d)  # cosines from -1 to 1
    sums, channels = torch.cat([gram.flatten(), one]), torch.empty(2 * d * d + 2 * d)
    tau, project, mixing = torch.tensor([temperature]), torch.eye(d), torch.empty(d, d)
    kernels.call(
        *("mix", 1, d, 1, sums.data_ptr(), tau.data_ptr(), project.data_ptr()),
        *(channels.data_ptr(), mixing.data_ptr()),
    )
    want = (gram * temperature).double().softmax(-1)
    # The error of the exponential, and of its argument, which is rounded; -87 becomes nearly 0.
    error = 5e-7 + 1e-7 * min(abs(temperature), 87)
    assert ((mixing - want).abs() <= error * want + 1e-30).all()


@pytest.mark.parametrize("values", [1, 700, 2 * 5 * 9 * 18, 10**6])
@pytest.mark.parametrize("times", [1, 5])
def test_a_few_images_or_pixels_at_a_time(
    kernels: Kernels, monkeypatch: pytest.MonkeyPatch, values: int, times: int
) -> None:
    monkeypatch.setattr("c2fdft_cli.execution.native.training._CACHED_VALUES", values)
    norm = "with_bias"
    agree_in(attend, kernels, parts(norm, Attention(6, 2, True)), 5, (5, 9), times)
    agree_in(feed_forward, kernels, parts(norm, FeedForward(6, 4.0, True)), 5, (5, 9), times)


def parts(norm: str, part: nn.Module) -> nn.ModuleList:
    """Return a norm and what comes after it; no weight, bias or temperature is special."""
    width = next(module.in_channels for module in part.modules() if isinstance(module, Conv1x1))
    made = nn.ModuleList([PixelNorm(width, norm), part])
    with torch.no_grad():
        for i, parameter in enumerate(made.parameters()):
            fan_in = max(parameter[0].numel(), 1)
            value = wave(list(parameter.shape), 0.31 + 0.07 * i) + 0.1
            parameter.copy_(value / fan_in**0.5)
    return made


def plain(x: Tensor, time: Tensor, norm: PixelNorm, part: nn.Module, _: Kernels) -> Tensor:
    return x + part(norm(x, time))  # type: ignore[no-any-return]


def agree_in(
    ours: Callable[..., Tensor],
    kernels: Kernels,
    made: nn.ModuleList,
    n: int,
    size: tuple[int, int],
    times: int = 1,
) -> None:
    """Compare with the core's modules, and the gradients of stream, time and all parameters."""
    names = [name for name, _ in made.named_parameters()]
    width = len(made[0].body.weight)

    def run(forward: Callable[..., Tensor], x: Tensor, time: Tensor, *values: Tensor) -> Tensor:
        given = copy.deepcopy(made).to(x.dtype)
        for name, value in zip(names, values, strict=True):
            owner, _, last = name.rpartition(".")
            delattr(given.get_submodule(owner), last)
            setattr(given.get_submodule(owner), last, value)  # the leaf, not a parameter
        return forward(x, time, *given, kernels)

    agree(
        partial(run, ours),
        partial(run, plain),
        wave([n, *size, width], 0.37) + 0.5,
        wave([times, width], 0.23),
        *(parameter.detach() for parameter in made.parameters()),
        within=5e-5,  # of the temperature's gradient, the difference of large sums
    )


def test_the_slope_of_gelu_everywhere(kernels: Kernels) -> None:
    ffn, norm = FeedForward(1, 1.0, False), PixelNorm(1, "bias_free")
    nn.init.ones_(ffn.project_in.weight)
    nn.init.ones_(ffn.project_out.weight)
    z = torch.cat([torch.linspace(-20, 20, 40001), torch.tensor([-1e30, -3e38, 1e30, 3e38])])
    # The norm of zero is the time, so each image has one of the values.
    time = z[:, None].requires_grad_()
    exact = z.double().requires_grad_()
    feed_forward(torch.zeros(len(z), 1, 1, 1), time, norm, ffn, kernels).sum().backward()
    F.gelu(exact).sum().backward()
    assert float((time.grad[:, 0] - exact.grad).abs().max()) < 3e-7


@pytest.mark.parametrize("layer", [attend, feed_forward])
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_the_norm_without_bias_is_exact_far_from_zero(
    kernels: Kernels, mean: float, layer: Callable[..., Tensor]
) -> None:
    part = Attention(16, 2, False) if layer is attend else FeedForward(16, 4.0, False)
    norm, part = parts("bias_free", part)
    x, time = wave([1, 6, 5, 16], 0.37) + mean, wave([1, 16], 0.9)

    def derivative(forward: Callable[..., Tensor], dtype: torch.dtype) -> Tensor:
        leaf = x.to(dtype).requires_grad_()
        here = copy.deepcopy(norm).to(dtype), copy.deepcopy(part).to(dtype)
        y = forward(leaf, time.to(dtype), *here, kernels) - leaf
        y.backward(wave([1, 6, 5, 16], 0.71).to(dtype))
        return leaf.grad

    exact = derivative(plain, torch.float64)
    ours, autograds = (derivative(one, torch.float32) for one in (layer, plain))
    assert relative(ours, exact) < max(2e-6, 2 * relative(autograds, exact))


def with_one_value(value: float, images: int = 1) -> Tensor:
    """Return images with this value in a channel of pixel (1, 2) of the first."""
    x = wave([images, 4, 4, 16], 0.37)
    x[0, 1, 2, 3] = value
    return x


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_lost(kernels: Kernels, bad: float) -> None:
    norm, ffn = parts("with_bias", FeedForward(16, 4.0, False))
    x = with_one_value(bad)
    leaf = x.clone().requires_grad_()
    y = feed_forward(leaf, torch.zeros(1, 16), norm, ffn, kernels)
    y.backward(torch.ones_like(y))
    assert not torch.isfinite(y[0, 1, 2]).any()
    assert torch.isfinite(y[0, 3]).all()
    assert not torch.isfinite(leaf.grad[0, 1, 2]).any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_reaches_the_attention_of_its_image(
    kernels: Kernels, bad: float
) -> None:
    norm, attention = parts("with_bias", Attention(16, 2, False))
    x = with_one_value(bad, images=2)
    leaf = x.clone().requires_grad_()
    y = attend(leaf, torch.zeros(1, 16), norm, attention, kernels)
    y.backward(torch.ones_like(y))
    for found in (y, leaf.grad):
        assert not torch.isfinite(found[0]).any()
        assert torch.isfinite(found[1]).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_in_a_linear_layer_is_not_lost(kernels: Kernels, bad: float) -> None:
    x = with_one_value(bad)
    y = linear(x, wave([64, 16], 0.53), None, kernels)
    assert not torch.isfinite(y[0, 1, 2]).any()
    assert torch.isfinite(y[0, 3]).all()


@pytest.mark.parametrize("layer", [attend, feed_forward])
def test_another_layout_gives_the_same(kernels: Kernels, layer: Callable[..., Tensor]) -> None:
    part = Attention(6, 2, True) if layer is attend else FeedForward(6, 4.0, True)
    norm, part = parts("with_bias", part)
    x, time = wave([2, 5, 7, 6], 0.37), wave([1, 6], 0.9)
    found = []
    for order in (lambda z: z, lambda z: z.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)):
        leaf = x.clone().requires_grad_()
        y = layer(order(leaf), time, norm, part, kernels)
        y.backward(order(x))
        found.append((y, leaf.grad))
    for plain, turned in zip(*found, strict=True):
        assert torch.equal(plain, turned)


def test_results_do_not_depend_on_the_number_of_threads(kernels: Kernels) -> None:
    norm, attn = parts("with_bias", Attention(48, 2, False))
    ffn = parts("with_bias", FeedForward(48, 4.0, True))[1]
    x, time = wave([1, 40, 40, 48], 0.37), wave([1, 48], 0.9)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            norm.zero_grad()
            attn.zero_grad()
            leaf = x.clone().requires_grad_()
            y = feed_forward(attend(leaf, time, norm, attn, kernels), time, norm, ffn, kernels)
            y.backward(x)
            # The gradients of other weights are of torch's BLAS, and so may be what follows from
            # them: at this size torch divides none of them.
            found.append([y, leaf.grad, attn.qkv_dwconv.weight.grad, norm.body.weight.grad])
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


def layers() -> list[tuple[Callable[..., Tensor], nn.Module, nn.Module]]:
    """Return both layers with a norm and what comes after it."""
    made = ((attend, Attention(6, 2, True)), (feed_forward, FeedForward(6, 2.0, True)))
    return [(layer, *parts("with_bias", part)) for layer, part in made]


def test_tensors_that_do_not_fit_are_refused(kernels: Kernels) -> None:
    """The kernels get addresses, and would read and write beyond the tensors."""
    x = wave([2, 3, 3, 6], 0.37)
    with pytest.raises(ValueError, match=r"expected 6 channels, got \[1, 3, 3, 8\]"):
        linear(wave([1, 3, 3, 8], 0.37), wave([4, 6], 0.53), None, kernels)
    with pytest.raises(ValueError, match="6 channels are not a multiple of 4 heads"):
        attend(x, x[:1, 0, 0], PixelNorm(6, "with_bias"), Attention(6, 4, True), kernels)
    for layer, norm, part in layers():
        for shape in ([1, 8], [3, 6], [6], [2, 1, 6], [1, 3, 6]):
            with pytest.raises(
                ValueError, match=r"a time of shape \[.* does not fit \[2, 3, 3, 6\]"
            ):
                layer(x, torch.zeros(shape), norm, part, kernels)
        for module in (*norm.modules(), *part.modules()):
            for name, right in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(torch.cat([right, right])))
                with pytest.raises(ValueError, match=r"weights of shape .* do not fit 6 channels"):
                    layer(x, torch.zeros(1, 6), norm, part, kernels)
                setattr(module, name, right)
        layer(x, torch.zeros(1, 6), norm, part, kernels)


def test_a_hidden_layer_has_the_width_of_its_weights(kernels: Kernels) -> None:
    """Such as one that was pruned: the attributes of its convolutions state the former width."""
    made = parts("with_bias", FeedForward(6, 4.0, True))
    ffn = made[1]
    ffn.project_in.weight = nn.Parameter(ffn.project_in.weight[:7].detach())
    ffn.project_in.bias = nn.Parameter(ffn.project_in.bias[:7].detach())
    ffn.project_out.weight = nn.Parameter(ffn.project_out.weight[:, :7].detach())
    agree_in(feed_forward, kernels, made, 2, (5, 9))


def test_what_only_the_forward_pass_reads_may_change_before_the_backward_pass(
    kernels: Kernels,
) -> None:
    x, time = wave([2, 5, 7, 6], 0.37), wave([2, 6], 0.9).requires_grad_()
    for layer, norm, part in layers():
        leaves = [time, *norm.parameters(), *part.parameters()]
        biases = [module.bias for module in (*norm.modules(), *part.modules()) if has_bias(module)]
        before = torch.autograd.grad(layer(x, time, norm, part, kernels).sum(), leaves)
        loss = layer(x, time, norm, part, kernels).sum()
        with torch.no_grad():
            for one in (time, *biases):
                one.mul_(3)
        for mine, theirs in zip(torch.autograd.grad(loss, leaves), before, strict=True):
            assert torch.equal(mine, theirs)


def has_bias(module: nn.Module) -> bool:
    return getattr(module, "bias", None) is not None


def test_without_torchs_blas_torchs_operators_train(
    kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_gemm", None)
    monkeypatch.setattr(f"{training_kernels.__module__}.kernels_for", lambda *_: kernels)
    weight = wave([4, 6], 0.53)
    assert not kernels.can_train
    assert training_kernels(weight) is None
    layer, *both = layers()[1]
    y = layer(wave([1, 3, 3, 6], 0.3), torch.zeros(1, 6), *both, kernels)
    with pytest.raises(RuntimeError, match="have no sgemm_"):
        y.sum().backward()


@pytest.mark.parametrize("layer", [attend, feed_forward])
@pytest.mark.parametrize("times", [1, 2])
def test_gradients_share_no_memory(
    kernels: Kernels, layer: Callable[..., Tensor], times: int
) -> None:
    part = Attention(6, 2, True) if layer is attend else FeedForward(6, 4.0, True)
    norm, part = parts("with_bias", part)
    time = wave([times, 6], 0.9).requires_grad_()
    leaves = [time, *norm.parameters(), *part.parameters()]
    once = []
    for _ in range(2):
        layer(wave([2, 5, 7, 6], 0.37), time, norm, part, kernels).sum().backward()
        once = once or [leaf.grad.clone() for leaf in leaves]
    for leaf, first in zip(leaves, once, strict=True):
        assert torch.allclose(leaf.grad, 2 * first)
