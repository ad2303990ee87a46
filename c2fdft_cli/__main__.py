"""The entry point of `c2fdft` and `python -m c2fdft_cli`."""

from __future__ import annotations

import io
import os
import sys
import warnings
from typing import TYPE_CHECKING

from c2fdft_cli.signals import install

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_NOT_SHOWN = (
    # filelock, if the file system has no locks and the file itself serves as the lock
    "flock not supported",
    # torch, about convolution weights with one input channel, for which both layouts are the same
    "Grad strides do not match bucket view",
)
"""Warnings of libraries that a command does not show, by their beginning.

In a Python program they are shown: filters belong to the whole process, also to other threads.
"""


def main() -> None:
    """Run the command line."""
    install()  # before the imports, which take most of a short command's time
    outlive_full_stderr()  # first: it would close the null device that is opened next
    open_closed_streams()
    for message in _NOT_SHOWN:
        warnings.filterwarnings("ignore", message)
    from c2fdft_cli.cli.app import app

    app()


def open_closed_streams() -> None:
    """Open the null device for each standard stream that is closed when the program starts.

    For a closed stream `sys.stdin`, `sys.stdout` or `sys.stderr` is None, so printing would fail.
    Also, the next file that is opened would get the stream's descriptor, and what a library prints
    would be written into that file.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # Opened in this order each gets the lowest free descriptor, which is its own.
            stream = open(os.devnull, mode, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


class _Outlived(io.FileIO):
    """A file that drops what it cannot store; only a pipe without a reader ends the program."""

    def write(self, data: ReadableBuffer) -> int | None:  # type: ignore[override]
        try:
            return super().write(data)
        except BrokenPipeError:
            # Python writes the same again when it exits; a second failure would change the code.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            raise
        except OSError:
            return memoryview(data).nbytes


def outlive_full_stderr() -> None:
    """Let progress and remarks be lost if standard error cannot be written, as on a full disk.

    The results are elsewhere, so hours of work must not end because a log cannot grow.
    """
    # Not that of a notebook, nor a terminal, which is never full (on Windows it is no plain file).
    if not isinstance(sys.stderr, io.TextIOWrapper) or sys.stderr.isatty():
        return
    file = io.BufferedWriter(_Outlived(sys.stderr.fileno(), "wb", closefd=False))
    sys.stderr = io.TextIOWrapper(file, sys.stderr.encoding, sys.stderr.errors, line_buffering=True)


if __name__ == "__main__":
    main()
