"""`c2fdft eval`: its output, JSON and exit codes."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from c2fdft_cli.data.images.picture import save_rgb8
from c2fdft_cli.engine.evaluate import rows
from tests.kit.command import run as run_command
from tests.kit.formula import photo
from tests.kit.images import damage_pixels
from tests.kit.weights import write_random

run = partial(run_command, "eval")


def fill(folder: Path, strength: int, count: int = 3) -> Path:
    folder.mkdir(parents=True)
    for k in range(count):
        save_rgb8(folder / f"{k}.png", photo(k, strength=strength))
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return fill(tmp_path / "out", 10), fill(tmp_path / "target", 0)


@pytest.fixture
def weights(shard_folder: Path, tmp_path: Path) -> Path:
    return write_random(tmp_path / "fine.pt", stage="fine", grid=[999], data=shard_folder)


def test_rows_statistics_and_protocol_are_printed(folders: tuple[Path, Path]) -> None:
    (folders[1] / "extra.png").write_bytes((folders[1] / "0.png").read_bytes())
    refused = run(*folders, "--protocol", "derain", "--border", 1)
    assert refused.exit_code == 6
    assert ", border of 1 px skipped\n" in refused.stdout
    assert "mean (3 of 4)" in refused.stdout
    assert "scored 3 of 4: the set is incomplete" in refused.stderr
    assert "next:" not in refused.stdout
    assert json.loads(run(*folders, "--json").stdout)["expected"] == 4
    result = run(*folders, "--protocol", "derain", "--allow-missing")
    assert result.exit_code == 0, result.output
    for text in ("PSNR", "SSIM", "mean", "median", "std", "lowest PSNR: 2, 1, 0"):
        assert text in result.stdout
    assert result.stdout.startswith("protocol derain (as requested): Y channel")
    assert "not restored: " in result.stdout
    assert "extra.png" in result.stdout.replace("\n", "")
    assert "next: c2fdft eval" in result.stdout


def test_of_many_images_the_worst_are_printed(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "MAX_ROWS", 2)
    monkeypatch.setattr(rows, "FEW", 1)
    for folder in folders:
        for k in range(3):
            path = folder / f"set{k}" / f"{k}.png"
            path.parent.mkdir()
            (folder / f"{k}.png").rename(path)
    result = run(*folders, "--csv", tmp_path / "a.csv")
    assert result.exit_code == 0, result.output
    start, between, end = re.split("(and 2 more.*)", result.stdout)
    assert "the 1 images with the lowest PSNR" in start
    assert re.findall(r"set\d/\d", start) == ["set2/2"]
    assert between == (
        "and 2 more images with higher scores: --csv FILE writes all, --json prints them"
    )
    assert re.findall("mean|median|std|all 3 images", end.partition("lowest PSNR")[0]) == [
        "all 3 images", "mean", "median", "std", "mean"
    ]  # fmt: skip
    assert "the images are in 3 sets: --json prints the means of each" in end
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 4
    alone = run(folders[0], "--no-reference", "--metrics", "total_variation").stdout
    assert "the 1 images with the highest TOTAL_VARIATION" in alone
    assert "and 2 more images with lower scores" in alone


def test_json_has_the_documented_keys(folders: tuple[Path, Path]) -> None:
    save_rgb8(folders[0] / "1.png", photo(1))
    result = run(*folders, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["protocol"] == "rgb"
    assert facts["protocol_chosen_by"] == "the default; --protocol chooses another"
    assert set(facts["mean"]) == {"psnr", "ssim"}
    assert facts["mean"]["psnr"] is None
    assert [set(row) for row in facts["images"]] == [{"name", "psnr", "ssim"}] * 3
    assert facts["images"][1]["psnr"] is None
    assert facts["missing"] == {"target": [], "restored": [], "unreadable": []}


def test_weights_on_shards(weights: Path, shard_folder: Path) -> None:
    words = ("--weights", weights, "--device", "cpu", "--precision", "fp32")
    result = run(*words, "--data", shard_folder, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert len(facts["images"]) == 2
    assert facts["protocol_chosen_by"] == "the weights' recipe"
    assert facts["degraded"]["mean"]["psnr"] > 0
    assert facts["notes"] == ["timesteps: 999 (1 sampling step)"]
    spoken = run(*words, "--seeds", "2", "--images", "1", "--against", weights)
    assert spoken.exit_code == 0, spoken.output
    assert "over the seeds" in spoken.stdout
    assert "A wins 0, B 0, ties 1" in spoken.stdout
    assert f"A is {weights}, B is {weights}" in spoken.stdout.replace("\n", "")
    assert f"--against {weights} --report report" in spoken.stdout
    assert "eval A: 1/1 images" in spoken.stderr
    assert "eval B: 1/1 images" in spoken.stderr


def test_the_notes_of_both_weights_are_printed(
    weights: Path, shard_folder: Path, tmp_path: Path
) -> None:
    other = write_random(tmp_path / "b.pt", protocol="derain", stage="fine", grid=[500])
    words = ("--weights", weights, "--device", "cpu", "--precision", "fp32", "--against", other)
    result = run(*words, "--grid", "999")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert "timesteps: 999 (1 sampling step)" in lines
    assert "B: timesteps: 999 (1 sampling step)" in lines
    assert "B: note: scored with A's protocol, rgb, not its own, derain" in lines
    assert "B: note: these fine weights were trained at other timesteps: 500" in lines
    facts = json.loads(run(*words, "--json").stdout)
    assert facts["against"]["notes"][0] == "timesteps: 500 (1 sampling step)"


def test_an_incomplete_b_is_named(folders: tuple[Path, Path], tmp_path: Path) -> None:
    other = fill(tmp_path / "b", 20, count=2)
    result = run(*folders, "--against", other)
    assert result.exit_code == 6
    said = f"error: B ({other}): scored 2 of 3: the set is incomplete"
    assert said in result.stderr.replace("\n", "")
    assert f"B: not restored: {folders[1] / '2.png'}" in result.stdout.replace("\n", "")
    facts = json.loads(run(*folders, "--against", other, "--allow-missing", "--json").stdout)
    assert facts["against"]["missing"]["restored"] == [str(folders[1] / "2.png")]


def test_two_incomplete_sides_are_both_named(folders: tuple[Path, Path], tmp_path: Path) -> None:
    other = fill(tmp_path / "b", 20, count=2)
    damage_pixels(other / "1.png")
    (folders[0] / "2.png").unlink()
    result = run(*folders, "--against", other)
    assert result.exit_code == 6
    said = result.stderr.replace("\n", "")
    assert "error: both sides of the comparison are incomplete" in said
    assert "A: scored 2 of 3: the set is incomplete" in said
    assert f"B ({other}): scored 1 of 3: the set is incomplete" in said
    assert f"{other / '1.png'}: cannot read the image" in said
    assert f"B: not scored: {other / '1.png'}: cannot" in result.stdout.replace("\n", "")


def test_weights_on_noisy_images(weights: Path, folders: tuple[Path, Path]) -> None:
    words = ("--weights", weights, "--device", "cpu", "--precision", "fp32", "--sigma", "25.0625")
    result = run(folders[1], *words, "--seed", "3")
    assert result.exit_code == 0, result.output
    assert "Gaussian noise of sigma 25.0625 (seed 3, floats, unclipped)" in result.stdout
    weighted = f"c2fdft eval {folders[1]} --weights {weights} --sigma 25.0625 --device cpu"
    assert f"{weighted} --precision fp32 --seed 3 --report" in result.stdout.replace("\n", "")
    result = run(folders[1], *words, "--json")
    assert json.loads(result.stdout)["degraded"]["mean"]["psnr"] == pytest.approx(20.2, abs=0.3)


def test_a_set_with_missing_partners_ends_with_exit_6(weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    fill(folder / "input", 10)
    (fill(folder / "target", 0) / "2.png").unlink()
    words = (folder, "--weights", weights, "--device", "cpu", "--precision", "fp32")
    result = run(*words)
    assert result.exit_code == 6, result.output
    assert "mean (2 of 3)" in result.stdout
    assert f"no target: {folder / 'input' / '2.png'}" in result.stdout.replace("\n", "")
    allowed = run(*words, "--allow-missing", "--json")
    assert allowed.exit_code == 0
    facts = json.loads(allowed.stdout)
    assert (facts["scored"], facts["expected"]) == (2, 3)
    assert facts["missing"]["target"] == [str(folder / "input" / "2.png")]


def test_requested_files_are_written(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/home/me/bin/c2fdft", "eval", "here"])
    other = fill(tmp_path / "b", 20)
    words = ("--metrics", "gmsd", "--csv", tmp_path / "rows.csv", "--report", tmp_path / "page")
    result = run(*folders, *words, "--against", other, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["against"]["difference"]["psnr"]["wins"] == 3
    assert "gmsd" in facts["mean"]
    rows = [(row["name"], row["name_b"]) for row in facts["against"]["images"]]
    assert rows == [("0", "0"), ("1", "1"), ("2", "2")]
    assert set(facts["against"]["images"][0]["b"]) == {"psnr", "ssim", "gmsd"}
    page = Path(__file__).parents[3] / "docs" / "reference" / "files.md"
    told = page.read_text().partition("the key `against` holds:")[2].partition("\n## ")[0]
    against = facts["against"]
    keys = [against, against["images"][0], against["difference"]["psnr"]]
    assert [key for one in keys for key in one if f"`{key}`" not in told] == []
    assert facts["next"] is None
    header = (tmp_path / "rows.csv").read_text().splitlines()[0]
    assert header == "name,psnr,ssim,gmsd,protocol,b_psnr,b_ssim,b_gmsd"
    page = (tmp_path / "page" / "index.html").read_text()
    assert all(page.count(f'"name": "{k}"') for k in range(3))
    assert "c2fdft eval here" in page
    assert "/home/me" not in page
    shown = run(*folders, "--report", tmp_path / "page", "--overwrite")
    assert "size of the page" not in shown.stdout  # below 1 MiB
    again = run(*folders, "--csv", tmp_path / "rows.csv")
    assert again.exit_code == 2
    assert "use --overwrite" in again.stderr
    replaced = run(*folders, "--csv", tmp_path / "rows.csv", "--overwrite")
    assert replaced.exit_code == 0
    assert f"written: {tmp_path}/rows.csv\n" in replaced.stdout


def test_the_next_command_scores_the_same(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With folder names that a shell or the command line would misread without quoting."""
    monkeypatch.chdir(tmp_path)
    out, target = folders[0].rename("-out"), folders[1].rename("my target")
    degraded = fill(tmp_path / "b", 20)
    options = ("--degraded", degraded, "--border", 2, "--metrics", "gmsd,haarpsi",
               "--protocol", "derain", "--against", degraded, "--allow-missing",
               "--csv", "a.csv", "--json")  # fmt: skip
    first = json.loads(run(*options, "--", out, target).stdout)
    words = shlex.split(first["next"])
    assert words[:4] == ["c2fdft", "eval", "./-out", "my target"]
    assert words[-2:] == ["--report", "report"]
    again = json.loads(run(*words[2:], "--json").stdout)
    assert again.pop("written") != first.pop("written")
    assert (again.pop("next"), first.pop("next") is None) == (None, False)
    assert again == first


