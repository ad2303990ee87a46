"""Memory of a training step: counted without computing, and what is made of it."""

from __future__ import annotations

import pytest
import torch

from c2fdft_cli.engine.train import memory
from c2fdft_cli.engine.train.memory import choose_micro_batch, saved_bytes, step_bytes
from c2fdft_cli.execution.device import Runtime
from c2fdft_cli.execution.memory import available_memory
from c2fdft_cli.recipe.schema import FineStage, Network, Stage

CPU = Runtime(torch.device("cpu"))
SMALL = Network(dim=8, blocks=[1, 1, 1, 1])


def test_saved_bytes_grow_with_the_area():
    small, large = saved_bytes(SMALL, 32), saved_bytes(SMALL, 64)
    assert 3.5 < large / small < 4.1


def test_official_network_without_allocating_it():
    assert 20e6 < saved_bytes(Network(), 32) < 400e6


def test_recomputing_holds_one_call():
    one = step_bytes(SMALL, Stage(), 1, 32, CPU)
    assert step_bytes(SMALL, FineStage(recompute="call"), 8, 32, CPU) == one
    assert step_bytes(SMALL, FineStage(recompute="none"), 8, 32, CPU) == 8 * one


def test_recomputing_levels_holds_the_largest_level():
    one = step_bytes(SMALL, Stage(), 1, 32, CPU)
    by_level = step_bytes(SMALL, FineStage(recompute="level"), 8, 32, CPU)
    assert 0.2 * one < by_level < 0.7 * one
    # of the official network, the last level holds about a third
    assert 0.3 < saved_bytes(Network(), 64, True) / saved_bytes(Network(), 64) < 0.45


@pytest.mark.parametrize(
    ("wanted", "rows", "each", "free", "expected"),
    [
        ("auto", 100, 10, 10**6, 100),
        ("auto", 100, 10, 500, 34),
        ("auto", 100, 10, 1, 1),
        (7, 100, 10, 10**6, 7),
        (200, 100, 10, 10**6, 100),
    ],
)
def test_micro_batch(monkeypatch, wanted, rows, each, free, expected):
    monkeypatch.setattr(memory, "free_bytes", lambda runtime: free)
    assert choose_micro_batch(wanted, rows, each, CPU) == expected


def test_available_memory_is_of_this_machine():
    assert 10**7 < available_memory() < 10**14
