"""Work on a GPU recorded as a CUDA graph: launched as a whole instead of kernel by kernel.

A network call consists of some hundred to a thousand launches. A small image keeps a GPU busy for a
tenth of the time that the CPU needs to launch them.
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
"""Environment variable: with `off` every kernel is launched individually each time."""

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
    """Runs work normally the first time, records it the second time, and then replays it.

    It holds one recording: that of the work whose inputs have the shapes of the last call. The
    recording's memory stays reserved until `forget` is called or inputs of another shape arrive.

    Attributes:
        notify: called with a sentence that states why work could not be recorded.
    """

    def __init__(self) -> None:
        self.notify: Callable[[str], None] = _log.info
        self._seen: Hashable = None
        self._failed: Hashable = None
        self._recording: _Recording[Result] | None = None

    def __call__(
        self, work: Callable[..., Result], *inputs: Tensor, key: Hashable = None
    ) -> Result:
        """Return `work(*inputs)`; the work must be the same if shapes and key are the same.

        Args:
            work: function from tensors on the GPU to its result there; it must not wait for the
                GPU.
            inputs: the tensors that it reads.
            key: whatever else the work depends on.

        Returns:
            The result; the next call may overwrite it.
        """
        key = (key, tuple((x.shape, x.stride(), x.dtype) for x in inputs))
        if self._recording is not None and self._recording.key == key:
            return self._replay(self._recording, inputs)
        self.forget()
        # The first run is not recorded, because it does what a recording cannot hold: libraries
        # initialise, Triton compiles, and trials of kernels wait for the GPU. Besides, recording
        # work that is never repeated would not pay off.
        known, self._seen = self._seen == key, key
        if known and self._failed != key:
            self._recording = self._record(work, key, inputs)
            if self._recording is not None:
                return self._replay(self._recording, inputs)
            self._failed = key
        return work(*inputs)

    def forget(self) -> None:
        """Discard the recording and release its memory."""
        self._recording = None

    def _record(
        self, work: Callable[..., Result], key: Hashable, inputs: tuple[Tensor, ...]
    ) -> _Recording[Result] | None:
        """Record the work without running it; None if that fails, such as for lack of memory."""
        graph = torch.cuda.CUDAGraph()
        # A graph reads and writes the addresses that it was recorded with, so it has its own
        # inputs. They have the strides of the given ones, because stride 0 means that a batch
        # shares one time.
        held = tuple(map(_like, inputs))
        _copy(inputs, held)
        try:
            with _one_at_a_time, _capture(graph):
                output = work(*held)
        except Exception as error:  # torch and drivers raise many kinds; the work runs unrecorded
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
    """Record what is launched on the current GPU; if that fails, restore torch's state.

    Work that the driver does not allow during recording, such as waiting for the GPU, invalidates
    the recording, and ending it is then an error. After that error `torch.cuda.graph` leaves its
    own stream current, and the allocator of torch before 2.13 assumes that the recording continues:
    it can no longer empty its cache (pytorch/pytorch#180395).
    """
    stream, pool = torch.cuda.current_stream(), torch.cuda.graph_pool_handle()
    own = _stream_of(stream.device_index)
    try:
        # "thread_local": other threads may continue their own work meanwhile, but not record.
        with torch.cuda.graph(graph, pool, own, capture_error_mode="thread_local"):
            yield
    except Exception:
        torch.cuda.set_stream(stream)
        with suppress(RuntimeError):  # already ended, as is the case if the work itself failed
            _end_allocating(stream.device_index, pool)
        raise


@cache
def _stream_of(index: int) -> torch.cuda.Stream:
    """Return the stream that is recorded on a GPU; each GPU has its own.

    By default `torch.cuda.graph` uses one stream for all GPUs, which belongs to the GPU that was
    used first. Work on another GPU is then executed instead of recorded, and a replay leaves the
    last result unchanged.
    """
    return torch.cuda.Stream(index)  # type: ignore[no-untyped-call]


def _end_allocating(index: int, pool: tuple[int, int]) -> None:
    """Stop directing a GPU's allocations to a pool; RuntimeError if they are not directed there."""
    # The second name is that of torch before 2.8.
    for name in ("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool"):
        if hasattr(torch._C, name):
            getattr(torch._C, name)(index, pool)
            return


def records(device: torch.device) -> bool:
    """Whether work on a device is recorded: on CUDA, unless it is switched off.

    Raises:
        UsageError: the environment variable has an unknown value.
    """
    switch = check_choice(SWITCH, os.environ.get(SWITCH, "auto"), ("auto", "off"))
    return switch == "auto" and device.type == "cuda"


def _like(x: Tensor) -> Tensor:
    """Return a new tensor with the shape and the strides of x."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)


def _copy(inputs: tuple[Tensor, ...], held: tuple[Tensor, ...]) -> None:
    for x, own in zip(inputs, held, strict=True):
        _stored(own).copy_(_stored(x))


def _stored(x: Tensor) -> Tensor:
    """Return x with each expanded dimension (stride 0) reduced to size 1."""
    # `copy_` refuses a target whose elements share memory.
    for dim, (size, stride) in enumerate(zip(x.shape, x.stride(), strict=True)):
        if stride == 0 and size > 1:
            x = x.narrow(dim, 0, 1)
    return x
