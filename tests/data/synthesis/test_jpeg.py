"""JPEG compression of images."""

from __future__ import annotations

import numpy as np
from skimage import data as photos

from c2fdft_cli.data.synthesis.jpeg import jpeg


def test_lower_quality_is_farther_from_the_image_and_red_stays_red():
    image = np.ascontiguousarray(photos.coffee()[:64, :80])
    errors = [np.abs(jpeg(image, q).astype(int) - image).mean() for q in (100, 80, 20)]
    assert errors == sorted(errors)
    assert errors[0] < 3
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 200
    assert np.abs(jpeg(red, 95).astype(int) - red).max() < 8
