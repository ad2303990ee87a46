"""Restoring a folder in two processes of torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from c2fdft_cli.core.network import DFT
from c2fdft_cli.data.images.picture import read_rgb8
from tests.kit.restore import random_picture, save, write_checkpoint

pytestmark = pytest.mark.acceptance


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Path:
    """Weights and a folder of five pictures, two of them of one size."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.manual_seed(0)
    write_checkpoint(folder / "fine.pt", DFT(dim=8, blocks=(1, 1, 1, 1)), stage="fine", grid=[500])
    for i in range(5):
        save(folder / "in" / f"{i}.png", random_picture(24 + 8 * (i // 2), 33, seed=i))
    return folder


def restore(job: Path, out: str, *words: str, processes: int = 1) -> subprocess.CompletedProcess:
    """Run the command in one or more processes with one thread each."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "c2fdft_cli", "restore"]
    options = ["--weights", str(job / "fine.pt"), "--device", "cpu", "--precision", "fp32"]
    return subprocess.run(
        [*command, str(job / "in"), str(job / out), *options, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def files(folder: Path) -> dict[str, bytes]:
    """The contents of every result by name."""
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def most_apart(a: Path, b: Path) -> int:
    """The largest difference in 8-bit levels; rounding on a CPU may depend on the batch size."""
    assert files(a).keys() == files(b).keys()
    apart = [
        np.abs(read_rgb8(a / name).astype(int) - read_rgb8(b / name)).max() for name in files(a)
    ]
    return int(max(apart))


def test_two_processes_share_a_folder_and_change_nothing(job):
    one = restore(job, "one")
    two = restore(job, "two", "--json", processes=2)
    assert one.returncode == 0, one.stderr
    assert two.returncode == 0, two.stderr
    assert len(files(job / "two")) == 5
    assert most_apart(job / "two", job / "one") <= 1
    report = json.loads(two.stdout)
    assert len(report["images"]) == 5


def test_a_damaged_picture_in_either_share_is_reported_once(job):
    for name in ("0.png", "1.png"):  # one in the share of each process
        (job / "in" / f"bad-{name}").write_bytes(b"\x89PNG\r\n\x1a\n nothing more")
    try:
        done = restore(job, "damaged", processes=2)
    finally:
        for path in (job / "in").glob("bad-*"):
            path.unlink()
    assert done.returncode != 0
    assert "2 of 7 images failed" in done.stderr
    assert len(files(job / "damaged")) == 5
    for name in ("bad-0.png", "bad-1.png"):
        reports = [line for line in done.stderr.splitlines() if f"/in/{name}: " in line]
        assert [line for line in reports if "cannot read the image" in line] == reports
        assert len(reports) == 1
