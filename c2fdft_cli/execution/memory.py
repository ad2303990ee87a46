"""Free and peak memory, out-of-memory errors, and freed memory that the C library keeps."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path, PurePosixPath

import psutil
import torch

_NO_MEMORY = (
    "out of memory",  # allocators, driver, NCCL and Triton
    "defaultcpuallocator",
    "can't allocate memory",
    "_status_alloc_failed",  # cuBLAS and cuDNN
    "_device_allocation_failed",  # cuDNN 9
    # a convolution: torch tries cuDNN's algorithms in turn, and does not report that there was no
    # memory for the workspace of any (pytorch/pytorch#108645)
    "unable to find an engine",
    "cublas_status_not_initialized",  # no memory for its workspace
)
"""Texts, in lower case, of out-of-memory errors that are a RuntimeError without a class for them,
such as a `torch.AcceleratorError`."""

_CONTROL_GROUPS = Path("/sys/fs/cgroup")
_VERSION_2 = "memory.max", "memory.current", "inactive_file"
_VERSION_1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
"""A control group's files with its limit and its usage, and the key of inactive cache in its
memory.stat."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>
_LARGEST_MAPPED = 32 << 20
"""The largest threshold that the C library chooses itself; older versions accept no larger one."""


def free_bytes(device: torch.device) -> int:
    """Return the free bytes of a GPU, or on a CPU those of the machine.

    On a CPU this first gives back freed memory that the process keeps, so that it counts once.
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept  # torch keeps freed memory for reuse
    if device.type == "mps":
        used = torch.mps.current_allocated_memory()
        kept = torch.mps.driver_allocated_memory() - used
        # The GPU uses the machine's memory, so two limits apply: Metal's for this process, and what
        # other programs leave.
        return max(0, min(torch.mps.recommended_max_memory() - used, available_memory() + kept))
    trim_heap()
    return available_memory()


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether this error, or one that it was raised from, means that a device is out of memory.

    Triton's "out of resource: shared memory" does not count: there a kernel does not fit the chip.
    """
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            return True
        text = str(error).lower() if isinstance(error, RuntimeError) else ""
        if any(words in text for words in _NO_MEMORY):
            return True
        error = error.__cause__
    return False


def release_cached_memory(device: torch.device) -> None:
    """Release the freed memory that torch's allocator caches, so that it can be reused in full."""
    # Tensors in reference cycles, such as those of a traceback and its frames, are freed only here.
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def available_memory() -> int:
    """Return the bytes still available on this machine, within its control group's limit."""
    # psutil measures the whole machine even in a container, where exceeding the group's limit kills
    # the process.
    available = int(psutil.virtual_memory().available)
    return max(0, min([available, *_left_in_groups()]))


def _left_in_groups() -> list[int]:
    """Return the bytes left in this process's control groups, one value per group with a limit.

    A scheduler's job or a systemd slice is a group within groups, each of which may have a limit. A
    container sees its own group as the root, whatever path the kernel reports.
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
    """Return the bytes left below the group's limit; None if it has no limit.

    File pages that have not been read again count as used there, but the kernel frees them first.
    """
    try:
        most, now = (int((group / name).read_text(encoding="ascii")) for name in (limit, used))
        counters = dict(
            line.split() for line in (group / "memory.stat").read_text("ascii").splitlines()
        )
        return most - now + int(counters[cache])
    except (OSError, ValueError, KeyError):
        return None


def peak_bytes(device: torch.device) -> int:
    """Return the peak bytes so far of CUDA's allocator or else the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        peak = int(psutil.Process().memory_info().peak_wset)
    else:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        peak = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak


def keep_freed_memory() -> bool:
    """Keep freed memory in this process for the next step, instead of returning it each time.

    A training step on a CPU allocates the same gigabytes again and again. If they are returned in
    between, the system clears every page each time, which takes a tenth of the step. With glibc
    only.

    Returns:
        Whether the C library has such a setting.
    """
    mallopt = _function_of_libc("mallopt")
    if mallopt is None:
        return False
    # Blocks above the first threshold are mapped and unmapped one by one whatever the heap keeps;
    # older versions accept at most half of a heap's largest size here.
    raised = mallopt(_M_MMAP_THRESHOLD, 1 << 30) or mallopt(_M_MMAP_THRESHOLD, _LARGEST_MAPPED)
    return bool(mallopt(_M_TRIM_THRESHOLD, -1) and raised)


def stop_keeping_freed_memory() -> None:
    """Undo `keep_freed_memory`, for a Python program that continues after a training.

    The C library adapts its thresholds to the program only as long as none has been set. These are
    the values at which that ends.
    """
    mallopt = _function_of_libc("mallopt")
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MAPPED)
        mallopt(_M_TRIM_THRESHOLD, 2 * _LARGEST_MAPPED)
        trim_heap()


def trim_heap() -> None:
    """Return to the system the freed memory that `keep_freed_memory` keeps.

    Saving and drawing leave holes between the blocks of the steps. If they were never returned, a
    long training would grow by some tens of megabytes. With glibc only.
    """
    malloc_trim = _function_of_libc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _function_of_libc(name: str) -> ctypes._NamedFuncPointer | None:
    """Return a function of glibc; None if the C library lacks it or the system is not Linux."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
