"""How many processes read batches."""

from __future__ import annotations

import math

import pytest
import torch

from c2fdft_cli.engine.train.batches import free_shared_memory, worker_count
from c2fdft_cli.recipe.schema import Data

CPU, GPU = torch.device("cpu"), torch.device("cuda")
RAIN, GIB = Data(synthesize="rain"), 1 << 30


@pytest.mark.parametrize(
    ("data", "device", "processors", "shared_bytes", "workers"),
    [
        (RAIN, GPU, 1, GIB, 1),
        (RAIN, GPU, 4, GIB, 3),
        (RAIN, GPU, 64, math.inf, 8),
        (Data(), GPU, 1, GIB, 2),
        (Data(), GPU, 64, GIB, 2),
        # without shared memory a thread reads
        (RAIN, GPU, 64, 64 << 20, 0),
        (Data(workers=3), GPU, 64, 64 << 20, 3),
        # what a recipe states counts, and a CPU's batches are read in a thread
        (Data(), CPU, 64, GIB, 0),
        (RAIN, CPU, 64, GIB, 0),
        (Data(workers=0, synthesize="rain"), GPU, 64, GIB, 0),
        (Data(workers=5), CPU, 64, GIB, 5),
    ],
)
def test_processes_that_read_batches(
    data: Data, device: torch.device, processors: int, shared_bytes: float, workers: int
) -> None:
    assert worker_count(data, device, processors, shared_bytes) == workers


def test_shared_memory_of_this_machine() -> None:
    assert free_shared_memory() >= 0
