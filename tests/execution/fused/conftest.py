"""Extends Triton's interpreter: bfloat16 matrix products, and a check of the addresses."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from torch import Tensor


@pytest.fixture(autouse=True)
def _interpreter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Patch and check Triton's interpreter if it is installed and enabled."""
    if os.environ.get("TRITON_INTERPRET") != "1" or not importlib.util.find_spec("triton"):
        yield
        return
    interpreter = importlib.import_module("triton.runtime.interpreter")
    _multiply_bfloat16(interpreter, monkeypatch)
    _patch_once(interpreter, monkeypatch)
    memory = Memory(interpreter._interpreter)
    monkeypatch.setattr(interpreter, "_interpreter", memory)
    arguments = interpreter.GridExecutor._init_args_hst

    def on_host(self: Any, args: Any, kwargs: Any) -> Any:
        found = arguments(self, args, kwargs)
        memory.allow([*found[0], *found[1].values()])
        return found

    monkeypatch.setattr(interpreter.GridExecutor, "_init_args_hst", on_host)
    yield
    assert memory.outside == [], "a kernel read or wrote beyond its arguments"


def _multiply_bfloat16(interpreter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiply bfloat16 matrices as float32: the interpreter would multiply their bit patterns."""
    tl = importlib.import_module("triton.language")
    dot, bf16, fp32 = interpreter.InterpreterBuilder.create_dot, tl.bfloat16, tl.float32

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        a, b = (self.cast_impl(x, fp32) if x.dtype.scalar == bf16 else x for x in (a, b))
        return dot(self, a, b, *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


def _patch_once(interpreter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the interpreter's functions in place of Triton's once in a launch.

    The interpreter would search all of Triton's language for them at each call of a function, which
    takes up to half of its time.
    """
    patch, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    done: set[int] = set()

    def start(self: Any, *args: Any, **kwargs: Any) -> Any:
        done.clear()  # at the end of a launch Triton's functions are put back
        return launch(self, *args, **kwargs)

    def once(function: Any) -> Any:
        names = id(function.__globals__)
        if names in done:
            return None  # nothing is to be put back; callers within a launch do not look at it
        done.add(names)
        return patch(function)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", start)
    monkeypatch.setattr(interpreter, "_patch_lang", once)


class Memory:
    """Wraps the interpreter's memory and records accesses outside a kernel's arguments.

    On a GPU such an access hits another tensor, or is an error that ends the process.
    """

    def __init__(self, memory: Any) -> None:
        self.memory = memory
        self.ranges: list[tuple[int, int]] = []
        self.outside: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.memory, name)

    def allow(self, arguments: list[Any]) -> None:
        """Allow accesses to the arguments of a launch, and to nothing else."""
        self.ranges = []
        for one in arguments:
            tensor = getattr(one, "base", one)
            if isinstance(tensor, Tensor) and tensor.numel():
                steps = zip(tensor.shape, tensor.stride(), strict=True)
                values = 1 + sum((side - 1) * step for side, step in steps)
                start = tensor.data_ptr()
                self.ranges.append((start, start + values * tensor.element_size()))

    def load(self, at: Any, mask: Any, other: Any, dtype: Any) -> Any:
        self._look("read", at, mask, np.dtype(dtype).itemsize)
        return self.memory.load(at, mask, other, dtype)

    def store(self, at: Any, value: Any, mask: Any) -> Any:
        self._look("wrote", at, mask, value.dtype.itemsize)
        return self.memory.store(at, value, mask)

    def _look(self, what: str, at: Any, mask: Any, size: int) -> None:
        places: npt.NDArray[np.uint64] = np.broadcast_to(at, np.shape(mask))[np.asarray(mask) != 0]
        inside = np.zeros(places.shape, bool)
        for start, end in self.ranges:
            inside |= (places >= start) & (places <= end - size)
        if not inside.all():
            self.outside.append(f"{what} {int((~inside).sum())} values")
