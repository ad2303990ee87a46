"""A training step equals torch's own parts, and bit for bit itself recorded as a CUDA graph."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from c2fdft_cli.core.diffusion import alpha_bar_of, beta_schedule
from c2fdft_cli.core.network import DFT
from c2fdft_cli.data.batches.batch import Batch
from c2fdft_cli.engine.train.step import stepper as stepper_module
from c2fdft_cli.engine.train.step.objective import Objective
from c2fdft_cli.engine.train.step.stepper import Stepper, StepResult
from c2fdft_cli.errors import ResourceError
from c2fdft_cli.execution.device import Runtime
from c2fdft_cli.recipe.schema import FineStage, Train
from c2fdft_cli.vocabulary import Recompute
from tests.kit.formula import fill, relative
from tests.kit.graphs import Graph, graphs  # noqa: F401 - a fixture
from tests.kit.processes import python

CPU = torch.device("cpu")
ALPHA_BAR = alpha_bar_of(beta_schedule())


def make_stepper(
    recompute: Recompute | None = None,
    dtype: torch.dtype = torch.float32,
    layout: torch.memory_format = torch.contiguous_format,
) -> Stepper:
    """A stepper of the coarse stage, or with `recompute` of a fine one of two sampling steps."""
    fine = None if recompute is None else (FineStage(recompute=recompute), [999, 500])
    net = fill(DFT(dim=8, blocks=(1, 1, 1, 1))).to(memory_format=layout)
    objective = Objective(net, ALPHA_BAR, fine)
    return Stepper(objective, Train(clip_norm=1.0), Runtime(CPU, dtype))


def make_batch(k: int, patch: int = 16, rows: int = 2) -> Batch:
    """The batch of iteration k, with mixup in every third."""
    random = torch.Generator().manual_seed(k)
    shape = (rows, 3, patch, patch)

    def pixels() -> torch.Tensor:
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)

    noise = torch.randn(shape, generator=random)
    batch = Batch(k, pixels(), pixels(), noise, torch.randint(0, 1000, (rows,), generator=random))
    return replace(batch, lq2=pixels(), gt2=pixels(), lam=k / 100) if k % 3 == 0 else batch


def take(stepper: Stepper, batch: Batch, micro_batch: int = 2) -> StepResult:
    return stepper.step(batch, 1.0, 1e-3 / batch.iteration, micro_batch)


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch, graphs: type[Graph]) -> type[Graph]:  # noqa: F811
    """Record steps on the CPU."""
    monkeypatch.setattr(stepper_module, "records", lambda device: True)
    return graphs


def plain_steps(stepper: Stepper, batches: list[Batch]) -> list[StepResult]:
    """Take steps without recording."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stepper_module, "records", lambda device: False)
        return [take(stepper, batch) for batch in batches]


def assert_same_state(one: Stepper, other: Stepper) -> None:
    a, b = one.state(), other.state()
    assert (one.updates, one.bad_steps) == (other.updates, other.bad_steps)
    for part in ("params", "params_ema"):
        assert all(torch.equal(a[part][name], b[part][name]) for name in a[part])
    for key, moments in a["optimizer"]["state"].items():
        assert all(torch.equal(moments[n], b["optimizer"]["state"][key][n]) for n in moments)


def test_a_step_is_clipped_adamw_and_an_average() -> None:
    """Compared with a plain loop; no setting has its default, and each affects the numbers."""
    train = Train(
        adam_betas=[0.6, 0.8], weight_decay=0.3, clip_norm=0.1, ema_decay=0.2, ema_warm_up=True
    )
    objective = Objective(fill(DFT(dim=8, blocks=(1, 1, 1, 1))), ALPHA_BAR, None)
    plain = copy.deepcopy(objective)
    stepper = Stepper(objective, train, Runtime(CPU, torch.float32))
    weights = list(plain.net.parameters())
    average = [one.detach().clone() for one in weights]
    optimizer = torch.optim.AdamW(weights, betas=(0.6, 0.8), weight_decay=0.3, fused=False)
    for k, decay in ((1, 2 / 11), (2, 0.2), (3, 0.2)):  # (1 + k) / (10 + k), at most ema_decay
        batch = replace(make_batch(k), lq2=None, gt2=None)
        optimizer.zero_grad()
        loss = plain(batch.lq / 255, batch.gt / 255, batch.noise, batch.times)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(weights, 0.1)
        optimizer.param_groups[0]["lr"] = 0.01 / k
        optimizer.step()
        found = stepper.step(batch, 1.0, 0.01 / k, micro_batch=1)
        own = [one.detach() for one in stepper.net.parameters()]
        average = [decay * a + (1 - decay) * w for a, w in zip(average, own, strict=True)]
        assert norm > 0.1
        assert (found.loss, found.grad_norm) == pytest.approx((loss.item(), norm.item()), rel=1e-4)
    for one, other in zip(stepper.net.parameters(), weights, strict=True):
        # AdamW divides gradients by their size, and so magnifies the rounding of small ones,
        # which depends on the processor. Another value of any setting changes much more.
        assert relative(one, other) < 1e-3
    for one, other in zip(stepper.ema.parameters(), average, strict=True):
        assert relative(one, other) < 1e-6


