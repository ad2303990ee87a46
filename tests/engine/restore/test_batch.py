"""A running batch: exact integers, non-finite values, and the order of work and waiting."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from c2fdft_cli.core.diffusion import alpha_bar_of, beta_schedule
from c2fdft_cli.core.network import DFT
from c2fdft_cli.engine.restore import batch as batch_module
from c2fdft_cli.engine.restore import pictures, video
from c2fdft_cli.engine.restore.batch import RunningBatch, Wanted, refuse_not_finite
from c2fdft_cli.engine.sampling.executor import Executor
from c2fdft_cli.engine.sampling.sampler import Sampler
from c2fdft_cli.errors import CheckpointError, ResourceError
from c2fdft_cli.execution.device import Runtime
from c2fdft_cli.execution.strips import StripNetwork
from tests.kit.restore import (
    Identity,
    Request,
    overflow_in_half_precision,
    pixels,
    random_picture,
    run,
    save,
    write_checkpoint,
)

ALPHA_BAR = alpha_bar_of(beta_schedule())


def make(net: DFT, dtype: torch.dtype = torch.float32, samples: int = 1) -> Executor:
    runtime = Runtime(torch.device("cpu"), dtype)
    strips = StripNetwork(net, dtype=dtype)
    return Executor(strips, Sampler(ALPHA_BAR, [500, 100]), runtime, samples=samples)


def begin(
    executor: Executor, wanted: list[Wanted], depth: int = 8, *, ahead: bool = False
) -> RunningBatch:
    stored = [random_picture(9, 14, i, depth=depth).pixels for i in range(len(wanted))]
    names = [f"{i}.png" for i in range(len(wanted))]
    noise = [executor.start_noise(name, 9, 14) for name in names] if ahead else []
    return RunningBatch(executor, stored, names, wanted, lambda _: None, noise)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_the_hint_for_values_that_are_not_finite(precision: str) -> None:
    """In half precision the image was restored again in fp32 already, without success."""
    with pytest.raises(CheckpointError, match="NaN or infinite") as error:
        refuse_not_finite(False, Path("w.pt"), precision)
    assert ("fp32" in str(error.value.hint)) == (precision == "tf32")
    assert "other weights" in str(error.value.hint)


def test_noise_drawn_ahead_changes_nothing(tiny_net: Callable[..., DFT]) -> None:
    """With several samples no noise is drawn ahead; the batch draws it."""
    wanted = [Wanted(8, grey=False)] * 2
    for samples in (1, 2):
        executor = make(tiny_net(), samples=samples)
        assert (executor.start_noise("0.png", 9, 14) is None) == (samples == 2)
        want, got = (begin(executor, wanted, ahead=ahead).outcomes() for ahead in (False, True))
        for a, b in zip(want, got, strict=True):
            assert np.array_equal(a.pixels(), b.pixels())


def test_noise_that_was_drawn_ahead_for_some_images_is_not_used(
    tiny_net: Callable[..., DFT],
) -> None:
    executor, wanted = make(tiny_net()), [Wanted(8, grey=False)] * 2
    want = begin(executor, wanted).outcomes()
    stored = [random_picture(9, 14, i).pixels for i in range(2)]
    names, some = ["0.png", "1.png"], [executor.start_noise("0.png", 9, 14), None]
    got = RunningBatch(executor, stored, names, wanted, lambda _: None, some).outcomes()
    for a, b in zip(want, got, strict=True):
        assert np.array_equal(a.pixels(), b.pixels())


@pytest.mark.parametrize("depth", [8, 16])
def test_a_network_that_changes_nothing_gives_the_integers_back(
    tiny_net: Callable[..., DFT], depth: int
) -> None:
    executor = make(tiny_net())
    executor.predict_noise = Identity(ALPHA_BAR)
    wanted = [Wanted(depth, grey=False), Wanted(24 - depth, grey=False), Wanted(depth, grey=True)]
    same, other, grey = begin(executor, wanted, depth).outcomes()
    stored = [random_picture(9, 14, i, depth=depth).pixels for i in range(3)]
    assert np.array_equal(same.pixels(), stored[0])
    scaled = stored[1] * np.float32(1 / 257) if depth == 16 else stored[1].astype(int) * 257
    assert np.abs(other.pixels() - scaled).max() <= 0.5 + 1e-3
    assert np.abs(grey.pixels() - stored[2].mean(axis=2, keepdims=True)).max() <= 0.5 + 1e-2
    assert (same.image, same.deviation, grey.planes.shape[0]) == (None, None, 1)


def test_floats_are_returned_only_if_requested(tiny_net: Callable[..., DFT]) -> None:
    executor = make(tiny_net(), samples=2)
    first, second = begin(executor, [Wanted(8, False), Wanted(8, False, True)]).outcomes()
    assert (first.image, first.deviation) == (None, None)
    assert second.image is not None
    assert second.deviation is not None
    assert second.deviation.shape == (1, 9, 14)
    rounded = second.image.mul(255).round_().permute(1, 2, 0).numpy()
    assert np.array_equal(second.pixels(), rounded)


def test_images_that_are_not_finite_are_restored_again_when_read(
    tiny_net: Callable[..., DFT], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [Wanted(8, False, True), Wanted(8, False)]
    want = begin(make(tiny_net()), wanted).outcomes()
    overflow_in_half_precision(monkeypatch)
    got = begin(make(tiny_net(), torch.bfloat16), wanted).outcomes()
    assert got[0].notes == ["0.png, 1.png: not finite in bf16, restored again in fp32"]
    assert all(one.is_finite for one in got)
    assert [np.array_equal(a.pixels(), b.pixels()) for a, b in zip(got, want, strict=True)] == [
        True,
        True,
    ]


def test_images_that_stay_not_finite_are_marked(tiny_net: Callable[..., DFT]) -> None:
    executor = make(tiny_net())
    executor.predict_noise = lambda x, t: x[:, 3:] * torch.nan
    assert [one.is_finite for one in begin(executor, [Wanted(8, False)]).outcomes()] == [False]


def test_running_out_of_memory_is_raised_where_the_results_are_read(
    tiny_net: Callable[..., DFT], monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def start(lq: torch.Tensor, *args: object) -> object:
        held.append(weakref.ref(lq))
        raise ResourceError("out of memory")

    executor = make(tiny_net())
    monkeypatch.setattr(executor, "start", start)
    gc.disable()  # memory that has run out must not wait for the collector
    try:
        batch = begin(executor, [Wanted(8, False)])
        assert held[0]() is None
    finally:
        gc.enable()
    with pytest.raises(ResourceError, match="out of memory"):
        batch.outcomes()


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The order in which batches are started and read, with one in flight as on a GPU."""
    said: list[str] = []
    start, outcomes = Executor.start, RunningBatch.outcomes

    def started(self: Executor, lq: torch.Tensor, names: list[str], *more: object) -> object:
        said.append("start")
        return start(self, lq, names, *more)  # type: ignore[arg-type]

    def read(self: RunningBatch) -> object:
        said.append("read")
        return outcomes(self)

    monkeypatch.setattr(Executor, "start", started)
    monkeypatch.setattr(batch_module.RunningBatch, "outcomes", read)
    for module in (pictures, video):
        monkeypatch.setattr(module, "batches_in_flight", lambda device: 1)
    return said


