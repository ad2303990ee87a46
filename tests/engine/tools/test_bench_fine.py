"""The fine step's bench: its rows, its ratios, and words that it does not know."""

from __future__ import annotations

import pytest
import torch

from c2fdft_cli.engine.tools.bench_fine import FineBenchOptions, bench_fine
from c2fdft_cli.errors import UsageError
from c2fdft_cli.execution.device import Runtime
from c2fdft_cli.recipe.files import load_recipe

CPU = Runtime(torch.device("cpu"))


def options(**changes) -> FineBenchOptions:
    recipe = load_recipe("tiny", ["network.dim=8", "network.blocks=[1,1,1,1]"])
    values = {"size": 16, "batch": 1, "calls": [1, 2], "recompute": ["none", "level"], "repeats": 1}
    return FineBenchOptions(recipe, CPU, **{**values, **changes})


def test_a_row_for_each_kind():
    job = bench_fine(options())
    assert len(list(job)) == len(job) == 8
    rows = job.result.rows
    assert [(row.calls, row.recompute) for row in rows] == [
        (1, "none"), (1, "level"), (2, "none"), (2, "level")
    ]  # fmt: skip
    assert rows[0].time_ratio == rows[0].held_ratio == 1
    assert rows[3].held_ratio == rows[3].held / rows[2].held < 1
    assert rows[2].after_forward > 10 * rows[3].after_forward
    assert all(row.fastest <= row.seconds <= row.slowest for row in rows)


def test_no_ratio_without_none():
    rows = bench_fine(options(calls=[1], recompute=["call"])).run().rows
    assert rows[0].time_ratio is None
    assert rows[0].held_ratio is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"recompute": ["levels"]}, "none, call or level"),
        ({"calls": [0]}, "must be 1 to 1000"),
        ({"calls": [1001]}, "must be 1 to 1000"),
    ],
)
def test_unknown_words(changes, says):
    with pytest.raises(UsageError) as caught:
        bench_fine(options(**changes))
    assert says in str(caught.value)
