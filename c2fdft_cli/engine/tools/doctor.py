"""What this machine offers to the program."""

from __future__ import annotations

import importlib.util
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from c2fdft_cli.execution.device import cpu_has_fast_bf16, make_runtime
from c2fdft_cli.execution.memory import available_memory

EXTRAS = {
    "matplotlib": ("plots", "curves.png and sweep.png"),
    "skimage": ("demo", "photos for `c2fdft demo`"),
    "av": ("video", "videos in `c2fdft restore`"),
    "pillow_heif": ("heif", "HEIC pictures in `c2fdft restore`"),
    "tensorboard": ("logs", "curves and samples of a training"),
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `hint` says what to do where it is not good."""

    topic: str
    good: bool
    found: str
    hint: str | None = None


def examine() -> list[Finding]:
    """Look at everything; never raises for what is missing."""
    runtime = make_runtime()
    free = shutil.disk_usage(Path.cwd()).free
    return [
        Finding("python", True, platform.python_version()),
        Finding("torch", True, str(torch.__version__)),
        Finding("device", True, f"{_device_name(runtime.device)}, {runtime.precision}"),
        _fast_bf16(),
        Finding("memory", True, f"{available_memory() / 2**30:.1f} GiB available"),
        Finding("disk", free > 2**30, f"{free / 2**30:.1f} GiB free here"),
        _compiler(),
        _opencv(),
        *(_extra(module, *about) for module, about in EXTRAS.items()),
    ]


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def _fast_bf16() -> Finding:
    good = cpu_has_fast_bf16()
    hint = None if good else "this CPU computes in fp32"
    return Finding("bf16 on the CPU", good, "AVX-512 BF16 or AMX", hint)


def _compiler() -> Finding:
    found = [name for name in ("g++", "clang++") if shutil.which(name)]
    hint = None if found else "torch.compile on the CPU needs g++ or clang++"
    return Finding("compiler", bool(found), ", ".join(found) or "none", hint)


def _opencv() -> Finding:
    try:
        import cv2
    except ImportError as error:
        return Finding("opencv", False, str(error), "pip install opencv-python-headless")
    return Finding("opencv", True, cv2.__version__)


def _extra(module: str, extra: str, purpose: str) -> Finding:
    if importlib.util.find_spec(module) is None:
        return Finding(module, False, purpose, f"pip install 'c2fdft[{extra}]'")
    try:
        found = version("scikit-image" if module == "skimage" else module)
    except PackageNotFoundError:
        found = "installed"
    return Finding(module, True, f"{found}: {purpose}")