def test_mixup_weights_both_pairs_by_their_shares() -> None:
    batch = make_batch(30)
    assert batch.lq2 is not None
    assert batch.gt2 is not None
    mixed = replace(
        batch,
        lq=0.3 * batch.lq + 0.7 * batch.lq2,
        gt=0.3 * batch.gt + 0.7 * batch.gt2,
        lq2=None,
        gt2=None,
    )
    stepper = make_stepper()
    assert stepper.loss(batch, 2) == pytest.approx(stepper.loss(mixed, 2), rel=1e-5)


def test_a_smaller_last_micro_batch_counts_by_its_rows() -> None:
    batch = make_batch(1, rows=3)
    whole, divided = take(make_stepper(), batch, 3), take(make_stepper(), batch, 2)
    assert divided.loss == pytest.approx(whole.loss, rel=1e-5)
    assert divided.grad_norm == pytest.approx(whole.grad_norm, rel=1e-4)


def test_skipped_steps_in_a_row_are_counted() -> None:
    stepper, good = make_stepper(), make_batch(1)
    bad = replace(good, noise=good.noise * torch.inf)
    counts, weights = [], []
    for batch in (bad, bad, good, bad):
        take(stepper, batch)
        counts.append(stepper.bad_steps)
        state = stepper.state()
        weights.append({
            (key, name): value.clone()
            for key in ("params", "params_ema")
            for name, value in state[key].items()
        })  # fmt: skip
    assert counts == [1, 2, 0, 1]
    assert stepper.updates == 1
    changed = [
        any(not torch.equal(before[name], after[name]) for name in before)
        for before, after in pairwise(weights)
    ]
    assert changed == [False, True, False]  # neither the weights nor their average


@pytest.mark.parametrize(
    ("recompute", "dtype"),
    [
        pytest.param(None, torch.float32, marks=pytest.mark.acceptance),
        ("none", torch.float32),
        pytest.param("call", torch.bfloat16, marks=pytest.mark.acceptance),
        pytest.param("level", torch.float32, marks=pytest.mark.acceptance),
    ],
)
def test_recorded_steps_equal_unrecorded_ones(
    recording: type[Graph], recompute: Recompute | None, dtype: torch.dtype
) -> None:
    """Also after other patch sizes, and after a gradient that is not finite."""
    patches = (16, 16, 16, 24, 24, 16, 16, 16)
    batches = [make_batch(k, patch) for k, patch in enumerate(patches, start=1)]
    batches[6] = replace(batches[6], noise=batches[6].noise * torch.inf)
    plain, recorded = make_stepper(recompute, dtype), make_stepper(recompute, dtype)
    expected = plain_steps(plain, batches)
    found = [take(recorded, batch) for batch in batches]
    assert [one.skipped for one in found] == [False] * 6 + [True, False]
    assert repr(found) == repr(expected)  # repr, as NaN is not equal to itself
    assert recording.replays == 2 + 1 + 2
    assert_same_state(recorded, plain)


def test_recorded_steps_are_weighted_by_the_share_of_the_batch(recording: type[Graph]) -> None:
    stepper = make_stepper()
    losses = [stepper.step(make_batch(1), share, 0.0, 2).loss for share in (1.0, 1.0, 0.25)]
    assert recording.replays == 2
    assert losses[2] == pytest.approx(losses[1] / 4)


