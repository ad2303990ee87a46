"""Folders shared by the parallel test processes, and the check for required test data."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from filelock import FileLock

DATA_VARIABLES = ("C2FDFT_TEST_DATA", "C2FDFT_REFERENCE")
"""Environment variables with the folders of real image pairs and of reference numbers."""

MISSING_DATA = "C2FDFT_MISSING_DATA"
"""Environment variable: "skip" or "fail" golden checks without data; "fail" if CI is set."""


def check_data(environment: Mapping[str, str]) -> None:
    """End the test run if golden checks lack their data and must not be skipped.

    Raises:
        pytest.UsageError: required data are missing, or `MISSING_DATA` has an unknown value.
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
    """Return a folder made by the first test process that needs it and read by all of them."""
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
