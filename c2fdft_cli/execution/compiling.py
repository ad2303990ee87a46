"""torch.compile where it pays, with eager execution to fall back on."""

from __future__ import annotations

import importlib.util
import logging
import shutil

import torch
from torch import nn

from c2fdft_cli.execution.cuda import AMPERE
from c2fdft_cli.execution.device import Runtime

MUCH_WORK = 4_000_000_000
"""Pixels through the network that outweigh a minute of compiling on CUDA; an estimate."""

MOST_GRAPHS = 64
"""Shapes that one function is compiled for at most."""

_VOLTA = (7, 0)
"""The first compute capability that Triton generates code for."""


def compile_in_place(net: nn.Module, setting: str, runtime: Runtime) -> str | None:
    """Compile the network's forward, keeping its parameter names.

    Args:
        net: the network; left as it is when it is not to be compiled.
        setting: "auto" compiles on CUDA only, "on" wherever there is a compiler, "off" never.
        runtime: where it runs.

    Returns:
        A notice when compiling was asked for and cannot be done.
    """
    if setting == "off" or (setting == "auto" and runtime.device.type != "cuda"):
        return None
    lacking = missing_compiler(runtime)
    if lacking:
        return f"torch.compile needs {lacking}: the network runs uncompiled"
    _allow_many_graphs()
    net.compile(dynamic=False)
    return None


def is_compiled(net: nn.Module) -> bool:
    """Whether `compile_in_place` compiled it."""
    return net._compiled_call_impl is not None


def run_uncompiled(net: nn.Module) -> None:
    """Undo `compile_in_place`."""
    net._compiled_call_impl = None


def compiles_strips(setting: str, runtime: Runtime, work: int) -> tuple[bool, str | None]:
    """Whether restoring is to compile the work on its strips: once, for images of all sizes.

    Args:
        setting: "auto" compiles on CUDA where there is enough to do, "on" wherever there is a
            compiler, "off" never.
        runtime: where it runs.
        work: pixels that go through the network, over all images and calls.

    Returns:
        The decision, and a notice when compiling was asked for and cannot be done.
    """
    on_cuda = runtime.device.type == "cuda"
    if setting == "off" or (setting == "auto" and not (on_cuda and work >= MUCH_WORK)):
        return False, None
    lacking = missing_compiler(runtime)
    if lacking:
        return False, f"torch.compile needs {lacking}: the network runs uncompiled"
    _allow_many_graphs()
    # what cannot be compiled runs as it is, without pages about why; `functions_given_up` tells
    torch._dynamo.config.suppress_errors = True
    logging.getLogger("torch._dynamo").setLevel(logging.CRITICAL)
    return True, None


def functions_given_up() -> int:
    """Functions, so far in this process, that torch.compile runs uncompiled although asked to."""
    frames = torch._dynamo.utils.counters["frames"]
    return int(frames["total"] - frames["ok"])


def missing_compiler(runtime: Runtime) -> str | None:
    """What torch.compile lacks on this machine to generate code for the device, or None."""
    if runtime.device.type != "cuda":
        found = any(shutil.which(name) for name in ("g++", "clang++"))
        return None if found else "a C++ compiler"
    if not importlib.util.find_spec("triton"):
        return "triton"
    if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        return "a C compiler for Triton's launchers"
    capability = torch.cuda.get_device_capability(runtime.device)
    needed = AMPERE if runtime.dtype == torch.bfloat16 else _VOLTA
    if capability < needed:
        for_bf16 = " for bf16" if needed == AMPERE else ""
        return f"a GPU of compute capability {needed[0]}.{needed[1]}{for_bf16}"
    return None


def _allow_many_graphs() -> None:
    """Let one function be compiled for many shapes, not for 8 and then never again.

    Each patch size, its remainder of micro-batches and the first of the sampler's calls are graphs
    of their own; in strips each number of images in a batch, with and without halos.
    """
    for name in ("recompile_limit", "cache_size_limit"):
        if hasattr(torch._dynamo.config, name):
            setattr(torch._dynamo.config, name, MOST_GRAPHS)
