"""Training of norms and feed-forward networks by the kernels, in Triton's interpreter."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from c2fdft_cli.core.block import Block
from c2fdft_cli.core.layers import PixelNorm
from c2fdft_cli.execution.block_gradients import install
from c2fdft_cli.execution.fused import choose, training
from c2fdft_cli.execution.fused.training import (
    FEED_FORWARD,
    NORM,
    assume,
    chosen_for,
    feed_forward_for,
    fused_feed_forward,
    fused_norm,
    norm_for,
    plain_feed_forward,
    plain_norm,
)
from tests.kit.formula import fill, relative, wave
from tests.kit.gpu import require_triton

CPU = torch.device("cpu")
ALLOWED = {torch.float32: 3e-5, torch.float16: 2e-3, torch.bfloat16: 3e-2}
"""Relative errors; the interpreter truncates to bfloat16 where a GPU rounds, and the kernels' GELU
is a polynomial."""

interpreted = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="there is a GPU: tests/cuda tries them on it"
)


@pytest.fixture
def triton() -> None:
    require_triton()


@pytest.fixture
def few_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a program of a backward kernel take 64 pixels, so that small streams need several."""
    operators = importlib.import_module("c2fdft_cli.execution.fused.operators")
    monkeypatch.setattr(operators, "_LEAST_PIXELS", 64)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let trials take few pixels and run on any device."""
    monkeypatch.setattr(choose, "TRIED_ROWS", 3)
    monkeypatch.setattr(choose, "TRIED_VALUES", 3 * 5 * 16)
    monkeypatch.setattr(choose, "_chosen", {})
    monkeypatch.setattr(choose, "kernels_run_on", lambda _: True)


def results(
    way: Any, layer: PixelNorm, z: Tensor, times: int, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Result and gradients by name; the loss also depends on the stream that the norm hands on."""
    z, time = z.detach().requires_grad_(), wave([times, z.shape[-1]], 0.9).requires_grad_()
    layer.zero_grad(set_to_none=True)
    y, handed_on = way(layer, z, time, dtype)
    assert handed_on.dtype == z.dtype
    loss = (y.float() + 0.5).square().sum()
    loss = loss + (handed_on * wave([*z.shape], 0.53)).sum()
    loss.backward()
    found = {"y": y.detach().float(), "z": z.grad.float(), "time": time.grad}
    return {**found, **{name: p.grad for name, p in layer.named_parameters()}}


@interpreted
@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize("dtype", ALLOWED)
@pytest.mark.parametrize("norm", ["with_bias", "bias_free"])
@pytest.mark.parametrize(("times", "half_stream"), [(1, False), (2, True)])
@pytest.mark.parametrize("shape", [(2, 1, 1, 24), (2, 5, 7, 20), (2, 9, 11, 48), (2, 3, 3, 384)])
def test_gradients_of_the_norm_are_autograds(
    few_pixels: None,
    shape: tuple[int, ...],
    times: int,
    half_stream: bool,
    norm: str,
    dtype: torch.dtype,
) -> None:
    """For one pixel, an incomplete block, several programs, the largest width and odd widths."""
    layer = fill(PixelNorm(shape[-1], norm))
    z = (wave([*shape], 0.37) + 0.25).to(dtype if half_stream else torch.float32)
    found = results(fused_norm, layer, z, times, dtype)
    want = results(plain_norm, layer, z.float(), times, torch.float32)
    assert found.keys() == want.keys()
    for name, expected in want.items():
        assert found[name].shape == expected.shape
        assert relative(found[name], expected) < ALLOWED[dtype], name


def results_of_block(
    way: Any, block: Block, z: Tensor, times: int, dtype: torch.dtype
) -> dict[str, Tensor]:
    """What the feed-forward network adds to the stream, and its gradients, by name."""
    source = torch.Generator().manual_seed(1)
    d, time = (torch.randn(s, generator=source) for s in (z.shape, (times, z.shape[-1])))
    block.zero_grad(set_to_none=True)
    out = way(block, z.requires_grad_(), time.requires_grad_(), dtype)
    assert out.dtype == z.dtype
    d = d.to(z.dtype)
    out.backward(d)
    # without the stream and its gradient, which would hide an error as rounding
    found = {"out": (out - z).detach(), "z": z.grad - d, "time": time.grad}
    layers = (("norm2", block.norm2), ("ffn", block.ffn))
    return found | {f"{k}.{n}": p.grad for k, m in layers for n, p in m.named_parameters()}


