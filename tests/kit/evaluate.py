"""Helpers for the tests of `eval`: pictures of a given degradation, and a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from c2fdft_cli.data.images.picture import save_rgb8
from c2fdft_cli.engine.evaluate.files import evaluate_files
from c2fdft_cli.engine.evaluate.job import EvalOptions, EvalResult
from tests.kit.formula import photo


def degraded(k: int, strength: int = 20) -> np.ndarray[Any, Any]:
    """`photo(k)`, brightened by strength * (k + 1)."""
    return photo(k, strength=strength)


def save(path: Path, pixels: np.ndarray[Any, Any]) -> Path:
    """Write pixels as an image file, and create its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_rgb8(path, pixels)
    return path


def run(restored: Path, target: Path, **options: Any) -> EvalResult:
    """Score files against their targets and return the result."""
    return evaluate_files(restored, target, EvalOptions(**options)).run()
