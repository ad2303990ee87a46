"""The explicit derivatives of a block equal autograd's of the plain formulas."""

import copy
import itertools

import pytest
import torch

from c2fdft_cli.core.block import Block
from c2fdft_cli.core.layers import NORM_EPS, Conv1x1, PixelNorm
from c2fdft_cli.core.network import DFT
from c2fdft_cli.execution.block_gradients import (
    _BiasFreeNorm,
    install,
    use_cpu_kernels,
    use_one_product,
)
from c2fdft_cli.execution.kernels import has_onednn_linear
from c2fdft_cli.execution.native import training
from c2fdft_cli.execution.recompute import recompute_levels
from tests.kit.formula import fill, relative, wave

needs_kernels = pytest.mark.skipif(
    not has_onednn_linear(torch.device("cpu"), torch.float32), reason="torch without oneDNN"
)
cpu_routes = [
    pytest.param(route, marks=needs_kernels) for route in ("cpu", "cpu without a compiler")
]
routes = pytest.mark.parametrize("route", [*cpu_routes, "cuda"], indirect=True)
"""The derivatives installed for each device; those for CUDA can be computed on a CPU too."""


@pytest.fixture
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The device whose derivatives are installed, with the compiled kernels or without them."""
    if request.param == "cpu without a compiler":
        monkeypatch.setattr(training, "kernels_for", lambda device, dtype: None)
    return str(request.param).split()[0]


def installed(block, route="cpu"):
    """A copy of the block with the explicit derivatives installed."""
    ours = copy.deepcopy(block)
    install(ours, torch.device(route))
    return ours


def gradients(block, x, time, weights):
    """The result and the gradients of the input and of every parameter, by name."""
    block.zero_grad(set_to_none=True)
    leaf = x.clone().requires_grad_()
    y = block(leaf, time)
    (y * weights).sum().backward()
    named = {name: p.grad for name, p in block.named_parameters()}
    return {"y": y.detach(), "x": leaf.grad, **named}


VARIANTS = [*itertools.product([1, 2, 4], [True, False], ["with_bias", "bias_free"], [1, 2])]
"""Heads, biases of convolutions, norms, and times of two images."""


@routes
@pytest.mark.parametrize(
    ("heads", "bias", "norm", "times", "size"),
    [
        *((*variant, (5, 7)) for variant in VARIANTS),
        # one pixel, and more than the kernels take at a time: all variants with two heads
        *((*one, size) for one in VARIANTS for size in ((1, 1), (33, 40)) if one[0] == 2),
    ],
)
def test_gradients_are_autograds(heads, bias, norm, times, size, route):
    block = fill(Block(16, heads, 4.0, bias, norm))
    x, weights = wave([2, *size, 16], 0.37), wave([2, *size, 16], 0.71)
    time = wave([times, 16], 0.9)
    ours = gradients(installed(block, route), x, time, weights)
    autograds = gradients(block, x, time, weights)
    assert ours.keys() == autograds.keys()
    exact = gradients(block.double(), x.double(), time.double(), weights.double())
    for name, expected in exact.items():
        # Some are sums over pixels that nearly cancel, of which autograd has few digits, too.
        error = (autograds[name] - expected).abs().max()
        scale = expected.abs().max().clamp_min(1e-3)
        # Those of q and k are 0 for a single pixel, from terms that cancel.
        share = 2e-4 if size == (1, 1) else 1e-4
        assert (ours[name] - expected).abs().max() < 2 * error + share * scale, name


@routes
def test_a_stream_in_another_layout_gives_the_same_gradients(route):
    block = fill(Block(12, 2, 4.0, False, "with_bias"))
    x, weights, time = wave([2, 8, 9, 12], 0.37), wave([2, 8, 9, 12], 0.71), wave([1, 12], 0.9)
    other = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    ours = gradients(installed(block, route), other, time, weights)
    for name, expected in gradients(installed(block, route), x, time, weights).items():
        assert relative(ours[name], expected) < 1e-6, name


@pytest.mark.parametrize("route", cpu_routes, indirect=True)
def test_an_empty_batch_stays_empty(route):
    convolution = installed(Conv1x1(8, 4, False), route)
    assert convolution(torch.zeros(0, 3, 3, 8)).shape == (0, 3, 3, 4)


@routes
@pytest.mark.parametrize("frozen", ["attn.", "ffn.", "qkv_dwconv", "project_in"])
def test_parts_may_be_frozen(frozen, route):
    block = fill(Block(16, 2, 4.0, True, "with_bias"))
    for name, parameter in block.named_parameters():
        parameter.requires_grad_(frozen not in name)
    x, weights, time = wave([2, 5, 7, 16], 0.37), wave([2, 5, 7, 16], 0.71), wave([1, 16], 0.9)
    ours = gradients(installed(block, route), x, time, weights)
    for name, expected in gradients(block, x, time, weights).items():
        if expected is None:
            assert ours[name] is None, name
        else:
            assert relative(ours[name], expected) < 1e-4, name


@pytest.mark.parametrize("route", cpu_routes, indirect=True)
def test_weights_in_bf16_are_not_read_as_float32(route):
    convolution, x = fill(Conv1x1(8, 4, False)).bfloat16(), wave([1, 3, 3, 8], 0.37)
    expected = convolution(x.bfloat16())
    assert relative(installed(convolution, route)(x), expected.float()) < 1e-2


@pytest.mark.parametrize("times", [1, 2])
def test_the_norm_without_bias_has_a_true_derivative(times):
    x, weight, time = wave([2, 3, 2, 5], 0.37) + 0.3, wave([5], 0.71), wave([times, 5], 0.9)
    inputs = [z.double().requires_grad_() for z in (x, weight, time)]
    assert torch.autograd.gradcheck(_BiasFreeNorm.apply, inputs)


@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_the_norm_without_bias_is_exact_far_from_zero(mean):
    x, weights = wave([1, 6, 5, 16], 0.37) + mean, wave([1, 6, 5, 16], 0.71)
    norm, time = fill(PixelNorm(16, "bias_free")), wave([1, 16], 0.9)

    def derivatives(apply, dtype):
        z = x.to(dtype).requires_grad_()
        apply(z, norm.body.weight.to(dtype), time.to(dtype)).backward(weights.to(dtype))
        return z.grad

    def plain(z, weight, time):
        var = z.var(-1, correction=0, keepdim=True)
        return z * torch.rsqrt(var + NORM_EPS) * weight + time[:, None, None]

    exact = derivatives(plain, torch.float64)
    ours, autograds = (derivatives(f, torch.float32) for f in (_BiasFreeNorm.apply, plain))
    assert relative(ours, exact) < max(1e-6, 2 * relative(autograds, exact))


@routes
def test_channels_of_zeros_have_autograds_gradients(route):
    # their sums of squares are clamped before the root
    block = fill(Block(16, 2, 4.0, False, "with_bias"))
    with torch.no_grad():
        block.attn.qkv.weight[[3, 18, 20]] = 0.0
    x, weights, time = wave([2, 5, 7, 16], 0.37), wave([2, 5, 7, 16], 0.71), wave([2, 16], 0.9)
    ours = gradients(installed(block, route), x, time, weights)
    autograds = gradients(block, x, time, weights)
    for name, expected in autograds.items():
        assert torch.isfinite(ours[name]).all(), name
        assert relative(ours[name], expected) < 1e-5, name


@routes
def test_the_explicit_derivatives_are_used(route):
    block = installed(fill(Block(16, 2, 4.0, False, "with_bias")), route)
    y = block(wave([1, 8, 8, 16], 0.37), wave([1, 16], 0.9))
    inner = y.grad_fn if route == "cpu" else y.grad_fn.next_functions[0][0]
    names = {"cpu": ("NormedLayer", "FeedForward"), "cuda": ("Attend",)}[route]
    assert any(name in type(inner).__name__ for name in names)


@routes
@pytest.mark.parametrize("bias", [True, False])
def test_the_error_under_autocast_is_no_larger_than_autograds(bias, route):
    if route == "cpu" and not has_onednn_linear(torch.device("cpu"), torch.bfloat16):
        pytest.skip("no bf16 arithmetic")
    block = fill(Block(32, 2, 4.0, bias, "with_bias"))
    x, weights, time = wave([2, 24, 24, 32], 0.37), wave([2, 24, 24, 32], 0.71), wave([1, 32], 0.9)
    exact = gradients(block, x, time, weights)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = gradients(installed(block, route), x, time, weights)
        autograds = gradients(block, x, time, weights)
    for name, expected in exact.items():
        assert ours[name].dtype == torch.float32, name
        error = relative(ours[name], expected)
        assert error < max(1.5 * relative(autograds[name], expected), 5e-3), name


@routes
@pytest.mark.parametrize("bias", [True, False])
def test_the_stream_keeps_its_dtype(bias, route):
    block = fill(Block(16, 2, 4.0, bias, "with_bias"))
    x, time = wave([1, 8, 8, 16], 0.37).bfloat16(), wave([1, 16], 0.9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert installed(block, route)(x, time).dtype == block(x, time).dtype


@pytest.mark.parametrize("use", [use_cpu_kernels, use_one_product])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_dtypes_are_left_to_autograd(dtype, use):
    assert not use(torch.zeros(1, 1, 1, 1, dtype=dtype))


@pytest.mark.parametrize("use", [use_cpu_kernels, use_one_product])
def test_inference_runs_the_original_forward(use):
    with torch.no_grad():
        assert not use(torch.zeros(1))


def test_other_devices_run_the_original_forward():
    block = installed(fill(Block(8, 1, 4.0, False, "with_bias")), "mps")
    assert "forward" not in vars(block)


def test_float16_under_autocast_is_left_to_autograd():
    with torch.autocast("cpu", dtype=torch.float16):
        assert not use_one_product(torch.zeros(1))


@pytest.mark.parametrize("heads", [1, 4])
def test_attention_keeps_no_float32_copies_of_half_precision(heads):
    """Besides q, k, v in bfloat16 it saves only small matrices for the backward pass."""
    block, kept = fill(Block(32, heads, 4.0, False, "with_bias")), {}

    def keep(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    x = wave([1, 24, 24, 32], 0.37)
    held = []
    for one in (block, installed(block, "cuda")):
        kept.clear()
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with torch.autocast("cpu", dtype=torch.bfloat16), hooks:
            one(x.clone().requires_grad_(), wave([1, 32], 0.9))
        held.append(sum(each.untyped_storage().nbytes() for each in kept.values()))
    copies = 2 * 4 * x.numel()
    assert held[0] - held[1] > 0.9 * copies


@routes
def test_recomputed_levels_give_the_same_gradients(route):
    net = fill(DFT(dim=8, blocks=(1, 1, 1, 1), heads=(1, 1, 2, 4)))
    install(net, torch.device(route))
    x, t = wave([1, 6, 16, 24], 0.37), torch.tensor([400])
    found = []
    for again in (False, True):
        recompute_levels(net, again)
        net.zero_grad(set_to_none=True)
        net(x, t).square().mean().backward()
        found.append([p.grad.clone() for p in net.parameters()])
    for kept, computed in zip(*found, strict=True):
        assert torch.equal(kept, computed)


@routes
def test_second_derivatives_are_refused(route):
    block = installed(fill(Block(8, 1, 4.0, False, "with_bias")), route)
    x = wave([1, 4, 4, 8], 0.3).requires_grad_()
    y = block(x, wave([1, 8], 0.5)).square().sum()
    (first,) = torch.autograd.grad(y, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
