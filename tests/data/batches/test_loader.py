"""Batches: their contents, which do not depend on slices, workers or threads."""

from __future__ import annotations

import errno
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import active_children
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, _utils, get_worker_info
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from c2fdft_cli.data.batches import loader as loader_module
from c2fdft_cli.data.batches.batch import Batch, BatchMaker, border, turn
from c2fdft_cli.data.batches.loader import PatchLoader
from c2fdft_cli.data.batches.plan import PatchCycle, PatchPlan
from c2fdft_cli.data.pixels import Pixels
from c2fdft_cli.data.shards.format import Entry, ShardHeader
from c2fdft_cli.data.shards.reader import ShardSet
from c2fdft_cli.data.synthesis.degrade import Degradation
from c2fdft_cli.data.synthesis.noise import NoiseModel
from c2fdft_cli.errors import C2fdftError, DataError, ResourceError
from tests.kit.shards import write_shard

ENTRIES = [Entry("a", 40, 30), Entry("b", 20, 64), Entry("c", 9, 11), Entry("d", 33, 32)]
CYCLE = PatchCycle((8, 16, 32), (7, 4, 3), 2, 2)
TENSORS = ("lq", "gt", "noise", "times", "lq2", "gt2")


def coded(entry: Entry, number: int, *, lq: bool) -> Pixels:
    """An image whose pixels encode row, column and image, so that a crop's origin can be read."""
    rows, columns = np.mgrid[: entry.height, : entry.width]
    return np.stack([rows, columns, np.full_like(rows, 2 * number + lq)], 2).astype(np.uint8)


def write(folder: Path, *, has_lq: bool = True) -> ShardSet:
    pairs = [
        (coded(entry, i, lq=True) if has_lq else None, coded(entry, i, lq=False))
        for i, entry in enumerate(ENTRIES)
    ]
    header = ShardHeader("train", "", "test", "test", "0")
    write_shard(folder / "train-00000.h5", ENTRIES, pairs, header, has_lq=has_lq)
    return ShardSet.open(folder)


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    return write(tmp_path)


def plan_of(shards: ShardSet, *, beta: float | None = None) -> PatchPlan:
    return PatchPlan(shards.sizes, CYCLE, 11, beta)


def maker_of(shards: ShardSet, **options: Any) -> BatchMaker:
    return BatchMaker(shards, plan_of(shards), **{"total": 1000, **options})


def assert_same(a: Batch, b: Batch) -> None:
    assert (a.iteration, a.lam) == (b.iteration, b.lam)
    for name in TENSORS:
        x, y = getattr(a, name), getattr(b, name)
        assert (x is None) == (y is None), name
        assert x is None or torch.equal(x, y), name


# -- what is in a batch ----------------------------------------------------------


def test_batches_have_the_documented_shapes_and_types(shards: ShardSet) -> None:
    loader = PatchLoader(maker_of(shards), start=1, stop=7, prefetch=0)
    batches = list(loader)
    assert len(loader) == len(batches) == 6
    for k, batch in enumerate(batches, start=1):
        patch, n = CYCLE.size_at(k)
        assert batch.iteration == k
        assert len(batch) == n
        for tensor, kind in (
            (batch.lq, torch.uint8),
            (batch.gt, torch.uint8),
            (batch.noise, torch.float32),
        ):
            assert tensor.shape == (n, 3, patch, patch)
            assert tensor.dtype == kind
            assert tensor.is_contiguous(memory_format=torch.channels_last)
        assert batch.times.shape == (n,)


def test_crops_are_taken_where_the_plan_says(shards: ShardSet) -> None:
    plan = plan_of(shards)
    for batch in PatchLoader(BatchMaker(shards, plan, total=1000), start=1, stop=13, prefetch=0):
        patch, _ = CYCLE.size_at(batch.iteration)
        draw = plan.draw(batch.iteration)
        for i in range(len(batch)):
            entry = ENTRIES[draw.image[i]]
            rows, columns, code = batch.gt[i].numpy()
            assert set(code.flat) == {2 * draw.image[i]}
            assert set(batch.lq[i, 2].numpy().flat) == {2 * draw.image[i] + 1}
            np.testing.assert_array_equal(batch.lq[i, :2], batch.gt[i, :2])
            assert rows.min() == draw.top[i]
            assert columns.min() == draw.left[i]
            assert rows.max() == min(draw.top[i] + patch, entry.height) - 1
            assert columns.max() == min(draw.left[i] + patch, entry.width) - 1


