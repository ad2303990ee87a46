"""`c2fdft prepare`: the suggested next command, and options that exclude each other."""

from __future__ import annotations

import json
import shlex
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from c2fdft_cli.cli import console
from c2fdft_cli.data.images.picture import save_rgb8
from c2fdft_cli.data.synthesis.degrade import MODELS
from c2fdft_cli.recipe.files import load_recipe
from c2fdft_cli.vocabulary import DEGRADATIONS, TASKS
from c2fdft_cli.words import binary_size, one_of
from tests.kit.command import refused, run
from tests.kit.formula import picture


def make(root: Path, *sides: str) -> Path:
    for number, side in enumerate(sides):
        (root / side).mkdir(parents=True)
        for i in range(3):
            save_rgb8(root / side / f"{i}.png", picture(24, 32, 10 * number + i))
    return root


@pytest.mark.parametrize(
    ("name", "sides", "task"),
    [
        ("rain100l", ("input", "target"), "derain"),
        ("mine", ("blur", "sharp"), "deblur"),
        ("mine", ("real", "mean"), "denoise"),
    ],
)
def test_the_next_command_follows_the_task(tmp_path, name, sides, task):
    source, out = make(tmp_path / name, *sides), tmp_path / "out"
    checked = json.loads(run("prepare", source, "--out", out, "--check", "--json").stdout)
    assert checked["next"] is None, "there are no shards yet"
    said = json.loads(run("prepare", source, "--out", out, "--json").stdout)
    assert said["next"] == f"c2fdft train-coarse --recipe {task} --data {out}"


def test_the_next_command_names_no_recipe_for_a_task_without_one(tmp_path, monkeypatch):
    monkeypatch.setattr(MODELS["blur"], "task", "restore")
    source, out = make(tmp_path, "photos") / "photos", tmp_path / "out"
    done = run("prepare", source, "--out", out, "--synthesize", "blur")
    assert "--recipe RECIPE" in done.stdout


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_the_next_command_follows_the_degradation(tmp_path, kind):
    task = MODELS[kind].task
    assert task in TASKS, f"the task of {MODELS[kind].__name__} needs a row in `vocabulary.TASKS`"
    source, out = make(tmp_path, "photos") / "photos", tmp_path / "out"
    stored = json.loads(run("prepare", source, "--out", out, "--synthesize", kind, "--json").stdout)
    assert stored["next"] == f"c2fdft train-coarse --recipe {task} --data {out}"
    clean = run(
        "prepare", source, "--out", out, "--synthesize", kind, "--clean-only", "--overwrite"
    )
    assert f"data.synthesize={kind}" in clean.stdout


def test_the_next_command_keeps_the_settings_of_the_degradation(tmp_path):
    """They are applied in training, where the recipe's settings would otherwise be used."""
    source, out = make(tmp_path, "photos") / "photos", tmp_path / "out"
    settings = ("--synth", "sigma=[5, 30]", "--synth", "kind=camera")
    words = ("--out", out, "--synthesize", "noise", "--clean-only", *settings, "--json")
    said = json.loads(run("prepare", source, *words).stdout)
    following = shlex.split(said["next"])
    recipe = load_recipe("denoise", following[following.index(f"{out}") + 1 :])
    assert recipe.data.synthesize == "noise"
    assert recipe.data.synthesis == {"sigma": [5, 30], "kind": "camera"}
    (notice,) = said["notices"]
    assert "sigma has no effect" in notice
    assert f"note: {notice}\n" in run("prepare", source, *words[:-1], "--overwrite").stdout


