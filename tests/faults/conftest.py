"""Inputs shared by all fault injection tests."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from tests.kit.faults import World
from tests.kit.sharing import made_once

TRIES = int(os.environ.get("C2FDFT_FAULT_TRIES", "0"))
"""Random moments for each command and fault; 0 runs the quick part alone."""
SEED = os.environ.get("C2FDFT_FAULT_SEED", str(os.getpid()))
"""Seed of the random moments in the quick part."""


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker of the long part."""
    config.addinivalue_line("markers", "long: runs with C2FDFT_FAULT_TRIES=N alone")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the long part unless C2FDFT_FAULT_TRIES requests it."""
    for item in items:
        if item.get_closest_marker("long") and not TRIES:
            item.add_marker(pytest.mark.skip(reason="C2FDFT_FAULT_TRIES is not set"))


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Pairs, shards, weights, pictures and, if PyAV is installed, a video."""

    def make(root: Path) -> None:
        root.mkdir(exist_ok=True)
        World(root).make()
        if importlib.util.find_spec("av"):  # without PyAV only "restore-video" is skipped
            from tests.kit.video import make_clip

            make_clip(root / "clip.mp4", size="32x32", rate="10", seconds=1.0)

    return World(made_once(tmp_path_factory, "world", make))