def small_stream(shape: tuple[int, ...]) -> Tensor:
    """A stream smaller than what is added to it; random, as sums over waves cancel to rounding."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)) / 16


SMALL = [(2, 1, 1, 24), (2, 5, 7, 20)]
LARGE = [(1, 9, 9, 48), (1, 9, 9, 128)]
"""Shapes of a stream; the large ones take long in the interpreter, and two programs of a kernel."""


@interpreted
@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize(
    ("norm", "bias", "factor", "one_time", "half_stream"),
    [("with_bias", True, 2.6, True, True), ("bias_free", False, 4.0, False, False)],
)
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *((shape, dtype) for shape in SMALL for dtype in ALLOWED),
        *((LARGE[0], dtype) for dtype in (torch.float32, torch.bfloat16)),
        *(
            pytest.param(LARGE[1], dtype, marks=pytest.mark.acceptance)
            for dtype in (torch.float32, torch.bfloat16)
        ),
    ],
)
def test_feed_forward_networks_gradients_are_autograds(
    few_pixels: None,
    shape: tuple[int, ...],
    norm: str,
    bias: bool,
    factor: float,
    one_time: bool,
    half_stream: bool,
    dtype: torch.dtype,
) -> None:
    """For one pixel, incomplete tiles of pixels or hidden channels, odd widths and the largest."""
    torch.manual_seed(1)
    block, times = Block(shape[-1], 1, factor, bias, norm), 1 if one_time else shape[0]
    z = small_stream(shape).to(dtype if half_stream else torch.float32)
    want = results_of_block(plain_feed_forward, block, z.float(), times, torch.float32)
    found = results_of_block(fused_feed_forward, block, z.detach(), times, dtype)
    assert found.keys() == want.keys()
    for name, expected in want.items():
        assert found[name].shape == expected.shape
        assert relative(found[name].float(), expected) < ALLOWED[dtype], name


@interpreted
@pytest.mark.usefixtures("triton")
def test_gradients_have_the_memory_layout_of_their_weights() -> None:
    """Otherwise DDP copies them, with a warning."""
    block, z = Block(16, 1, 4.0, True, "with_bias"), small_stream((1, 3, 4, 16))
    strides = {}
    for name, p in block.ffn.named_parameters():
        p.register_hook(lambda g, name=name: strides.update({name: g.stride()}))
    results_of_block(fused_feed_forward, block, z, 1, torch.float32)
    assert strides == {name: p.stride() for name, p in block.ffn.named_parameters()}


@interpreted
@pytest.mark.usefixtures("triton")
def test_weight_gradients_sum_over_all_programs(
    few_pixels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ten tiles, three programs have three each and the last has one."""
    from c2fdft_cli.execution.fused import operators

    monkeypatch.setattr(operators, "_PROGRAMS", 3)
    torch.manual_seed(1)
    block, z = Block(16, 1, 4.0, False, "with_bias"), small_stream((5, 9, 11, 16))
    found = results_of_block(fused_feed_forward, block, z, 1, torch.float32)
    want = results_of_block(plain_feed_forward, block, z.detach(), 1, torch.float32)
    for name, expected in want.items():
        assert relative(found[name], expected) < ALLOWED[torch.float32], name


Asked = Callable[[], Any]


@pytest.fixture(params=[NORM, FEED_FORWARD])
def part(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Asked]:
    """The name of a part of a block, and a function that chooses its implementation."""
    torch.manual_seed(1)
    block, z = Block(16, 2, 4.0, False, "with_bias"), wave([1, 4, 4, 16], 0.3)
    if request.param == NORM:
        return NORM, lambda: norm_for(block.norm1, z, torch.bfloat16)
    monkeypatch.setattr(training, "norm_for", lambda *_: plain_norm)  # the norm has no trial
    return FEED_FORWARD, lambda: feed_forward_for(block, z, torch.bfloat16)


FUSED = {NORM: fused_norm, FEED_FORWARD: fused_feed_forward}
PLAIN = {NORM: plain_norm, FEED_FORWARD: plain_feed_forward}


@interpreted
@pytest.mark.usefixtures("triton", "small")
@pytest.mark.parametrize("seconds", [1.0, 3.0])
def test_kernels_run_if_they_agree_and_are_faster(
    monkeypatch: pytest.MonkeyPatch, part: tuple[str, Asked], seconds: float
) -> None:
    name, asked = part
    ways = iter((seconds, 2.0))
    monkeypatch.setattr(choose, "_seconds", lambda _: next(ways))
    expected = (FUSED if seconds < 2 else PLAIN)[name]
    assert asked() is expected
    assert asked() is expected, "tried once"


