"""Tests that need a GPU: `python -m pytest -n 0 -m cuda`. They are skipped without one."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from c2fdft_cli.core.block import Block
from c2fdft_cli.core.network import DFT
from c2fdft_cli.engine.sampling.executor import Executor
from c2fdft_cli.engine.sampling.sampler import Sampler
from c2fdft_cli.engine.tools.bench import random_batch
from c2fdft_cli.engine.tools.doctor import examine
from c2fdft_cli.engine.train.step.memory import kernels_in_use, step_bytes
from c2fdft_cli.engine.train.step.objective import Objective
from c2fdft_cli.engine.train.step.stepper import Stepper
from c2fdft_cli.execution.cuda.cards import AMPERE, WIDEST_ON_CHIP, lay_out_weights
from c2fdft_cli.execution.cuda.recorded import SWITCH, Recorder
from c2fdft_cli.execution.device import Runtime, make_runtime
from c2fdft_cli.execution.fused import choose
from c2fdft_cli.execution.fused.training import try_feed_forward, try_norm
from c2fdft_cli.execution.inference_memory import strip_bytes
from c2fdft_cli.execution.prepared import PreparedBlock
from c2fdft_cli.execution.strips import StripNetwork
from c2fdft_cli.recipe.schema import FineStage, Network, Stage, Train
from tests.kit.formula import fill, relative, wave

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
ALLOWED = {"fp32": 2e-5, "tf32": 2e-3, "fp16": 4e-3, "bf16": 2e-2}
"""Relative error of eps_hat - x_t against float32 on a CPU."""
BLOCKS = [1, 2, 2, 2]


@pytest.fixture(params=ALLOWED)
def runtime(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    """CUDA in each precision that the card supports."""
    older = torch.cuda.get_device_capability() < AMPERE
    if older and request.param in ("tf32", "bf16"):
        pytest.skip("needs compute capability 8.0")
    yield make_runtime("cuda", request.param)
    make_runtime("cuda", "fp32")


def network(**changes: object) -> DFT:
    return fill(DFT(**{"dim": 48, "blocks": tuple(BLOCKS), **changes}))


@pytest.mark.parametrize("rows", [None, 24, 7])
def test_strips_agree_with_the_cpu(runtime: Runtime, rows: int | None) -> None:
    x, t = wave([2, 6, 64, 96], 0.13), torch.tensor([500.0, 20.0])
    net = network()
    with torch.inference_mode():
        want = net(x, t) - x[:, -3:]
        there = StripNetwork(net.to(runtime.device), rows, runtime.dtype)
        got = there(x.to(runtime.device), t.to(runtime.device)).cpu() - x[:, -3:]
    assert relative(got, want) < ALLOWED[runtime.precision]


@pytest.mark.parametrize("dtype", choose.ALLOWED)
@pytest.mark.parametrize(
    ("width", "heads"), [(48, 1), (96, 2), (96, 1), (192, 4), (384, 8), (24, 1)]
)
def test_the_kernels_agree_with_the_plain_passes(
    width: int, heads: int, dtype: torch.dtype
) -> None:
    device = torch.device("cuda")
    if not choose.kernels_run_on(device):
        pytest.skip("needs Triton and compute capability 8.0")
    torch.manual_seed(width)
    block = PreparedBlock.of(Block(width, heads, 4.0, False, "with_bias").to(device), dtype, False)
    with torch.inference_mode():
        _, trials = choose.try_out(block, device, width)
    assert [trial.part for trial in trials] == ["gather", "mixing", "apply"]
    trained = Block(width, heads, 4.0, False, "with_bias").to(device)
    for precision in (torch.float32, dtype):
        stream = torch.empty(width, device=device, dtype=precision)
        trials.append(try_norm(trained.norm2, stream, dtype))
        if width <= WIDEST_ON_CHIP:
            trials.append(try_feed_forward(trained, stream, dtype))
    for trial in trials:
        assert trial.error is not None, trial.failure
        assert trial.error <= choose.ALLOWED[dtype]


def test_skips_in_host_memory_change_nothing(runtime: Runtime) -> None:
    net = network(blocks=(1, 1, 1, 1)).to(runtime.device)
    x, t = wave([1, 6, 128, 96], 0.13).to(runtime.device), torch.tensor([500.0]).cuda()
    with torch.inference_mode():
        here, there = (
            StripNetwork(net, 32, runtime.dtype, offload_skips=skips)(x, t)
            for skips in (False, True)
        )
    assert torch.equal(here, there)


def gradient(net: DFT, runtime: Runtime) -> Tensor:
    lay_out_weights(net)
    objective = Objective(net, torch.linspace(0.99, 0.01, 1000, device=runtime.device), None)
    strides: list[bool] = []
    for p in net.parameters():
        p.register_hook(lambda g, p=p: strides.append(g.stride() == p.stride()))
    stepper = Stepper(objective, Train(), runtime)
    torch.manual_seed(0)
    stepper._loss(random_batch(3, 32, 1000)).backward()
    assert all(strides)
    return torch.cat([p.grad.flatten().double().cpu() for p in net.parameters()])


def test_gradients_agree_with_the_cpu(runtime: Runtime) -> None:
    net = network()
    want = gradient(copy.deepcopy(net), Runtime(torch.device("cpu")))
    got = gradient(net.to(runtime.device), runtime)
    least = {"fp32": 0.9999, "tf32": 0.999, "fp16": 0.995, "bf16": 0.98}[runtime.precision]
    assert torch.cosine_similarity(got, want, dim=0) > least


@pytest.mark.parametrize("rows", [512, 128, 16])
def test_the_memory_of_a_call_is_as_planned(runtime: Runtime, rows: int) -> None:
    net = network().to(runtime.device)
    strips = StripNetwork(net, rows, runtime.dtype)
    x, t = torch.randn(1, 6, 512, 768, device="cuda"), torch.full((1,), 500.0, device="cuda")
    with torch.inference_mode():
        strips(x, t)
        before = start_counting()
        strips(x, t)
    planned = strip_bytes(strips, 512, 768, 1, rows)
    assert torch.cuda.max_memory_allocated() - before == pytest.approx(planned, rel=0.2)


def test_the_memory_of_a_training_step_is_as_planned(runtime: Runtime) -> None:
    net = network().to(runtime.device)
    alpha_bar = torch.linspace(0.99, 0.01, 1000, device="cuda")
    stepper = Stepper(Objective(net, alpha_bar, None), Train(), runtime)
    batch = random_batch(8, 64, 1000)
    stepper.try_out(batch, 8)
    before = start_counting()
    stepper.try_out(batch, 8)
    each = (torch.cuda.max_memory_allocated() - before) / 8
    kernels = kernels_in_use(Network(blocks=BLOCKS), "off", runtime)
    planned = step_bytes(Network(blocks=BLOCKS), Stage(), 1, 64, runtime, kernels)
    assert 0.8 * planned < each < 1.6 * planned


def start_counting() -> int:
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def test_restoring_continues_after_running_out_of_memory(runtime: Runtime) -> None:
    strips = StripNetwork(network(blocks=(1, 1, 1, 1)).to(runtime.device), dtype=runtime.dtype)
    sampler = Sampler(torch.linspace(0.99, 0.01, 1000), [500])
    # the plan assumes more memory than there is
    executor = Executor(strips, sampler, runtime, max_memory=1 << 40)
    torch.cuda.empty_cache()
    lq = torch.rand(1, 3, 1024, 1024)
    least = strip_bytes(strips, 1024, 1024, 1, 64) + 4 * 42 * (1 << 20)
    allowed = torch.cuda.memory_allocated() + int(1.2 * least)
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.mem_get_info()[1])
    try:
        ran = executor(lq, ["a"])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert ran.executor.startswith("strips of")
    assert any("out of memory" in note for note in ran.notes)
    assert relative(ran.image, executor(lq, ["a"]).image) < 1e-2


@pytest.mark.parametrize("rows", [None, 24])
def test_recorded_calls_have_the_same_bits(
    runtime: Runtime, rows: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for other images, timesteps and sizes, with whichever kernels run."""
    strips = StripNetwork(network().to(runtime.device), rows, runtime.dtype)
    for seed, size in enumerate([64, 64, 64, 96, 64, 64]):
        x = torch.randn(2, 6, size, 96, device="cuda")
        t = torch.tensor([500.0 - seed, 20.0], device="cuda")
        results = []
        for switch in ("off", "auto"):
            monkeypatch.setenv(SWITCH, switch)
            with torch.inference_mode():
                results.append([strips(x, t) for _ in range(3)][-1])
        assert torch.equal(*results)


