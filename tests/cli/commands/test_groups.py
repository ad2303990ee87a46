"""Small commands as a user runs them: `recipes`, `weights` and `info`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from c2fdft_cli.engine.train.folder import COLUMNS
from tests.kit.command import run
from tests.kit.processes import python
from tests.kit.weights import write_random

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("group", ["recipes", "weights"])
@pytest.mark.parametrize("rich", ["1", "0"])
def test_a_group_alone_prints_its_help_once(
    monkeypatch: pytest.MonkeyPatch, group: str, rich: str
) -> None:
    monkeypatch.setenv("TYPER_USE_RICH", rich)
    done = python("-m", "c2fdft_cli", group)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count(f"Usage: c2fdft {group} ") == 1


def test_a_copy_reports_its_path(tmp_path: Path) -> None:
    done = python("-m", "c2fdft_cli", "recipes", "copy", "tiny", tmp_path / "mine.yaml")
    assert done.stdout.startswith(f"written: {tmp_path}/mine.yaml\nnext: c2fdft train-coarse ")


def test_numbers_of_info_are_readable() -> None:
    """Scores have only significant digits, and missing values are a dash."""
    scored, unscored = (run("info", name) for name in ("derain", "denoise"))
    for done in (scored, unscored):
        assert done.exit_code == 0
        assert "None" not in done.stdout
        assert "True" not in done.stdout
        assert "False" not in done.stdout
    assert re.search(r"parameters +. (\d+,)+\d{3} ", scored.stdout)
    assert re.search(r"psnr \d\d\.\d{1,4},", scored.stdout)
    assert re.search(r"metrics +. - ", unscored.stdout)  # trained without validation


def test_of_many_checkpoints_twenty_are_shown_but_all_timesteps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "2000")
    (tmp_path / "metrics.csv").write_text(",".join(COLUMNS) + "\n")
    for number in range(25):
        (tmp_path / f"step-{number:08d}.pt").touch()
    assert "step-00000019.pt, and 5 more" in run("info", tmp_path).stdout
    grid = list(range(25, 0, -1))
    weights = write_random(tmp_path / "a.pt", grid=grid)
    assert f" {', '.join(map(str, grid))} " in run("info", weights).stdout
