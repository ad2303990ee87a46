"""Options that all commands share."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from c2fdft_cli.data.images.picture import save_rgb8
from tests.kit.command import run
from tests.kit.formula import picture


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["prepare", ""], "SOURCE"),
        (["prepare", "photos", "--out", ""], "--out"),
        (["prepare", "photos", "--out="], "--out"),
        (["train-coarse", "--recipe", "tiny", "--data", ""], "--data"),
        (["train-coarse", "--recipe", "tiny", "--data", "shards", "--out", ""], "--out"),
        (["sweep-steps", "derain", "--out", ""], "--out"),
        (["restore", "in", "out", "--compare", ""], "--compare"),
        (["eval", "", "target"], "RESTORED"),
        (["eval", "restored", ""], "TARGET"),
        (["eval", "restored", "target", "--report", ""], "--report"),
        (["convert", "derain", ""], "OUT"),
        (["demo", "--out", ""], "--out"),
        (["recipes", "copy", "tiny", ""], "FILE"),
        (["weights", "average", "derain", "derain", "--out", ""], "--out"),
    ],
)
def test_an_empty_path_is_not_the_current_folder(tmp_path, monkeypatch, words, name):
    """A script passes an empty path if its variable is not set."""
    monkeypatch.chdir(tmp_path)
    done = run(*words)
    assert done.exit_code == 2
    # Typer before 0.27 writes an argument in capitals, and an optional one in brackets
    says = rf"Invalid value for '\[?{name}\]?': the path is empty; name a file or a folder"
    assert re.search(says, done.stderr, re.IGNORECASE)
    assert list(Path().iterdir()) == []


def test_a_file_whose_name_begins_with_a_hyphen_is_not_only_an_unknown_option(
    tmp_path, monkeypatch
):
    """A shell's pattern passes such names as they are."""
    monkeypatch.chdir(tmp_path)
    name = "-one dash.png"
    Path(name).touch()
    done = run("restore", name, "out")
    assert done.exit_code == 2
    assert "hint: for the file of this name, write './-one dash.png'; see" in done.stderr
    Path(name).unlink()
    assert "for the file of this name" not in run("restore", name, "out").stderr


def test_an_empty_number_of_validation_pairs_is_refused(tmp_path):
    done = run("prepare", tmp_path, "--val", "")
    assert done.exit_code == 2
    assert "--val is empty" in done.stderr


def test_weights_without_a_name_are_refused(tmp_path):
    for side in ("input", "target"):
        (tmp_path / side).mkdir()
        save_rgb8(tmp_path / side / "1.png", picture(16, 16, 1))
    done = run("eval", "--weights", "", tmp_path)
    assert done.exit_code == 4
    assert "there are no packaged weights ''" in done.stderr


def test_the_choice_of_packaged_weights_before_a_file_of_their_name_is_remarked(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("derain").write_bytes(b"the user's own weights")
    done = run("convert", "derain", "own.pt")
    assert done.exit_code == 0
    remark = "weights: derain is packaged; for the file of this name, give ./derain"
    assert remark in done.stdout + done.stderr
    silent = run("convert", "derain", "other.pt", "--json")
    assert silent.exit_code == 0
    assert remark not in silent.stdout + silent.stderr


@pytest.mark.parametrize("words", [["prepare", "photos"], ["sweep-steps", "derain"], ["demo"]])
def test_commands_for_one_process_refuse_several(tmp_path, monkeypatch, words):
    """One would lock the folder, and the others would fail and thereby end it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    done = run(*words)
    assert done.exit_code == 2
    assert f"{words[0]} works in one process, and torchrun has started 2" in done.stderr


def test_torchrun_with_one_process_is_not_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    done = run("prepare", "photos")
    assert done.exit_code == 3
    assert "photos: no such file or folder" in done.stderr
