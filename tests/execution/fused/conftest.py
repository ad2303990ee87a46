"""What Triton's interpreter lacks."""

from __future__ import annotations

import importlib
import os
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _products_of_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter holds bfloat16 as integers, and multiplies matrices of these."""
    if os.environ.get("TRITON_INTERPRET") != "1" or not importlib.util.find_spec("triton"):
        return
    interpreter = importlib.import_module("triton.runtime.interpreter")
    tl = importlib.import_module("triton.language")
    dot, bf16, fp32 = interpreter.InterpreterBuilder.create_dot, tl.bfloat16, tl.float32

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        a, b = (self.cast_impl(x, fp32) if x.dtype.scalar == bf16 else x for x in (a, b))
        return dot(self, a, b, *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
