"""Remembers that a process broke down while it tried the kernels; later ones do without them.

A kernel that touches memory outside its tensors destroys the CUDA context of its process, and a
fault in Triton's compiler may end the process. Neither can be undone or caught. So a file names the
process for as long as it tries kernels. If the process has ended and the file is still there, the
kernels are not tried again on this GPU.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import psutil
import torch

from c2fdft_cli.errors import GpuError
from c2fdft_cli.files.folders import private_cache_folder
from c2fdft_cli.signals import ending_after, unwinding
from c2fdft_cli.version import __version__


@cache
def crash_file(device: torch.device) -> Path | None:
    """Return the file of a process that broke down while it tried kernels on this kind of GPU.

    None if there is none, and the kernels may be tried. The answer is the same as long as this
    process runs, so that its own file, written later, does not count.
    """
    path = _file_of(device)
    try:
        process = int(path.read_text(encoding="utf-8")) if path else 0
    except (OSError, ValueError):
        return None
    # This process has written no file yet: if the file has its number, that of an earlier process
    # was the same, as in containers.
    works = process != os.getpid() and psutil.pid_exists(process)
    return None if not process or works else path


def crash_note(device: torch.device) -> str | None:
    """Return a sentence about the file of `crash_file`; None if there is none."""
    path = crash_file(device)
    if path is None:
        return None
    return (
        "the program's own kernels are not used: an earlier process broke down while it tried them "
        f"on this GPU, or was killed meanwhile (delete {path} to try them again)"
    )


@contextmanager
def watched_trial(device: torch.device) -> Iterator[None]:
    """Keep the file while kernels are tried, and remove it unless they destroy the CUDA context.

    Raises:
        GpuError: the context is destroyed, so this process cannot use the GPU any more.
    """
    if device.type != "cuda":
        yield
        return
    path = _file_of(device)
    written, responds = False, True

    def remove() -> None:
        if path and written:
            path.unlink(missing_ok=True)

    # A signal is no breakdown either: the file must not stay.
    with unwinding(), ending_after(remove):
        try:
            written = path is not None and _write_new(path)
            yield
            responds = _responds(device)
        finally:
            if responds:
                remove()
    if not responds:
        raise GpuError(
            f"one of the program's kernels failed on the {torch.cuda.get_device_name(device)}, "
            "and this process cannot use the GPU any more",
            hint="run the same command again, which will not try the kernels"
            if written
            else "set the environment variable C2FDFT_KERNELS=off and run the command again",
        )


def _file_of(device: torch.device) -> Path | None:
    """Return the path of the file for this machine, kind of GPU and versions; None without one."""
    try:
        folder = private_cache_folder()
        triton = importlib.metadata.version("triton")
    except (OSError, RuntimeError, importlib.metadata.PackageNotFoundError):
        return None
    gpu = torch.cuda.get_device_name(device)
    parts = (platform.node(), gpu, torch.__version__, triton, __version__)
    return folder / f"trying-{hashlib.sha256(repr(parts).encode()).hexdigest()[:20]}"


def _write_new(path: Path) -> bool:
    """Write this process's number; False if there is a file already, or none can be written."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(str(os.getpid()))
    except OSError:
        return False
    return True


def _responds(device: torch.device) -> bool:
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return False
    return True
