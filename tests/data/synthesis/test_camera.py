"""Raw sensor noise after the processing that turns raw values into a picture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from skimage import data as photos

from c2fdft_cli.data.synthesis.camera import (
    COLOUR_MATRIX,
    Camera,
    jpeg,
    photograph,
    raw_noise,
    reduce_noise,
    tone_curve,
)

CAMERA = Camera(
    shot=1e-3, read=1e-5, red=2.0, blue=1.7, luma=0.5, chroma=1.6, sharpen=0.4, tone=0.8
)


def grey(level: int, side: int = 200) -> np.ndarray:
    return np.full((side, side, 3), level, np.uint8)


def noise(level: int, camera: Camera = CAMERA, seed: int = 0) -> np.ndarray:
    noisy = photograph(grey(level), camera, np.random.default_rng(seed))
    return noisy.astype(float) - level


def lag(plane: np.ndarray, k: int) -> float:
    plane = plane - plane.mean()
    return float((plane[:, k:] * plane[:, :-k]).mean() / plane.var())


@pytest.mark.parametrize("tone", [0.0, 0.5, 1.0])
def test_without_noise_every_stored_value_is_restored(tone):
    still = replace(CAMERA, shot=0.0, read=0.0, tone=tone)
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    gt = np.dstack([levels] * 3)
    got = photograph(gt, still, np.random.default_rng(0)).astype(int)
    assert np.abs(got - gt).max() <= 1
    photo = photos.coffee()[:60, :70]
    error = photograph(photo, still, np.random.default_rng(0)).astype(int) - photo
    assert np.abs(error).max() <= 1


def test_the_tone_curve_rises_and_an_s_curve_is_flat_at_its_ends():
    for tone in (0.0, 0.5, 1.0):
        decode, encode = tone_curve(tone)
        assert (np.diff(decode) > 0).all()
        assert (np.diff(encode.astype(int)) >= 0).all()
        assert (decode[0], decode[255], encode[0], encode[-1]) == (0, 1, 0, 255)
    falls = [
        noise(240, replace(CAMERA, tone=tone)).std() / noise(128, replace(CAMERA, tone=tone)).std()
        for tone in (0.0, 1.0)
    ]
    assert falls[1] < 0.8 * falls[0]


def test_raw_noise_has_the_variance_of_its_light():
    """Measured green sites keep their variance; the other sites average four of them."""
    light = np.full((400, 400, 3), 0.5, np.float32)
    plain = replace(CAMERA, red=1.0, blue=1.0)
    got = raw_noise(light, plain, np.random.default_rng(1)) @ np.linalg.inv(COLOUR_MATRIX).T
    variance = 1e-3 * 0.5 + 1e-5
    green = got[..., 1]
    sites = max(green[a::2, b::2].var() for a in (0, 1) for b in (0, 1))
    between = min(green[a::2, b::2].var() for a in (0, 1) for b in (0, 1))
    assert sites == pytest.approx(variance, rel=0.05)
    assert between == pytest.approx(variance / 4, rel=0.05)
    assert abs(got.mean()) < 1e-4


def test_raw_noise_equals_a_mosaic_that_is_read_site_by_site():
    """Sample a Bayer mosaic, interpolate it as the mean of the nearest sites, and convert it."""
    light = np.random.default_rng(0).random((9, 12, 3)).astype(np.float32)
    light[4:6, 5:7] = (1, 0, 0)
    got = raw_noise(light, CAMERA, np.random.default_rng(7))

    rng = np.random.default_rng(7)
    first_y, first_x = rng.integers(0, 2, 2)
    n = rng.standard_normal((9, 12), dtype=np.float32)
    gains = np.array([CAMERA.red, 1, CAMERA.blue])
    raw = np.linalg.solve(COLOUR_MATRIX, light.reshape(-1, 3).T).T.reshape(light.shape) / gains

    def colour(y, x):  # RGGB: red on even rows and columns, blue on odd ones
        return (y + first_y) % 2 + (x + first_x) % 2

    def site(y, x):
        y, x = (8 - abs(8 - abs(y)), 11 - abs(11 - abs(x)))  # mirrored at the outermost pixels
        return n[y, x] * np.sqrt(CAMERA.shot * raw[y, x, colour(y, x)] + CAMERA.read)

    def interpolated(y, x, channel):
        around = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        same = [(dy, dx) for dy, dx in around if colour(y + dy, x + dx) == channel]
        nearest = min(abs(dy) + abs(dx) for dy, dx in same)
        return np.mean([site(y + dy, x + dx) for dy, dx in same if abs(dy) + abs(dx) == nearest])

    planes = [[[interpolated(y, x, c) for c in range(3)] for x in range(12)] for y in range(9)]
    expected = (np.array(planes) * gains) @ COLOUR_MATRIX.T
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


def test_noise_grows_with_light_and_with_the_gains():
    dark, bright = (
        raw_noise(np.full((200, 200, 3), x, np.float32), CAMERA, np.random.default_rng(2)).std()
        for x in (0.1, 0.4)
    )
    assert bright == pytest.approx(2 * dark, rel=0.1)
    warm = replace(CAMERA, red=3.5)
    light = np.full((200, 200, 3), 0.3, np.float32)
    red, more = (
        raw_noise(light, one, np.random.default_rng(2))[..., 0].std() for one in (CAMERA, warm)
    )
    assert more > 1.1 * red


def test_colour_is_smoothed_more_than_brightness():
    n = noise(128)
    brightness = n @ [0.299, 0.587, 0.114]
    assert lag(n[..., 0] - brightness, 2) > 0.6
    assert lag(brightness, 2) < 0.4
    assert lag(n[..., 0] - brightness, 8) > lag(brightness, 8) - 0.05


def test_channels_share_noise():
    together = np.corrcoef(noise(128).reshape(-1, 3).T)
    assert together[0, 1] > 0.2
    assert together[1, 2] > 0.2


def test_without_noise_reduction_noise_is_unchanged():
    rng = np.random.default_rng(0)
    n = rng.standard_normal((40, 50, 3), dtype=np.float32)
    off = replace(CAMERA, luma=0.0, chroma=0.0, sharpen=0.0)
    np.testing.assert_allclose(reduce_noise(n, off), n, atol=1e-5)
    assert reduce_noise(n, replace(off, sharpen=1.0)).std() > n.std()


def test_noise_is_reduced_by_two_gaussians_and_brightness_is_sharpened():
    """docs/synthesis.md; of a single pixel, separately by brightness and colour."""
    pixel = np.zeros((61, 61, 3), np.float32)
    pixel[30, 30] = (1.0, 0.3, -0.5)
    brightness = pixel @ np.array([0.299, 0.587, 0.114])

    def smoothed(plane, sigma):
        return 0.6 * gaussian_filter(plane, sigma) + 0.4 * gaussian_filter(plane, 2.5 * sigma)

    fine = smoothed(brightness, CAMERA.luma)
    sharp = fine + CAMERA.sharpen * (fine - gaussian_filter(fine, 1))
    colours = [smoothed(pixel[..., c] - brightness, CAMERA.chroma) + sharp for c in range(3)]
    np.testing.assert_allclose(reduce_noise(pixel, CAMERA), np.dstack(colours), atol=2e-4)


def test_noise_has_no_bias():
    assert np.abs(noise(128).mean(axis=(0, 1))).max() < 0.3


def test_noise_beyond_white_and_black_is_clipped():
    white, black = (level + noise(level) for level in (255, 0))
    assert white.min() > 128 > black.max()  # clipped, not wrapped to the other end
    assert min((white == 255).mean(), (black == 0).mean()) > 0.3
    strong = replace(CAMERA, shot=0.5, read=0.5)
    for value in (0, 255):
        noisy = photograph(np.full((16, 16, 3), value, np.uint8), strong, np.random.default_rng(0))
        assert {0, 255} <= set(noisy.ravel().tolist())


def test_lower_quality_is_farther_from_the_image_and_red_stays_red():
    image = np.ascontiguousarray(photos.coffee()[:64, :80])
    errors = [np.abs(jpeg(image, q).astype(int) - image).mean() for q in (100, 80, 20)]
    assert errors == sorted(errors)
    assert errors[0] < 3
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 200
    assert np.abs(jpeg(red, 95).astype(int) - red).max() < 8
