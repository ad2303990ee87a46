"""Recorded work returns the same results as the work itself, whatever happens in between."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from c2fdft_cli.core.network import DFT
from c2fdft_cli.errors import UsageError
from c2fdft_cli.execution import strips
from c2fdft_cli.execution.cuda.recorded import SWITCH, Recorder, records
from c2fdft_cli.execution.strips import StripNetwork
from tests.kit.formula import fill, wave
from tests.kit.graphs import Graph, graphs  # noqa: F401 - a fixture

END_ALLOCATING = ["_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool"]
"""The name of the function in torch from 2.8 on, and before."""


class Work:
    """Computes x + 2 y, counts its runs, and raises `error` in the second if it is set."""

    def __init__(self) -> None:
        self.runs = 0
        self.error: Exception | None = None

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        self.runs += 1
        if self.error is not None and self.runs == 2:
            raise self.error
        return x + 2 * y


def test_work_is_recorded_the_second_time_and_then_replayed(graphs: type[Graph]) -> None:  # noqa: F811
    recorder, work = Recorder(), Work()
    for i in range(5):
        x, y = torch.full((2, 3), float(i)), torch.arange(3.0).expand(2, 3) + i
        assert torch.equal(recorder(work, x, y), x + 2 * y)
    assert (work.runs, graphs.replays) == (2, 4)


def test_expanded_inputs_stay_expanded(graphs: type[Graph]) -> None:  # noqa: F811
    recorder, strides = Recorder(), set()

    def work(t: Tensor) -> Tensor:
        strides.add(t.stride())
        return t * 2

    for value in (1.0, 2.0, 3.0):
        found = recorder(work, torch.tensor([value]).expand(4))
        assert torch.equal(found, torch.full((4,), 2 * value))
    assert strides == {(0,)}
    assert graphs.replays == 2


@pytest.mark.parametrize("shapes", [[3, 4, 3, 4, 3], [3, 4, 4, 3, 3]])
def test_another_shape_or_key_starts_a_new_recording(
    shapes: list[int],
    graphs: type[Graph],  # noqa: F811
) -> None:
    recorder = Recorder()
    for i, size in enumerate(shapes):
        x = torch.full((size,), float(i))
        assert torch.equal(recorder(torch.neg, x), -x)
    again = sum(a == b for a, b in pairwise(shapes))
    assert graphs.replays == again
    assert torch.equal(recorder(torch.abs, x, key="abs"), x)


def test_work_that_cannot_be_recorded_runs_unrecorded(graphs: type[Graph]) -> None:  # noqa: F811
    """Recording is not tried again for the same work."""
    recorder, work = Recorder(), Work()
    work.error = RuntimeError("operation not permitted when stream is capturing")
    x = torch.ones(2)
    for _ in range(4):
        assert torch.equal(recorder(work, x, x), 3 * x)
    assert (work.runs, graphs.replays) == (5, 0)


@pytest.mark.parametrize(
    "name", ["_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool"]
)
@pytest.mark.parametrize("has_ended", [False, True])
def test_a_recording_that_cannot_be_ended_leaves_nothing_behind(
    graphs: type[Graph],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    has_ended: bool,
) -> None:
    """Before 2.13 torch leaves another stream current and a pool in use."""
    current, pools = ["the caller's"], []

    @contextmanager
    def spoilt(
        graph: Graph, pool: object, stream: object, capture_error_mode: str
    ) -> Iterator[None]:
        current.append("the recording's")
        pools.append(pool)
        yield
        raise RuntimeError("operation failed due to a previous error during capture")

    def end(index: int, pool: object) -> None:
        assert index == 3
        pools.remove(pool)
        if has_ended:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")

    stream = SimpleNamespace(device_index=3)
    monkeypatch.setattr(torch.cuda, "graph", spoilt)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda to: current.remove("the recording's"))
    for each in END_ALLOCATING:
        monkeypatch.delattr(torch._C, each, raising=False)
    monkeypatch.setattr(torch._C, name, end, raising=False)
    recorder, said = Recorder(), []
    recorder.notify = said.append
    x = torch.ones(2)
    for _ in range(3):
        assert torch.equal(recorder(torch.neg, x), -x)
    assert (current, pools) == (["the caller's"], [])
    assert len(said) == 1


def test_each_gpu_is_recorded_on_its_own_stream(
    graphs: type[Graph],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One program may use two restorers on different GPUs."""
    for index in (0, 1):
        stream = SimpleNamespace(device_index=index)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda stream=stream: stream)
        recorder = Recorder()
        for value in (1.0, 2.0, 3.0):
            x = torch.full((2,), value)
            assert torch.equal(recorder(torch.neg, x), -x)
    assert graphs.replays == 4


