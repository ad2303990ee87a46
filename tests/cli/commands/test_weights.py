"""`c2fdft weights`, and packaged weights by name in every command that uses weights."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from c2fdft_cli.core.network import DFT
from c2fdft_cli.data.images.picture import save_rgb8
from c2fdft_cli.engine.weights.checkpoint import load_checkpoint
from c2fdft_cli.vocabulary import PACKAGED_TASKS
from c2fdft_cli.words import one_of
from recipes.scripts.pack_weights import add_entry
from tests.kit.command import run
from tests.kit.formula import picture
from tests.kit.restore import random_picture, save
from tests.kit.training import MINI
from tests.kit.weights import package, packaged_once, write_facts, write_packed

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "recipes" / "scripts" / "train_weights.sh"
ON_GPU = ROOT / "recipes" / "scripts" / "train_on_gpu.sh"
CPU = ("--device", "cpu", "--precision", "fp32")


@pytest.fixture
def two(
    packaged: Path, tiny_net: Callable[..., DFT], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    def package_all(folder: Path) -> None:
        four = [999, 750, 500, 250]
        package(folder, "derain", tiny_net(), [500])
        package(folder, "derain-4step", tiny_net(), four, bad_at="heavy rain")

    packaged_once(tmp_path_factory, "two_packages", packaged, package_all)
    return packaged


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return save(tmp_path / "in" / "a.png", random_picture(16, 24))


@pytest.mark.usefixtures("two")
def test_packaged_weights_are_listed() -> None:
    said = run("weights", "list")
    assert said.exit_code == 0, said.output
    text = " ".join(said.stdout.split())
    for word in ("derain-4step", "KiB", "| 12.5 |".replace("|", "\u2502"),
                 "Waves (8 images, protocol derain): 26.90 dB / 0.8384 -> 33.75 dB / 0.9512",
                 "trained on eight waves", "bad at: heavy rain", "timed on 2 CPU cores",
                 "licence: for research and non-commercial use", "card: docs/models/derain.md",
                 "next: c2fdft restore IN OUT --weights derain"):  # fmt: skip
        assert word in text, word


@pytest.mark.usefixtures("two")
def test_packaged_weights_are_listed_as_json() -> None:
    first, second = json.loads(run("weights", "list", "--json").stdout)
    assert (first["name"], first["calls"]) == ("derain", 1)
    assert (second["name"], second["calls"]) == ("derain-4step", 4)
    assert second["grid"] == [999, 750, 500, 250]
    assert first.keys() >= {"task", "bytes", "sha256", "trained_on", "licence", "scores", "card"}
    assert first["scores"][0]["psnr"] == 33.75


@pytest.mark.usefixtures("packaged")
def test_an_empty_list_has_a_hint() -> None:
    said = run("weights", "list")
    assert said.exit_code == 0
    assert "no weights come with this version" in said.stdout
    assert "next: c2fdft train-coarse" in said.stdout
    assert json.loads(run("weights", "list", "--json").stdout) == []


def test_the_path_of_weights_is_printed(two: Path) -> None:
    assert run("weights", "path", "derain").stdout == f"{two / 'derain.pt'}\n"
    said = json.loads(run("weights", "path", "derain", "--json").stdout)
    assert said == {"name": "derain", "path": str(two / "derain.pt")}
    wrong = run("weights", "path", "derian")
    assert wrong.exit_code == 4
    assert "did you mean derain?" in wrong.stderr
    (two / "derain.pt").write_bytes(b"x")
    damaged = run("weights", "path", "derain")
    assert damaged.exit_code == 4
    assert "this installation of c2fdft is damaged" in damaged.stderr
    assert "\nhint: reinstall it: " in damaged.stderr


@pytest.mark.usefixtures("two")
def test_restore_uses_the_default_weights(image: Path, tmp_path: Path) -> None:
    said = run("restore", image.parent, tmp_path / "out", "--steps", 4, *CPU)
    assert said.exit_code == 0, said.output
    assert (tmp_path / "out" / "a.png").is_file()
    assert "999,750,500,250" in said.stdout
    notices = [line for line in said.stderr.splitlines() if line.startswith("weights:")]
    assert notices == [
        "weights: derain-4step, 4 sampling steps (for --steps 4); "
        "derain: 1 sampling step, the same time"
    ]
    assert "warning" not in said.stderr


def test_restore_reports_the_default_weights_in_json(
    two: Path, image: Path, tmp_path: Path
) -> None:
    said = run("restore", image, tmp_path / "o.png", "--json", *CPU)
    assert said.exit_code == 0, said.output
    assert "weights:" not in said.stderr
    document = json.loads(said.stdout)
    assert (document["weights"], document["warnings"]) == (str(two / "derain.pt"), [])
    assert document["grid"] == [500]


@pytest.mark.usefixtures("two")
def test_restore_finds_weights_by_name_and_by_task(image: Path, tmp_path: Path) -> None:
    four = run("restore", image, tmp_path / "f.png", "--weights", "derain-4step", *CPU)
    assert four.exit_code == 0, four.output
    assert "weights:" not in four.stderr
    assert "4 sampling steps" in four.stdout
    task = run("restore", image, tmp_path / "t.png", "--task", "derain", *CPU)
    assert "weights: derain, 1 sampling step (the default)" in task.stderr
    assert "/s, 1 sampling step, timesteps 500" in task.stdout
    more = run("restore", image, tmp_path / "m.png", "--task", "derain", "--samples", "3", *CPU)
    assert "/s, 3 times 1 sampling step, timesteps 500" in more.stdout


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--task", "denoise"], 4, "there are no packaged weights for the task denoise"),
        (["--task", "denoise"], 4, "packaged: derain, derain-4step"),
        (["--task", "paint"], 2, f"--task must be {one_of(PACKAGED_TASKS)}, got 'paint'"),
        (
            ["--task", "derain", "--weights", "derain"],
            2,
            "--weights cannot be combined with --task",
        ),
        (["--weights", "derain-4stpe"], 4, "did you mean derain-4step?"),
    ],
)
@pytest.mark.usefixtures("two")
def test_restore_refuses_unknown_names_and_tasks(
    words: list[str], code: int, says: str, image: Path, tmp_path: Path
) -> None:
    said = run("restore", image, tmp_path / "out", *words)
    assert said.exit_code == code
    assert says in said.stderr
    assert not (tmp_path / "out").exists()


def test_a_damaged_installation_is_reported(two: Path, image: Path, tmp_path: Path) -> None:
    data = (two / "derain.pt").read_bytes()
    (two / "derain.pt").write_bytes(data[:-1] + b"!")
    said = run("restore", image, tmp_path / "out")
    assert said.exit_code == 4
    assert "SHA-256" in said.stderr
    assert "reinstall" in said.stderr
    assert not (tmp_path / "out").exists()


def test_a_file_of_the_same_name_does_not_shadow_packaged_weights(
    two: Path, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("derain").write_text("not weights")
    said = run("restore", image, "o.png", "--weights", "derain", *CPU)
    assert said.exit_code == 0, said.output
    assert "derain is packaged; for the file of this name, give ./derain" in said.stderr
    for command in (["info"], ["sweep-steps"], ["restore", image, "p.png", "--weights"]):
        words = run(*command, "./derain")
        assert words.exit_code == 4, command
        assert "not a checkpoint" in words.stderr
    told = run("info", "derain", "--json")
    assert (json.loads(told.stdout)["kind"], told.stderr) == ("checkpoint", "")
    assert "for the file of this name, give ./derain" in run("info", "derain").stderr
    assert (two / "derain.pt").is_file()


@pytest.mark.usefixtures("two")
def test_eval_finds_weights_by_name(
    shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("derain", "derain-4step"):
        Path(name).touch()  # about which --json says nothing
    words = ("--data", shard_folder, "--images", 1, *CPU)
    said = run("eval", "--weights", "derain-4step", "--against", "derain", "--json", *words)
    assert said.exit_code == 0, said.output
    assert "is packaged" not in said.stderr
    document = json.loads(said.stdout)
    assert "against" in document
    assert document["next"].startswith("c2fdft eval --weights derain-4step")


def test_a_sweep_of_packaged_weights_writes_nothing_into_the_package(
    two: Path, shard_folder: Path, tmp_path: Path
) -> None:
    words = ("sweep-steps", "derain-4step", "--data", shard_folder, "--steps", "1", "--images", 1)
    for more in ((), ("--no-stamp",), ("--out", tmp_path / "s")):
        refused = run(*words, *more, *CPU)
        assert refused.exit_code == 2
        assert "packaged weights cannot be written to" in refused.stderr
    said = run(*words, "--no-stamp", "--out", tmp_path / "s", *CPU)
    assert said.exit_code == 0, said.output
    assert (tmp_path / "s" / "sweep.json").is_file()
    assert {path.name for path in two.iterdir()} == {
        "catalogue.json", "derain.pt", "derain-4step.pt"}  # fmt: skip
    assert run("weights", "path", "derain-4step").exit_code == 0


@pytest.mark.usefixtures("two")
def test_training_starts_from_packaged_weights(shard_folder: Path, tmp_path: Path) -> None:
    coarse = [word for word in MINI if not word.startswith(("network", "sampling"))]
    words = ("--recipe", "tiny", "--data", shard_folder, "--out", tmp_path / "run", *CPU, "--json")
    said = run("train-coarse", "--init", "derain", *words, *coarse, "coarse.iterations=1")
    assert said.exit_code == 0, said.output
    assert load_checkpoint(tmp_path / "run" / "coarse.pt").meta.network.dim == 8
    wrong = run("train-fine", "--from", "derian", *words)
    assert wrong.exit_code == 4
    assert "did you mean derain?" in wrong.stderr


@pytest.mark.usefixtures("two")
def test_bench_finds_weights_by_name() -> None:
    words = ("--size", 16, "--repeats", 1, "--json", *CPU)
    by_name = json.loads(run("bench", "forward", "--weights", "derain", *words).stdout)
    larger = json.loads(run("bench", "forward", "--recipe", "tiny", *words).stdout)
    assert by_name["gmac"] < larger["gmac"]


@pytest.mark.parametrize("words", [(), ("derain",), ("paint", "a", "b"), ("derain", "a", "b")])
def test_the_script_prints_its_usage(words: tuple[str, ...]) -> None:
    done = subprocess.run([SCRIPT, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "recipes/scripts/train_weights.sh derain CLEAN_FOLDER STREAKS_FOLDER OUT" in done.stderr


RECORDER = """#!/bin/bash
# notes the command line, and makes the file that the script waits for
printf '%s\\037' "$@" >> "$NOTES"; echo >> "$NOTES"
words=("$@")
for ((i = 0; i < $#; i++)); do
  [ "${words[i]}" != --out ] || out=${words[i + 1]}
done
case $1 in
  train-coarse) mkdir -p "$out"; touch "$out/coarse.pt" ;;
  train-fine) mkdir -p "$out"; touch "$out/fine.pt" ;;
