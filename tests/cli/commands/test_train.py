"""`c2fdft train-coarse` and `c2fdft train-fine`: their options, and the plan of a dry run."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path

import pytest

from c2fdft_cli.engine.train import dry_run
from c2fdft_cli.engine.train.dry_run import SizeEstimate, TrainingEstimate
from tests.kit.command import refused, run
from tests.kit.training import MINI


def test_a_dry_run_prints_its_estimate(
    shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def estimate(*_: object) -> Generator[SizeEstimate, None, TrainingEstimate]:
        sizes = [
            SizeEstimate(16, 4, 2, 600, 3 << 20, 24.0, 1),
            SizeEstimate(24, 2, 1, 300, 5 << 20, 12.0, 0),
        ]
        yield from sizes
        return TrainingEstimate("cpu", "fp32", 900, 5.0, 7 << 20, sizes, ["a notice"])

    monkeypatch.setattr(dry_run, "_estimate", estimate)
    monkeypatch.setenv("COLUMNS", "200")
    words = ("train-coarse", "--recipe", "tiny", "--data", shard_folder, "--device", "cpu")
    words = (*words, "--precision", "fp32", "--out", tmp_path / "run", *MINI, "--dry-run")
    said = run(*words)
    rows = [
        [cell.strip() for cell in line.split("\u2502")[1:-1]]
        for line in said.stdout.splitlines()
        if line.startswith("\u2502")
    ]
    assert rows == [
        ["16", "4", "2", "600", "24", "4.0 hours", "3.0 MiB"],
        ["24", "2", "1", "300", "12", "60 minutes", "5.0 MiB"],
    ]
    assert said.stdout.splitlines()[-3:] == [
        "total: 900 iterations, about 5.0 hours",
        "estimated from steps with fewer images than a batch has",
        "disk: 7.0 MiB for checkpoints and state",
    ]
    assert "dry run: times some steps" in said.stderr
    assert "note: a notice\n" in said.stderr
    said = run(*words, "--json")
    document = json.loads(said.stdout)
    assert (document["hours"], document["notices"]) == (5.0, ["a notice"])
    assert "times some steps" not in said.stderr
    assert not (tmp_path / "run").exists()


def test_the_option_seed_replaces_that_of_the_arguments() -> None:
    words = ("train-coarse", "--recipe", "tiny", "train.seed=-2", "--seed", "-1")
    refused(*words, code=2, says="train.seed must be greater than or equal to 0, got -1")


def test_init_is_another_name_of_from() -> None:
    refused("train-fine", "--init", "none.pt", code=4, says="none.pt: there is no such checkpoint")
