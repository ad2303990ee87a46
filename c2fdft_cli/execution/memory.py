"""How much memory there is, whether it ran out, and what the C library keeps of it."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from pathlib import Path, PurePosixPath

import psutil
import torch

from c2fdft_cli.execution.device import Runtime

_NO_MEMORY = (
    "out of memory",  # allocators, driver, NCCL and Triton
    "defaultcpuallocator",
    "can't allocate memory",
    "_status_alloc_failed",  # cuBLAS and cuDNN
    "_device_allocation_failed",  # cuDNN 9
    # of a convolution: torch tries cuDNN's ways in turn, and keeps to itself that there was no
    # memory for the workspace of any (pytorch/pytorch#108645)
    "unable to find an engine",
    "cublas_status_not_initialized",  # no memory for its workspace
)
"""Words, in lower case, of errors that are a plain RuntimeError or a `torch.AcceleratorError`."""

_CONTROL_GROUPS = Path("/sys/fs/cgroup")
_VERSION_2 = "memory.max", "memory.current", "inactive_file"
_VERSION_1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
"""Of a control group: the files of limit and use, and in memory.stat the key of unused cache."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>


def free_bytes(runtime: Runtime) -> int:
    """Free memory of the device, or what this machine and this process's heap can still give."""
    if runtime.device.type == "cuda":
        device = runtime.device
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept  # torch keeps what it freed for itself
    if runtime.device.type == "mps":
        used = torch.mps.current_allocated_memory()
        kept = torch.mps.driver_allocated_memory() - used
        # The GPU's memory is the machine's: both Metal's limit for this process and what other
        # programs leave hold.
        return max(0, min(torch.mps.recommended_max_memory() - used, available_memory() + kept))
    return available_memory() + reusable_bytes()


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether torch found no memory, on whatever device, by this error or what it was raised from.

    "out of resource: shared memory" of Triton is none: a kernel that does not fit the chip.
    """
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            return True
        text = str(error).lower() if isinstance(error, RuntimeError) else ""
        if any(words in text for words in _NO_MEMORY):
            return True
        error = error.__cause__
    return False


def release_cached_memory(runtime: Runtime) -> None:
    """Give back what torch's allocator keeps of freed memory, in one piece where it can."""
    # Tensors within reference cycles, as of a traceback and its frames, are not free before.
    gc.collect()
    if runtime.device.type == "cuda":
        torch.cuda.empty_cache()
    elif runtime.device.type == "mps":
        torch.mps.empty_cache()


def available_memory() -> int:
    """Bytes that this machine can still give, within its control group's limit."""
    # Within a container too, psutil measures the whole machine; the group's limit is what kills.
    available = int(psutil.virtual_memory().available)
    return max(0, min([available, *_left_in_groups()]))


def _left_in_groups() -> list[int]:
    """What the limits of this process's control groups leave, one for each group with a limit.

    A job of a scheduler or a slice of systemd is a group within groups, each of which may have a
    limit. A container sees its own group at the root, whatever path the kernel names.
    """
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []
    found = []
    for number, controllers, path in (line.split(":", 2) for line in lines):
        if number == "0":
            root, names = _CONTROL_GROUPS, _VERSION_2
        elif "memory" in controllers.split(","):
            root, names = _CONTROL_GROUPS / "memory", _VERSION_1
        else:
            continue
        group = PurePosixPath(path.lstrip("/"))
        found += [_left_in_group(root / one, *names) for one in (group, *group.parents)]
    return [left for left in found if left is not None]


def _left_in_group(group: Path, limit: str, used: str, cache: str) -> int | None:
    """Bytes up to the group's limit; None where it has none.

    Pages of files that nobody has read again count as used there, and are given up first.
    """
    try:
        most, now = (int((group / name).read_text(encoding="ascii")) for name in (limit, used))
        counters = dict(
            line.split() for line in (group / "memory.stat").read_text("ascii").splitlines()
        )
        return most - now + int(counters[cache])
    except (OSError, ValueError, KeyError):
        return None


def peak_bytes(runtime: Runtime) -> int:
    """Most bytes so far: of CUDA's allocator there, elsewhere of the process's resident memory."""
    if runtime.device.type == "cuda":
        return torch.cuda.max_memory_allocated(runtime.device)
    # bytes on macOS, KiB elsewhere
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class _MallInfo2(ctypes.Structure):
    """`struct mallinfo2` of glibc's <malloc.h>."""

    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in _names.split()]


def reuse_freed_memory() -> bool:
    """Keep freed memory in this process for the next step, instead of giving it back each time.

    A training step on a CPU asks for the same gigabytes over and over; to have the system clear
    every page of them anew takes a tenth of its time. With glibc only.

    Returns:
        Whether the C library has such a setting.
    """
    mallopt = _function_of_libc("mallopt")
    if mallopt is None:
        return False
    # Blocks beyond the first threshold are mapped and unmapped one by one whatever the heap keeps;
    # older versions take no more than half of a heap's largest size here
    raised = mallopt(_M_MMAP_THRESHOLD, 1 << 30) or mallopt(_M_MMAP_THRESHOLD, 32 << 20)
    return bool(mallopt(_M_TRIM_THRESHOLD, -1) and raised)


def give_back_freed_memory() -> None:
    """Give back to the system what `reuse_freed_memory` keeps and no step has used for long.

    Saving and drawing leave holes between the blocks of the steps; never given back, they grow a
    long training by some tens of megabytes. With glibc only.
    """
    malloc_trim = _function_of_libc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def reusable_bytes() -> int:
    """Freed memory that this process keeps and will use again; 0 where the C library tells none."""
    # mallinfo, without the 2, counts in ints and is wrong from 2 GiB on.
    mallinfo2 = _function_of_libc("mallinfo2")
    if mallinfo2 is None:
        return 0
    mallinfo2.restype = _MallInfo2
    return int(mallinfo2().fordblks)


def _function_of_libc(name: str) -> ctypes._NamedFuncPointer | None:
    """A function that glibc has and other C libraries may lack; None there and beside Linux."""
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), name, None)
