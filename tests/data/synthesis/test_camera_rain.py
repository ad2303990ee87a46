"""Rain as in photographs: a share of the light behind it, sharpened and compressed."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from skimage import data as photos

from c2fdft_cli.data.synthesis.camera_rain import add_camera_rain, covered_share

LEAN = 30.0


def grey(level: int) -> np.ndarray:
    return np.full((96, 96, 3), level, np.uint8)


def test_rain_is_bright_in_front_of_something_dark_and_faint_in_front_of_the_sky():
    """Drops send between 35 and 100 % of full light, so they may also be darker than the sky."""
    added = {
        level: np.mean(
            [
                add_camera_rain(grey(level), LEAN, np.random.default_rng(i)).astype(int) - level
                for i in range(20)
            ]
        )
        for level in (10, 128, 240)
    }
    assert added[10] > 2 * added[128] > 0
    assert abs(added[240]) < added[128]


def test_the_share_of_covered_light_is_a_share_that_varies_from_image_to_image():
    shares = [covered_share(LEAN, np.random.default_rng(i), 80, 80) for i in range(60)]
    assert min(share.min() for share in shares) == 0
    assert max(share.max() for share in shares) < 1
    means = [share.mean() for share in shares]
    assert 0.02 < np.median(means) < 0.15
    assert np.std(means) > 0.5 * np.mean(means)


def test_nothing_changes_where_it_does_not_rain():
    """In particular the scene itself is neither sharpened nor compressed."""
    gt = photos.astronaut()[:320, :320]
    for seed in range(40):
        share = covered_share(LEAN, np.random.default_rng(seed), 320, 320)
        # A 4:2:0 JPEG spreads a change over 16 px, and interpolated colour over one block more.
        dry = cv2.dilate((share > 1e-6).astype(np.uint8), np.ones((81, 81))) == 0
        if dry.sum() > 2000:
            break
    else:
        pytest.fail("no rain leaves a part of the picture dry")
    rainy = add_camera_rain(gt, LEAN, np.random.default_rng(seed))
    np.testing.assert_array_equal(rainy[dry], gt[dry])
    assert (rainy != gt).mean() > 0.01


def test_a_small_crop_has_the_statistics_of_a_large_image():
    small = [covered_share(LEAN, np.random.default_rng((1, i)), 32, 32).mean() for i in range(700)]
    large = [
        covered_share(LEAN, np.random.default_rng((2, i)), 128, 128).mean() for i in range(250)
    ]
    error = np.hypot(np.std(small) / len(small) ** 0.5, np.std(large) / len(large) ** 0.5)
    assert abs(np.mean(small) - np.mean(large)) < 4 * error


@pytest.mark.parametrize("lean", [0.0, 45.0])
def test_lean_limits_the_mean_tilt(lean):
    tilts = []
    for seed in range(12):
        smooth = cv2.GaussianBlur(
            covered_share(lean, np.random.default_rng(seed), 200, 200), (0, 0), 1.0
        )
        gx, gy = cv2.Sobel(smooth, cv2.CV_64F, 1, 0), cv2.Sobel(smooth, cv2.CV_64F, 0, 1)
        across = 0.5 * np.arctan2(2 * (gx * gy).mean(), (gx * gx).mean() - (gy * gy).mean())
        tilts.append(np.degrees(across))
    # A layer deviates from the wind by 4 degrees, single streaks by up to three times 8 more.
    assert np.std(tilts) < 7 if lean == 0 else 7 < np.std(tilts) < 30
