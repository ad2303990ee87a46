"""torch.compile where it pays off, with eager execution as the fallback."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

import torch
from torch import nn

from c2fdft_cli.core.block import Block
from c2fdft_cli.execution.cuda.cards import AMPERE
from c2fdft_cli.execution.device import Runtime
from c2fdft_cli.execution.fused.choose import are_tried
from c2fdft_cli.execution.surroundings import change_until_return
from c2fdft_cli.files.folders import private_cache_folder

MUCH_WORK = 4_000_000_000
"""Pixels through the network from which a minute of compiling pays off on CUDA; an estimate."""

MOST_GRAPHS = 256
"""Most shapes that one function is compiled for: a block has five of them in a network call."""

_VOLTA = (7, 0)
"""The first compute capability that Triton generates code for."""


def compile_in_place(net: nn.Module, setting: str, runtime: Runtime) -> str | None:
    """Compile each block's forward, keeping the parameter names.

    Blocks of the same shape share their code, so compiling 40 of them takes as long as compiling 7.
    Compiling the network as one graph would take minutes and make it hardly faster, because the
    operations that are fused are within the blocks.

    Args:
        net: the network; unchanged if it is not compiled.
        setting: "auto" compiles on CUDA only, "on" wherever there is a compiler, "off" never.
        runtime: where it runs.

    Returns:
        A notice if compiling is wanted but not possible.
    """
    compiles, note = _decide(setting, runtime, pays=runtime.device.type == "cuda")
    for module in net.modules():
        if compiles and isinstance(module, Block):
            # Otherwise torch would compile the second size that it meets for all sizes at once. A
            # training has a few patch sizes, each of which gets its own graph.
            module.compile(dynamic=False)
    return note


def load_without_temporary_folder() -> None:
    """Let torch load its compiler where no folder for temporary files is writable.

    Every optimiser loads it, and it chooses a folder for what it will compile. It gets one in the
    user's cache, if there is one; otherwise loading it fails.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        with suppress(OSError, RuntimeError):
            folder = private_cache_folder() / "inductor"
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


def is_compiled(net: nn.Module) -> bool:
    """Whether `compile_in_place` compiled any module of the network."""
    return any(module._compiled_call_impl is not None for module in net.modules())


def run_uncompiled(net: nn.Module) -> None:
    """Undo `compile_in_place`."""
    # `nn.Module.compile` stores the compiled call in this attribute, which `__call__` checks; torch
    # has no function that undoes it.
    for module in net.modules():
        module._compiled_call_impl = None


@contextmanager
def uncompiled(net: nn.Module) -> Iterator[None]:
    """In this context the network runs uncompiled."""
    calls = {module: module._compiled_call_impl for module in net.modules()}
    run_uncompiled(net)
    try:
        yield
    finally:
        for module, call in calls.items():
            module._compiled_call_impl = call


def compiles_strips(setting: str, runtime: Runtime, work: int) -> tuple[bool, str | None]:
    """Decide whether restoring compiles its work on strips, once for images of all sizes.

    Args:
        setting: "auto" compiles on CUDA if there is enough work, "on" wherever there is a compiler,
            "off" never.
        runtime: where it runs.
        work: pixels that go through the network, over all images and calls.

    Returns:
        The decision, and a notice if compiling is wanted but not possible.
    """
    pays = runtime.device.type == "cuda" and work >= MUCH_WORK
    if are_tried(runtime.device, runtime.dtype):
        pays = False  # the hand-written kernels move fewer bytes than compiled code
    compiles, note = _decide(setting, runtime, pays)
    if compiles:
        allow_failures()
    return compiles, note


def allow_failures() -> None:
    """Let strips that cannot be compiled run eagerly, without pages of log output about it.

    `functions_given_up` counts them. Functions are compiled when they first meet a shape, so this
    is needed in each call of a Python program, whose own settings are kept between its calls.
    """
    _allow_many_shapes()
    _set_dynamo("suppress_errors", True)
    logger = logging.getLogger("torch._dynamo")
    if logger.level != logging.CRITICAL:
        quiet, before = (partial(logger.setLevel, one) for one in (logging.CRITICAL, logger.level))
        change_until_return(quiet, before)


def _decide(setting: str, runtime: Runtime, pays: bool) -> tuple[bool, str | None]:
    """Return whether to compile, and a notice if that is wanted but not possible."""
    if setting == "off" or (setting == "auto" and not pays):
        return False, None
    lacking = missing_compiler(runtime)
    if lacking:
        return False, f"torch.compile needs {lacking}: the network runs uncompiled"
    _allow_many_shapes()
    return True, None


def _allow_many_shapes() -> None:
    """Let one function be compiled for many shapes; by default torch gives up after 8.

    Each width, patch size and remainder of micro-batches has its own graph; in strips each number
    of images in a batch, with and without halos.
    """
    # The name is that of torch 2.6, which later versions keep as an alias of `recompile_limit`.
    _set_dynamo("cache_size_limit", MOST_GRAPHS)


def _set_dynamo(name: str, value: object) -> None:
    config = torch._dynamo.config
    if (before := getattr(config, name)) != value:
        new, old = (partial(setattr, config, name, one) for one in (value, before))
        change_until_return(new, old)


def functions_given_up() -> int:
    """Return how many functions torch.compile has failed to compile so far in this process."""
    frames = torch._dynamo.utils.counters["frames"]
    return int(frames["total"] - frames["ok"])


def missing_compiler(runtime: Runtime) -> str | None:
    """Return what torch.compile lacks on this machine to generate code for the device, or None."""
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