@pytest.mark.parametrize("symmetry", range(8))
def test_turn_is_transpose_then_flips(symmetry: int) -> None:
    square = np.arange(75, dtype=np.uint8).reshape(5, 5, 3)
    expected = square.transpose(1, 0, 2) if symmetry & 4 else square
    expected = expected[:, ::-1] if symmetry & 1 else expected
    expected = expected[::-1] if symmetry & 2 else expected
    out = np.empty_like(square)
    square.flags.writeable = False  # read-only, as a memory map is
    turn(square, symmetry, out)
    np.testing.assert_array_equal(out, expected)


def test_a_border_reflects_then_replicates() -> None:
    assert border(-2, 8, 5).tolist() == [2, 1, 0, 1, 2, 3, 4, 3]
    assert border(0, 9, 5).tolist() == [0, 1, 2, 3, 4, 3, 2, 1, 0]
    assert border(0, 10, 5).tolist() == [0, 1, 2, 3, 4, 3, 2, 1, 0, 0]
    assert border(-5, 4, 3).tolist() == [2, 2, 2, 2]
    assert border(-1, 3, 1).tolist() == [0, 0, 0]


def test_noise_is_that_of_the_seeds_of_the_plan(shards: ShardSet) -> None:
    """A resumed training continues with the same noise: its order in memory decides the values."""
    plan = plan_of(shards)
    for k in (3, 5):
        patch, count = CYCLE.size_at(k)
        for i, noise in enumerate(BatchMaker(shards, plan, total=1000).make(k, 0, count).noise):
            generator = torch.Generator().manual_seed(plan.noise_seed(k, i))
            drawn = torch.randn(patch, patch, 3, generator=generator)
            assert torch.equal(noise, drawn.permute(2, 0, 1))


def test_noise_is_standard_normal_and_differs_between_samples(shards: ShardSet) -> None:
    noise = torch.cat(
        [b.noise.flatten() for b in PatchLoader(maker_of(shards), start=1, stop=13, prefetch=0)]
    )
    assert abs(float(noise.mean())) < 0.02
    assert abs(float(noise.std()) - 1) < 0.02
    batch = next(iter(PatchLoader(maker_of(shards), start=1, stop=2)))
    assert len({float(row.sum()) for row in batch.noise}) == len(batch)


def test_mixup_partners_are_rows_of_the_global_batch(shards: ShardSet) -> None:
    plan = plan_of(shards, beta=1.2)
    plain = plan_of(shards)
    for k in range(1, 13):
        mix = plan.mix(k)
        batch = BatchMaker(shards, plan, total=1000).make(k, 0, CYCLE.size_at(k)[1])
        whole = BatchMaker(shards, plain, total=1000).make(k, 0, CYCLE.size_at(k)[1])
        assert torch.equal(batch.gt, whole.gt)
        if mix is None:
            assert batch.lq2 is None
            assert batch.lam == 1
        else:
            assert batch.lq2 is not None
            assert batch.gt2 is not None
            assert torch.equal(batch.lq2, whole.lq[mix.partner])
            assert torch.equal(batch.gt2, whole.gt[mix.partner])
            assert batch.lam == mix.lam


# -- independence of slices ------------------------------------------------------


@pytest.mark.parametrize("beta", [None, 1.2])
def test_rows_of_a_slice_are_rows_of_the_whole(shards: ShardSet, beta: float | None) -> None:
    maker = BatchMaker(shards, plan_of(shards, beta=beta), total=1000)
    for k in range(1, 13):
        n = CYCLE.size_at(k)[1]
        whole = maker.make(k, 0, n)
        for lo in range(n + 1):
            for hi in range(lo, n + 1):
                assert_same(maker.make(k, lo, hi), whole.rows(lo, hi))


