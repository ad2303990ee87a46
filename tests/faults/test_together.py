"""Two processes with the same output, and folders of ten thousand files."""

from __future__ import annotations

import os
import time
import tracemalloc
from collections.abc import Callable

import pytest

from c2fdft_cli.engine.prepare.job import PrepareOptions, prepare
from c2fdft_cli.engine.restore.options import Machine, SamplingOptions
from c2fdft_cli.engine.restore.plan import plan_restore
from tests.kit.faults import Running, World, hidden, run

pytestmark = pytest.mark.slow

FILES = 10_000
SECONDS_A_FILE = 1e-3
BYTES_A_FILE = 2048
TRAINING = pytest.param("train-coarse", marks=pytest.mark.long)


@pytest.mark.parametrize("name", ["prepare", "restore", TRAINING])
def test_two_processes_on_one_output(world: World, tmp_path, name):
    """Both write the same bytes, or one of them reports the other process."""
    (tmp_path / "alone").mkdir()
    alone = world.case(name, tmp_path / "alone")
    assert run(alone.words, tmp_path / "alone") == 0
    case = world.case(name, tmp_path)
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    both = [Running(case.words, folder) for folder in folders]
    codes = [running.end() for running in both]
    said = both[0].said + both[1].said
    assert 0 in codes, said
    assert "Traceback" not in said
    if set(codes) != {0}:
        assert name != "restore", said
        assert "another process" in said or "not empty" in said
    assert case.content(case.out) == alone.content(alone.out)
    assert not hidden(case.out)


def cost(work: Callable[[], object]) -> tuple[float, float]:
    """Return processor seconds and bytes held by the result, both per file."""
    begin = time.process_time()
    kept = work()
    seconds = time.process_time() - begin
    del kept
    tracemalloc.start()
    kept = work()
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del kept
    return seconds / FILES, held / FILES


@pytest.mark.long
def test_planning_to_restore_ten_thousand_files_is_fast_and_small(world: World, tmp_path):
    first = world.images / "0.png"
    (tmp_path / "in").mkdir()
    for number in range(FILES):
        os.link(first, tmp_path / "in" / f"{number}.png")
    settings = {
        "sampling": SamplingOptions(weights=str(world.weights)),
        "machine": Machine(device="cpu"),
    }
    seconds, held = cost(lambda: plan_restore(tmp_path / "in", tmp_path / "out", **settings))
    assert seconds < SECONDS_A_FILE
    assert held < BYTES_A_FILE


@pytest.mark.long
def test_planning_to_prepare_ten_thousand_files_is_fast_and_small(world: World, tmp_path):
    for kind in ("rainy", "clean"):
        (tmp_path / "set" / kind).mkdir(parents=True)
        for number in range(FILES // 2):
            source = world.pairs / "train" / kind / "0.png"
            os.link(source, tmp_path / "set" / kind / f"{number}.png")
    options = PrepareOptions(source=tmp_path / "set", out=tmp_path / "out")
    seconds, held = cost(lambda: prepare(options))
    assert seconds < SECONDS_A_FILE
    assert held < BYTES_A_FILE
