"""The learning rates of the released recipes."""

from __future__ import annotations

import pytest

from c2fdft_cli.core.learning_rate import learning_rate
from c2fdft_cli.recipe.files import load_recipe

STAGES = {
    "derain_coarse": ("derain", "coarse"),
    "derain_fine": ("derain", "fine"),
    "deblur_fine": ("deblur", "fine"),
}


@pytest.mark.parametrize("name", sorted(STAGES))
def test_learning_rates_equal_the_released_ones(misc, name):
    recipe, stage = STAGES[name]
    section = getattr(load_recipe(recipe), stage)
    periods = [(p.length, p.floor) for p in section.periods]
    for iteration, expected in misc["learning_rate"][name].items():
        assert learning_rate(int(iteration), section.lr, periods) == pytest.approx(
            expected, rel=1e-9
        )


def test_the_rate_restarts_and_stays_at_the_last_floor():
    periods = [(10, 0.5), (20, 0.1)]
    assert learning_rate(0, 1.0, periods) == 1.0
    assert learning_rate(10, 1.0, periods) == 1.0
    assert learning_rate(5, 1.0, periods) == pytest.approx(0.75)
    assert learning_rate(30, 1.0, periods) == 0.1
    assert learning_rate(10**6, 1.0, periods) == 0.1