def test_an_error_of_the_work_itself_is_raised(graphs: type[Graph]) -> None:  # noqa: F811
    def work(x: Tensor) -> Tensor:
        raise ValueError("no")

    for _ in range(3):
        with pytest.raises(ValueError, match="no"):
            Recorder()(work, torch.ones(1))


def test_the_switch_turns_recording_off(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    monkeypatch.delenv(SWITCH, raising=False)
    assert records(cuda)
    assert not records(torch.device("cpu"))
    monkeypatch.setenv(SWITCH, "off")
    assert not records(cuda)
    monkeypatch.setenv(SWITCH, "maybe")
    with pytest.raises(UsageError, match=r"C2FDFT_GRAPHS must be auto or off, got .maybe."):
        records(cuda)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> StripNetwork:
    """A network that is recorded on the CPU and runs by torch's own operators."""
    monkeypatch.setattr(strips, "kernels_for", lambda device, dtype: None)
    monkeypatch.setattr(strips, "records", lambda device: True)
    return StripNetwork(fill(DFT(dim=8, blocks=(1, 1, 1, 1))), rows=8)


@torch.inference_mode()
def test_recorded_calls_equal_the_network(network: StripNetwork, graphs: type[Graph]) -> None:  # noqa: F811
    """With varying images, timesteps, sizes and weights; the reported progress adds up."""
    done: list[int] = []
    network.watch = done.append
    for height in (16, 16, 16, 24, 16, 16):
        x = wave([2, 6, height, 16], 0.1 + 0.01 * len(done))
        t = torch.tensor([500.0, 20.0 + len(done)])
        want = network.net(x, t)
        done.clear()
        assert torch.allclose(network(x, t), want, atol=1e-5)
        assert sum(done) == network.work(2, height, 16)
    assert graphs.replays == 1 + 2 + 2 + 1 + 1 + 2  # two images: strips take one at a time
    network.net.output.weight.mul_(0.5)
    network.refresh()
    assert torch.allclose(network(x, t), network.net(x, t), atol=1e-5)


@torch.inference_mode()
def test_large_calls_are_not_recorded(
    network: StripNetwork,
    graphs: type[Graph],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(strips, "MAX_RECORDED_CALL", 16 * 16 * 8 - 1)
    x, t = wave([1, 6, 16, 16], 0.1), torch.tensor([500.0])
    for _ in range(3):
        network(x, t)
    assert graphs.replays == 0
    recordings: list[Graph] = []

    def make() -> Graph:
        recordings.append(graphs())
        return recordings[-1]

    monkeypatch.setattr(torch.cuda, "CUDAGraph", make)
    for image in (x[..., :8], x[..., :8], x, x[..., :8]):
        network(image.contiguous(), t)
    assert len(recordings) == 2  # the large call may need the memory of the first


@pytest.mark.usefixtures("graphs")
@torch.inference_mode()
def test_progress_is_reported_again_after_a_call_that_failed(
    network: StripNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []
    network.watch = done.append
    x, t = wave([1, 6, 16, 16], 0.1), torch.tensor([500.0])
    with monkeypatch.context() as patch:
        patch.setattr(network, "_embedding", Mock(side_effect=MemoryError))
        with pytest.raises(MemoryError):
            network(x, t)
    network(x, t)
    assert sum(done) == network.work(1, 16, 16)


@torch.inference_mode()
def test_narrower_strips_start_a_new_recording(
    network: StripNetwork,
    graphs: type[Graph],  # noqa: F811
) -> None:
    """A replay in the old strips would need the memory that has run out."""
    x, t = wave([1, 6, 16, 16], 0.1), torch.tensor([500.0])
    for rows, replays in ((16, 0), (16, 1), (8, 1), (8, 2)):
        network.rows = rows
        network(x, t)
        assert graphs.replays == replays