def test_a_resumed_training_equals_the_recorded_one(recording: type[Graph]) -> None:
    batches = [make_batch(k) for k in range(1, 6)]
    whole, first, second = (make_stepper("none") for _ in range(3))
    for batch in batches:
        take(whole, batch)
    for batch in batches[:2]:  # the second one is replayed
        take(first, batch)
    second.load(first.state())
    for batch in batches[2:]:
        take(second, batch)
    assert_same_state(second, whole)


def test_recorded_steps_use_a_state_that_is_loaded_later(recording: type[Graph]) -> None:
    recorded, plain = make_stepper(), make_stepper()
    state = plain.state()
    start = {key: {n: x.clone() for n, x in state[key].items()} for key in ("params", "params_ema")}
    for k in range(1, 4):
        take(recorded, make_batch(k))
    recorded.load({**state, **start})
    batches = [make_batch(k) for k in range(4, 6)]
    plain_steps(plain, batches)
    for batch in batches:
        take(recorded, batch)
    assert recording.replays == 2 + 2
    assert_same_state(recorded, plain)


@pytest.mark.parametrize("recompute", [None, "none", "call", "level"])
def test_no_accumulator_of_gradients_outlives_its_step(recompute: Recompute | None) -> None:
    """An accumulator belongs to the stream that was current when it was made.

    One left from a step before a recording would involve the default stream in it, which the driver
    refuses (pytorch/pytorch#180090).
    """
    stepper = make_stepper(recompute)
    parameters, held = list(stepper.net.parameters()), []

    def accumulators() -> list[Any]:
        return [p.view_as(p).grad_fn.next_functions[0][0] for p in parameters]  # type: ignore[union-attr]

    def mark(*_: object) -> None:
        held[:] = accumulators()
        for one in held:
            one.metadata["of this step"] = True

    stepper.net.register_forward_pre_hook(mark)
    take(stepper, make_batch(1))
    assert all("of this step" in one.metadata for one in accumulators())
    held.clear()
    assert not any("of this step" in one.metadata for one in accumulators())