@pytest.mark.usefixtures("small")
def test_after_a_failure_the_plain_passes_run(
    monkeypatch: pytest.MonkeyPatch, part: tuple[str, Asked], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of resource: registers")

    name, asked = part
    monkeypatch.setattr(training, FUSED[name].__name__, fail)
    with caplog.at_level("INFO"):
        assert asked() is PLAIN[name]
    assert "RuntimeError: out of resource: registers" in caplog.text


@pytest.mark.usefixtures("small")
def test_wide_feed_forward_networks_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "try_feed_forward", lambda *_: pytest.fail("tried"))
    block, z = fill(Block(136, 1, 1.0, False, "with_bias")), wave([1, 2, 2, 136], 0.3)
    assert feed_forward_for(block, z, torch.bfloat16) is plain_feed_forward


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "case", ["float32", "a stream of another precision", "not dense", "switch"]
)
def test_unsupported_cases_are_not_tried(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.setattr(training, "try_norm", lambda *_: pytest.fail("tried"))
    layer, z, dtype = fill(PixelNorm(16, "with_bias")), wave([2, 4, 4, 16], 0.3), torch.bfloat16
    if case == "float32":
        dtype = torch.float32
    elif case == "a stream of another precision":
        z = z.half()
    elif case == "not dense":
        z = z.transpose(1, 2)
    else:
        monkeypatch.setenv(choose.SWITCH, "off")
    assert norm_for(layer, z, dtype) is plain_norm


@pytest.mark.usefixtures("small")
def test_choices_are_listed_by_part_and_width(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = choose.KernelTrial("any", 0.0, 1.0, 2.0)
    monkeypatch.setattr(training, "try_norm", lambda *_: fast._replace(seconds=3.0))
    monkeypatch.setattr(training, "try_feed_forward", lambda *_: fast)
    blocks = (Block(width, 1, 1.0, False, "with_bias") for width in (16, 128, 136))
    found = chosen_for(blocks, CPU, torch.bfloat16)
    assert found == {(FEED_FORWARD, 16), (FEED_FORWARD, 128)}


@pytest.mark.usefixtures("small")
def test_each_number_of_channels_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def trial(_: object, stream: Tensor, dtype: torch.dtype) -> choose.KernelTrial:
        tried.append(stream.shape[-1])
        return choose.KernelTrial("any", None)

    monkeypatch.setattr(training, "try_norm", trial)
    monkeypatch.setattr(training, "try_feed_forward", trial)
    for columns, channels in ((4, 16), (5, 16), (4, 32)):
        block = Block(channels, 1, 64 / channels, False, "with_bias")  # equally many are hidden
        z = torch.zeros(1, 1, columns, channels)
        norm_for(block.norm1, z, torch.bfloat16)
        feed_forward_for(block, z, torch.bfloat16)
    assert tried == [16, 16, 32, 32]


def test_assumed_choices_need_no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_try_where", lambda *_: pytest.fail("tried"))
    block, z = Block(16, 1, 4.0, False, "with_bias"), wave([1, 2, 2, 16], 0.3)
    with assume(frozenset({(FEED_FORWARD, 16)})):
        assert norm_for(block.norm1, z, torch.bfloat16) is plain_norm
        assert feed_forward_for(block, z, torch.bfloat16) is fused_feed_forward
    assert feed_forward_for(block, z, torch.bfloat16) is plain_feed_forward, "a CPU has none"


@interpreted
@pytest.mark.usefixtures("triton", "small")
def test_a_block_trains_by_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under autocast and with checkpointing, neither of which affects the trial."""
    monkeypatch.setenv(choose.SWITCH, "on")
    monkeypatch.setattr(choose, "_seconds", lambda _: 1.0)
    torch.manual_seed(1)
    block = Block(16, 2, 4.0, False, "with_bias")
    install(block, torch.device("cuda"))
    gradients = []
    for way in (fused_norm, plain_norm):
        if way is plain_norm:
            monkeypatch.setenv(choose.SWITCH, "off")
        x = wave([2, 5, 7, 16], 0.37).requires_grad_()
        block.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = torch.utils.checkpoint.checkpoint(block, x, wave([1, 16], 0.9), use_reentrant=False)
        (y + 0.5).square().sum().backward()
        gradients.append({"x": x.grad, **{n: p.grad for n, p in block.named_parameters()}})
    assert {fused_norm, fused_feed_forward} <= set(choose._chosen.values())
    for name, expected in gradients[1].items():
        assert relative(gradients[0][name], expected) < 2 * ALLOWED[torch.bfloat16], name