def test_the_next_command_for_weights_has_their_options(weights: Path, shard_folder: Path) -> None:
    options = ["--weights", str(weights), "--data", str(shard_folder), "--images", "1",
               "--seeds", "2", "--grid", "900,300", "--device", "cpu", "--precision", "fp32",
               "--seed", "5", "--border", "1"]  # fmt: skip
    following = json.loads(run(*options, "--json").stdout)["next"]
    assert following == " ".join(["c2fdft eval", *options, "--report report"])


def test_names_that_are_not_utf8_have_rows(folders: tuple[Path, Path], tmp_path: Path) -> None:
    for folder in folders:
        (folder / "0.png").rename(folder / os.fsdecode(b"caf\xe9.png"))
    result = run(*folders, "--csv", tmp_path / "rows.csv")
    assert result.exit_code == 0, result.output
    assert b"\ncaf\xe9," in (tmp_path / "rows.csv").read_bytes()


@pytest.mark.parametrize("name", ["index.html", "eval.json"])
def test_the_files_of_a_report_are_replaced_only_if_requested(
    folders: tuple[Path, Path], tmp_path: Path, name: str
) -> None:
    mine = tmp_path / "page" / name
    mine.parent.mkdir()
    mine.write_text("mine")
    refused = run(*folders, "--report", mine.parent)
    assert (refused.exit_code, mine.read_text()) == (2, "mine")
    assert f"{name} already exists" in refused.stderr
    assert run(*folders, "--report", mine.parent, "--overwrite").exit_code == 0
    assert mine.read_text() != "mine"


