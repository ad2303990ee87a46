"""The executor: whole images or strips by memory, batches, and running out of memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from c2fdft_cli.core.diffusion import alpha_bar_of, beta_schedule
from c2fdft_cli.core.network import DFT, padded_side
from c2fdft_cli.engine.sampling import executor as executor_module
from c2fdft_cli.engine.sampling import sampler as sampler_module
from c2fdft_cli.engine.sampling.executor import (
    MARGIN,
    MEAN_BYTES,
    MIN_ROWS,
    SAMPLER_BYTES,
    Executor,
)
from c2fdft_cli.engine.sampling.sampler import Sampler
from c2fdft_cli.errors import ResourceError
from c2fdft_cli.execution.device import Runtime
from c2fdft_cli.execution.inference_memory import strip_bytes
from c2fdft_cli.execution.strips import StripNetwork
from c2fdft_cli.execution.tiled import Tiled
from tests.kit.live_bytes import LiveBytes

RUNTIME = Runtime(torch.device("cpu"))
ALPHA_BAR = alpha_bar_of(beta_schedule())
SAMPLER = Sampler(ALPHA_BAR, [500, 100])  # a step at 999 would magnify rounding 157 times


@pytest.fixture
def make(tiny_net: Callable[..., DFT]) -> Callable[..., Executor]:
    def made(eta: float = 0.0, **options: Any) -> Executor:
        sampler = replace(SAMPLER, eta=eta)
        return Executor(StripNetwork(tiny_net()), sampler, RUNTIME, **options)

    return made


def image(n: int, h: int, w: int) -> Tensor:
    return torch.rand(n, 3, h, w, generator=torch.Generator().manual_seed(h * w))


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (24, 40)])
def test_the_executor_equals_the_sampler_on_the_network(
    make: Callable[..., Executor], tiny_net: Callable[..., DFT], size: tuple[int, int]
) -> None:
    lq = image(1, *size)
    want = SAMPLER(tiny_net(), RUNTIME, lq, ["a"])
    ran = make()(lq, ["a"])
    assert ran.executor == "whole"
    assert ran.notes == []
    assert torch.allclose(ran.image, want, atol=1e-4)


def test_an_image_in_a_batch_equals_the_image_alone(make: Callable[..., Executor]) -> None:
    lq = image(3, 16, 24)
    together = make()(lq, ["a", "b", "c"]).image
    for i, name in enumerate("abc"):
        alone = make()(lq[i : i + 1], [name]).image
        assert torch.allclose(together[i : i + 1], alone, atol=1e-4)


def test_noise_is_sampled_ahead_only_for_a_single_run(make: Callable[..., Executor]) -> None:
    """Several samples of the same noise would all be the same image."""
    lq, one = image(1, 9, 12), make()
    noise = one.start_noise("a", 9, 12)
    assert noise is not None
    assert torch.equal(one.start(lq, ["a"], noise=noise[None]).image, one(lq, ["a"]).image)
    for options in ({"samples": 2}, {"transforms": (0, 4)}, {"eta": 0.5}):
        assert make(**options).start_noise("a", 9, 12) is None


def planned_bytes(net: DFT, h: int, w: int, rows: int) -> int:
    """Estimated bytes for one image in strips of `rows` rows."""
    return strip_bytes(StripNetwork(net), h, w, 1, rows) + SAMPLER_BYTES * padded_side(
        h
    ) * padded_side(w)


def test_a_small_budget_narrows_the_strips_and_changes_nothing(
    make: Callable[..., Executor], tiny_net: Callable[..., DFT]
) -> None:
    lq = image(1, 96, 64)
    whole, narrow = make(), make(max_memory=planned_bytes(tiny_net(), 96, 64, rows=48))
    assert whole._plan(96, 64, 1)[0] == 96
    rows, _ = narrow._plan(96, 64, 1)
    assert MIN_ROWS <= rows < 96
    ran = narrow(lq, ["a"])
    assert ran.executor == f"strips of {rows} rows"
    assert torch.allclose(ran.image, whole(lq, ["a"]).image, atol=1e-4)


def test_an_image_that_cannot_fit_is_refused_with_a_size_that_would(
    make: Callable[..., Executor],
) -> None:
    executor = make(max_memory=1_000_000)
    with pytest.raises(ResourceError, match=r"640x480 px needs .* MiB of memory"):
        executor.check_fits(480, 640)
    executor.check_fits(16, 16)


@pytest.mark.parametrize("in_tiles", [True, False])
def test_what_is_recommended_for_an_image_that_cannot_fit(
    make: Callable[..., Executor], monkeypatch: pytest.MonkeyPatch, in_tiles: bool
) -> None:
    """Tiles only if they fit, and more memory in the way in which it was limited."""
    size = (2048, 4096)
    budget = make()._least_bytes(*size, 1, tile=512) - (not in_tiles)
    share = budget / make()._least_bytes(*size, 1, tile=None)
    monkeypatch.setattr(executor_module, "MARGIN", 1)
    monkeypatch.setattr(executor_module, "free_bytes", lambda _: budget)
    for more, limit in (("raise --max-memory", budget), ("free some memory", None)):
        with pytest.raises(ResourceError) as caught:
            make(max_memory=limit).check_fits(*size)
        assert caught.value.hint == (
            f"about {share * 2048 * 4096 / 1e6:.2f} megapixels fit; {more}"
            + (", or use --tile 512" if in_tiles else "")
        )


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The free memory, and the time, which the test sets."""
    now = SimpleNamespace(bytes=1 << 30, seconds=0.0)
    monkeypatch.setattr(executor_module, "free_bytes", lambda _: now.bytes)
    monkeypatch.setattr(executor_module, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def test_a_share_of_the_free_memory_is_left_unless_a_limit_is_set(
    make: Callable[..., Executor], free: SimpleNamespace
) -> None:
    """It is measured again after a second."""
    executor, limited = make(), make(max_memory=3 << 30)
    assert (executor.budget, limited.budget) == (int(0.8 * (1 << 30)), 3 << 30)
    free.bytes = 2 << 30
    for seconds, gib in ((0.9, 1), (1.0, 2)):
        free.seconds = seconds
        executor.measure_memory()
        limited.measure_memory()
        assert (executor.budget, limited.budget) == (int(0.8 * (gib << 30)), 3 << 30)


@pytest.mark.parametrize("options", [{}, {"samples": 2, "transforms": (0, 1)}, {"tile": 32}])
def test_progress_grows_to_the_whole_work_at_the_end(
    make: Callable[..., Executor], options: dict[str, Any]
) -> None:
    done: list[float] = []
    make(**options)(image(2, 40, 48), ["a", "b"], done.append)
    assert done == sorted(done)
    assert done.index(1.0) == len(done) - 1


def test_tiles_need_less_than_strips(make: Callable[..., Executor]) -> None:
    budget = 8_000_000
    with pytest.raises(ResourceError):
        make(max_memory=budget).check_fits(160, 240)
    executor = make(max_memory=budget, tile=32)
    executor.check_fits(160, 240)
    assert executor(image(1, 40, 72), ["a"]).executor == "tiles of 32 px"
    assert executor(image(1, 30, 20), ["a"]).executor == "whole"


def test_a_batch_is_as_large_as_fits(make: Callable[..., Executor]) -> None:
    assert make(max_memory=4_000_000, batch=1).batch_size(32, 32) == 1
    assert 1 < make(max_memory=4_000_000, batch=64).batch_size(32, 32) < 64
    assert make(max_memory=1 << 40, batch=64).batch_size(32, 32) == 64
    large = make(max_memory=1 << 40)
    sizes = [(1, 1), (128, 128), (256, 256), (257, 256)]
    assert [large.batch_size(*size) for size in sizes] == [16, 16, 4, 1]


def peak_bytes(executor: Executor, lq: Tensor) -> int:
    """The peak of bytes that a run holds, without weights and input."""
    run = Sampler.__call__.__wrapped__  # type: ignore[attr-defined]
    executor._strips.rows, _ = executor._plan(lq.shape[-2], lq.shape[-1], len(lq))
    with torch.no_grad(), LiveBytes() as live:  # inference mode would hide the operators
        names = [str(i) for i in range(len(lq))]
        run(executor.sampler, executor.predict_noise, RUNTIME, lq, names)
    return int(live.peak)


@pytest.mark.parametrize("tile", [None, 32])
@pytest.mark.parametrize("shape", [(1, 93, 61), (3, 32, 24)])
def test_the_budget_covers_what_a_run_holds(
    make: Callable[..., Executor], tile: int | None, shape: tuple[int, int, int]
) -> None:
    n, h, w = shape
    peak = peak_bytes(make(tile=tile), image(*shape))
    assert not make(max_memory=peak, tile=tile)._fits(h, w, n)
    assert make(max_memory=int(1.6 * peak), tile=tile)._fits(h, w, n)


@pytest.mark.parametrize(
    ("options", "tile"),
    [
        ({}, None),
        ({}, 32),
        pytest.param({"eta": 1.0}, None, marks=pytest.mark.acceptance),
        pytest.param({"samples": 3}, None, marks=pytest.mark.acceptance),
        ({"transforms": (0, 1, 2)}, None),
        ({"eta": 1.0, "samples": 3}, 32),
    ],
    ids=str,
)
def test_the_plan_counts_what_is_held_outside_the_network(
    make: Callable[..., Executor],
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    tile: int | None,
) -> None:
    """With a network that holds nothing but its input and its result."""
    monkeypatch.setattr(sampler_module, "SLICE_VALUES", 1 << 9)
    run = Sampler.__call__.__wrapped__  # type: ignore[attr-defined]
    monkeypatch.setattr(Sampler, "__call__", run)
    executor = make(tile=tile, **options)

    def nothing(x: Tensor, _: Tensor) -> Tensor:
        return x.new_ones((len(x), 3, *x.shape[2:]))

    executor.predict_noise = nothing if tile is None else Tiled(nothing, tile)
    with torch.no_grad(), LiveBytes() as live:  # inference mode would hide the operators
        executor.start(image(1, 128, 128), ["a"])
    planned = SAMPLER_BYTES - 24 + (MEAN_BYTES if executor.runs > 1 else 0)
    held = live.peak / 128**2
    assert 0.8 * planned <= held <= 1.01 * planned  # with slices, times, weights of tiles


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_compiled_strips_are_planned_as_such(tiny_net: Callable[..., DFT]) -> None:
    strips = StripNetwork(tiny_net(), compile=True)
    budget = strip_bytes(strips, 96, 64, 1, 96)
    budget += SAMPLER_BYTES * 96 * 64
    for most, fits in ((budget, True), (budget - 1, False)):
        executor = Executor(strips, SAMPLER, RUNTIME, max_memory=most)
        assert (executor._plan(96, 64, 1)[0] == 96) is fits


def test_the_narrowest_strips_run_if_nothing_else_fits(
    make: Callable[..., Executor], tiny_net: Callable[..., DFT]
) -> None:
    lq = image(1, 64, 64)
    needed = planned_bytes(tiny_net(), 64, 64, rows=1)
    with pytest.raises(ResourceError, match=f"needs {needed / 2**20:.1f} MiB"):
        make(max_memory=needed - 1).check_fits(64, 64)
    executor = make(max_memory=needed)
    assert executor._plan(64, 64, 1)[0] < MIN_ROWS
    assert torch.allclose(executor(lq, ["a"]).image, make()(lq, ["a"]).image, atol=1e-4)


def test_a_batch_that_does_not_fit_runs_one_by_one(
    make: Callable[..., Executor], tiny_net: Callable[..., DFT], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if a caller requests a batch larger than `batch_size` recommends."""
    lq, names = image(3, 40, 48), ["a", "b", "c"]
    executor = make(max_memory=planned_bytes(tiny_net(), 40, 48, rows=40))
    assert executor._fits(40, 48, 1)
    assert not executor._fits(40, 48, 3)
    sizes: list[int] = []
    sample = Sampler.__call__

    def counting(self: Sampler, network: Any, runtime: Any, lq: Tensor, *rest: Any) -> Tensor:
        sizes.append(len(lq))
        return sample(self, network, runtime, lq, *rest)

    monkeypatch.setattr(Sampler, "__call__", counting)
    ran = executor(lq, names)
    assert sizes == [1, 1, 1]
    assert ran.notes == []
    assert torch.allclose(ran.image, make()(lq, names).image, atol=1e-4)
    noise = torch.stack([executor.start_noise(name, 40, 48) for name in names])  # type: ignore[misc]
    assert torch.equal(executor.start(lq, names, noise=noise).image, ran.image)


class Hungry:
    """A sampler that runs out of memory a number of times before it succeeds."""

    timesteps = SAMPLER.timesteps

    def __init__(self, executor: Executor, failures: int, error: Exception) -> None:
        self.executor, self.failures, self.error = executor, failures, error
        self.asked: list[tuple[int, int | None]] = []

    def __call__(self, network: object, runtime: Runtime, lq: Tensor, *_: object) -> Tensor:
        self.asked.append((len(lq), self.executor._strips.rows))
        if self.failures:
            self.failures -= 1
            raise self.error
        return lq


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
]


@pytest.mark.parametrize("error", ERRORS, ids=["cuda", "python", "cpu"])
def test_out_of_memory_continues_in_strips_with_a_note(
    make: Callable[..., Executor], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """First the memory that a recorded call and torch keep is released."""
    executor, released = make(), []
    monkeypatch.setattr(executor._strips, "forget", lambda: released.append("recorded"))
    monkeypatch.setattr(executor_module, "release_cached_memory", released.append)
    hungry = Hungry(executor, 1, error)
    executor.sampler = hungry  # type: ignore[assignment]
    ran = executor(image(1, 64, 64), ["a"])
    assert hungry.asked == [(1, 64), (1, 16)]
    assert ran.executor == "strips of 16 rows"
    assert ran.notes == ["out of memory: continued in strips of 16 rows"]
    assert released == ["recorded", RUNTIME.device]


def test_a_batch_out_of_memory_continues_one_by_one(make: Callable[..., Executor]) -> None:
    executor = make()
    hungry = Hungry(executor, 1, ERRORS[0])
    executor.sampler = hungry  # type: ignore[assignment]
    lq = image(3, 16, 16)
    ran = executor(lq, ["a", "b", "c"])
    assert [count for count, _ in hungry.asked] == [3, 1, 1, 1]
    assert torch.equal(ran.image, lq)
    assert "one image at a time" in ran.notes[0]


def test_out_of_memory_in_the_narrowest_strips_is_an_error(make: Callable[..., Executor]) -> None:
    executor = make()
    executor.sampler = Hungry(executor, 99, ERRORS[0])  # type: ignore[assignment]
    with pytest.raises(ResourceError, match=r"memory at 64x48 px in strips of 8 rows"):
        executor(image(1, 48, 64), ["a.png"])


def test_other_errors_are_raised(make: Callable[..., Executor]) -> None:
    executor = make()
    executor.sampler = Hungry(executor, 1, RuntimeError("shape mismatch"))  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="shape mismatch"):
        executor(image(1, 16, 16), ["a"])


class Overflowing(Sampler):
    """A sampler whose result in half precision is not finite for images without red."""

    def __call__(self, network: Any, runtime: Runtime, lq: Tensor, *rest: Any) -> Tensor:
        image = super().__call__(network, runtime, lq, *rest).clone()
        if runtime.dtype != torch.float32:
            image[lq[:, 0].amax((1, 2)) == 0] = torch.nan
        return image


OVERFLOWING = Overflowing(ALPHA_BAR, SAMPLER.timesteps)


def test_an_image_that_is_not_finite_is_restored_again_in_float32(
    make: Callable[..., Executor], tiny_net: Callable[..., DFT]
) -> None:
    half = Runtime(torch.device("cpu"), torch.bfloat16)
    executor = Executor(StripNetwork(tiny_net(), dtype=half.dtype), OVERFLOWING, half, samples=2)
    lq = image(3, 16, 24)
    lq[1, 0] = 0
    done: list[float] = []
    ran = executor(lq, ["a", "b", "c"], done.append)
    assert ran.notes == ["b: not finite in bf16, restored again in fp32"]
    want = make(samples=2)(lq[1:2], ["b"])
    assert torch.equal(ran.image[1:2], want.image)
    assert torch.equal(ran.deviation[1:2], want.deviation)
    assert done == sorted(done)
    executor.sampler = SAMPLER
    others = executor(lq, ["a", "b", "c"])
    assert others.notes == []
    assert torch.equal(ran.image[::2], others.image[::2])


def test_what_is_restored_again_is_planned_as_the_rest(
    make: Callable[..., Executor], tiny_net: Callable[..., DFT], free: SimpleNamespace
) -> None:
    """In the same tiles and transforms, within the same or the newly measured memory."""
    half = Runtime(torch.device("cpu"), torch.bfloat16)
    lq, names, options = image(1, 40, 8), ["a"], {"transforms": (0, 4), "tile": 32}
    for limit in (None, 3 << 30):
        strips = StripNetwork(tiny_net(), dtype=half.dtype)
        executor = Executor(strips, OVERFLOWING, half, max_memory=limit, **options)
        first = executor.start(lq, names)._replace(notes=["a note"])
        for gib in (1, 2):
            free.bytes, free.seconds = gib << 30, free.seconds + 1
            again = executor.redo(first, [0], lq, names, lambda _: None)
            assert executor._in_float32 is not None
            assert executor._in_float32.budget == (limit or int(0.8 * (gib << 30)))
    assert torch.equal(again.image, make(**options)(lq, names).image)
    assert not torch.equal(again.image, make(transforms=(0, 4))(lq, names).image)
    assert again.notes == ["a note", "a: not finite in bf16, restored again in fp32"]


def test_what_is_restored_again_is_not_rounded_to_tf32(
    tiny_net: Callable[..., DFT], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As half precision on a GPU allows it for products and convolutions in float32."""
    half, seen = Runtime(torch.device("cpu"), torch.bfloat16), []
    call = Sampler.__call__

    def watched(self: Sampler, network: Any, runtime: Runtime, *rest: Any) -> Tensor:
        seen.append((runtime.precision, torch.backends.cudnn.allow_tf32))
        return call(self, network, runtime, *rest)

    monkeypatch.setattr(Sampler, "__call__", watched)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    executor = Executor(StripNetwork(tiny_net(), dtype=half.dtype), OVERFLOWING, half)
    executor(torch.zeros(1, 3, 16, 16), ["a"])
    assert seen == [("bf16", True), ("fp32", False)]


def test_a_result_of_float32_that_is_not_finite_is_returned(make: Callable[..., Executor]) -> None:
    executor = make()
    executor.predict_noise = lambda x, t: x[:, 3:] * torch.nan
    ran = executor(torch.zeros(1, 3, 16, 16), ["a"])
    assert ran.image.isnan().all()
    assert ran.notes == []


@pytest.fixture(scope="module")
def on_a_gpu() -> Callable[[int], Executor]:
    """Plan the official network in bf16 on a GPU with an amount of free memory."""
    with torch.device("meta"):
        strips = StripNetwork(DFT(), dtype=torch.bfloat16)
    runtime = Runtime(torch.device("cuda"), torch.bfloat16)

    def made(free: int) -> Executor:
        budget = int(free * MARGIN)
        return Executor(strips, SAMPLER, runtime, max_memory=budget)

    return made


def test_4k_on_a_gpu_of_8_gib(on_a_gpu: Callable[[int], Executor]) -> None:
    """Context and weights leave 7.4 GiB: skips are offloaded to the host; larger GPUs keep them."""
    small, large = on_a_gpu(int(7.4 * 2**30)), on_a_gpu(22 * 2**30)
    rows, offloads = small._plan(2160, 3840, 1)
    assert offloads
    assert rows >= MIN_ROWS
    assert large._plan(2160, 3840, 1) == (270, False)
    assert small._plan(720, 1280, 1) == (720, False)
    with pytest.raises(ResourceError, match="7680x4320 px needs"):
        small.check_fits(4320, 7680)


def test_a_gpu_takes_three_megapixels_at_once_if_they_fit(
    on_a_gpu: Callable[[int], Executor],
) -> None:
    large, small = on_a_gpu(80 << 30), on_a_gpu(4 << 30)
    sizes = [(64, 64), (256, 256), (512, 512), (720, 1280), (2160, 3840)]
    assert [large.batch_size(*size) for size in sizes] == [64, 48, 12, 3, 1]
    assert 1 < small.batch_size(256, 256) < 48


def test_a_cpu_offloads_nothing(make: Callable[..., Executor]) -> None:
    executor = make()
    least = strip_bytes(executor._strips, 64, 64, 1, 1) + SAMPLER_BYTES * 64 * 64
    assert executor._least_bytes(64, 64, 1, tile=None) == least
    assert make(max_memory=least)._plan(64, 64, 1) == (1, False)
    with pytest.raises(ResourceError):
        make(max_memory=least - 1).check_fits(64, 64)


def test_a_network_that_is_no_longer_compiled_is_reported(
    make: Callable[..., Executor], monkeypatch: pytest.MonkeyPatch
) -> None:
    executor, counts = make(), iter([3, 4, 4, 4])
    allowed: list[bool] = []
    monkeypatch.setattr(executor_module, "functions_given_up", lambda: next(counts))
    monkeypatch.setattr(executor_module, "allow_failures", lambda: allowed.append(True))
    assert executor(image(1, 16, 16), ["a"]).notes == []
    assert not allowed
    executor._strips.compiled = True
    said = "torch.compile gave up on a part of the network: it runs uncompiled"
    assert executor(image(1, 16, 16), ["a"]).notes == [said]
    assert executor(image(1, 16, 16), ["a"]).notes == []
    assert len(allowed) == 2  # each call, since a program's settings return after it
