"""torch.compile where it pays, with eager execution to fall back on."""

from __future__ import annotations

import importlib.util
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from c2fdft_cli.core.block import Block
from c2fdft_cli.execution.cuda.cards import AMPERE
from c2fdft_cli.execution.device import Runtime
from c2fdft_cli.execution.fused.choose import are_tried

MUCH_WORK = 4_000_000_000
"""Pixels through the network that outweigh a minute of compiling on CUDA; an estimate."""

MOST_GRAPHS = 256
"""Shapes that one function is compiled for at most: a block has five in a call, one a level."""

_VOLTA = (7, 0)
"""The first compute capability that Triton generates code for."""


def compile_in_place(net: nn.Module, setting: str, runtime: Runtime) -> str | None:
    """Compile each block's forward, keeping the parameter names.

    Blocks of one shape share their code, so it takes as long for 40 of them as for 7; as one graph
    the network would take minutes, and be no faster to speak of, since what is fused lies within
    the blocks.

    Args:
        net: the network; left as it is when it is not to be compiled.
        setting: "auto" compiles on CUDA only, "on" wherever there is a compiler, "off" never.
        runtime: where it runs.

    Returns:
        A notice when compiling was asked for and cannot be done.
    """
    compiles, note = _decide(setting, runtime, pays=runtime.device.type == "cuda")
    for module in net.modules():
        if compiles and isinstance(module, Block):
            # Else torch compiles the second size that it meets for all sizes at once; a training
            # has a few patch sizes, each of which gets a graph of its own.
            module.compile(dynamic=False)
    return note


def is_compiled(net: nn.Module) -> bool:
    """Whether `compile_in_place` compiled anything in it."""
    return any(module._compiled_call_impl is not None for module in net.modules())


def run_uncompiled(net: nn.Module) -> None:
    """Undo `compile_in_place`."""
    # `nn.Module.compile` keeps the compiled call in this attribute, which `__call__` looks at;
    # torch has no function that undoes it.
    for module in net.modules():
        module._compiled_call_impl = None


@contextmanager
def uncompiled(net: nn.Module) -> Iterator[None]:
    """Within it the network runs uncompiled."""
    calls = {module: module._compiled_call_impl for module in net.modules()}
    run_uncompiled(net)
    try:
        yield
    finally:
        for module, call in calls.items():
            module._compiled_call_impl = call


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
    pays = runtime.device.type == "cuda" and work >= MUCH_WORK
    if are_tried(runtime.device, runtime.dtype):
        pays = False  # fused by hand, it moves fewer bytes than compiled
    compiles, note = _decide(setting, runtime, pays)
    if compiles:
        # what cannot be compiled runs as it is, without pages about why; `functions_given_up` tells
        torch._dynamo.config.suppress_errors = True
        logging.getLogger("torch._dynamo").setLevel(logging.CRITICAL)
    return compiles, note


def _decide(setting: str, runtime: Runtime, pays: bool) -> tuple[bool, str | None]:
    """Whether to compile, and a notice where that was asked for and cannot be done."""
    if setting == "off" or (setting == "auto" and not pays):
        return False, None
    lacking = missing_compiler(runtime)
    if lacking:
        return False, f"torch.compile needs {lacking}: the network runs uncompiled"
    # Let one function be compiled for many shapes, not for 8 and then never again. Each width,
    # patch size and remainder of micro-batches is a graph of its own; in strips each number of
    # images in a batch, with and without halos. The name is that of torch 2.6, which later ones
    # keep for `recompile_limit`.
    torch._dynamo.config.cache_size_limit = MOST_GRAPHS
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
