"""Line patterns drawn on clean crops: thin, straight and reproducible, at any crop size."""

from __future__ import annotations

import numpy as np
import pytest

from c2fdft_cli.data.synthesis.line_patterns import MOST_COVERED, SPACING, draw_line_pattern


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (33, 7), (64, 64), (128, 96)])
def test_the_result_is_a_copy_of_any_size(shape: tuple[int, int]) -> None:
    clean = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    before = clean.copy()
    for seed in range(20):
        drawn = draw_line_pattern(clean, np.random.default_rng(seed))
        again = draw_line_pattern(clean, np.random.default_rng(seed))
        assert (drawn.shape, drawn.dtype) == (clean.shape, np.uint8)
        np.testing.assert_array_equal(drawn, again)
    np.testing.assert_array_equal(clean, before)


def test_lines_are_thin_and_on_all_or_a_part_of_the_crop() -> None:
    black = np.zeros((96, 96, 3), np.uint8)  # on black, a darkened background is no difference
    drawn = [
        draw_line_pattern(black, np.random.default_rng(seed)).max(axis=2) for seed in range(300)
    ]
    shares = np.array([(one > 0).mean() for one in drawn])
    # two directions; antialiasing adds up to half a pixel on both sides of a line
    assert shares.max() < 1 - (1 - MOST_COVERED - 1 / SPACING[0]) ** 2
    assert (shares < 0.05).any()
    assert (shares > 0.3).any()
    bare = sum(not one[:32].any() or not one[-32:].any() for one in drawn)
    assert 10 < bare < 150


def test_light_and_dark_lines_before_dark_and_light_backgrounds() -> None:
    grey = np.full((64, 64, 3), 100, np.uint8)
    drawn = [draw_line_pattern(grey, np.random.default_rng(seed)) for seed in range(200)]
    middle = np.array([np.median(one) for one in drawn])
    assert 20 < (middle < 55).sum() < 100 < (middle == 100).sum()
    light = sum(one.max() > 105 for one in drawn)
    assert 100 < light < 190


def test_lines_are_straight_and_regular() -> None:
    """Both halves of a crop have the same peak in their spectra."""
    grey = np.full((128, 128, 3), 100, np.uint8)
    same = 0
    for seed in range(40):
        drawn = draw_line_pattern(grey, np.random.default_rng(seed))[..., 0].astype(float)
        halves = [drawn[:64] - drawn[:64].mean(), drawn[64:] - drawn[64:].mean()]
        peaks = [np.unravel_index(np.abs(np.fft.rfft2(one)).argmax(), (64, 65)) for one in halves]
        same += max(abs(int(a) - int(b)) for a, b in zip(*peaks, strict=True)) <= 2
    assert same > 20
