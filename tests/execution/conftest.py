"""Either way in which strips run on a CPU."""

from __future__ import annotations

import pytest

from c2fdft_cli.execution import inference_memory
from c2fdft_cli.execution import strips as strips_module


@pytest.fixture(params=["compiled", "torch"])
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled kernels, and torch's operators where there are none."""
    if request.param == "torch":
        for module in (strips_module, inference_memory):
            monkeypatch.setattr(module, "kernels_for", lambda device, dtype: None)
