"""torch.compile where it pays, with eager execution to fall back on."""

from __future__ import annotations

import importlib.util
import logging
import shutil

import torch
from torch import nn

from c2fdft_cli.execution.device import Runtime

MUCH_WORK = 4_000_000_000
"""Pixels through the network that outweigh a minute of compiling on CUDA; an estimate."""

MOST_GRAPHS = 64


def compile_in_place(net: nn.Module, setting: str, runtime: Runtime) -> str | None:
    """Compile the network's forward, keeping its parameter names.

    Args:
        net: the network; left as it is when it is not to be compiled.
        setting: "auto" compiles on CUDA only, "on" wherever there is a compiler, "off" never.
        runtime: where it runs.

    Returns:
        A notice when compiling was asked for and cannot be done.
    """
    on_cuda = runtime.device.type == "cuda"
    if setting == "off" or (setting == "auto" and not on_cuda):
        return None
    lacking = _missing_compiler(on_cuda)
    if lacking:
        return f"torch.compile needs {lacking}: the network runs uncompiled"
    # each patch size, its remainder of micro-batches and the first of the sampler's calls are
    # graphs of their own
    for name in ("recompile_limit", "cache_size_limit"):
        if hasattr(torch._dynamo.config, name):
            setattr(torch._dynamo.config, name, MOST_GRAPHS)
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
    lacking = _missing_compiler(on_cuda)
    if lacking:
        return False, f"torch.compile needs {lacking}: the network runs uncompiled"
    # what cannot be compiled runs as it is, without pages about why
    torch._dynamo.config.suppress_errors = True
    logging.getLogger("torch._dynamo").setLevel(logging.CRITICAL)
    return True, None


def _missing_compiler(on_cuda: bool) -> str | None:
    if on_cuda:
        return None if importlib.util.find_spec("triton") else "triton"
    return None if any(shutil.which(name) for name in ("g++", "clang++")) else "a C++ compiler"
