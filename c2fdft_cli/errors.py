"""The errors that a user can cause, and the exit code of each.

    C2fdftError
    +-- UsageError       2   a command line or a value that cannot be used
    |   +-- RecipeError  2   a recipe that is missing, malformed or inconsistent
    +-- DataError        3   a missing path, no usable pair, an unreadable image, a damaged shard
    +-- CheckpointError  4   a checkpoint that is missing, damaged or unreadable, or no checkpoint
    +-- ResourceError    5   no such device, out of memory, disk full, output not writable
    +-- GpuError         5   the GPU failed, and this process cannot use it any more
    +-- PartialFailure   6   finished, but some inputs failed
    +-- Interrupted      130 Ctrl-C; 143 for SIGTERM and the other signals that end a command

Any other exception is a bug of the program (exit 1, with its traceback).
"""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from c2fdft_cli.signals import exit_code

_LOST = re.compile(
    "connection closed by peer|connection reset by peer|broken pipe|remote process exited"
    "|connection was likely closed",
    re.IGNORECASE,
)
_GPU_FAILED = re.compile(r"(CUDA|cuDNN|CUDA driver) error: |Triton Error \[CUDA\]: ")


class C2fdftError(Exception):
    """An error that a user can cause: what is wrong with which value, and what to try.

    `str(error)` is the text that the user sees after `error:`. It begins with the file that the
    error is about, as in a compiler's messages: `photo.png: not an image file`.

    Args:
        what: what is wrong, with the value, as a sentence without a full stop.
        where: the file that the error is about, if any.
        hint: what to try, shown on a separate line after `hint:`.
        details: further lines, shown indented between the two.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        where: str | Path | None = None,
        hint: str | None = None,
        details: Sequence[str] = (),
    ) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.hint = hint
        self.details = tuple(details)
        super().__init__(what if self.where is None else f"{self.where}: {what}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle all attributes, whatever the arguments of a subclass: for process pools."""
        return _unpickled, (type(self), self.args), vars(self)


def _unpickled(kind: type[C2fdftError], args: tuple[object, ...]) -> C2fdftError:
    return kind.__new__(kind, *args)


class UsageError(C2fdftError):
    """A command line or a value that cannot be used."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe that is missing, malformed or inconsistent."""


class DataError(C2fdftError):
    """A missing path, no usable pair, an unreadable image, a damaged shard."""

    exit_code = 3


class CheckpointError(C2fdftError):
    """A checkpoint that is missing, damaged or unreadable, or a file that is not one."""

    exit_code = 4


class ResourceError(C2fdftError):
    """No such device, out of memory with no fallback left, disk full, output not writable."""

    exit_code = 5


class GpuError(C2fdftError):
    """The GPU failed, and this process cannot use it any more, also for other images."""

    exit_code = 5


class PartialFailure(C2fdftError):
    """The job finished, but some or all inputs failed; `details` lists each."""

    exit_code = 6


class Interrupted(C2fdftError):
    """Stopped by a signal after the state was saved.

    It is a C2fdftError: a Python program that catches these in a loop must let this one through,
    or it swallows Ctrl-C.

    Args:
        what: what was interrupted.
        signal_number: 2 (SIGINT, exit 130) or another (exit 143).
        hint: how to resume.
    """

    def __init__(self, what: str, *, signal_number: int, hint: str | None = None) -> None:
        super().__init__(what, hint=hint)
        self.signal_number = signal_number
        self.exit_code = exit_code(signal_number)


# Each of these returns the error to report, or None for any exception that it does not recognise.


def unloadable_library(error: ImportError) -> ResourceError | None:
    """Recognise that OpenCV cannot be loaded (no libGL)."""
    if (error.name or "").partition(".")[0] != "cv2":
        return None
    return ResourceError(
        f"OpenCV cannot be loaded: {error}", hint="pip install opencv-python-headless"
    )


def gpu_failure(error: Exception) -> GpuError | None:
    """Recognise that the driver reported a fault of the GPU or of a kernel on it.

    torch and Triton raise several classes of RuntimeError then.
    """
    if not isinstance(error, RuntimeError) or not _GPU_FAILED.match(str(error)):
        return None
    return GpuError(
        f"the GPU failed: {str(error).splitlines()[0]}",
        hint="run the same command again; if this returns, set C2FDFT_KERNELS=off and "
        "C2FDFT_GRAPHS=off in the environment, or use --device cpu",
    )


def no_more_threads(error: Exception) -> ResourceError | None:
    """Recognise that the system starts no further thread or process."""
    thread = isinstance(error, RuntimeError) and str(error).startswith("can't start new thread")
    process = isinstance(error, BlockingIOError) and error.filename is None
    if not (thread or process):
        return None
    return ResourceError(
        "the system starts no more threads or processes",
        hint="raise the limit (`ulimit -u`, a container's pids limit), or set OMP_NUM_THREADS=1",
    )


def too_many_files(error: Exception, where: str | Path | None = None) -> ResourceError | None:
    """Recognise that this process, or the system, may open no further file."""
    if not isinstance(error, OSError) or error.errno not in {errno.EMFILE, errno.ENFILE}:
        return None
    hint = "raise the limit of `ulimit -n`, or close other programs"
    return ResourceError("too many files are open", where=where, hint=hint)


def no_temporary_folder(error: Exception) -> ResourceError | None:
    """Recognise that Python finds no folder for temporary files."""
    if not isinstance(error, FileNotFoundError) or "No usable temporary directory" not in str(
        error
    ):
        return None
    return ResourceError(
        "no folder for temporary files is writable",
        hint="set the environment variable TMPDIR to a folder in which you may write",
    )


def lost_process(error: Exception) -> ResourceError | None:
    """Recognise that another process of the job ended while this one waits for it.

    The libraries raise a plain RuntimeError then, which only its message distinguishes.
    """
    if not isinstance(error, RuntimeError) or not _LOST.search(str(error)):
        return None
    return ResourceError(
        "another process of this job has ended, and this one cannot continue without it",
        hint="see the error with that process's rank; if there is none, it was killed",
    )
