"""The benchmark of the fine step: its rows, its ratios, and invalid options."""

from __future__ import annotations

import pytest
import torch

from c2fdft_cli.engine.tools.bench_fine import bench_fine
from c2fdft_cli.engine.tools.bench_options import BenchOptions, parse_recompute
from c2fdft_cli.errors import UsageError
from c2fdft_cli.execution.device import Runtime
from c2fdft_cli.recipe.files import load_recipe

CPU = Runtime(torch.device("cpu"))


RECIPE = load_recipe("tiny", ["network.dim=8", "network.blocks=[1,1,1,1]"])


def job(**changes):
    values = {"size": 16, "calls": (1, 2), "recompute": ("none", "level"), "repeats": 1}
    options = BenchOptions("train-step", stage="fine", **{**values, **changes})
    return bench_fine(options, RECIPE, CPU)


def test_there_is_a_row_for_each_combination():
    timed = job()
    assert len(list(timed)) == len(timed) == 8
    rows = timed.result.rows
    assert [(row.calls, row.recompute) for row in rows] == [
        (1, "none"), (1, "level"), (2, "none"), (2, "level")
    ]  # fmt: skip
    assert rows[0].time_ratio == rows[0].held_ratio == 1
    assert rows[3].held_ratio == rows[3].held / rows[2].held < 1
    assert rows[2].after_forward > 10 * rows[3].after_forward
    assert all(row.fastest <= row.seconds <= row.slowest for row in rows)


def test_ratios_need_a_row_without_recomputing():
    rows = job(calls=(1,), recompute=("call",)).run().rows
    assert rows[0].time_ratio is None
    assert rows[0].held_ratio is None


@pytest.mark.parametrize("calls", [0, 1001])
def test_more_steps_than_timesteps_are_refused(calls):
    with pytest.raises(UsageError, match="must be 1 to 1000"):
        job(calls=(calls,))


def test_a_size_too_small_for_ms_ssim_is_refused():
    with pytest.raises(UsageError, match=r"--size must be at least 16 for .*, got 8"):
        job(size=8)
    recipe = load_recipe("tiny", ["network.dim=8", "network.blocks=[1,1,1,1]", "fine.ssim=none"])
    options = BenchOptions("train-step", stage="fine", size=8, calls=(1,), repeats=1)
    assert bench_fine(options, recipe, CPU).run().size == 8


def test_a_schedule_that_leaves_nothing_of_the_image_is_refused():
    recipe = load_recipe("tiny", ["diffusion.schedule=jsd"])
    with pytest.raises(UsageError, match="nothing of the image is left at timestep 999"):
        bench_fine(BenchOptions("train-step", stage="fine", size=16), recipe, CPU)


def test_unknown_values_are_refused():
    with pytest.raises(UsageError, match="none, call or level"):
        parse_recompute("none,levels")
