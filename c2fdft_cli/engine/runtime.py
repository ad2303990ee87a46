"""Where the work runs: device, precision, processes of one training, and signals."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed as dist

from c2fdft_cli.errors import ResourceError, UsageError

DEVICES = ("auto", "cpu", "cuda", "mps")
_PATIENCE = timedelta(hours=6)
"""How long processes wait for one another: one of them scores all validation images alone."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class _MallInfo2(ctypes.Structure):
    """`struct mallinfo2` of glibc's <malloc.h>."""

    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in _names.split()]


@dataclass(frozen=True)
class Runtime:
    """Device and arithmetic of one process.

    device: where tensors live.
    dtype: what matrix products compute in; parameters stay float32.
    rank, world: this process among those of the same job.
    """

    device: torch.device
    dtype: torch.dtype = torch.float32
    rank: int = 0
    world: int = 1

    @property
    def precision(self) -> str:
        """fp32, bf16 or fp16."""
        return next(name for name, dtype in PRECISIONS.items() if dtype == self.dtype)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[object]:
        """Autocast to `dtype`; nothing for float32."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def peak_memory(self) -> int:
        """Peak bytes: of the device's allocator, or of the process on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return _peak_resident_bytes()


def make_runtime(device: str = "auto", precision: str = "auto", *, join: bool = False) -> Runtime:
    """Resolve device and precision, and join the processes that torchrun started.

    Args:
        device: "auto" (CUDA, else MPS, else CPU) or one of `DEVICES`.
        precision: "auto" (bf16 where the device has it, else fp16 on CUDA, else fp32), "fp32",
            "bf16" or "fp16".
        join: set up the process group of a distributed training.

    Raises:
        UsageError: an unknown name.
        ResourceError: a device that is not there.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    chosen = _resolve_device(device)
    if join and world > 1 and not dist.is_initialized():
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=_PATIENCE)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    return Runtime(chosen, _resolve_precision(precision, chosen), rank, world)


def with_precision(runtime: Runtime, precision: str, where: str) -> Runtime:
    """The same device and processes in another precision, resolved as by `make_runtime`.

    Raises:
        UsageError: an unknown name, or none for the device, stated at `where`.
    """
    return replace(runtime, dtype=_resolve_precision(precision, runtime.device, where))


def _resolve_device(name: str) -> torch.device:
    if name not in DEVICES:
        raise UsageError(f"no such device: {name}", where="--device", hint=", ".join(DEVICES))
    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    if name == "cuda":
        if not torch.cuda.is_available():
            raise ResourceError(
                "no CUDA device", where="--device cuda", hint="use --device cpu, see c2fdft doctor"
            )
        index, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if index >= there:
            raise ResourceError(
                f"process {index + 1} of this machine has no GPU of its own, {there} are there",
                hint=f"start with --nproc-per-node {there}",
            )
        return torch.device("cuda", index)
    if name == "mps" and not has_mps:
        raise ResourceError("no MPS device", where="--device mps", hint="use --device cpu")
    return torch.device(name)


def _resolve_precision(name: str, device: torch.device, where: str = "--precision") -> torch.dtype:
    if name == "auto":
        if device.type == "cuda":
            name = "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
        else:
            name = "bf16" if device.type == "cpu" and cpu_has_fast_bf16() else "fp32"
    if name not in PRECISIONS:
        raise UsageError(
            f"no such precision: {name}", where=where, hint="auto, " + ", ".join(PRECISIONS)
        )
    if name == "fp16" and device.type == "cpu":
        raise UsageError("fp16 is not for CPUs", where=where, hint="use --precision fp32, or bf16")
    return PRECISIONS[name]


def cpu_has_fast_bf16() -> bool:
    """Whether the CPU multiplies bf16 in hardware (AVX-512 BF16 or AMX)."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def meet() -> None:
    """Wait for the other processes of the job.

    A process that ends while gloo's threads still hold tensors of its last reduction aborts
    (pytorch/pytorch#179291), and DDP keeps those threads alive beyond `leave`. The first process
    saves for a while after the last step: whoever waits for it ends with idle threads.
    """
    if dist.is_initialized():
        dist.barrier()


def leave() -> None:
    """Leave the process group, if this process is in one.

    For ends that all processes come to: with NCCL it waits for the others.
    """
    if dist.is_initialized():
        dist.destroy_process_group()


def any_rank(flag: bool, runtime: Runtime) -> bool:
    """Whether the flag is set in any process of the job."""
    if not dist.is_initialized():
        return flag
    tensor = torch.tensor(int(flag), device=runtime.device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return bool(tensor.item())


def agree(number: int, runtime: Runtime) -> int:
    """The smallest of the numbers that the processes of the job bring."""
    if not dist.is_initialized():
        return number
    tensor = torch.tensor(number, device=runtime.device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MIN)
    return int(tensor.item())


class StoppedError(Exception):
    """A signal came in the middle of something: what was begun is thrown away."""


class StopRequest:
    """Set by the first SIGINT or SIGTERM; the second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def __bool__(self) -> bool:
        return self.signal_number is not None

    def check(self) -> None:
        """Raise StoppedError if it is set."""
        if self:
            raise StoppedError

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Signal handler."""
        if self.signal_number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_number = number


@contextmanager
def graceful_stop() -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a request that a loop can look at between two steps.

    Outside of the main thread, where Python delivers no signals, the request is never set.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {n: signal.signal(n, request.handle) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def reuse_freed_memory() -> bool:
    """Keep freed memory in this process for the next step, instead of giving it back each time.

    A training step on a CPU asks for the same gigabytes over and over; to have the system clear
    every page of them anew takes a tenth of its time. With glibc only.

    Returns:
        Whether the C library has such a setting.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # older versions take no more than half of a heap's largest size here
    raised = mallopt(_M_MMAP_THRESHOLD, 1 << 30) or mallopt(_M_MMAP_THRESHOLD, 32 << 20)
    return bool(mallopt(_M_TRIM_THRESHOLD, -1) and raised)


def reusable_bytes() -> int:
    """Freed memory that this process keeps and will use again; 0 where the C library tells none."""
    mallinfo2 = None
    if sys.platform.startswith("linux"):
        mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        return 0
    mallinfo2.restype = _MallInfo2
    return int(mallinfo2().fordblks)


def _peak_resident_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
