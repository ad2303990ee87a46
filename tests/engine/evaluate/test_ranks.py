"""eval in several processes gives the same rows, files and order as in one."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from c2fdft_cli.data.images.picture import save_rgb8
from c2fdft_cli.engine.evaluate.files import evaluate_files
from c2fdft_cli.engine.evaluate.job import EvalOptions
from c2fdft_cli.engine.evaluate.photos import evaluate_alone
from c2fdft_cli.engine.evaluate.ranks import join, merge_results
from c2fdft_cli.errors import DataError, UsageError
from c2fdft_cli.execution.distributed import gather
from tests.kit.formula import photo
from tests.kit.weights import write_random


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for name, strength in (("out", 8), ("target", 0)):
        (tmp_path / name).mkdir()
        for k in range(5):
            save_rgb8(tmp_path / name / f"{k}.png", photo(k, strength=strength))
    return tmp_path / "out", tmp_path / "target"


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_the_shares_of_all_processes_add_up_to_the_whole(
    folders: tuple[Path, Path], world: int
) -> None:
    parts = [
        evaluate_files(*folders, EvalOptions(rank=rank, world=world)).run() for rank in range(world)
    ]
    whole = evaluate_files(*folders, EvalOptions()).run()
    assert merge_results(parts) == whole


def test_one_process_gathers_nothing(folders: tuple[Path, Path]) -> None:
    whole = evaluate_files(*folders, EvalOptions()).run()
    runtime = join()
    assert (runtime.rank, runtime.world) == (0, 1)
    assert gather(whole, runtime, merge_results) is whole


def test_processes_without_any_image_are_an_error(folders: tuple[Path, Path]) -> None:
    empty = evaluate_files(*folders, EvalOptions(rank=6, world=7)).run()
    assert empty.rows == []
    with pytest.raises(UsageError, match="nothing to score"):
        merge_results([empty, empty])


def test_a_share_that_cannot_be_read_does_not_affect_the_others(tmp_path: Path) -> None:
    for k in range(4):
        save_rgb8(tmp_path / f"{k}.png", photo(k))
    for k in (1, 3):  # the whole share of rank 1 of 2
        (tmp_path / f"{k}.png").write_bytes(b"no picture")
    shares = [evaluate_alone(tmp_path, EvalOptions(rank=rank, world=2)).run() for rank in (0, 1)]
    assert shares[1].rows == []
    merged = merge_results(shares)
    assert [row.name for row in merged.rows] == ["0", "2"]
    assert len(merged.unreadable) == 2
    assert merged.failure is not None
    with pytest.raises(DataError, match="2 of 2 images cannot be scored"):
        merge_results(shares[1:])


@pytest.mark.acceptance
def test_two_processes_of_torchrun_score_as_one(tmp_path: Path) -> None:
    io = pytest.importorskip("scipy.io")
    pixels = np.stack([photo(k) for k in range(4)]).reshape(2, 2, 24, 30, 3)
    noisy = np.stack([photo(k, strength=9) for k in range(4)]).reshape(pixels.shape)
    for side, blocks in (("Gt", pixels), ("Noisy", noisy)):
        name = f"Validation{side}BlocksSrgb"
        io.savemat(tmp_path / f"{name}.mat", {name: blocks})
    write_random(tmp_path / "fine.pt", stage="fine", grid=[999])
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [
        *("-m", "c2fdft_cli", "eval", str(tmp_path), "--weights", str(tmp_path / "fine.pt")),
        *("--device", "cpu", "--precision", "fp32", "--seeds", "2", "--json"),
    ]
    found, runner = {}, ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for count, prefix in ((1, []), (2, runner)):
        out = tmp_path / str(count)
        sinks = ["--csv", str(out / "rows.csv"), "--report", str(out / "page")]
        done = subprocess.run(
            [sys.executable, *prefix, *words, *sinks],
            env=env, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found[count] = json.loads(done.stdout)
        with (out / "rows.csv").open() as file:
            names = [row["name"] for row in csv.DictReader(file)]
        assert names == [f"scene-0{s}_block-0{b}" for s in (1, 2) for b in (1, 2)]
        assert (out / "page" / "index.html").read_text().count("data:image/webp") == 16
    one, two = found[1], found[2]
    for row, other in zip(one["images"], two["images"], strict=True):
        assert other == pytest.approx(row, abs=1e-4)
    assert two["spread"] == pytest.approx(one["spread"], abs=1e-4)
    assert two["mean"] == pytest.approx(one["mean"], abs=1e-4)
