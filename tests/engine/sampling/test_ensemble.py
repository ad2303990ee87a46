"""Several samples: mean, standard deviation, and the 8 transforms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from c2fdft_cli.engine.sampling.ensemble import (
    TRANSFORMS,
    UPRIGHT_TRANSFORMS,
    mean_and_deviation,
    transform,
    transforms_for,
    undo_transform,
)

LQ = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).float() / 120


COLOURS = torch.tensor([1.0, 2.0, 3.0])[:, None, None]


def numbered(lq: Tensor, number: int) -> Tensor:
    """A restorer whose result depends only on the colour and the number of the sample."""
    return (number * COLOURS).expand_as(lq)


def test_one_sample_is_the_plain_result_without_a_deviation() -> None:
    image, deviation = mean_and_deviation(lambda lq, number: lq * 0.5, LQ, 1)
    assert torch.equal(image, LQ * 0.5)
    assert deviation is None


@pytest.mark.parametrize("count", [2, 3, 8])
def test_mean_and_deviation_are_those_of_the_samples(count: int) -> None:
    values = torch.arange(count).float()
    image, deviation = mean_and_deviation(numbered, LQ, count)
    assert torch.allclose(image, (values.mean() * COLOURS).expand_as(LQ))
    assert deviation is not None
    assert deviation.shape == (2, 1, 4, 5)
    over_colours = COLOURS.square().mean().sqrt()  # root mean square
    assert torch.allclose(deviation, (values.std() * over_colours).expand(2, 1, 4, 5))


def test_a_self_ensemble_runs_8_transforms_with_different_noise() -> None:
    seen = []

    def record(lq: Tensor, number: int) -> Tensor:
        seen.append((number, tuple(lq.shape[-2:])))
        return lq

    image, deviation = mean_and_deviation(record, LQ, 2, TRANSFORMS)
    assert [number for number, _ in seen] == list(range(16))
    assert seen[1][1] == (5, 4)
    assert torch.allclose(image, LQ)
    assert deviation is not None
    assert deviation.max() < 1e-6


@pytest.mark.parametrize("transforms", [(0,), UPRIGHT_TRANSFORMS, TRANSFORMS])
def test_no_noise_is_used_twice(transforms: tuple[int, ...]) -> None:
    seen = []
    mean_and_deviation(lambda lq, number: seen.append(number) or lq, LQ, 3, transforms)
    assert seen[0] == 0
    assert len(set(seen)) == len(seen) == 3 * len(transforms)


def test_the_8_transforms_differ_and_each_is_undone() -> None:
    square = LQ[..., :4]
    turned = [transform(square, number) for number in range(8)]
    assert all(not torch.equal(turned[i], turned[j]) for i in range(8) for j in range(i))
    for number in range(8):
        assert torch.equal(undo_transform(transform(LQ, number), number), LQ)


@pytest.mark.parametrize("task", ["derain", "denoise", None])
def test_without_a_self_ensemble_the_image_is_restored_as_it_is(task: str | None) -> None:
    assert [transform(LQ, k).tolist() for k in transforms_for(task, False)] == [LQ.tolist()]


def test_zero_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        mean_and_deviation(numbered, LQ, 0)


def test_vertical_streaks_stay_vertical_in_a_self_ensemble_of_rain() -> None:
    """Weights for rain are trained on near-vertical streaks, so quarter turns are left out."""
    streak = torch.zeros(1, 3, 6, 6)
    streak[..., 1:5, 2] = 1.0
    transforms = transforms_for("derain", True)
    seen = [transform(streak, number) for number in transforms]
    assert all(int((image[0, 0].amax(0) > 0).sum()) == 1 for image in seen)
    assert len({transform(LQ, number).numpy().tobytes() for number in transforms}) == 4
    assert len(transforms_for("denoise", True)) == len(transforms_for(None, True)) == 8
