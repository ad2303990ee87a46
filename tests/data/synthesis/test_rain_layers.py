"""The script that extracts complete rain layers from pairs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from c2fdft_cli.data.synthesis.streaks import StreakBank

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[3] / "recipes" / "scripts" / "rain_layers.py"


def streaks(rng: np.random.Generator) -> np.ndarray:
    layer = np.zeros((128, 160), np.uint8)
    layer[:, ::5] = rng.integers(40, 120, (128, 32))
    return layer


def write_pair(folder: Path, name: str, clean: np.ndarray, layer: np.ndarray) -> None:
    rainy = np.minimum(clean.astype(int) + layer[..., None], 255).astype(np.uint8)
    for side, image in (("input", rainy), ("target", clean)):
        (folder / side).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / side / f"{name}.png"), image)


def extract(folder: Path, out: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), str(out), "--least", "5"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_layer_is_recovered_where_it_is_known(tmp_path):
    """A dark picture reveals the whole layer, one with a white sky only the part below it."""
    rng = np.random.default_rng(0)
    layers = [streaks(rng) for _ in range(2)]
    clean = rng.integers(0, 90, (128, 160, 3)).astype(np.uint8)
    write_pair(tmp_path / "set", "a", clean, layers[0])
    clean[:24] = 250
    write_pair(tmp_path / "set", "b", clean, layers[1])
    done = extract(tmp_path / "set", tmp_path / "streaks" / "heavy")
    assert done.returncode == 0, done.stderr
    assert "2 layers" in done.stderr
    # a bank needs masks besides layers
    cv2.imwrite(str(tmp_path / "streaks" / "m.png"), layers[0])
    first, second = StreakBank(tmp_path / "streaks").layers
    np.testing.assert_array_equal(first, layers[0])
    np.testing.assert_array_equal(second, layers[1][24:])


def test_pictures_that_reveal_too_little_give_no_layer(tmp_path):
    white = np.full((128, 160, 3), 240, np.uint8)
    write_pair(tmp_path / "set", "a", white, streaks(np.random.default_rng(0)))
    write_pair(tmp_path / "set", "b", white, streaks(np.random.default_rng(1)))
    done = extract(tmp_path / "set", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.count("skipped") == 2
    assert not list((tmp_path / "out").iterdir())
