"""Examines which features of the program this machine supports."""

from __future__ import annotations

import ctypes
import importlib.util
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from c2fdft_cli.errors import unloadable_library
from c2fdft_cli.execution.compiling import missing_compiler
from c2fdft_cli.execution.cuda.cards import architecture_names, is_served
from c2fdft_cli.execution.device import Runtime, cpu_bf16_speed, cpu_has_fast_bf16, make_runtime
from c2fdft_cli.execution.fused.choose import OLDEST_TRITON, has_triton
from c2fdft_cli.execution.memory import available_memory
from c2fdft_cli.execution.native.library import kernels_or_reason
from c2fdft_cli.words import many

EXTRAS = {
    "matplotlib": ("plots", "curves.png and sweep.png"),
    "skimage": ("demo", "photos for `c2fdft demo`"),
    "av": ("video", "videos in `c2fdft restore`"),
    "pillow_heif": ("heif", "HEIC pictures in `c2fdft restore`"),
    "tensorboard": ("logs", "curves and samples of a training"),
    "pywt": ("no-reference", "`c2fdft eval --no-reference`"),
    "safetensors": ("export", "`c2fdft convert` to safetensors"),
    "onnx": ("export", "`c2fdft convert` to ONNX"),
    "onnxruntime": ("export", "comparing an ONNX file with its checkpoint"),
}
"""Modules of optional packages: the extra that installs each, and what it is for."""
_PACKAGES = {"skimage": "scikit-image", "pywt": "PyWavelets", "pillow_heif": "pillow-heif"}
"""Names of packages that differ from the name of their module."""


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Args:
        topic: what was checked.
        good: whether it is as it should be.
        found: what was found, such as a version.
        hint: what to do, or what is missing, if it is not good.
        required: whether the program cannot work without it.
    """

    topic: str
    good: bool
    found: str
    hint: str | None = None
    required: bool = False


def examine() -> list[Finding]:
    """Run all checks; something that is missing is a finding, never an error."""
    runtime = make_runtime()
    free = shutil.disk_usage(Path.cwd()).free
    return [
        Finding("python", True, platform.python_version()),
        Finding("torch", True, str(torch.__version__)),
        _choice(runtime),
        *_gpu(runtime),
        _fast_bf16(),
        Finding("memory", True, f"{available_memory() / 2**30:.1f} GiB available"),
        Finding("disk", free > 2**30, f"{free / 2**30:.1f} GiB free here"),
        _compiler(),
        _cpu_kernels(),
        _opencv(),
        *(_extra(module, *about) for module, about in EXTRAS.items()),
    ]


def _choice(runtime: Runtime) -> Finding:
    """Report the device and precision that commands use by default, and why."""
    device = runtime.device
    threads = "" if device.type == "cuda" else f", {many(torch.get_num_threads(), 'thread')}"
    why = f"{_why_device(runtime)}; {_why_precision(runtime)}"
    found = f"{device}{threads}, {runtime.precision} ({why})"
    hint = "install a torch that is built for this GPU" if runtime.device_note else None
    return Finding("device", runtime.device_note is None, found, hint)


def _why_device(runtime: Runtime) -> str:
    if runtime.device_note:
        return runtime.device_note
    if runtime.device.type == "cuda":
        return "torch has kernels for this GPU"
    if runtime.device.type == "mps":
        return "an Apple GPU"
    built = torch.version.cuda is not None or torch.version.hip is not None
    return "torch finds no GPU" if built else "torch is built without CUDA"


def _why_precision(runtime: Runtime) -> str:
    if runtime.precision_note:
        return runtime.precision_note
    if runtime.device.type == "cuda":
        if runtime.precision == "bf16":
            return "bf16 from compute capability 8.0 on"
        return "fp16 below compute capability 8.0, tested"
    if runtime.device.type == "mps":
        return "fp32 on Apple GPUs"
    return _bf16_speed()


def _gpu(runtime: Runtime) -> list[Finding]:
    """Report the CUDA software if torch sees a GPU, even one that cannot be used."""
    if not torch.cuda.is_available():
        return []
    architectures = torch.cuda.get_arch_list()
    capability = torch.cuda.get_device_capability()
    major, minor = capability
    free, total = torch.cuda.mem_get_info() if runtime.device.type == "cuda" else (0, 0)
    memory = f", {free / 2**30:.1f} of {total / 2**30:.1f} GiB free" if total else ""
    name = f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}{memory}"
    return [
        Finding("GPU", runtime.device.type == "cuda", name),
        Finding("driver", True, _driver()),
        Finding(
            "torch's GPUs",
            is_served(capability, architectures),
            f"CUDA {torch.version.cuda}: {architecture_names(architectures)}",
        ),
        _triton(runtime),
        _nccl(),
    ]


def _driver() -> str:
    """Ask the driver for the CUDA version that it supports, which torch does not report."""
    version = ctypes.c_int()
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError) as error:
        return f"unknown: {error}"
    return f"for CUDA {version.value // 1000}.{version.value % 1000 // 10}"


def _triton(runtime: Runtime) -> Finding:
    lacking = missing_compiler(runtime)
    if importlib.util.find_spec("triton") is None:
        return Finding("triton", False, "none", "torch.compile on CUDA needs triton")
    hint = None if lacking is None else f"torch.compile needs {lacking}"
    if hint is None and not has_triton():
        oldest = ".".join(map(str, OLDEST_TRITON))
        hint = f"the program's faster kernels need triton {oldest} or newer: install a newer torch"
    usable = lacking is None and runtime.kernels_note is None
    return Finding("triton", usable, _version_of("triton"), hint or runtime.kernels_note)


def _nccl() -> Finding:
    hint = "training on several GPUs needs a torch with NCCL"
    if not torch.distributed.is_available() or not torch.distributed.is_nccl_available():
        return Finding("NCCL", False, "none", hint)
    found = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
    return Finding("NCCL", True, ".".join(map(str, found)))


def _fast_bf16() -> Finding:
    good = cpu_has_fast_bf16()
    hint = None if good else "this CPU computes in fp32"
    return Finding("bf16 on the CPU", good, _bf16_speed(), hint)


def _bf16_speed() -> str:
    speed = cpu_bf16_speed()
    if speed is None:
        return "no AVX-512 BF16, no AMX"
    return f"bf16 products run at {speed:.1f} times the speed of fp32"


def _compiler() -> Finding:
    found = [name for name in ("g++", "clang++", "cc") if shutil.which(name)]
    hint = None if found else "torch.compile needs g++ or clang++ on a CPU, cc on CUDA"
    return Finding("compiler", bool(found), ", ".join(found) or "none", hint)


def _cpu_kernels() -> Finding:
    """Build the compiled kernels, or report why this CPU uses torch's operators."""
    kernels, found = kernels_or_reason(torch.float32)
    if kernels is None:
        return Finding("CPU kernels", False, f"torch's ({found})", "compiled kernels are faster")
    half, reason = kernels_or_reason(torch.bfloat16)
    in_half = reason if half is not None else f"torch's ({reason})"
    in_training = "" if kernels.can_train else "; in training torch's (its BLAS has no sgemm_)"
    return Finding("CPU kernels", True, f"compiled: {found}; for bf16: {in_half}{in_training}")


def _opencv() -> Finding:
    try:
        import cv2
    except ImportError as error:
        known = unloadable_library(error)
        return Finding(
            "opencv", False, str(error), None if known is None else known.hint, required=True
        )
    return Finding("opencv", True, cv2.__version__, required=True)


def _extra(module: str, extra: str, purpose: str) -> Finding:
    if importlib.util.find_spec(module) is None:
        return Finding(module, False, purpose, f"pip install 'c2fdft[{extra}]'")
    found = _version_of(_PACKAGES.get(module, module))
    return Finding(module, True, f"{found}: {purpose}")


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "installed"