def third(number: int, batch: int) -> tuple[int, int]:
    """Return the first, second or last of three slices of a batch."""
    return batch * number // 3, batch * (number + 1) // 3


def test_slices_make_up_a_batch(shards: ShardSet) -> None:
    plan = plan_of(shards, beta=1.2)
    load = partial(PatchLoader, BatchMaker(shards, plan, total=100), start=1, stop=13)
    whole = list(load())
    ranks = [list(load(slice_of=partial(third, rank))) for rank in range(3)]
    for k, batch in enumerate(whole):
        for name in ("lq", "gt", "noise", "times"):
            parts = torch.cat([getattr(rank[k], name) for rank in ranks])
            assert torch.equal(parts, getattr(batch, name))
    first = list(load(slice_of=lambda n: (0, n // 2)))
    assert [len(batch) for batch in first] == [len(batch) // 2 for batch in whole]


def test_workers_threads_and_neither_make_equal_batches(shards: ShardSet) -> None:
    plan = plan_of(shards, beta=1.2)
    load = partial(PatchLoader, BatchMaker(shards, plan, total=1000), start=1, stop=13)
    state = torch.get_rng_state()
    plain = list(load(prefetch=0))
    for options in ({"workers": 2}, {"workers": 1, "prefetch": 0}, {"prefetch": 2}):
        loader = load(**options)
        for ours, expected in zip(loader, plain, strict=True):
            assert_same(ours, expected)
        assert loader.waited > 0
    assert torch.equal(torch.get_rng_state(), state)


def test_a_loader_can_start_at_any_iteration(shards: ShardSet) -> None:
    plan = plan_of(shards, beta=1.2)
    whole = list(PatchLoader(BatchMaker(shards, plan, total=1000), start=1, stop=13))
    rest = PatchLoader(BatchMaker(shards, plan_of(shards, beta=1.2), total=1000), start=6, stop=13)
    for ours, expected in zip(rest, whole[5:], strict=True):
        assert_same(ours, expected)


def test_the_seconds_of_waiting_add_up(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which each batch, and the end, takes a second."""
    seconds = itertools.count()
    monkeypatch.setattr(loader_module, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    loader = PatchLoader(maker_of(shards), start=1, stop=4, prefetch=0)
    waited = [loader.waited for _ in loader]
    assert [*waited, loader.waited] == [1, 2, 3, 4]


# -- synthesis -------------------------------------------------------------------


@dataclass(frozen=True)
class Fake(Degradation):
    """A degradation by any function; its margin and type are given."""

    work: Callable[[Pixels, np.random.Generator], NDArray[Any]] = field(kw_only=True)
    margin: int = 0
    patch_dtype: type[np.uint8 | np.int16] = np.uint8

    def patch(self, gt: Pixels, rng: np.random.Generator) -> NDArray[Any]:
        return self.work(gt, rng)


def fake(work: Callable[..., NDArray[Any]], **more: Any) -> Fake:
    return Fake(NoiseModel(), work=work, **more)


def invert(gt: Pixels, rng: np.random.Generator) -> Pixels:
    """Invert an image and randomise its red channel."""
    lq = 255 - gt
    lq[..., 0] = rng.integers(256)
    return lq


@pytest.mark.parametrize("margin", [0, 3])
def test_synthesis_degrades_clean_crops(tmp_path: Path, margin: int) -> None:
    clean = write(tmp_path, has_lq=False)
    plan = plan_of(clean, beta=1.2)
    maker = BatchMaker(clean, plan, degradation=fake(invert, margin=margin), total=1000)
    without = BatchMaker(clean, plan, degradation=fake(invert), total=1000)
    for k in range(1, 13):
        n = CYCLE.size_at(k)[1]
        whole = maker.make(k, 0, n)
        assert torch.equal(whole.lq[:, 1:], 255 - whole.gt[:, 1:])
        assert torch.equal(whole.gt, without.make(k, 0, n).gt)
        assert_same(maker.make(k, 1, 3), whole.rows(1, 3))


def test_degraded_values_outside_8_bits_stay_as_they_are(tmp_path: Path) -> None:
    """Where some crops may have such values, all are stored in a type that holds them."""

    def beyond(gt: Pixels, rng: np.random.Generator) -> NDArray[np.integer[Any]]:
        return gt if rng.random() < 0.5 else gt.astype(np.int16) * 2 - 128

    clean = write(tmp_path, has_lq=False)

    def make(**options: Any) -> Batch:
        return maker_of(clean, degradation=fake(beyond, **options)).make(1, 0, 7)

    batch = make(patch_dtype=np.int16)
    assert batch.lq.dtype == torch.int16
    same = [torch.equal(lq, gt) for lq, gt in zip(batch.lq, batch.gt.short(), strict=True)]
    wide = [
        torch.equal(lq, 2 * gt - 128) for lq, gt in zip(batch.lq, batch.gt.short(), strict=True)
    ]
    assert all(a or b for a, b in zip(same, wide, strict=True))
    assert any(same)
    assert any(wide)
    with pytest.raises(TypeError, match="Cannot cast"):
        make()


def test_the_degradation_sees_the_margin(tmp_path: Path) -> None:
    seen: list[Pixels] = []

    def watch(gt: Pixels, _: np.random.Generator) -> Pixels:
        seen.append(gt.copy())
        return gt

    clean = write(tmp_path, has_lq=False)
    batch = maker_of(clean, degradation=fake(watch, margin=2)).make(1, 0, 7)
    assert {gt.shape for gt in seen} == {(12, 12, 3)}
    for gt, inner in zip(seen, batch.gt, strict=True):
        np.testing.assert_array_equal(gt[2:-2, 2:-2], inner.permute(1, 2, 0))


def test_lines_are_drawn_on_clean_crops(tmp_path: Path) -> None:
    clean = write(tmp_path, has_lq=False)
    plan = plan_of(clean, beta=1.2)
    without = BatchMaker(clean, plan, degradation=fake(invert, margin=2), total=1000)
    changed = dict.fromkeys((0.0, 0.5, 1.0), 0)
    for share in changed:
        maker = BatchMaker(
            clean, plan, degradation=fake(invert, margin=2), line_patterns=share, total=1000
        )
        for k in range(1, 13):
            n = CYCLE.size_at(k)[1]
            whole, plain = maker.make(k, 0, n), without.make(k, 0, n)
            assert torch.equal(whole.lq[:, 1:], 255 - whole.gt[:, 1:])
            assert_same(maker.make(k, 1, 3), whole.rows(1, 3))
            assert share or torch.equal(whole.lq, plain.lq)
            changed[share] += sum(map(bool, (whole.gt != plain.gt).flatten(1).any(1)))
    total = sum(CYCLE.size_at(k)[1] for k in range(1, 13))
    # a line may miss a patch of 8 px, and a pattern may cover only a part of the crop
    assert changed[0.0] == 0
    assert 0.25 * total < changed[0.5] < 0.6 * total < changed[1.0]


def test_without_line_patterns_the_degradation_gets_the_first_random_numbers(
    tmp_path: Path,
) -> None:
    """So the same seed gives the same rain as before line patterns existed."""
    clean = write(tmp_path, has_lq=False)
    plan, count = plan_of(clean), CYCLE.size_at(1)[1]
    maker = BatchMaker(clean, plan, degradation=fake(invert), total=1000)
    reds = maker.make(1, 0, count).lq[:, 0, 0, 0].tolist()
    assert reds == [plan.generator(1, i).integers(256) for i in range(count)]


def test_errors_of_a_degradation_are_raised(tmp_path: Path) -> None:
    clean = write(tmp_path, has_lq=False)
    with pytest.raises(DataError, match="clean images only"):
        maker_of(clean)
    maker = maker_of(clean, degradation=fake(lambda gt, _: gt[:-1]))
    with pytest.raises(ValueError, match="broadcast"):
        maker.make(1, 0, 1)


# -- when something fails --------------------------------------------------------


def fails(gt: Pixels, rng: np.random.Generator) -> Pixels:
    raise DataError("no rain today", where="cloud", hint="wait", details=["one", "two"])


def dies(gt: Pixels, rng: np.random.Generator) -> Pixels:
    os.kill(os.getpid(), signal.SIGKILL)
    return gt


@pytest.mark.parametrize("options", [{"workers": 0}, {"workers": 1}, {"prefetch": 0}])
def test_errors_reach_the_consumer(shards: ShardSet, options: dict[str, int]) -> None:
    loader = PatchLoader(maker_of(shards, degradation=fake(fails)), start=1, stop=5, **options)
    with pytest.raises(DataError, match="cloud: no rain today") as caught:
        list(loader)
    assert caught.value.details == ("one", "two")


def is_interrupted(gt: Pixels, rng: np.random.Generator) -> Pixels:
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(os.getpid(), number)
    return gt


def test_a_worker_leaves_signals_to_the_training(shards: ShardSet) -> None:
    """A terminal sends them to all processes; the training still needs the batches it asked for."""
    maker = maker_of(shards, degradation=fake(is_interrupted))
    found = list(PatchLoader(maker, start=1, stop=3, workers=1))
    assert len(found) == len(list(PatchLoader(maker_of(shards), start=1, stop=3)))


def dies_while_it_asks(gt: Pixels, rng: np.random.Generator) -> Pixels:
    """As if killed within `is_set` of the event by which torch's loader ends its workers."""
    frame = sys._getframe()
    while "done_event" not in frame.f_locals:
        frame = frame.f_back
    with getattr(frame.f_locals["done_event"], "_cond", nullcontext()):
        return dies(gt, rng)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch's loader look after its workers five times a second instead of every 5 seconds."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))
    monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.2)


@pytest.fixture
def in_a_minute() -> Iterator[None]:
    """End a test that waits for ever."""

    def late(*_: object) -> None:
        raise AssertionError("the loader waits for a worker that is dead")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(sys.platform != "linux", reason="others do not fork workers")
@pytest.mark.usefixtures("in_a_minute", "impatient")
@pytest.mark.parametrize("work", [dies, dies_while_it_asks])
def test_a_worker_that_dies_is_an_error_in_one_line(
    shards: ShardSet, work: Callable[..., Pixels], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At whatever moment; torch's own handler of SIGCHLD is not there to end the waiting."""
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
    loader = PatchLoader(maker_of(shards, degradation=fake(work)), start=1, stop=5, workers=1)
    with pytest.raises(ResourceError, match="a data worker died") as raised:
        list(loader)
    assert "use fewer workers" in str(raised.value.hint)


@pytest.mark.skipif(not hasattr(os, "waitid"), reason="cannot wait for the end alone")
def test_a_worker_that_dies_is_noticed_only_while_waiting_for_a_batch(shards, monkeypatch):
    """torch's own handler of SIGCHLD would raise at once: in the midst of a save, for instance."""
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
    batches = iter(PatchLoader(maker_of(shards), start=1, stop=99, workers=1))
    next(batches)
    (worker,) = active_children()
    worker.kill()
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(ResourceError, match="a data worker died"):
        list(batches)


def has_a_fault(gt: Pixels, rng: np.random.Generator) -> Pixels:
    raise RuntimeError("shapes do not fit")


def test_a_fault_in_a_worker_is_not_taken_for_its_death(shards: ShardSet) -> None:
    loader = PatchLoader(
        maker_of(shards, degradation=fake(has_a_fault)), start=1, stop=5, workers=2
    )
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        list(loader)


def one_dies(gt: Pixels, rng: np.random.Generator) -> Pixels:
    return dies(gt, rng) if get_worker_info().id == 0 else gt


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("work", [has_a_fault, fails, one_dies])
def test_no_worker_outlives_an_error_that_is_kept(shards: ShardSet, work) -> None:
    """Workers ignore SIGTERM, by which Python ends its children: its exit would wait for them."""
    loader = PatchLoader(maker_of(shards, degradation=fake(work)), start=1, stop=50, workers=2)
    with pytest.raises((RuntimeError, C2fdftError)) as kept:
        list(loader)
    for left in active_children():
        left.join(20)
    assert not active_children()
    assert kept.tb is not None


@pytest.mark.skipif(sys.platform == "win32", reason="it forks")
def test_other_processes_of_the_calling_program_outlive_an_error(shards: ShardSet) -> None:
    batches = iter(PatchLoader(maker_of(shards), start=1, stop=99, workers=1))
    next(batches)
    (worker,) = active_children()
    other = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    other.start()
    worker.kill()
    with pytest.raises(ResourceError, match="a data worker died"):
        list(batches)
    other.join(0.5)  # a signal takes effect a moment later
    assert other.is_alive()
    other.kill()
    other.join()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("Pin memory thread exited unexpectedly"), "a data worker died"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "a data worker died"),
        (EOFError(), "a data worker died"),
        (RuntimeError("Too many open files. Communication with the workers"), "too many files"),
        (RuntimeError("received 0 items of ancdata"), "too many files"),
        (OSError(errno.EMFILE, "Too many open files"), "too many files"),
    ],
)
def test_what_torch_raises_if_its_workers_fail_is_explained(shards, monkeypatch, error, expected):
    class Failed:
        def __iter__(self) -> Iterator[Batch]:
            return self

        def __next__(self) -> Batch:
            raise error

    monkeypatch.setattr(DataLoader, "__iter__", lambda _: Failed())
    with pytest.raises(ResourceError, match=expected) as raised:
        list(PatchLoader(maker_of(shards), start=1, stop=3, workers=1))
    assert "workers" in str(raised.value.hint)


# torch's half-made iterator fails when it is destroyed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.skipif(sys.platform != "linux", reason="no fork that can be made to fail")
def test_workers_that_cannot_be_started_are_an_error_in_one_line(shards, monkeypatch):
    real, calls = os.fork, iter((True,))

    def fork() -> int:
        if next(calls, False):
            return real()
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", fork)
    with pytest.raises(ResourceError, match="cannot be started: Resource temporarily unavailable"):
        list(PatchLoader(maker_of(shards), start=1, stop=5, workers=2))
    # The one that was started ignores SIGTERM, so Python would wait for them forever at its exit.
    for left in active_children():
        left.join(20)
    assert not active_children()


@pytest.fixture
def forkserver() -> Iterator[None]:
    """Python 3.14's default on Linux, in every Python."""
    usual = multiprocessing.get_start_method()
    multiprocessing.set_start_method("forkserver", force=True)
    yield
    multiprocessing.set_start_method(usual, force=True)


@pytest.mark.skipif(sys.platform != "linux", reason="workers are spawned")
@pytest.mark.usefixtures("forkserver")
def test_workers_are_forked_by_the_training_process(shards, monkeypatch):
    """A server in between would print a traceback if a signal to the process group ended it."""
    monkeypatch.setattr(Batch, "share_memory", lambda batch: replace(batch, lq=batch.lq * 0))
    (batch,) = PatchLoader(maker_of(shards), start=1, stop=2, workers=1)
    assert not batch.lq.any(), "the worker does not know what this process changed in its memory"


@pytest.mark.parametrize(
    ("said", "what", "hint"),
    [
        ("unable to write: No space left on device (28)", "the shared memory is full", "/dev/shm"),
        ("unable to open: Too many open files (24)", "too many files are open", "ulimit -n"),
    ],
)
def test_a_batch_that_cannot_be_shared_is_an_error(shards, monkeypatch, said, what, hint):
    def full(_: Batch) -> Batch:
        raise RuntimeError(f"{said}\nException raised from unmapped memory")

    monkeypatch.setattr(Batch, "share_memory", full)
    with pytest.raises(ResourceError, match=what) as raised:
        list(PatchLoader(maker_of(shards), start=1, stop=3, workers=1))
    assert hint in str(raised.value.hint)
    assert raised.value.details in ((said,), ())


def test_leaving_early_stops_the_thread(shards: ShardSet) -> None:
    before = set(threading.enumerate())
    batches = iter(PatchLoader(maker_of(shards), start=1, stop=10_000))
    next(batches)
    batches.close()
    assert set(threading.enumerate()) <= before


def test_iterations_count_from_one(shards: ShardSet) -> None:
    with pytest.raises(ValueError, match="counted from 1"):
        PatchLoader(maker_of(shards), start=0, stop=2)
