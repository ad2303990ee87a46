"""Statistics of scores, and the paired comparison of two results, for known numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from c2fdft_cli.metrics.statistics import compare, summarise, worst


def test_statistics_of_scores() -> None:
    one = summarise([1.0, 2.0, 6.0])
    assert (one.mean, one.median, one.std) == (3.0, 2.0, pytest.approx(math.sqrt(7)))
    assert summarise([1.0, 3.0]).std == pytest.approx(math.sqrt(2))
    assert summarise([5.0]).std is None
    infinite = summarise([1.0, 2.0, math.inf])
    assert (infinite.mean, infinite.median, infinite.std) == (math.inf, 2.0, None)
    assert summarise([1.0, math.nan]).mean is None
    assert worst([*"abcdefg"], [3, 1, 2, 9, 8, 7, 1]) == [*"bgcaf"]
    assert worst([*"abcdefg"], [3, 1, math.nan, 9, math.inf, 7, 2]) == [*"cbgaf"]


def test_comparison_of_two_results() -> None:
    rng = np.random.default_rng(0)
    b = rng.normal(30, 3, 100)
    a = b + rng.normal(0.5, 1, 100)
    one = compare(a.tolist(), b.tolist())
    assert one.mean == pytest.approx(float((a - b).mean()))
    half = 1.96 * float((a - b).std()) / 10
    assert one.low == pytest.approx(one.mean - half, abs=0.05)
    assert one.high == pytest.approx(one.mean + half, abs=0.05)
    assert one.wins + one.losses + one.ties == 100
    assert one.wins == int((a > b).sum())
    assert compare(a.tolist(), b.tolist()) == one  # the resampling is seeded
    back = compare(b.tolist(), a.tolist())
    assert (back.mean, back.wins) == (pytest.approx(-one.mean), one.losses)
    errors = compare(a.tolist(), b.tolist(), lower_wins=True)
    assert (errors.mean, errors.wins, errors.losses) == (one.mean, one.losses, one.wins)


def test_the_interval_is_that_of_10000_resamples_however_many_fit_in_memory() -> None:
    difference = np.random.default_rng(1).normal(0.5, 1, 1200)  # 8333 resamples at a time
    one = compare(difference.tolist(), [0.0] * 1200, seed=3)
    picks = np.random.default_rng(3).integers(0, 1200, (10_000, 1200))
    low, high = np.quantile(difference[picks].mean(1), [0.025, 0.975])
    assert (one.low, one.high) == (pytest.approx(low), pytest.approx(high))


def test_comparison_with_infinite_scores() -> None:
    one = compare([math.inf, math.inf, 30.0], [math.inf, 30.0, 29.0])
    assert (one.wins, one.losses, one.ties, one.images) == (2, 0, 1, 1)
    one = compare([math.nan, 31.0, 30.0], [30.0, 30.0, math.nan])
    assert (one.wins, one.losses, one.ties, one.images) == (1, 0, 0, 1)
    with pytest.raises(ValueError, match="no image has a finite score"):
        compare([math.inf], [math.inf])
    with pytest.raises(ValueError, match="2 scores against 1"):
        compare([1.0, 2.0], [1.0])
