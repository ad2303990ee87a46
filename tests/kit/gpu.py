"""A simulated GPU, of which torch reports what a test says; and Triton, if it is usable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from c2fdft_cli.execution.fused.choose import OLDEST_TRITON, has_triton


def pretend_gpu(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    architectures: Sequence[str],
    name: str = "a GPU",
) -> None:
    """Let torch report one GPU of a compute capability and a build for `architectures`.

    Nothing can be computed on this GPU.
    """
    answers: dict[str, object] = {
        "is_available": True,
        "device_count": 1,
        "set_device": None,
        "get_device_capability": capability,
        "get_device_name": name,
        "get_arch_list": list(architectures),
    }
    for question, answer in answers.items():
        monkeypatch.setattr(torch.cuda, question, lambda *_, answer=answer: answer)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def require_triton() -> Any:
    """Return the module; without a version that is used, skip the test or the test file."""
    triton = pytest.importorskip("triton", reason="Triton is not installed (Linux only)")
    if not has_triton():
        oldest = ".".join(map(str, OLDEST_TRITON))
        pytest.skip(f"Triton {oldest} is the oldest that is used", allow_module_level=True)
    return triton
