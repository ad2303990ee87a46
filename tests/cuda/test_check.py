"""The GPU acceptance script runs without a GPU: each stage, with small sizes."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.kit.processes import python

SCRIPT = Path(__file__).parents[2] / "recipes" / "scripts" / "check_cuda.py"
STAGES = [
    "env",
    "ops",
    "kernels",
    "net",
    "grad",
    "memory",
    "cli",
    "restore",
    "train",
    "compiled",
    "ranks",
]


@pytest.mark.acceptance
def test_every_stage_runs_on_a_cpu(tmp_path: Path) -> None:
    done = python(SCRIPT, tmp_path, "--device", "cpu", "--quick", timeout=1800)
    rows = [json.loads(line) for line in (tmp_path / "cuda.jsonl").read_text().splitlines()]
    assert [row for row in rows if not row.get("good", True)] == []
    assert done.returncode == 0, done.stderr
    ended = [row["stage"] for row in rows if row.get("check") == "stage ended by itself"]
    assert ended == STAGES
    table = (tmp_path / "cuda.md").read_text()
    assert "| grad | a step that is not finite is skipped bf16 | ok |" in table
    assert "FAILED" not in table


@pytest.mark.acceptance
def test_a_failed_check_is_reported(tmp_path: Path) -> None:
    """A stage that ends in an error is a failed check, with a failing exit code."""
    found = tmp_path / "cuda.jsonl"
    found.write_text(json.dumps({"stage": "net", "check": "x", "good": False, "error": "y"}) + "\n")
    done = python(SCRIPT, tmp_path, "--device", "cpu", "--quick", "--stages", "ranks")
    assert done.returncode == 1
    assert "| net | x | FAILED | error y |" in (tmp_path / "cuda.md").read_text()


@pytest.mark.acceptance
def test_a_stopped_script_leaves_no_process_of_a_stage(tmp_path: Path) -> None:
    line = [sys.executable, SCRIPT, tmp_path, "--device", "cpu", "--quick", "--stages", "cli"]
    script = subprocess.Popen(list(map(str, line)), stdout=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not (stages := _stages_of(script.pid)) and time.monotonic() < until:
        time.sleep(0.1)
    script.terminate()
    assert stages
    assert script.wait(60) == 143
    assert psutil.wait_procs(stages, timeout=60)[1] == []


def _stages_of(pid: int) -> list[psutil.Process]:
    """Processes that the script started for a stage; its imports start others before."""
    found = []
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "--stage" in child.cmdline():
                found.append(child)
    return found
