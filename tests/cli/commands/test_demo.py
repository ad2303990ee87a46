"""`c2fdft demo`: its standard output, with its commands replaced by ones that only print."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from c2fdft_cli.cli.commands.demo import demo
from c2fdft_cli.engine.tools import demo as pictures
from c2fdft_cli.errors import RecipeError

ROW = {"name": "chelsea", "psnr": 30.0, "ssim": 0.9}
SCORES = {"protocol": "derain", "mean": {"psnr": 30.0, "ssim": 0.9}, "images": [ROW]}


@pytest.fixture(autouse=True)
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Replace each command by one that prints a line to its stdout, and `eval` by its document."""
    called: list[list[str]] = []

    def run(words: list[str], *, stdout: int | None, check: bool) -> Any:
        called.append(words[3:])
        said = json.dumps(SCORES) if "eval" in words else f"{words[3]} is done\n"
        if stdout != subprocess.PIPE:
            os.write(1 if stdout is None else stdout, said.encode())
        return subprocess.CompletedProcess(words, 0, said.encode())

    monkeypatch.setattr(subprocess, "run", run)
    for name in ("make_pairs", "comparison"):
        monkeypatch.setattr(pictures, name, lambda *_: None)
    return called


def test_one_document_on_standard_output(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    demo(None, tmp_path / "demo", json=True)
    said = capfd.readouterr()
    assert json.loads(said.out)["restored"] == SCORES
    assert "prepare is done\n" in said.err


@pytest.mark.parametrize("word", ["photos", "coarse.rate=1"])
def test_a_wrong_override_is_refused_before_anything_is_written(tmp_path: Path, word: str) -> None:
    with pytest.raises(RecipeError, match=word.partition("=")[0]):
        demo([word], tmp_path / "demo")
    assert list(tmp_path.iterdir()) == []


def test_results_on_standard_output(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    demo(None, tmp_path / "demo")
    said = capfd.readouterr()
    assert "prepare is done\n" in said.out
    assert "images not used for training" in said.out


def test_the_commands_shown_are_those_that_run(
    commands: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    demo(None, Path("-x"))
    shown = [line for line in capfd.readouterr().err.splitlines() if line.startswith("$ ")]
    assert [shlex.split(line)[2:] for line in shown] == commands
    assert commands[0] == ["prepare", "./-x/pairs", "--out", "./-x/shards"]