IN_FLIGHT = ["start", "start", "read", "start", "read", "read"]


def test_the_next_pictures_start_before_the_last_are_read(
    tmp_path: Path, tiny_net: Callable[..., DFT], order: list[str]
) -> None:
    weights = write_checkpoint(tmp_path / "w.pt", tiny_net())
    stored = {f"{i}.png": random_picture(16, 24, seed=i) for i in range(3)}
    for name, picture in stored.items():
        save(tmp_path / "in" / name, picture)
    result = run(Request(tmp_path / "in", tmp_path / "out", weights, batch=1), identity=True)
    assert order == IN_FLIGHT
    assert [Path(one.source).name for one in result.images] == list(stored)
    for name, picture in stored.items():
        assert np.array_equal(pixels(tmp_path / "out" / name), picture.pixels)


def test_the_next_frames_start_before_the_last_are_read(
    tmp_path: Path, tiny_net: Callable[..., DFT], order: list[str]
) -> None:
    pytest.importorskip("av")
    from tests.kit.video import frames, make_clip

    weights = write_checkpoint(tmp_path / "w.pt", tiny_net())
    clip = make_clip(tmp_path / "a.mkv", sound=False)
    number = len(frames(clip))
    size = -(-number // 3)
    run(Request(clip, tmp_path / "b.mkv", weights, batch=size), identity=True)
    assert order == IN_FLIGHT
    assert len(frames(tmp_path / "b.mkv")) == number