@pytest.fixture
def sidd(tmp_path: Path) -> Path:
    io = pytest.importorskip("scipy.io")
    folder = tmp_path / "sidd"
    folder.mkdir()
    for side, strength in (("Noisy", 9), ("Gt", 0)):
        name = f"Validation{side}BlocksSrgb"
        blocks = np.stack([photo(k, strength=strength) for k in range(2)])[:, None]
        io.savemat(folder / f"{name}.mat", {name: blocks})
    return folder


def test_sidd_blocks_are_scored(sidd: Path, weights: Path, tmp_path: Path) -> None:
    result = run(sidd)
    assert result.exit_code == 0, result.output
    assert "scene-02_block-01" in result.stdout
    assert "protocol denoise" in result.stdout
    assert f"next: c2fdft eval {sidd} --report report" in result.stdout
    words = ("--weights", weights, "--device", "cpu", "--precision", "fp32", "--json")
    for source in ((sidd,), ("--data", sidd)):
        facts = json.loads(run(*source, *words, "--images", "1").stdout)
        assert [row["name"] for row in facts["images"]] == ["scene-01_block-01"]
        assert facts["degraded"]["mean"]["psnr"] > 0
        assert facts["next"].endswith("--report report")
    (tmp_path / "clean").mkdir()
    (sidd / "ValidationGtBlocksSrgb.mat").rename(tmp_path / "clean" / "ValidationGtBlocksSrgb.mat")
    elsewhere = run(sidd / "ValidationNoisyBlocksSrgb.mat", tmp_path / "clean")
    assert elsewhere.stdout.splitlines()[:-1] == result.stdout.splitlines()[:-1]
    restored = run(sidd, tmp_path / "clean", *words, "--images", "1")
    assert json.loads(restored.stdout)["mean"] == facts["mean"]
    lost = run(sidd)
    assert lost.exit_code == 3
    assert "no ValidationGtBlocksSrgb.mat in the folder" in lost.stderr
    assert run(sidd, "--degraded", sidd).exit_code == 2


