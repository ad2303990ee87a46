"""Full disks and vanished inputs: one error line, and no finished work is lost."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest

from c2fdft_cli.engine.restore.job import restore
from c2fdft_cli.engine.restore.options import Machine, SamplingOptions
from c2fdft_cli.engine.restore.plan import plan_restore
from tests.kit.faults import COMMANDS, Running, World, hidden, run

pytestmark = pytest.mark.slow

ROOM = {
    "prepare": 60_000,
    "train-coarse": 300_000,
    "train-fine": 300_000,
    "sweep-steps": 200,
    "restore": 30_000,
    "restore-video": 2_000,
    "eval": 4_000,
    "convert": 20_000,
}
"""Free bytes for each command, fewer than it writes."""


@pytest.fixture
def small_disk(tmp_path):
    """Return a function that mounts a disk of 24 MiB with a number of free bytes; needs root."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=24m", "none", disk],
            check=False,
            capture_output=True,
        ).returncode
    ):
        pytest.skip("a small disk cannot be mounted here")

    def leave_free(free: int) -> Path:
        room = shutil.disk_usage(disk).free
        (disk / "filler").write_bytes(bytes(max(0, room - free)))
        return disk

    yield leave_free
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.long
@pytest.mark.parametrize("name", COMMANDS)
def test_a_disk_that_fills_up_is_named(world: World, tmp_path, small_disk, name):
    disk = small_disk(ROOM[name])
    case = world.case(name, disk)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    running = Running(case.words, folder)
    code = running.end()
    assert code in (5, 6), running.said
    if name == "prepare":  # prepare knows beforehand how much it will write
        assert re.search(r"the disk is too small: 0\.\d MiB are needed", running.said), running.said
    else:
        assert "disk is full" in running.said or "disk full" in running.said, running.said
    assert str(disk) in running.said
    assert "Traceback" not in running.said
    assert not hidden(disk), running.said
    (disk / "filler").unlink()
    again = run((*case.words, *(case.again if case.out.exists() else ())), folder)
    assert again == 0, running.said
    case.content(case.out)


@pytest.mark.parametrize(("name", "limit"), [("prepare", 20_000), ("restore-video", 6_000)])
def test_a_file_that_cannot_grow_is_named(world: World, tmp_path, name, limit):
    """As on a disk that fails; the process also ends without a crash."""
    resource = pytest.importorskip("resource")
    case = world.case(name, tmp_path)
    limits = (resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    running = Running(case.words, tmp_path, partial(resource.setrlimit, *limits))
    assert running.end() == 5, running.said
    assert re.search(r"error: .+: cannot write the file\n", running.said), running.said
    assert str(case.out) in running.said
    assert "Traceback" not in running.said
    assert not hidden(tmp_path), running.said
    assert run(case.words, tmp_path) == 0
    case.content(case.out)


def test_results_that_cannot_be_printed(world: World, tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    running = Running(("info", world.shards), tmp_path, _stdout_is_full)
    assert running.end() == 5
    said = (tmp_path / "stderr.txt").read_text()
    assert "error: standard output: the disk is full" in said
    assert "Traceback" not in said


def _stdout_is_full() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    os.dup2(os.open("stderr.txt", os.O_CREAT | os.O_WRONLY), 2)


def test_an_input_that_vanishes_midway(world: World, tmp_path):
    """The remaining pictures are restored and the missing one is reported, with exit code 6."""
    images = tmp_path / "in"
    shutil.copytree(world.images, images)
    plan = plan_restore(
        images,
        tmp_path / "out",
        sampling=SamplingOptions(weights=str(world.weights)),
        machine=Machine(device="cpu", precision="fp32"),
    )
    (images / "7.png").unlink()
    result = restore(plan).run()
    (error,) = result.errors
    assert "7.png" in str(error)
    assert result.failure is not None
    assert result.failure.exit_code == 6
    assert len(list((tmp_path / "out").glob("*.png"))) == 7
