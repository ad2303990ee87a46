"""The patch cycle and the sampling plan: released numbers, coverage, reproducible rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from c2fdft_cli.data.batches.plan import PatchCycle, PatchPlan

DERAIN_COARSE = PatchCycle((32, 64, 128), (360, 96, 24), 10_000, 9)
DERAIN_FINE = PatchCycle((32, 64, 128), (96, 24, 6), 5_000, 6)
DEBLUR_COARSE = PatchCycle((64, 128, 256), (96, 24, 6), 10_000, 9)

RELEASED = [
    (
        DERAIN_COARSE,
        {
            1: (32, 360),
            10_000: (32, 360),
            10_001: (64, 96),
            20_000: (64, 96),
            20_001: (128, 24),
            30_000: (128, 24),
            30_001: (32, 360),
            269_999: (128, 24),
            270_000: (128, 24),
            270_001: (128, 24),
        },
    ),
    (
        DERAIN_FINE,
        {
            1: (32, 96),
            5_000: (32, 96),
            5_001: (64, 24),
            10_001: (128, 6),
            15_000: (128, 6),
            15_001: (32, 96),
            90_000: (128, 6),
        },
    ),
    (
        DEBLUR_COARSE,
        {
            1: (64, 96),
            10_001: (128, 24),
            20_001: (256, 6),
            30_001: (64, 96),
            270_001: (256, 6),
            330_000: (256, 6),
        },
    ),
]


def plan_of(n: int, cycle: PatchCycle, *, seed: int = 3, beta: float | None = None) -> PatchPlan:
    sizes = [(20 + 7 * i % 50, 25 + 11 * i % 60) for i in range(n)]
    return PatchPlan(sizes, cycle, seed, beta)


@pytest.mark.parametrize(("cycle", "stages"), RELEASED)
def test_cycles_equal_the_released_ones(
    cycle: PatchCycle, stages: dict[int, tuple[int, int]]
) -> None:
    assert {k: cycle.size_at(k) for k in stages} == stages


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4),
    st.integers(1, 5),
    st.integers(1, 3),
)
def test_samples_before_is_the_sum_of_batches(
    stages: list[tuple[int, int]], switch_every: int, cycles: int
) -> None:
    patches, batches = zip(*stages, strict=True)
    cycle = PatchCycle(patches, batches, switch_every, cycles)
    total = 0
    for k in range(1, 80):
        assert cycle.samples_before(k) == total
        total += cycle.size_at(k)[1]


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 30),
    st.lists(st.integers(1, 9), min_size=1, max_size=3),
    st.integers(1, 4),
    st.integers(0, 2**63 - 1),
)
def test_every_image_is_seen_before_any_is_seen_twice(
    n: int, batches: list[int], switch_every: int, seed: int
) -> None:
    cycle = PatchCycle((8,) * len(batches), tuple(batches), switch_every, 2)
    plan = plan_of(n, cycle, seed=seed)
    seen = np.concatenate([plan.draw(k).image for k in range(1, 25)])
    whole = len(seen) // n * n
    epochs = np.sort(seen[:whole].reshape(-1, n), axis=1)
    assert (epochs == np.arange(n)).all()
    assert len(set(seen[whole:].tolist())) == len(seen) - whole


def test_crops_lie_inside_and_reach_every_corner() -> None:
    sizes = [(10, 9), (4, 30), (8, 8)]
    plan = PatchPlan(sizes, PatchCycle((8,), (300,), 1, 1), 5)
    corners = set()
    for k in range(1, 6):
        draw = plan.draw(k)
        for image, top, left in zip(draw.image, draw.top, draw.left, strict=True):
            h, w = sizes[image]
            assert 0 <= top <= max(h - 8, 0)
            assert 0 <= left <= max(w - 8, 0)
            corners.add((int(image), int(top), int(left)))
        assert set(draw.symmetry.tolist()) == set(range(8))
    assert {c for c in corners if c[0] == 0} == {(0, t, c) for t in range(3) for c in range(2)}
    assert {c[1:] for c in corners if c[0] == 1} == {(0, c) for c in range(23)}


def test_a_sample_depends_only_on_seed_and_iteration() -> None:
    cycle = PatchCycle((8,), (6,), 10, 1)
    first = plan_of(7, cycle).draw(4)
    again = plan_of(7, cycle)
    again.draw(1)
    np.testing.assert_array_equal(again.draw(4).top, first.top)
    assert not np.array_equal(again.draw(5).top, first.top)
    assert not np.array_equal(plan_of(7, cycle, seed=4).draw(4).top, first.top)


GOLDEN = {
    "image": [4, 2, 0, 3, 4, 1],
    "top": [31, 32, 29, 24, 2, 7],
    "left": [3, 17, 20, 39, 13, 2],
    "symmetry": [5, 1, 5, 2, 5, 2],
}


def test_crops_equal_golden_numbers() -> None:
    draw = PatchPlan([(40, 50)] * 5, PatchCycle((8,), (6,), 10, 1), 100).draw(3)
    assert draw.image.tolist() == GOLDEN["image"]
    assert draw.top.tolist() == GOLDEN["top"]
    assert draw.left.tolist() == GOLDEN["left"]
    assert draw.symmetry.tolist() == GOLDEN["symmetry"]


def test_times_noise_mixup_and_random_numbers_equal_golden_ones() -> None:
    """A resumed run must continue with the same times, noise and degradations."""
    plan = PatchPlan([(40, 50)] * 5, PatchCycle((8,), (6,), 10, 1), 100, 1.2)
    assert plan.times(3, 1000).tolist() == [666, 736, 173, 80, 333, 263]
    assert plan.noise_seed(3, 4) == 7505725437829251494
    first = [0.21495332398783462, 0.9335645335143525, 0.4339905324302338]
    assert plan.generator(3, 4).random(3).tolist() == first
    assert plan.mix(1) is None
    mix = plan.mix(3)
    assert mix is not None
    assert mix.partner.tolist() == [3, 5, 2, 4, 0, 1]
    assert mix.lam == pytest.approx(0.04110094977975704)  # by NumPy's sampler of Beta


@pytest.mark.parametrize("batch", [1, 2, 5, 6])
def test_times_are_antithetic(batch: int) -> None:
    plan = plan_of(4, PatchCycle((8,), (batch,), 1, 1))
    times = plan.times(2, 1000)
    half = batch // 2 + 1
    assert times.shape == (batch,)
    assert ((times >= 0) & (times < 1000)).all()
    np.testing.assert_array_equal(times[half:], 999 - times[: batch - half])


def test_mixup_happens_half_of_the_time_with_a_permutation() -> None:
    plan = plan_of(4, PatchCycle((8,), (6,), 1, 1), beta=1.2)
    mixes = [plan.mix(k) for k in range(1, 2001)]
    on = [mix for mix in mixes if mix is not None]
    assert 900 < len(on) < 1100
    assert all(sorted(mix.partner.tolist()) == list(range(6)) for mix in on)
    lam = np.array([mix.lam for mix in on])
    assert ((lam > 0) & (lam < 1)).all()
    assert abs(lam.mean() - 0.5) < 0.03
    assert abs(lam.var() - 1 / (4 * (2 * 1.2 + 1))) < 0.01
    assert plan_of(4, PatchCycle((8,), (6,), 1, 1)).mix(1) is None


def test_each_sample_has_different_random_numbers() -> None:
    plan = plan_of(4, PatchCycle((8,), (6,), 1, 1))
    values = {plan.generator(k, i).random() for k in range(1, 20) for i in range(20)}
    seeds = {plan.noise_seed(k, i) for k in range(1, 20) for i in range(20)}
    assert len(values) == len(seeds) == 19 * 20
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert plan.generator(3, 4).random() == plan.generator(3, 4).random()
