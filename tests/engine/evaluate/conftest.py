"""Pictures that the tests of `eval` score."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.evaluate import degraded, save
from tests.kit.formula import photo


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Folders of three restored pictures and of their targets, 9.png to 11.png."""
    for k in range(3):
        save(tmp_path / "out" / f"{k + 9}.png", degraded(k))
        save(tmp_path / "target" / f"{k + 9}.png", photo(k))
    return tmp_path / "out", tmp_path / "target"
