"""The script that times the tiles of kernels runs without a GPU, on a few pixels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.kit.gpu import require_triton
from tests.kit.processes import python

require_triton()
SCRIPT = Path(__file__).parents[2] / "recipes" / "scripts" / "tune_kernels.py"


@pytest.mark.acceptance
def test_tiles_are_timed_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    out = tmp_path / "tiles.jsonl"
    done = python(SCRIPT, out, "--quick", "--tables", "feed_forward_weights")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["table"] for row in rows] == ["feed_forward_weights"] * 6
    assert [row["in_use"] for row in rows] == [True, False] * 3
    assert all(row["ms"] > 0 and row["difference"] < 1e-3 for row in rows), rows
    assert done.stdout.count("in use") == 3


@pytest.mark.acceptance
def test_a_table_that_crashes_its_process_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tile that the compiler gets wrong may do so; the others are still timed."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    (tmp_path / "folder").mkdir()
    done = python(SCRIPT, tmp_path / "folder", "--quick", "--tables", "depthwise")
    assert done.returncode == 1
    assert done.stdout.count("ended with code 1") == 2
