"""A simulated GPU: what torch reports about it is patched."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch


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
