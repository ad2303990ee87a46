"""How many processes read batches."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace as usage

import pytest
import torch

from c2fdft_cli.engine.train import batches
from c2fdft_cli.recipe.schema import Data

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_a_gpu_is_fed_by_as_many_as_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    rain = Data(synthesize="rain")
    found = []
    monkeypatch.setattr(batches, "disk_usage", lambda _: usage(free=1 << 30))
    for count in (1, 4, 64):
        monkeypatch.setattr(batches, "cores", lambda count=count: count)
        found.append((batches.worker_count(rain, GPU), batches.worker_count(Data(), GPU)))
    assert found == [(1, 2), (3, 2), (8, 2)]


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs /dev/shm")
def test_without_shared_memory_a_thread_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "disk_usage", lambda _: usage(free=64 << 20))
    assert batches.worker_count(Data(synthesize="rain"), GPU) == 0
    assert batches.worker_count(Data(workers=3), GPU) == 3


def test_what_a_recipe_states_counts_and_a_cpu_reads_in_a_thread() -> None:
    assert batches.worker_count(Data(), CPU) == 0
    assert batches.worker_count(Data(synthesize="rain"), CPU) == 0
    assert batches.worker_count(Data(workers=0, synthesize="rain"), GPU) == 0
    assert batches.worker_count(Data(workers=5), CPU) == 5