esac
"""


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., list[list[str]]]:
    """Return a function that runs the script with a program that only records its calls."""
    program = tmp_path / "bin" / "c2fdft"
    program.parent.mkdir()
    program.write_text(RECORDER)
    program.chmod(0o755)
    notes = tmp_path / "notes"

    def call(*words: object, **settings: str) -> list[list[str]]:
        notes.write_text("")
        path = f"{program.parent}:{os.environ['PATH']}"
        done = subprocess.run(
            [SCRIPT, *map(str, words)],
            env={**os.environ, "PATH": path, "NOTES": str(notes), **settings},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return [line.split("\x1f")[:-1] for line in notes.read_text().splitlines()]

    return call


def test_the_script_continues_where_it_stopped(
    script: Callable[..., list[list[str]]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    calls = script("derain", "clean", "streaks", out)
    names = [words[0] for words in calls]
    assert names == ["prepare", "train-coarse", "train-fine", "train-fine", "convert", "convert"]
    assert "data.streaks=streaks" in calls[1]
    assert "sampling.grid=[999,750,500,250]" in calls[3]
    (out / "four" / "fine.pt").unlink()
    (out / "four" / "state.pt").touch()
    again = script("derain", "clean", "streaks", out)
    assert again[1] == ["train-fine", "--resume", "--out", str(out / "four")]
    assert [words[0] for words in again] == ["prepare", "train-fine", "convert", "convert"]


@pytest.mark.acceptance
def test_the_script_trains_and_packages(
    script: Callable[..., list[list[str]]], tmp_path: Path
) -> None:
    (tmp_path / "clean").mkdir()
    for number in range(4):
        save_rgb8(tmp_path / "clean" / f"{number}.png", picture(40, 48, number))
    write_facts(tmp_path / "denoise.json", task="denoise")
    coarse = [word for word in MINI if " " not in word and not word.startswith("sampling")]
    settings = {
        "COARSE": " ".join([*coarse, "coarse.iterations=1"]),
        "FAST": "fine.iterations=1",
        "FOUR": "fine.iterations=1",
    }
    calls = script("denoise", tmp_path / "clean", tmp_path / "out", **settings)
    for stage, name in (("coarse", "coarse.pt"), ("fast", "fine.pt"), ("four", "fine.pt")):
        (tmp_path / "out" / stage / name).unlink()
        (tmp_path / "out" / stage).rmdir()
    for words in calls:
        said = run(*words, *(CPU if words[0].startswith("train") else ()))
        assert said.exit_code == 0, (words, said.output)
    packed = tmp_path / "out" / "denoise.pt"
    add_entry("denoise", packed, tmp_path / "denoise.json", tmp_path / "into")
    catalogue = json.loads((tmp_path / "into" / "catalogue.json").read_text())
    assert list(catalogue["weights"]) == ["denoise"]
    assert catalogue["weights"]["denoise"]["grid"] == [500]
    four = load_checkpoint(tmp_path / "out" / "denoise-4step.pt")
    assert four.meta.grid == [999, 750, 500, 250]


def test_weights_are_averaged(
    two: Path, tiny_net: Callable[..., DFT], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("derain").touch()
    other = write_packed(tmp_path / "other.pt", tiny_net(), [500])
    out = tmp_path / "mean.pt"
    said = run("weights", "average", "derain", other, "--out", out, "--shares", "3,1")
    assert said.exit_code == 0, said.output
    text = " ".join(said.stdout.split())
    for word in ("0.750 of", "0.250 of", "written:", f"next: c2fdft eval --weights {out} SET"):
        assert word in text, word
    assert load_checkpoint(out).timesteps() == [500]
    assert "note: --shares add up to 4; each was divided by that" in said.stderr
    assert "derain is packaged; for the file of this name, give ./derain" in said.stderr
    again = run("weights", "average", "derain", other, "--out", out)
    assert again.exit_code == 2
    assert "already exists" in again.stderr
    facts = run("weights", "average", "derain", other, "--out", out, "--overwrite", "--json")
    document = json.loads(facts.stdout)
    assert facts.stderr == ""
    assert list(document["sources"].values()) == [0.5, 0.5]
    assert (document["out"], document["bytes"]) == (str(out), out.stat().st_size)
    assert document["next"] == f"c2fdft eval --weights {out} SET"
    wrong = run("weights", "average", "derain", "derain-4step", "--out", tmp_path / "no.pt")
    assert wrong.exit_code == 4
    assert "it differs in its timesteps from" in wrong.stderr
    exact = ("--out", tmp_path / "exact.pt", "--shares", "0.7,0.2,0.1")
    assert "note:" not in run("weights", "average", "derain", other, other, *exact).stderr
    unknown = run("weights", "average", "derain", "derian", "--out", tmp_path / "no.pt")
    assert unknown.exit_code == 4
    assert "did you mean derain?" in unknown.stderr


FINE = [word for word in MINI if word.startswith(("fine.p", "fine.b", "fine.ssim", "train.micro"))]
SHORTER = """
import re, sys
from c2fdft_cli.__main__ import main

