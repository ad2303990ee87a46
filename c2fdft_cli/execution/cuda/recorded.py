"""Work on a GPU recorded as a CUDA graph: what is given to the GPU in one, not launch by launch.

A call of the network is some hundred to a thousand launches. A small image keeps a GPU busy for a
tenth of the time that a CPU needs to launch them.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from c2fdft_cli.vocabulary import check_choice

SWITCH = "C2FDFT_GRAPHS"
"""Environment variable: `off` to launch everything anew each time."""

Result = TypeVar("Result")
"""A tensor on the GPU, or a tuple of them."""

_log = logging.getLogger(__name__)
_one_at_a_time = threading.Lock()


class _Recording(NamedTuple, Generic[Result]):
    """What was recorded, and the tensors that it reads and writes."""

    key: Hashable
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    output: Result


class Recorder(Generic[Result]):
    """Runs work as it is once, records it the second time, and replays it from then on.

    It holds one recording: of the work whose inputs have the shapes of the last call. Its memory
    is for itself alone until `forget`, or until inputs of another shape come.

    Attributes:
        notify: called with why work could not be recorded, in a sentence.
    """

    def __init__(self) -> None:
        self.notify: Callable[[str], None] = _log.info
        self._seen: Hashable = None
        self._failed: Hashable = None
        self._recording: _Recording[Result] | None = None

    def __call__(
        self, work: Callable[..., Result], *inputs: Tensor, key: Hashable = None
    ) -> Result:
        """`work(*inputs)`, the same work whenever shapes and key are the same.

        Args:
            work: from tensors on the GPU to what is there; it must not wait for the GPU.
            inputs: what it reads.
            key: what else it depends on.

        Returns:
            The result; the next call may replace its content.
        """
        key = (key, tuple((x.shape, x.stride(), x.dtype) for x in inputs))
        if self._recording is not None and self._recording.key == key:
            return self._replay(self._recording, inputs)
        self.forget()
        # The first run is for what cannot be recorded: libraries set themselves up, Triton
        # compiles, and kernels are tried out with waits for the GPU. Work that is never repeated
        # would not repay it.
        known, self._seen = self._seen == key, key
        if known and self._failed != key:
            self._recording = self._record(work, key, inputs)
            if self._recording is not None:
                return self._replay(self._recording, inputs)
            self._failed = key
        return work(*inputs)

    def forget(self) -> None:
        """Give up the recording and its memory."""
        self._recording = None

    def _record(
        self, work: Callable[..., Result], key: Hashable, inputs: tuple[Tensor, ...]
    ) -> _Recording[Result] | None:
        """Record the work without running it; None where that fails, as for lack of memory."""
        graph = torch.cuda.CUDAGraph()
        # A graph reads and writes the addresses that it was recorded with, so it has inputs of its
        # own; with the strides of the given ones, as stride 0 tells that a batch has one time.
        held = tuple(map(_like, inputs))
        _copy(inputs, held)
        try:
            with _one_at_a_time, _capture(graph):
                output = work(*held)
        except Exception as error:  # torch and drivers have many; running it as it is needs none
            why = (str(error).splitlines() or [type(error).__name__])[0]
            self.notify(f"not recorded as a CUDA graph: {why}")
            with suppress(RuntimeError):
                graph.reset()
            return None
        return _Recording(key, graph, held, output)

    @staticmethod
    def _replay(recording: _Recording[Result], inputs: tuple[Tensor, ...]) -> Result:
        _copy(inputs, recording.inputs)
        recording.graph.replay()
        return recording.output


@contextmanager
def _capture(graph: torch.cuda.CUDAGraph) -> Iterator[None]:
    """Record what the current GPU is given, and leave torch as it was where that fails.

    Work that the driver does not allow meanwhile, such as a wait for the GPU, spoils a recording,
    and ending it is then an error. Behind that error `torch.cuda.graph` leaves its own stream
    current, and the allocator of torch before 2.13 takes the recording for one that goes on: it
    cannot empty its cache any more (pytorch/pytorch#180395).
    """
    stream, pool = torch.cuda.current_stream(), torch.cuda.graph_pool_handle()
    own = _stream_of(stream.device_index)
    try:
        # other threads may go on with work of their own meanwhile, but not record
        with torch.cuda.graph(graph, pool, own, capture_error_mode="thread_local"):
            yield
    except Exception:
        torch.cuda.set_stream(stream)
        with suppress(RuntimeError):  # it has ended, as it does where the work itself fails
            _end_allocating(stream.device_index, pool)
        raise


@cache
def _stream_of(index: int) -> torch.cuda.Stream:
    """The stream that is recorded on a GPU, one of its own for each.

    `torch.cuda.graph` by itself takes one of the GPU that came first for all. The work on another
    is then done instead of recorded, and a replay leaves the last result where it was.
    """
    return torch.cuda.Stream(index)  # type: ignore[no-untyped-call]


def _end_allocating(index: int, pool: tuple[int, int]) -> None:
    """End what sends a GPU's allocations into a pool; RuntimeError where nothing does."""
    # the second name is of torch before 2.8
    for name in ("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool"):
        if hasattr(torch._C, name):
            getattr(torch._C, name)(index, pool)
            return


def records(device: torch.device) -> bool:
    """Whether work on a device is recorded: on CUDA, unless it is switched off.

    Raises:
        UsageError: the environment variable has another value.
    """
    switch = check_choice(SWITCH, os.environ.get(SWITCH, "auto"), ("auto", "off"))
    return switch == "auto" and device.type == "cuda"


def _like(x: Tensor) -> Tensor:
    """A tensor of its own with the shape and the strides of x."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)


def _copy(inputs: tuple[Tensor, ...], held: tuple[Tensor, ...]) -> None:
    for x, own in zip(inputs, held, strict=True):
        _stored(own).copy_(_stored(x))


def _stored(x: Tensor) -> Tensor:
    """x without the dimensions that it was expanded over."""
    # `copy_` refuses a target whose elements share their memory.
    for dim, (size, stride) in enumerate(zip(x.shape, x.stride(), strict=True)):
        if stride == 0 and size > 1:
            x = x.narrow(dim, 0, 1)
    return x
