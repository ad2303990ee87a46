"""A GPU that is not there: what torch says of it, by hand."""

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
    """Let torch describe one GPU of a capability and a build for architectures.

    Nothing can be computed on it.
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
