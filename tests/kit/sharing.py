"""Folders that the parallel test processes share, and data that a test run may not lack."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from filelock import FileLock

DATA_VARIABLES = ("C2FDFT_TEST_DATA", "C2FDFT_REFERENCE")
"""The folders of real image pairs and of reference numbers, which the repository does not hold."""

MISSING_DATA = "C2FDFT_MISSING_DATA"
"""What golden checks do without their data: "skip", or "fail", the default where CI is set."""


def check_data(environment: Mapping[str, str]) -> None:
    """End the test run where golden checks would be skipped without anybody noticing.

    Raises:
        pytest.UsageError: data are missing and may not be.
    """
    choice = environment.get(MISSING_DATA, "fail" if environment.get("CI") else "skip")
    if choice not in ("skip", "fail"):
        raise pytest.UsageError(f"{MISSING_DATA} must be skip or fail, got {choice!r}")
    missing = [name for name in DATA_VARIABLES if not Path(environment.get(name) or "/-").is_dir()]
    if missing and choice == "fail":
        raise pytest.UsageError(
            f"golden checks need their data: {' and '.join(missing)} must name a folder "
            f"({MISSING_DATA}=skip runs the other tests)"
        )


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that the first test process to ask for it makes, and that all of them read."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, made = root / "shared" / name, root / "shared" / f"{name}.made"
    folder.parent.mkdir(exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            made.touch()
    return folder
