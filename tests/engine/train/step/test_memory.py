"""Memory of a training step: counted without computing, and used to choose micro-batches."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict, replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from c2fdft_cli.core.diffusion import spaced_timesteps
from c2fdft_cli.engine.train.step import memory
from c2fdft_cli.engine.train.step.memory import (
    NO_KERNELS,
    OF_CPU,
    choose_micro_batch,
    choose_recompute,
    kernels_in_use,
    saved_bytes,
    step_bytes,
    weight_bytes,
)
from c2fdft_cli.engine.train.step.objective import Objective
from c2fdft_cli.engine.weights.build import alpha_bar_of_recipe, make_network
from c2fdft_cli.execution.block_gradients import install
from c2fdft_cli.execution.device import Runtime
from c2fdft_cli.execution.fused.training import FEED_FORWARD, NORM, assume
from c2fdft_cli.execution.native.library import kernels_for
from c2fdft_cli.recipe.schema import Diffusion, FineStage, Network, Stage
from tests.kit.gpu import require_triton
from tests.kit.live_bytes import LiveBytes
from tests.kit.networks import NETWORKS, SECTION, SMALL

CPU = Runtime(torch.device("cpu"))


def test_saved_bytes_grow_with_the_area():
    small, large = saved_bytes(SMALL, 32), saved_bytes(SMALL, 64)
    assert 3.5 < large / small < 4.1


def test_recomputing_holds_one_network_call():
    one = step_bytes(SMALL, Stage(), 1, 32, CPU, NO_KERNELS)
    assert step_bytes(SMALL, FineStage(recompute="call"), 8, 32, CPU, NO_KERNELS) == one
    assert step_bytes(SMALL, FineStage(recompute="none"), 8, 32, CPU, NO_KERNELS) == 8 * one


def test_recomputing_levels_holds_only_the_largest_level():
    one = step_bytes(SMALL, Stage(), 1, 32, CPU, NO_KERNELS)
    by_level = step_bytes(SMALL, FineStage(recompute="level"), 8, 32, CPU, NO_KERNELS)
    assert 0.2 * one < by_level < 0.7 * one
    # in the official network the last level holds about a third
    assert 0.3 < saved_bytes(Network(), 64, True) / saved_bytes(Network(), 64) < 0.45


def test_the_inputs_of_all_levels_are_counted():
    kept = dict(
        memory._saved_bytes(json.dumps(asdict(SMALL)), 32, torch.float32, "cpu", NO_KERNELS)
    )
    # channels and side of the three levels on the way down, the latent one, and those on the way up
    inputs = [(8, 32), (16, 16), (32, 8), (64, 4), (32, 8), (16, 16), (16, 32)]
    assert kept[memory.INPUTS] == 4 * sum(channels * side**2 for channels, side in inputs)
    always = kept.pop(memory.OUTSIDE) + kept.pop(memory.INPUTS)
    assert saved_bytes(SMALL, 32, recompute_levels=True) == always + max(kept.values())


@pytest.mark.parametrize(
    ("wanted", "rows", "each", "fixed", "free", "expected"),
    [
        ("auto", 100, 10, 0, 10**6, 100),
        ("auto", 100, 10, 0, 500, 34),
        ("auto", 100, 10, 150, 500, 20),
        ("auto", 100, 10, 10**6, 500, 1),
        ("auto", 100, 10, 0, 1, 1),
        (7, 100, 10, 0, 10**6, 7),
        (200, 100, 10, 0, 10**6, 100),
    ],
)
def test_the_micro_batch_fits_the_memory(monkeypatch, wanted, rows, each, fixed, free, expected):
    monkeypatch.setattr(memory, "free_bytes", lambda runtime: free)
    assert choose_micro_batch(wanted, rows, each, fixed, CPU) == expected


def test_gradients_and_cast_weights_are_counted():
    assert weight_bytes(100, torch.float32) == 400
    assert weight_bytes(100, torch.bfloat16) == 600


@pytest.mark.parametrize(
    ("device", "fused"),
    [
        pytest.param("cpu", False, marks=pytest.mark.acceptance),
        pytest.param("cuda", False, marks=pytest.mark.acceptance),
        ("cuda", True),
    ],
)
@pytest.mark.parametrize(
    ("network", "patch"),
    [(NETWORKS["narrow"], 48), pytest.param(Network(), 64, marks=pytest.mark.acceptance)],
)
def test_the_count_is_right_in_half_precision(network, patch, device, fused):
    """Compare with the bytes alive after a forward pass of one and of two images under autocast.

    CUDA's autocast differs by its float32 layer norms. These, and the explicit derivatives for
    CUDA, can run on a CPU too. The tensors are fake.
    """
    kernels = all_kernels(network) if fused else NO_KERNELS
    with assume(kernels):
        first, second = (held_after_forward(network, count, patch, device) for count in (1, 2))
    counted = saved_bytes(network, patch, False, torch.bfloat16, device, kernels)
    assert counted == pytest.approx(second - first, rel=0.05)
    cast = weight_bytes(sum(p.numel() for p in make_network(network).parameters()), torch.bfloat16)
    assert first <= 1.05 * counted + cast


def all_kernels(network):
    require_triton()
    return frozenset((p, network.dim << n) for p in (NORM, FEED_FORWARD) for n in range(4))


def test_the_kernels_save_less():
    """For the official network they save neither hidden layers nor float32 norms."""
    plain, fused = (
        saved_bytes(Network(), 64, False, torch.bfloat16, "cuda", kernels)
        for kernels in (NO_KERNELS, all_kernels(Network()))
    )
    assert fused < 0.6 * plain


@pytest.mark.parametrize(
    ("device", "dtype", "compiling", "widths"),
    [
        ("cuda", torch.bfloat16, "auto", [8, 16, 32, 64]),
        ("cuda", torch.bfloat16, "off", [8, 16, 32, 64]),
        ("cuda", torch.bfloat16, "on", []),
        ("cuda", torch.float16, "auto", []),
        ("cuda", torch.float32, "auto", []),
        ("cpu", torch.bfloat16, "auto", []),
    ],
)
def test_the_kernels_are_counted_where_they_train(monkeypatch, device, dtype, compiling, widths):
    def chosen(blocks, *_):
        return frozenset((NORM, block.norm1.body.weight.numel()) for block in blocks)

    monkeypatch.setattr(memory, "chosen_for", chosen)
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, _: module)
    runtime, before = Runtime(torch.device(device), dtype), torch.get_rng_state()
    assert kernels_in_use(SMALL, compiling, runtime) == {(NORM, width) for width in widths}
    assert torch.equal(torch.get_rng_state(), before)  # the blocks are made with random weights


def held_after_forward(network, count, patch, device):
    norms = memory.NormsInFloat32() if device == "cuda" else nullcontext()
    with FakeTensorMode():
        net = make_network(network)
        if device == "cuda":
            install(net, torch.device(device))
        x, t = torch.zeros(count, 6, patch, patch), torch.zeros(count)
        with LiveBytes() as live, torch.autocast("cpu", torch.bfloat16), norms:
            loss = net(x, t).sum()
            held = live.now
        del loss
    return held


@pytest.mark.parametrize(
    ("device", "gib", "way"),
    [("cuda", 100, "none"), ("cuda", 80, "call"), ("cuda", 1, "level"), ("cpu", 100, "call")],
)
def test_auto_recomputes_as_much_as_the_memory_requires(monkeypatch, device, gib, way):
    """For four sampling steps on the official batches (192 x 32, 48 x 64, 12 x 128 px) in fp32."""
    monkeypatch.setattr(memory, "free_bytes", lambda _: gib << 30)
    runtime = Runtime(torch.device(device))
    stage = FineStage(recompute="auto")
    assert choose_recompute(Network(), stage, 4, "auto", runtime) == way
    asked = replace(stage, recompute="level")
    assert choose_recompute(Network(), asked, 4, "auto", runtime) == "level"


@pytest.mark.parametrize(
    ("free", "world", "way"),
    [
        (768, 1, "none"),
        (767, 1, "call"),
        (384, 2, "none"),
        (383, 2, "call"),
        (288, 3, "none"),  # a process has up to six of 16 images
        (287, 3, "call"),
        (32, 1, "call"),
        (31, 1, "level"),
    ],
)
def test_whole_batches_of_each_process_have_to_fit_or_single_images(monkeypatch, free, world, way):
    """Half of the memory may be used, and an image holds a byte for each pixel of a side."""

    def counted(network, stage, calls, patch, *_):
        return patch * (1 if stage.recompute == "none" else 0.5)

    monkeypatch.setattr(memory, "free_bytes", lambda _: free)
    monkeypatch.setattr(memory, "MARGIN", 0.5)
    monkeypatch.setattr(memory, "kernels_in_use", lambda *_: NO_KERNELS)
    monkeypatch.setattr(memory, "step_bytes", counted)
    stage = FineStage(recompute="auto", patches=[24, 32], batches=[16, 8])
    runtime = Runtime(torch.device("cuda"), world=world)
    assert choose_recompute(SMALL, stage, 4, "auto", runtime) == way


def peak(recompute: str, calls: int, network: Network = SMALL):
    net = make_network(network)
    stage = FineStage(recompute=recompute, ssim="none")
    objective = Objective(net, alpha_bar_of_recipe(Diffusion()), (stage, spaced_timesteps(calls)))
    lq, gt, noise = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32), torch.randn(1, 3, 32, 32)
    for parameter in net.parameters():  # allocated in advance, so that they are not counted
        parameter.grad = torch.zeros_like(parameter)
    with LiveBytes() as live:
        objective(lq, gt, noise, None).backward()
    return live.peak


@pytest.mark.acceptance
def test_with_recomputing_memory_does_not_grow_with_the_steps():
    none, call, level = (peak(recompute, 4) for recompute in ("none", "call", "level"))
    assert call < none / 2
    assert level < call
    assert peak("none", 8) > 1.8 * none
    assert peak("call", 8) < 1.05 * call
    assert peak("level", 8) < 1.05 * level


@pytest.mark.parametrize(
    ("kind", "recompute"),
    [
        *((kind, "none") for kind in NETWORKS),
        ("narrow", "level"),
        *(
            pytest.param(kind, "level", marks=pytest.mark.acceptance)
            for kind in sorted({*NETWORKS} - {"narrow"})
        ),
    ],
)
def test_the_estimate_is_near_the_bytes_held(kind, recompute):
    network = replace(NETWORKS[kind], blocks=[3, 1, 1, 1])  # one block of each is counted
    held = peak(recompute, 1, network)
    counted = saved_bytes(network, 32, recompute == "level")
    assert 0.75 * held < counted < 1.15 * held, f"the plan must count each option: {SECTION}"


needs_a_compiler = pytest.mark.skipif(
    not getattr(kernels_for(CPU.device, torch.float32), "can_train", False),
    reason="no C compiler, or a torch without sgemm_",
)


@needs_a_compiler
@pytest.mark.parametrize("bias", [False, True])
def test_what_the_compiled_kernels_keep_is_counted(bias):
    """For each value of the stream: 12 in a block, whose stream is counted before it."""
    network, side = replace(SMALL, bias=bias), 96
    net = make_network(network)
    install(net, CPU.device)
    counted = saved_bytes(network, side, kernels=OF_CPU)
    kept = memory._kept(net, side, {})
    kept.pop(memory.INPUTS)
    assert counted == sum(kept.values())
    level = kept["encoder_level2"] / 4 / (16 * (side // 2) ** 2)
    assert 11.9 < level < 12.5
    assert counted < 0.75 * saved_bytes(network, side)


@needs_a_compiler
@pytest.mark.parametrize(
    ("compiling", "dtype", "expected"),
    [
        ("auto", torch.float32, OF_CPU),
        ("off", torch.float32, OF_CPU),
        ("on", torch.float32, NO_KERNELS),
        ("auto", torch.bfloat16, NO_KERNELS),
    ],
)
def test_the_compiled_kernels_are_counted_where_they_train(compiling, dtype, expected):
    """Not in blocks that torch.compile traces."""
    assert kernels_in_use(SMALL, compiling, Runtime(CPU.device, dtype)) == expected


def test_without_a_compiler_torchs_kernels_are_counted(monkeypatch):
    monkeypatch.setattr(memory, "kernels_for", lambda device, dtype: None)
    assert kernels_in_use(SMALL, "auto", CPU) == NO_KERNELS


@needs_a_compiler
def test_counting_leaves_the_random_numbers_as_they_are():
    memory._kept_on_cpu.cache_clear()
    memory._saved_bytes.cache_clear()
    before = torch.get_rng_state()
    saved_bytes(SMALL, 32, kernels=OF_CPU)
    assert torch.equal(torch.get_rng_state(), before)