words = [re.sub(r"(iterations=|length: )[0-9]+", r"\\g<1>20", word) for word in sys.argv[1:]]
if "--max-time" in words:
    at = words.index("--max-time")
    del words[at : at + 2]
sys.argv[1:] = words
main()
"""
"""The program, except that trainings end after 20 iterations, however fast the machine is."""


@pytest.mark.acceptance
@pytest.mark.parametrize("kind", ["pairs", "noise"])
def test_a_training_for_a_number_of_minutes(
    kind: str, pair_folder: Path, tmp_path: Path, tiny_net: Callable[..., DFT]
) -> None:
    (tmp_path / "c2fdft.py").write_text(SHORTER)
    program = f"{sys.executable} {tmp_path / 'c2fdft.py'}"
    settings = {"C2FDFT": program, "DEVICE": "cpu", "VAL": "1", "PYTHONPATH": str(ROOT)}
    start = write_packed(tmp_path / "start.pt", tiny_net(), [500])
    data, out, recipe = tmp_path / "data", tmp_path / "out", "tiny"
    shutil.copytree(pair_folder, data)
    if kind == "noise":
        recipe = "denoise-small"
        shutil.copytree(data / "train" / "clean", data / "clean")

    def script() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [ON_GPU, "short", start, recipe, "1", data, out, *FINE, "fine.switch_every=3"],
            env={**os.environ, **settings}, capture_output=True, text=True, check=False,
        )  # fmt: skip

    done = script()
    assert done.returncode == 0, done.stderr
    (planned,) = re.findall(r"short: (\d+) iterations in", done.stdout)
    assert int(planned) >= 10
    trained = load_checkpoint(out / "short.pt")
    assert (trained.meta.stage, trained.meta.step, trained.meta.grid) == ("fine", 20, [500])
    assert (out / "short.csv").read_text().startswith("iteration,")
    assert (data / f"shards-{kind}" / "shards.json").is_file()
    assert sorted(path.name for path in out.iterdir()) == ["short-run", "short.csv", "short.pt"]
    again = script()
    assert again.returncode == 2
    assert "short-run already exists: choose another NAME" in again.stderr


def test_the_timed_script_prints_its_usage() -> None:
    done = subprocess.run([ON_GPU, "derain"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "train_on_gpu.sh NAME FROM RECIPE MINUTES DATA OUT" in done.stderr