def test_the_suggested_report_folder_does_not_exist_yet(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for taken in ("report", "report-2"):
        Path(taken).mkdir()
    assert run(*folders).stdout.rstrip().endswith("--report report-3")


def test_photos_without_targets_are_scored(folders: tuple[Path, Path]) -> None:
    out, target = folders
    result = run(out, "--no-reference")
    assert result.exit_code == 0, result.output
    assert "PSNR" not in result.stdout
    assert "noise_sigma: noise, lower is less noise, 0 up, 8-bit levels" in result.stdout
    assert f"next: c2fdft eval {out} --no-reference --report report" in result.stdout
    words = ("--no-reference", "--metrics", "noise_sigma", "--against", target, "--json")
    facts = json.loads(run(out, *words).stdout)
    assert list(facts["mean"]) == list(facts["against"]["difference"]) == ["noise_sigma"]


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ([], 2, "there is nothing to score"),
        (["{out}"], 2, "there is nothing to score"),
        (["{out}", "{target}", "--weights", "x.pt"], 2, "--weights"),
        (["{out}", "{target}", "--protocol", "best"], 2, "--protocol must be"),
        (["{out}", "{target}", "--metrics", "niqe"], 2, "--metrics niqe: no such metric"),
        (["{out}", "{target}", "--border", "8"], 3, "3 of 3 pairs cannot be scored"),
        (["{out}", "nowhere"], 3, "nowhere: no such file or folder"),
        (["{out}", "{target}", "--degraded", "nowhere"], 3, "nowhere: no such file or folder"),
        (["--weights", "nowhere.pt"], 4, "no such checkpoint"),
        (["{out}", "--weights", "derain-fast"], 3, "no pairs"),
        (
            ["{out}", "--weights", "derain-fast", "--sigma", "300"],
            2,
            "--sigma must be in (0, 255], got 300",
        ),
        (["nowhere", "--weights", "derain-fast", "--sigma", "25"], 3, "nowhere"),
        (["{out}", "--weights", "derain-fast", "--data", "s"], 2, "--data cannot be combined"),
        (["{out}", "{target}", "--sigma", "25"], 2, "--sigma needs --weights"),
        (["{out}", "{target}", "--data", "shards"], 2, "--data needs --weights"),
        (["--weights", "derain-fast", "--sigma", "25"], 2, "--sigma needs --weights"),
        (["{out}", "{target}", "--no-reference"], 2, "one folder or image and no target"),
        (["--pairs", "{out}", "{out}", "{target}"], 2, "--pairs cannot be combined with TARGET"),
        (["--pairs", "{out}", "--no-reference"], 2, "cannot be combined with --no-reference"),
        (["--pairs", "{out}", "--weights", "derain-fast", "--data", "s"], 2, "with --data"),
        (["--pairs", "{out}", "--weights", "derain-fast", "--sigma", "9"], 2, "with --sigma"),
        (
            ["--pairs", "{out}", "--weights", "derain-fast", "--degraded", "{out}"],
            2,
            "--pairs cannot be combined with --degraded and --weights",
        ),
        (["--pairs", "nowhere.csv"], 3, "nowhere.csv: no such file or folder"),
        (["--pairs", "{out}"], 3, "cannot read"),
        (["--pairs", "{out}/0.png"], 3, "0.png"),
        (["{out}", "--no-reference", "--protocol", "rgb"], 2, "--protocol cannot be combined"),
        (["{out}", "--no-reference", "--metrics", "fsim"], 2, "--metrics fsim cannot be combined"),
        (["nowhere", "nowhere2", "--seeds", "2"], 2, "--seeds"),  # usage errors come first
        (["nowhere.mat", "{target}"], 3, "nowhere.mat: no such file or folder"),
        (["{out}", "{target}", "--csv", "{out}/0.png/a.csv"], 5, "regular file"),
        (["{out}", "{target}", "--csv", "{target}/0.png", "--overwrite"], 2, "name of an image"),
        (["--weights", "derain-fast", "--data", "s", "--csv", "s/val-00000.h5"], 2, "shard"),
        (["{out}", "--weights", "derain-fast", "--csv", "{out}/Noisy.mat"], 2, "SIDD blocks"),
        (["{out}", "{target}", "--report", "r", "--csv", "r/../r/eval.json"], 2, "of --report"),
    ],
)
def test_errors_and_their_exit_codes(
    folders: tuple[Path, Path], words: list[str], code: int, text: str
) -> None:
    out, target = folders
    result = run(*(word.format(out=out, target=target) for word in words))
    assert result.exit_code == code, result.output
    assert text in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error")]
    assert len(errors) == 1