def test_a_step_that_cannot_be_recorded_is_taken_unrecorded(
    recording: type[Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recording fails in the backward pass; there is one notice for all steps."""

    @contextmanager
    def failing(*_: object, capture_error_mode: str) -> Iterator[None]:
        yield
        raise torch.OutOfMemoryError("CUDA out of memory\nand a page about it")

    monkeypatch.setattr(torch.cuda, "graph", failing)
    recorded, plain, said = make_stepper(), make_stepper(), []
    recorded.recorder.notify = said.append
    batches = [make_batch(k) for k in range(1, 5)]
    expected = plain_steps(plain, batches)
    assert [take(recorded, batch) for batch in batches] == expected
    assert said == ["not recorded as a CUDA graph: CUDA out of memory"]
    assert_same_state(recorded, plain)


def test_a_step_is_recorded_again_once_it_is_no_longer_compiled(
    recording: type[Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    stepper = make_stepper()
    for compiled, replays in ((True, 0), (True, 1), (False, 1), (False, 2)):
        monkeypatch.setattr(stepper_module, "is_compiled", lambda net, said=compiled: said)
        take(stepper, make_batch(1))
        assert recording.replays == replays


@pytest.mark.parametrize("reason", ["micro-batches", "large", "several processes"])
def test_micro_batches_large_steps_and_several_processes_are_not_recorded(
    recording: type[Graph], monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    stepper = make_stepper()
    if reason == "large":
        monkeypatch.setattr(stepper_module, "MAX_RECORDED_STEP", 2 * 16 * 16 * 8 - 1)
    if reason == "several processes":
        monkeypatch.setattr(stepper_module.dist, "is_initialized", lambda: True)
        monkeypatch.setattr(stepper_module.dist, "all_reduce", lambda loss: None)
    stepper.recorder._recording = "of a smaller batch"  # type: ignore[assignment]
    for k in range(1, 4):
        take(stepper, make_batch(k), 1 if reason == "micro-batches" else 2)
    assert recording.replays == 0
    assert stepper.recorder._recording is None  # its memory is free for these steps
    assert stepper.updates == 3


def move(stepper: Stepper) -> None:
    for number, parameter in enumerate(stepper.net.parameters()):
        values = torch.linspace(-1, 1, parameter.numel()).view(parameter.shape) + number / 100
        parameter.grad = torch.empty_like(parameter).copy_(values)
    stepper._apply(torch.tensor(1.0), 1e-2)


@pytest.mark.parametrize("before", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("after", [torch.contiguous_format, torch.channels_last])
def test_a_state_of_another_memory_layout_can_be_loaded(
    before: torch.memory_format, after: torch.memory_format
) -> None:
    """CUDA uses channels-last, a CPU does not."""
    expected, first, second = (
        make_stepper(),
        make_stepper(layout=before),
        make_stepper(layout=after),
    )
    for _ in range(2):
        move(expected)
    move(first)
    second.load(first.state())
    move(second)
    for a, b in zip(second.net.parameters(), expected.net.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_moments_of_other_shapes_are_refused() -> None:
    stepper = make_stepper()
    move(stepper)
    state = stepper.state()
    moments = state["optimizer"]["state"][1]
    shape = list(moments["exp_avg"].shape)
    moments["exp_avg"] = torch.zeros(2)
    with pytest.raises(ValueError, match=re.escape(f"must have the shape {shape}, got [2]")):
        make_stepper().load(state)


def test_a_state_of_another_precision_can_be_loaded() -> None:
    full, half = make_stepper(), make_stepper(dtype=torch.float16)
    half.load(full.state())
    assert half.scaler.get_scale() > 1
    full.load(half.state())
    assert not full.scaler.is_enabled()


def test_a_step_abandoned_after_unscaling_can_be_taken_again() -> None:
    stepper = make_stepper(dtype=torch.float16)
    scale = 0.5 * stepper.scaler.get_scale()
    stepper.scaler.load_state_dict({**stepper.scaler.state_dict(), "scale": scale})
    stepper.scaler.scale(torch.ones(()))
    move_half_way(stepper)
    stepper.abandon()
    stepper.scaler.scale(torch.ones(()))
    move(stepper)
    assert stepper.updates == 1
    assert stepper.scaler.get_scale() == scale


def move_half_way(stepper: Stepper) -> None:
    for parameter in stepper.net.parameters():
        parameter.grad = torch.ones_like(parameter)
    stepper.scaler.unscale_(stepper.optimizer)


def test_a_gradient_that_overflows_lowers_the_loss_scale() -> None:
    stepper = make_stepper(dtype=torch.float16)
    stepper.scaler.scale(torch.ones(()))
    before = stepper.scaler.get_scale()
    for parameter in stepper.net.parameters():
        parameter.grad = torch.full_like(parameter, torch.inf)
    assert stepper._apply(torch.tensor(1.0), 1e-2).skipped
    assert stepper.scaler.get_scale() == before / 2


@pytest.mark.parametrize(("loss", "gradient"), [(torch.nan, 1.0), (1.0, torch.nan)])
def test_a_step_needs_a_finite_loss_and_a_finite_gradient(loss: float, gradient: float) -> None:
    stepper, untouched = make_stepper(), make_stepper()
    for parameter in stepper.net.parameters():
        parameter.grad = torch.full_like(parameter, gradient)
    assert stepper._apply(torch.tensor(loss), 1e-2).skipped
    stepper.bad_steps = 0  # nothing else has changed
    assert_same_state(stepper, untouched)


def test_weights_that_are_not_finite_are_an_error_in_both_sets() -> None:
    for name in ("net", "ema"):
        stepper = make_stepper()
        stepper.check_weights()
        with torch.no_grad():
            next(getattr(stepper, name).parameters()).view(-1)[0] = torch.nan
        with pytest.raises(ResourceError, match="its weights are NaN or infinite"):
            stepper.check_weights()


def test_bad_steps_in_a_row_are_counted_beyond_a_resumption() -> None:
    one, other = make_stepper(), make_stepper()
    one.bad_steps = 4
    other.load(one.state())
    assert other.bad_steps == 4


@pytest.mark.acceptance
def test_a_stepper_is_made_without_a_folder_for_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a new process, because torch loads its compiler, which wants such a folder, once."""
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    program = """
import tempfile
from tests.engine.train.step.test_stepper import make_stepper
tempfile._candidate_tempdir_list, tempfile.tempdir = list, None
make_stepper()
"""
    done = python("-c", program)
    assert done.returncode == 0, done.stderr
