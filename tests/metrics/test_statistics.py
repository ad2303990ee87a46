"""Statistics of scores, and the paired comparison of two results, for known numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from c2fdft_cli.metrics.statistics import compare, student_t, summarise, worst


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
    assert (one.mean_a, one.mean_b) == pytest.approx((a.mean(), b.mean()))
    assert one.wins + one.losses + one.ties == 100
    assert one.wins == int((a > b).sum())
    back = compare(b.tolist(), a.tolist())
    assert (back.mean, back.wins) == (pytest.approx(float((b - a).mean())), one.losses)
    errors = compare(a.tolist(), b.tolist(), lower_wins=True)
    assert (errors.mean, errors.wins, errors.losses) == (one.mean, one.losses, one.wins)


def test_student_s_t_equals_the_tables() -> None:
    tables = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 9: 2.262,
              10: 2.228, 19: 2.093, 29: 2.045, 30: 2.042, 120: 1.980, 100_000: 1.960}  # fmt: skip
    for freedom, value in tables.items():
        assert student_t(freedom) == pytest.approx(value, abs=5e-4)


@pytest.mark.parametrize("images", [2, 3, 5, 10, 100])
def test_the_interval_is_that_of_the_paired_t_test(images: int) -> None:
    from scipy import stats  # takes a second: not while the tests are collected

    a, b = np.random.default_rng(images).normal(30, 3, (2, images)).tolist()
    one = compare(a, b)
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (one.low, one.high) == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_comparison_with_infinite_scores() -> None:
    one = compare([math.inf, math.inf, 30.0], [math.inf, 30.0, 29.0])
    assert (one.wins, one.losses, one.ties, one.images) == (2, 0, 1, 1)
    one = compare([math.nan, 31.0, 30.0], [30.0, 30.0, math.nan])
    assert (one.wins, one.losses, one.ties, one.images) == (1, 0, 0, 1)
    assert (one.mean, one.low, one.high) == (1.0, None, None)
    one = compare([math.inf, math.inf, 30.0], [math.inf, 30.0, math.inf])
    assert (one.wins, one.losses, one.ties, one.images) == (1, 1, 1, 0)
    assert (one.mean, one.low, one.mean_a) == (None, None, math.inf)
    with pytest.raises(ValueError, match="2 scores against 1"):
        compare([1.0, 2.0], [1.0])