def test_a_list_pairs_results_of_any_names(folders: tuple[Path, Path]) -> None:
    out, _ = folders
    for k in range(2):
        (out / f"{k}.png").rename(out / f"result-{k}.png")
    plain = out.parent / "plain.csv"
    plain.write_text("result-0.png,../target/0.png\nresult-1.png,../target/1.png\n")
    result = run("--pairs", plain, out, "--json")
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    with_degraded = json.loads(run("--pairs", plain, out, "--degraded", out, "--json").stdout)
    assert with_degraded["degraded"]["mean"] == facts["mean"]
    assert [row["name"] for row in facts["images"]] == ["result-0", "result-1"]
    assert facts["images"][0]["psnr"] > facts["images"][1]["psnr"]
    assert shlex.split(facts["next"])[2:-2] == [str(out), "--pairs", str(plain)]
    other = out.parent / "other.csv"
    other.write_text("target,restored,name\ntarget/0.png,out/result-1.png,result-0\n")
    against = run("--pairs", plain, out, "--against", other)
    assert against.exit_code == 0, against.stderr
    assert f"A is {plain}, B is {other}" in against.stdout.replace("\n", "")
    assert "A wins 1, B 0, ties 0" in against.stdout


def test_weights_restore_the_pairs_of_a_list(folders: tuple[Path, Path], weights: Path) -> None:
    rows = folders[0].parent / "pairs.csv"
    rows.write_text("out/0.png,target/0.png,first\nout/1.png,target/1.png\n")
    result = run("--pairs", rows, "--weights", weights, "--images", "1", "--json")
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    assert [row["name"] for row in facts["images"]] == ["first"]
    assert facts["degraded"]["mean"]["psnr"] > 15


