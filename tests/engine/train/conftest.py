"""One training of each stage, shared by all tests that only read its results."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.sharing import made_once
from tests.kit.training import OFTEN, request, run, stop_after


@pytest.fixture(scope="session")
def coarse_run(tmp_path_factory: pytest.TempPathFactory, shard_folder: Path) -> Path:
    """The run folder of an uninterrupted coarse stage; read-only by convention."""
    return made_once(
        tmp_path_factory, "coarse", lambda folder: run(request("coarse", shard_folder, folder))
    )


@pytest.fixture(scope="session")
def stopped_run(tmp_path_factory: pytest.TempPathFactory, shard_folder: Path) -> Path:
    """The run folder of a coarse stage killed after step 7 of 12; read-only by convention."""
    return made_once(
        tmp_path_factory,
        "stopped",
        lambda folder: stop_after(request("coarse", shard_folder, folder), 7),
    )


@pytest.fixture(scope="session")
def often_scored_run(tmp_path_factory: pytest.TempPathFactory, shard_folder: Path) -> Path:
    """A run as `stopped_run` that was also scored at step 4, of which it holds the state."""
    return made_once(
        tmp_path_factory,
        "often_scored",
        lambda folder: stop_after(request("coarse", shard_folder, folder, OFTEN), 7),
    )


@pytest.fixture(scope="session")
def fine_run(
    tmp_path_factory: pytest.TempPathFactory, shard_folder: Path, coarse_run: Path
) -> Path:
    """The run folder of an uninterrupted fine stage that starts from `coarse_run`."""
    init = coarse_run / "coarse.pt"
    return made_once(
        tmp_path_factory,
        "fine",
        lambda folder: run(request("fine", shard_folder, folder, OFTEN, init=init)),
    )