def test_streaks_are_used_and_kept_in_the_next_command(tmp_path):
    source, masks = make(tmp_path, "photos") / "photos", tmp_path / "masks"
    masks.mkdir()
    save_rgb8(masks / "0.png", np.repeat(picture(40, 40, 7)[..., :1] // 4, 3, axis=2))
    words = ("--synthesize", "rain", "--json")
    for out, more in (("without", ()), ("drawn", ("--streaks", masks))):
        assert run("prepare", source, "--out", tmp_path / out, *words, *more).exit_code == 0
    shards = [(tmp_path / out / "train-00000.h5").read_bytes() for out in ("without", "drawn")]
    assert shards[0] != shards[1]
    words = (*words, "--streaks", masks, "--clean-only")
    said = json.loads(run("prepare", source, "--out", tmp_path / "clean", *words).stdout)
    assert f"data.streaks={masks}" in shlex.split(said["next"])


@pytest.mark.parametrize("value", ["2024-13-45", "[" * 1000, "9" * 5000, "'"])
def test_a_setting_of_the_degradation_that_is_not_yaml_is_refused(tmp_path, value):
    source = make(tmp_path, "photos") / "photos"
    words = ("--synthesize", "rain", "--synth", f"heavy={value}")
    refused("prepare", source, *words, code=2, says="cannot be read as YAML")


def test_without_a_task_the_next_command_leaves_the_recipe_open(tmp_path):
    source = make(tmp_path / "mine", "input", "target")
    done = run("prepare", source, "--out", tmp_path / "out")
    said = " ".join(done.stdout.split())
    assert f"RECIPE is the recipe of your task: {one_of(list(TASKS))}" in said
    again = run("prepare", source, "--out", tmp_path / "out", "--json")
    assert json.loads(again.stdout)["next"] is None
    assert "--dry-run" not in done.stderr + again.stderr
    checked = run("prepare", source, "--check")
    assert "next:" not in checked.stdout
    assert "smallest image: 32x24\n" in checked.stdout  # the width comes first
    found = json.loads(run("prepare", source, "--check", "--json").stdout)["check"]
    needed = binary_size(found["bytes_needed"])
    assert found["bytes_needed"] < found["bytes_free"]
    assert f"disk: {needed} needed, " in checked.stdout


def test_a_note_says_how_to_estimate_the_time_of_the_next_command(tmp_path):
    """The paper's recipe takes years on a CPU."""
    source = make(tmp_path, "photos") / "photos"
    done = run("prepare", source, "--out", tmp_path / "out", "--synthesize", "rain")
    assert "--recipe derain --data" in done.stdout
    assert "add --dry-run to estimate the time" in done.stderr


@pytest.mark.parametrize("bad", [1, 3])
def test_a_check_that_sees_unusable_pairs_fails(tmp_path, bad):
    """It fails as `prepare` would, and its output does not claim that anything is written."""
    source = make(tmp_path / "mine", "input", "target")
    for i in range(bad):
        save_rgb8(source / "target" / f"{i}.png", picture(24, 31, i))
    checked = run("prepare", source, "--out", tmp_path / "out", "--check")
    assert checked.exit_code == 6
    assert checked.stdout.count("the sizes differ") == bad
    assert "written" not in checked.stdout
    assert f"error: {bad} of 3 pairs cannot be used" in checked.stderr
    said = run("prepare", source, "--out", tmp_path / "out", "--check", "--json")
    assert said.exit_code == 6
    assert len(json.loads(said.stdout)["failed"]) == bad
    assert run("prepare", source, "--out", tmp_path / "out").exit_code == 3


@pytest.mark.parametrize("check", [(), ("--check",)])
def test_of_many_unpaired_images_and_unusable_pairs_twenty_are_printed(tmp_path, check):
    source = make(tmp_path / "mine", "input", "target")
    for i in range(3, 30 if check else 3):
        for side in ("input", "target"):
            save_rgb8(source / side / f"{i}.png", picture(8, 8 + (side == "input"), i))
    for i in range(100, 125):
        save_rgb8(source / "target" / f"{i}.png", picture(8, 8, i))
    options = (source, "--out", tmp_path / "out", *check)
    lines = run("prepare", *options).stdout.splitlines()
    assert sum(line.startswith("unpaired: ") for line in lines) == 20
    assert "and 5 more (with --json all are listed)" in lines
    assert sum(line.startswith("unusable: ") for line in lines) == (20 if check else 0)
    assert ("and 7 more (with --json all are listed)" in lines) == bool(check)
    said = json.loads(run("prepare", *options, "--json").stdout)
    assert len(said["leftovers"]) == 25
    assert len(said["failed"]) == (27 if check else 0)


def test_numbers_with_too_many_digits_are_refused(tmp_path):
    source = make(tmp_path / "mine", "input", "target")
    many = "9" * 5000
    largest = run("prepare", source, "--check", "--shard-mib", many)
    assert largest.exit_code == 0
    pairs = run("prepare", source, "--check", "--val", many)
    assert pairs.exit_code == 2
    assert "of 3 pairs cannot be used for validation" in pairs.stderr


def test_the_images_that_were_looked_at_are_counted(tmp_path, monkeypatch):
    counts = []

    @contextmanager
    def looking():
        yield lambda *count: counts.append(count)

    monkeypatch.setattr(console, "looking", looking)
    run("prepare", make(tmp_path / "mine", "input", "target"), "--out", tmp_path / "out")
    assert counts == [("reading headers", k, 6) for k in range(6)]


def test_a_preview_needs_shards(tmp_path):
    source = make(tmp_path / "mine", "input", "target")
    sheet = tmp_path / "sheet.png"
    done = run("prepare", source, "--out", tmp_path / "out", "--preview", sheet)
    assert done.exit_code == 0
    assert sheet.is_file()
    beside_check = run("prepare", source, "--preview", tmp_path / "b.png", "--check")
    assert beside_check.exit_code == 2
    assert "--preview cannot be combined with --check" in beside_check.stderr


@pytest.mark.parametrize(
    ("sheet", "options", "code", "says"),
    [
        ("sheet.txt", [], 2, "--preview must be a picture"),
        ("file/sheet.png", [], 5, "a part of the output path is a regular file"),
        ("sheet.png", ["--synthesize", "rain", "--clean-only"], 2, "combined with --clean-only"),
    ],
)
def test_an_impossible_preview_is_refused_before_work(tmp_path, sheet, options, code, says):
    source = make(tmp_path / "mine", "input", "target")
    (tmp_path / "file").touch()
    asked = [source / "input" if options else source, "--preview", tmp_path / sheet, *options]
    refused("prepare", *asked, "--out", tmp_path / "out", code=code, says=says)
    assert not (tmp_path / "out").exists()


def test_the_folder_of_a_preview_is_created(tmp_path):
    source = make(tmp_path / "mine", "input", "target")
    sheet = tmp_path / "new" / "sheet.png"
    done = run("prepare", source, "--out", tmp_path / "out", "--preview", sheet)
    assert done.exit_code == 0
    assert sheet.is_file()
