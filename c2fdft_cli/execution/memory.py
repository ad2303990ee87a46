"""How much memory there is, and whether it ran out."""

from __future__ import annotations

import psutil
import torch

from c2fdft_cli.execution.device import Runtime
from c2fdft_cli.execution.heap import reusable_bytes

_NO_MEMORY = (
    "DefaultCPUAllocator",
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
)
"""Words of the errors that are a plain RuntimeError."""


def free_bytes(runtime: Runtime) -> int:
    """Free memory of the device, or what this machine and this process's heap can still give."""
    if runtime.device.type == "cuda":
        device = runtime.device
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept  # torch keeps what it freed for itself
    return available_memory() + reusable_bytes()


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch found no memory, on whatever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def available_memory() -> int:
    """Bytes that this machine can still give, within its control group's limit."""
    available = int(psutil.virtual_memory().available)
    try:
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:
            limit = int(file.read())
        with open("/sys/fs/cgroup/memory.current", encoding="ascii") as file:
            available = min(available, limit - int(file.read()))
    except (OSError, ValueError):  # no control group, or no limit in it
        pass
    return max(available, 0)
