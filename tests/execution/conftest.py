"""Fixture for the two ways in which strips run on a CPU."""

from __future__ import annotations

import pytest

from c2fdft_cli.execution import strips as strips_module


@pytest.fixture(params=["compiled", "torch"])
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test with the compiled kernels and again with torch's operators alone."""
    if request.param == "torch":
        monkeypatch.setattr(strips_module, "kernels_for", lambda device, dtype: None)
