"""Streaks by formula: density, direction and brightness."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from c2fdft_cli.data.synthesis.streak_process import StreakStyle, render


def flat_style(**changes) -> StreakStyle:
    values = {"tilt": 0.0, "jitter": 0.0, "coverage": 0.2, "level": 50.0}
    return StreakStyle(**{**values, "length": 30.0, "width": 1.5, "flat": 1.0, **changes})


@pytest.mark.parametrize("coverage", [0.05, 0.2, 0.6])
def test_coverage_approximates_the_share_of_wet_pixels(coverage):
    shares = [
        (render(flat_style(coverage=coverage), np.random.default_rng(i), 128, 128) > 0).mean()
        for i in range(30)
    ]
    assert coverage * 0.7 < np.mean(shares) < coverage * 1.6


@pytest.mark.parametrize("tilt", [-40.0, -15.0, 0.0, 25.0])
def test_streaks_have_the_requested_tilt(tilt):
    layer = render(flat_style(tilt=tilt, width=2.5), np.random.default_rng(2), 256, 256)
    smooth = cv2.GaussianBlur(layer, (0, 0), 1.0)
    gx, gy = cv2.Sobel(smooth, cv2.CV_64F, 1, 0), cv2.Sobel(smooth, cv2.CV_64F, 0, 1)
    across = 0.5 * np.arctan2(2 * (gx * gy).mean(), (gx * gx).mean() - (gy * gy).mean())
    assert np.degrees(across) == pytest.approx(tilt, abs=3.0)


def test_even_streaks_are_about_as_bright_as_their_level_and_never_negative():
    """This holds for pixels that are fully covered; the others are edges of streaks."""
    layers = [
        render(flat_style(width=3.0, coverage=0.02), np.random.default_rng(i), 200, 200)
        for i in range(20)
    ]
    wet = np.concatenate([layer[layer > 0] for layer in layers])
    assert min(layer.min() for layer in layers) == 0.0
    assert 0.6 * 50 < wet.mean() < 1.1 * 50
    assert wet.max() < 6 * 50
