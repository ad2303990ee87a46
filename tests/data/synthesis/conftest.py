"""A small bank of rain streak masks."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from c2fdft_cli.data.synthesis.streaks import StreakBank


def streak_image(k: int, h: int = 96, w: int = 128) -> np.ndarray:
    """A mask of vertical streaks, different for each k."""
    y, x = np.mgrid[:h, :w]
    column = (x * 7 + k) % 23 < 2
    dash = (y + 11 * x + 5 * k) % 40 < 22
    return np.where(column & dash, 60 + (x * 3) % 90, 0).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("streaks")
    for k in range(6):
        cv2.imwrite(str(path / f"{k}.png"), streak_image(k))
    (path / "notes.txt").write_text("not a field")
    return path


@pytest.fixture(scope="module")
def bank(folder) -> StreakBank:
    return StreakBank(folder)