@pytest.mark.parametrize("recompute", [None, "none", "call", "level"])
def test_recorded_steps_have_the_gradients_of_unrecorded_ones(
    runtime: Runtime, recompute: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for other patches and batches, and with a loss scale."""
    stage = None if recompute is None else (FineStage(recompute=recompute), [999, 500])
    alpha_bar = torch.linspace(0.99, 0.01, 1000, device=runtime.device)
    batches = [random_batch(3, patch, 1000) for patch in (32, 32, 32, 40, 32, 32)]
    net, found, said = network(blocks=(1, 1, 1, 1)), [], []
    for switch in ("off", "auto"):
        monkeypatch.setenv(SWITCH, switch)
        there = copy.deepcopy(net).to(runtime.device)
        lay_out_weights(there)
        stepper = Stepper(Objective(there, alpha_bar, stage), Train(), runtime)
        stepper.recorder.notify = said.append
        if stepper.scaler.is_enabled():  # the initial scale may be too large
            stepper.scaler.load_state_dict({**stepper.scaler.state_dict(), "scale": 256.0})
        gradients = []
        for batch in batches:
            # a learning rate of 0 keeps the weights
            assert not stepper.step(batch, 1.0, 0.0, 3).skipped
            gradients.append(torch.cat([p.grad.flatten().double() for p in there.parameters()]))
        found.append(gradients)
    assert said == []
    for launched, recorded in zip(*found, strict=True):
        # the kernels are equal, but some may sum in any order
        assert relative(recorded, launched) < ALLOWED[runtime.precision] / 10


def test_work_that_the_driver_refuses_to_record_runs_unrecorded(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting for the GPU invalidates a recording; torch's state is restored afterwards."""
    monkeypatch.setenv(SWITCH, "auto")
    recorder, said = Recorder(), []
    recorder.notify = said.append
    stream, x = torch.cuda.current_stream(), torch.ones(1 << 20, device=runtime.device)
    for _ in range(3):
        assert recorder(lambda x: x * float(x[0].item()), x).sum() == len(x)
    assert len(said) == 1
    assert torch.cuda.current_stream() == stream
    torch.cuda.empty_cache()
    for _ in range(3):
        assert torch.equal(recorder(torch.neg, x, key="neg"), -x)
    assert len(said) == 1


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_can_be_used_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recording on the second GPU reads its own inputs, not those of the first call."""
    monkeypatch.setenv(SWITCH, "auto")
    for index in range(2):
        runtime = Runtime(torch.device("cuda", index), torch.bfloat16)
        strips = StripNetwork(network(blocks=(1, 1, 1, 1)).to(runtime.device), None, runtime.dtype)
        for seed in range(4):
            x = wave([1, 6, 64, 96], 0.13 + 0.1 * seed)
            t = torch.tensor([500.0])
            with torch.inference_mode(), runtime.on_device():
                found = strips(x.to(runtime.device), t.to(runtime.device)).cpu() - x[:, -3:]
                want = strips.net(x.to(runtime.device), t.to(runtime.device)).cpu()
            assert relative(found, want - x[:, -3:]) < ALLOWED["bf16"]


def test_doctor_describes_the_gpu() -> None:
    found = {one.topic: one for one in examine()}
    assert found["GPU"].good
    assert found["driver"].found.startswith("for CUDA ")
