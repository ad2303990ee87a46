"""`c2fdft sweep-steps`: its output, JSON and exit codes."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import pytest

from c2fdft_cli.engine.weights.checkpoint import (
    load_checkpoint,
)
from tests.kit.command import run as run_command
from tests.kit.weights import write_random

QUICK = ("--device", "cpu", "--precision", "fp32", "--images", "1")


run = partial(run_command, "sweep-steps")


def weights(path: Path, stage: str, data: Path | None, grid: list[int] | None = None) -> Path:
    return write_random(path, seed=1, stage=stage, data=data, grid=grid)


@pytest.fixture
def coarse(shard_folder: Path, tmp_path: Path) -> Path:
    return weights(tmp_path / "coarse.pt", "coarse", shard_folder)


def test_table_choice_and_next_command_are_printed(coarse: Path) -> None:
    result = run(coarse, "--steps", "3,6", *QUICK)
    assert result.exit_code == 0, result.output
    said = " ".join(result.stdout.split())  # a title is as wide as its table
    for text in ("steps", "first t", "PSNR", "SSIM", "s / image", "999 500 0", "protocol rgb"):
        assert text in said
    assert " 999 799 ... 0 " in result.stdout
    assert "fewest sampling steps within 0.2 dB of the best PSNR" in " ".join(result.stdout.split())
    assert "highest PSNR: " in result.stdout
    assert "network evaluations: 12" in result.stdout
    assert f"timesteps stored in {coarse}\n" in result.stdout
    assert f"next: c2fdft train-fine --from {coarse}" in result.stdout.replace("\n", " ")
    assert load_checkpoint(coarse).meta.grid_from == "sweep"
    assert {path.name for path in coarse.parent.glob("sweep.*")} >= {"sweep.json", "sweep.csv"}


def test_json_is_one_document(coarse: Path, tmp_path: Path) -> None:
    words = ("--spacing", "linspace,trailing", "--grid", "900,400", "--choose", "psnr")
    result = run(coarse, "--steps", "2", *words, "--out", tmp_path / "o", "--json", *QUICK)
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    one_step = {(300,), (500,), (700,)}
    grids = {tuple(row["grid"]) for row in facts["rows"]}
    assert grids == {(999, 0), (999, 499), (900, 400)} | one_step
    assert facts["rule"] == "the best PSNR"
    assert facts["steps"] == len(facts["grid"])
    assert sum(row["chosen"] for row in facts["rows"]) == 1
    assert {"first_t", "seconds", "pareto", "psnr", "ssim"} <= set(facts["rows"][0])
    assert facts["stamped"] is True
    assert facts["data"] == load_checkpoint(coarse).meta.data
    assert facts["calls"] == {"spent": 9}
    assert facts["next"] == f"c2fdft train-fine --from {coarse}"


def test_named_shards_are_in_the_next_command(coarse: Path, shard_folder: Path) -> None:
    facts = json.loads(run(coarse, "--steps", "1", "--data", shard_folder, "--json", *QUICK).stdout)
    assert facts["next"] == f"c2fdft train-fine --from {coarse} --data {shard_folder}"


def test_with_no_stamp_the_timesteps_are_in_the_next_command(coarse: Path) -> None:
    facts = json.loads(run(coarse, "--steps", "2", "--no-stamp", "--json", *QUICK).stdout)
    assert facts["stamped"] is False
    times = ",".join(map(str, facts["grid"]))
    assert facts["next"].endswith(f"'sampling.grid=[{times}]'")
    assert load_checkpoint(coarse).meta.grid is None


def test_the_next_command_for_fine_weights_is_restore(shard_folder: Path, tmp_path: Path) -> None:
    fine = weights(tmp_path / "fine.pt", "fine", shard_folder, [999, 500])
    words = ("--steps", "1", "--choose", "within:99dB", "--seeds", "2", "--no-stamp")
    result = run(fine, *words, *QUICK)
    assert result.exit_code == 0, result.output
    assert "trained at other timesteps: 999, 500" in result.stderr
    assert "+/-" in result.stdout
    (times,) = re.findall(r"^chosen: 1 step at (\d+),", result.stdout, re.MULTILINE)
    following = f"next: c2fdft restore IN OUT --weights {fine} --grid {times}\n"
    assert result.stdout.endswith(following)


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--steps", "0"], 2, "--steps"),
        (["--spacing", "cosine"], 2, "--spacing must be"),
        (["--grid", "1,2"], 2, "must descend"),
        (["--start", "1000"], 2, "timesteps must be 0 to 999"),
        (["--choose", "best"], 2, "--choose must be"),
        (["--protocol", "best"], 2, "--protocol must be"),
        (["--device", "tpu"], 2, "--device must be"),
        (["--data", "nowhere"], 3, "nowhere: no such folder of shards"),
    ],
)
def test_errors_and_their_exit_codes(coarse: Path, words: list[str], code: int, text: str) -> None:
    result = run(coarse, *words)
    assert result.exit_code == code
    assert text in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error")]
    assert len(errors) == 1


def test_a_file_that_is_not_a_checkpoint_is_refused(tmp_path: Path) -> None:
    assert run(tmp_path / "no.pt").exit_code == 4
    (tmp_path / "text.pt").write_text("x")
    result = run(tmp_path / "text.pt")
    assert result.exit_code == 4
    assert "not a checkpoint of c2fdft" in result.stderr


def test_an_output_inside_a_file_is_refused(coarse: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    result = run(coarse, "--out", tmp_path / "file" / "o", *QUICK)
    assert result.exit_code == 5
    assert "is a regular file" in result.stderr
