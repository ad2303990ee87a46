"""The C library's heap: what this process freed and will use again."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>


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
