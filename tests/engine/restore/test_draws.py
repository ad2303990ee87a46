"""Several draws: mean, spread, and the 8 positions."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from c2fdft_cli.engine.restore.draws import POSITIONS, draw, ensemble_positions, turn, turn_back

LQ = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).float() / 120


def numbered(lq: Tensor, names: Sequence[str], number: int) -> Tensor:
    """A restorer whose result depends on the run alone."""
    return torch.full_like(lq, float(number))


def test_one_draw_is_the_plain_result_without_a_spread() -> None:
    result = draw(lambda lq, names, number: lq * 0.5, LQ, ["a", "b"], 1)
    assert torch.equal(result.image, LQ * 0.5)
    assert result.spread is None


@pytest.mark.parametrize("count", [2, 3, 8])
def test_mean_and_spread_are_those_of_the_runs(count: int) -> None:
    values = torch.arange(count).float()
    result = draw(numbered, LQ, ["a", "b"], count)
    assert torch.allclose(result.image, values.mean().expand_as(LQ))
    assert result.spread is not None
    assert result.spread.shape == (2, 1, 4, 5)
    assert torch.allclose(result.spread, values.std().expand(2, 1, 4, 5))


def test_self_ensemble_runs_8_positions_each_with_noise_of_its_own() -> None:
    seen = []

    def note(lq: Tensor, names: Sequence[str], number: int) -> Tensor:
        seen.append((number, tuple(lq.shape[-2:])))
        return lq

    result = draw(note, LQ, ["a", "b"], 2, POSITIONS)
    assert [number for number, _ in seen] == list(range(16))
    assert seen[1][1] == (5, 4)
    assert torch.allclose(result.image, LQ)
    assert result.spread is not None
    assert result.spread.max() < 1e-6


def test_the_8_positions_differ_and_each_is_undone() -> None:
    square = LQ[..., :4]
    turned = [turn(square, position) for position in range(8)]
    assert all(not torch.equal(turned[i], turned[j]) for i in range(8) for j in range(i))
    for position in range(8):
        assert torch.equal(turn_back(turn(LQ, position), position), LQ)


def test_no_draw_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        draw(numbered, LQ, ["a", "b"], 0)


def test_rain_stays_upright_in_a_self_ensemble() -> None:
    """A vertical streak is vertical in every position that weights for rain are shown."""
    streak = torch.zeros(1, 3, 6, 6)
    streak[..., 1:5, 2] = 1.0
    positions = ensemble_positions("derain")
    seen = [turn(streak, position) for position in positions]
    assert all(int((image[0, 0].amax(0) > 0).sum()) == 1 for image in seen)
    assert len({turn(LQ, position).numpy().tobytes() for position in positions}) == 4
    assert len(ensemble_positions("denoise")) == len(ensemble_positions(None)) == 8
