"""The plan of a training: times, memory, bytes, and notices, without writing anything."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from c2fdft_cli.engine.tools.bench import random_batch
from c2fdft_cli.engine.train import dry_run
from c2fdft_cli.engine.train import fallbacks as attempts
from c2fdft_cli.engine.train.batches import patch_cycle
from c2fdft_cli.engine.train.dry_run import _sizes, _time_step, estimate_training
from c2fdft_cli.engine.train.events import Notice
from c2fdft_cli.engine.train.options import TrainOptions
from c2fdft_cli.engine.train.setup import set_up
from c2fdft_cli.errors import Interrupted
from c2fdft_cli.execution.device import Runtime
from c2fdft_cli.recipe.schema import Stage
from tests.kit.training import request, run


def test_the_plan_of_a_begun_run_is_for_the_remaining_steps(tmp_path, shard_folder):
    with pytest.raises(Interrupted):
        run(request("coarse", shard_folder, tmp_path / "run", max_seconds=0.0))
    plan = estimate_training(
        set_up(TrainOptions("coarse", out=tmp_path / "run", resume=True, device="cpu"))
    ).run()
    assert plan.iterations == 11
    assert [(s.patch, s.iterations) for s in plan.stages] == [(16, 5), (24, 6)]


def test_a_plan_estimates_hours_and_the_bytes_of_the_run(tmp_path, shard_folder, coarse_run):
    plan = estimate_training(set_up(request("coarse", shard_folder, tmp_path / "run"))).run()
    seconds = sum(stage.iterations * stage.seconds_per_step for stage in plan.stages)
    assert plan.hours == pytest.approx(seconds / 3600)
    # last.pt is a link to the newest; a file exists twice while its new version is written
    sizes = {one.stat().st_ino: one.stat().st_size for one in coarse_run.rglob("*.pt")}
    written = sum((coarse_run / name).stat().st_size for name in ("state.pt", "coarse.pt"))
    assert plan.disk == pytest.approx(sum(sizes.values()) + written, rel=0.1)


def test_a_plan_has_the_notices_of_the_training(tmp_path, shard_folder):
    changed = ("data.synthesize=noise", "coarse.periods=[{length: 4, floor: 0}]")
    asked = request("coarse", shard_folder, tmp_path / "run", *changed)
    plan = estimate_training(set_up(asked)).run()
    assert len(plan.notices) == 2
    assert plan.notices[0].startswith("training on synthetic noise: the shards' own degraded")
    assert plan.notices[1].startswith("the learning rate is 0 after iteration 4 of 12")
    _, events = run(asked)
    told = [event.text for event in events if isinstance(event, Notice)]
    assert told[:2] == plan.notices


def test_planning_writes_nothing(tmp_path, shard_folder):
    plan = estimate_training(set_up(request("coarse", shard_folder, tmp_path / "run"))).run()
    assert [(s.patch, s.batch, s.iterations) for s in plan.stages] == [(16, 4, 6), (24, 2, 6)]
    assert all(stage.memory > 0 and stage.seconds_per_step > 0 for stage in plan.stages)
    assert not (tmp_path / "run").exists()


@given(
    st.lists(st.sampled_from([(8, 1), (8, 2), (16, 1)]), min_size=1, max_size=4),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(1, 60),
    st.integers(0, 60),
)
def test_a_plan_counts_the_iterations_of_each_size(sizes, switch_every, cycles, last, done):
    patches, batches = map(list, zip(*sizes, strict=True))
    section = Stage(last, patches, batches, switch_every, cycles)
    expected: dict[tuple[int, int], list[int]] = {}
    for k in range(done + 1, last + 1):
        expected.setdefault(patch_cycle(section).size_at(k), []).append(k)
    planned = _sizes(section, done)
    assert list(planned.items()) == [(key, (ks[0], len(ks))) for key, ks in expected.items()]


def test_planning_a_billion_iterations_is_fast():
    section = Stage(1_000_000_000, [8, 16], [2, 1], 1, 500_000_000)
    assert _sizes(section, 0) == {(8, 2): (1, 500_000_000), (16, 1): (2, 500_000_000)}


@pytest.mark.parametrize(("seconds", "timed"), [(0.0, [1, 0]), (3600.0, [4, 2])])
def test_planning_times_smaller_steps_if_time_is_short(tmp_path, shard_folder, seconds, timed):
    options = set_up(request("coarse", shard_folder, tmp_path / "run"))
    plan = estimate_training(options, seconds).run()
    assert [stage.timed_images for stage in plan.stages] == timed
    first, second = (stage.seconds_per_step for stage in plan.stages)
    if not timed[1]:  # the time grows with the number of pixels
        assert second == pytest.approx(first * (2 * 24**2) / (4 * 16**2))


@pytest.mark.parametrize(
    ("compiled", "allowed", "expected", "sizes", "found"),
    [
        (False, 1000.0, 0.0, [1, 1, 4, 8], (8, 8.0)),
        (False, 7.0, 0.0, [1, 1, 4], (4, 8.0)),
        (False, 6.0, 0.0, [1, 1], (1, 8.0)),
        # two steps of one image are the least that is timed, if their time is known
        (False, 4.0, 2.0, [], (0, 16.0)),
        (False, 4.1, 2.0, [1, 1], (1, 8.0)),
        (True, 0.0, 2.0, [8, 8, 8], (8, 8.0)),
    ],
)
def test_a_step_is_timed_with_as_many_images_as_time_allows(
    monkeypatch, compiled, allowed, expected, sizes, found
):
    """By a clock on which each image takes a second; the first step is not timed."""
    now, steps = [0.0], []

    def step(rows):
        steps.append(len(rows))
        now[0] += len(rows)

    monkeypatch.setattr(dry_run, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    runner, batch = SimpleNamespace(is_compiled=compiled, step=step), random_batch(8, 16, 1000)
    cpu = Runtime(torch.device("cpu"))
    assert _time_step(runner, batch, allowed, expected, cpu) == found
    assert steps == sizes


def test_a_plan_shares_the_time_and_counts_whole_micro_batches(tmp_path, shard_folder, monkeypatch):
    allowed, compiled = [], []

    def timed(fallbacks, batch, seconds, *_):
        allowed.append(seconds)
        return 1, 0.5

    monkeypatch.setattr(dry_run, "_time_step", timed)
    monkeypatch.setattr(attempts, "compile_in_place", lambda net, wish, _: compiled.append(wish))
    plans = [
        estimate_training(
            set_up(request("coarse", shard_folder, tmp_path / "run", *more)), 1e6
        ).run()
        for more in ((), ("train.micro_batch=1",))
    ]
    assert allowed[:2] == pytest.approx([5e5, 1e6], rel=0.01)
    assert compiled == ["off"] * 2
    whole, single = (plan.stages[0] for plan in plans)
    assert (whole.micro_batch, single.micro_batch) == (4, 1)
    assert whole.memory == 4 * single.memory > 0