def test_a_refused_command_leaves_no_folders(tmp_path: Path) -> None:
    result = run("--report", tmp_path / "report" / "x", "--csv", tmp_path / "csv" / "x.csv")
    assert result.exit_code == 2
    assert "there is nothing to score" in result.stderr
    assert not list(tmp_path.iterdir())


def test_one_bad_pair_gives_no_mean(folders: tuple[Path, Path]) -> None:
    (folders[0] / "1.png").write_text("text")
    result = run(*folders)
    assert result.exit_code == 3
    assert "1.png: cannot read the image" in result.stderr.replace("\n", "")
    assert "mean" not in result.stdout


@pytest.mark.parametrize(
    "words", [("--images", "1"), ("--seed", "1"), ("--seeds", "3"), ("--grid", "999")]
)
def test_options_of_weights_need_weights(
    folders: tuple[Path, Path], words: tuple[str, str]
) -> None:
    result = run(*folders, *words)
    assert result.exit_code == 2
    assert f"{words[0]} needs --weights" in result.stderr


def test_a_self_ensemble_is_scored(
    weights: Path, shard_folder: Path, folders: tuple[Path, Path]
) -> None:
    words = ("--weights", weights, "--device", "cpu", "--precision", "fp32", "--data", shard_folder)
    plain, averaged = (run(*words, "--json", *more) for more in ([], ["--self-ensemble"]))
    assert averaged.exit_code == 0, averaged.output
    plain_facts, facts = json.loads(plain.stdout), json.loads(averaged.stdout)
    assert "averaged over 4 flips and rotations" in facts["notes"]
    assert "averaged over 4 flips and rotations" not in plain_facts["notes"]
    assert facts["mean"]["psnr"] != plain_facts["mean"]["psnr"]
    refused = run(*folders, "--self-ensemble")
    assert refused.exit_code == 2
    assert "--self-ensemble needs --weights" in refused.stderr


def test_an_empty_second_argument_is_not_the_current_folder(folders: tuple[Path, Path]) -> None:
    result = run(*folders, "--against", "")
    assert result.exit_code == 2
    assert "--against is empty" in result.stderr


@pytest.mark.acceptance
def test_the_benchmark_script_scores_sets_of_any_layout(weights: Path, tmp_path: Path) -> None:
    fill(tmp_path / "Rain100L" / "rainy_image", 10)
    fill(tmp_path / "Rain100L" / "ground_truth", 0)
    program = tmp_path / "bin" / "c2fdft"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m c2fdft_cli "$@" --device cpu\n')
    program.chmod(0o755)
    script = Path(__file__).parents[3] / "recipes" / "scripts" / "benchmark.sh"
    env = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "NAME": "ours"}
    words = [str(script), str(weights), str(tmp_path / "Rain100L")]
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    header, _, *rows = done.stdout.splitlines()
    assert header == "| derain (PSNR/SSIM) | Rain100L (3) | average |"
    assert rows[-1].startswith("| ours | ")
    assert rows[-2].startswith("| the inputs | ")
    assert any(row == "| Restormer | 38.99/.978 | - |" for row in rows)
    assert (tmp_path / "benchmark" / "table.md").read_text() == done.stdout


@pytest.mark.parametrize(
    ("words", "replaced"),
    [
        ("--pairs pairs.csv --csv pairs.csv", "pairs.csv"),
        ("--pairs other.csv --against pairs.csv --csv pairs.csv", "pairs.csv"),
        ("out --weights fine.pt --csv ./fine.pt", "fine.pt"),
        ("out --weights derain-fast --against fine.pt --csv fine.pt", "fine.pt"),
        ("--weights derain-fast --data fine.pt --csv fine.pt", "fine.pt"),
        ("--pairs index.html --report .", "index.html"),
        ("out --weights eval.json --report .", "eval.json"),
    ],
)
def test_the_outputs_do_not_replace_an_input(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, words: str, replaced: str
) -> None:
    monkeypatch.chdir(folders[0].parent)
    for name in ("other.csv", replaced):
        Path(name).write_text("lq,gt\nout/0.png,target/0.png\n")
    result = run(*words.split(), "--overwrite")
    assert result.exit_code == 2
    assert f"{replaced}: this file would replace an input" in result.stderr
    assert Path(replaced).read_text().startswith("lq,gt")
