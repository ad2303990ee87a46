"""Gaussian and Poisson-Gaussian noise."""

from __future__ import annotations

import numpy as np
import pytest

from c2fdft_cli.data.synthesis.linear_light import to_linear, to_srgb
from c2fdft_cli.data.synthesis.noise import (
    NoiseModel,
    camera_noise,
    gaussian_noise,
    random_camera,
)


@pytest.mark.parametrize("sigma", [0.0, 5.0, 25.0])
def test_gaussian_has_its_sigma_and_no_bias(sigma):
    gt = np.full((200, 200, 3), 128, np.uint8)
    error = gaussian_noise(gt, sigma, np.random.default_rng(0)).astype(float) - gt
    assert abs(error.mean()) < 0.3
    # Rounding adds a variance of 1/12 to noise that spreads over several levels.
    expected = (sigma**2 + 1 / 12) ** 0.5 if sigma else 0.0
    assert error.std() == pytest.approx(expected, rel=0.02)


def test_gaussian_noise_is_white_over_pixels_and_channels():
    gt = np.full((256, 256, 3), 128, np.uint8)
    n = gaussian_noise(gt, 20.0, np.random.default_rng(1)).astype(float) - 128
    n /= n.std()
    assert abs((n[:, 1:] * n[:, :-1]).mean()) < 0.01
    assert abs((n[1:] * n[:-1]).mean()) < 0.01
    assert abs((n[..., 0] * n[..., 1]).mean()) < 0.02


@pytest.mark.parametrize("level", [0, 255])
def test_ends_clip_and_never_wrap(level):
    gt = np.full((60, 60, 3), level, np.uint8)
    noisy = gaussian_noise(gt, 30.0, np.random.default_rng(0))
    assert (np.abs(noisy.astype(int) - level) < 180).all()
    assert 0.4 < (noisy == level).mean() < 0.6


@pytest.mark.parametrize("correlated", [False, True])
def test_camera_variance_is_linear_in_the_signal(correlated):
    """var = shot * x + read, at every x and in every channel."""
    shot, read = 4e-3, 2e-4
    levels = np.linspace(0.0, 1.0, 9)
    rng = np.random.default_rng(2)
    variances = []
    for x in levels:
        linear = np.full((150, 150, 3), x, np.float32)
        noise = camera_noise(linear, shot, read, rng, correlated=correlated) - linear
        variances.append(noise.var(axis=(0, 1)))
    for channel in range(3):
        slope, offset = np.polyfit(levels, np.array(variances)[:, channel], 1)
        assert slope == pytest.approx(shot, rel=0.05)
        assert offset == pytest.approx(read, rel=0.25)


def test_correlated_noise_is_shared_by_neighbours_alone():
    grey = np.full((300, 300, 3), 0.4, np.float32)
    n = camera_noise(grey, 1e-2, 1e-4, np.random.default_rng(0), correlated=True) - grey
    n = n / n.std(axis=(0, 1))
    near = (n[:, 1:] * n[:, :-1]).mean(axis=(0, 1))
    far = (n[:, 3:] * n[:, :-3]).mean(axis=(0, 1))
    # The autocorrelation of [1 2 1] at a shift of one is 4/6; that of the cross is 8/20.
    np.testing.assert_allclose(near, [2 / 3, 0.4, 2 / 3], atol=0.03)
    np.testing.assert_allclose(far, 0.0, atol=0.03)


@pytest.mark.parametrize(("shot", "log_read"), [(1e-2, -8.839), (2e-3, -12.348)])
def test_read_noise_follows_the_published_fit(shot, log_read):
    """2.18 log(shot) + 1.2 + N(0, 0.26^2); of black, the half that is not clipped remains."""
    black, found = np.zeros((32, 32, 3), np.uint8), []
    for seed in range(120):
        model = NoiseModel(kind="camera", shot=(shot, shot), correlated=False)
        noisy = to_linear(model.degrade(black, np.random.default_rng(seed)))
        found.append(np.log(2 * np.square(noisy, dtype=float).mean()))
    assert np.mean(found) == pytest.approx(log_read, abs=0.1)
    assert np.std(found) == pytest.approx(0.26, abs=0.04)


def test_camera_noise_grows_with_the_shot_noise():
    gt = np.full((80, 80, 3), 120, np.uint8)
    spread = [
        NoiseModel(kind="camera", shot=(s, s)).degrade(gt, np.random.default_rng(0)).std()
        for s in (1e-4, 1e-3, 1e-2)
    ]
    assert spread[0] < spread[1] < spread[2]


def test_each_image_draws_its_sigma_from_the_range():
    gt = np.full((64, 64, 3), 128, np.uint8)
    model = NoiseModel(sigma=(5.0, 30.0))
    spread = [model.degrade(gt, np.random.default_rng(i)).std() for i in range(60)]
    assert 4 < min(spread) < 9
    assert 26 < max(spread) < 32


def test_the_srgb_curve_is_the_standard_one_and_invertible():
    levels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_srgb(to_linear(levels)), levels)
    assert to_linear(levels)[188] == pytest.approx(0.5029, abs=1e-4)
    assert to_srgb(np.array([-1.0, 0.0, 0.5, 1.0, 9.0], np.float32)).tolist() == [
        0,
        0,
        188,
        255,
        255,
    ]


def test_the_kind_of_noise_is_sampled_for_each_image():
    """With a camera_share of 0 or 1 there is one kind of noise; otherwise both occur."""
    gt = np.full((64, 64, 3), 128, np.uint8)

    def neighbours(share, seed):
        model = NoiseModel("either", sigma=(20, 20), shot=(1e-2, 1e-2), camera_share=share)
        n = model.degrade(gt, np.random.default_rng(seed))[..., 0].astype(float)
        n -= n.mean()
        return (n[:, 1:] * n[:, :-1]).mean() / n.var()

    assert all(abs(neighbours(0.0, seed)) < 0.1 for seed in range(4))
    assert all(neighbours(1.0, seed) > 0.4 for seed in range(4))
    assert {neighbours(0.5, seed) > 0.25 for seed in range(12)} == {True, False}


def test_a_share_of_the_camera_noise_is_made_in_raw():
    """The share applies only to camera noise; its raw images equal those of the kind "raw"."""
    gt = np.random.default_rng(9).integers(0, 256, (48, 48, 3)).astype(np.uint8)

    def made(raw_share, camera_share=1.0):
        model = NoiseModel("either", camera_share=camera_share, raw_share=raw_share)
        return [model.degrade(gt, np.random.default_rng(seed)).tobytes() for seed in range(24)]

    camera, mixed, raw = made(0.0), made(0.5), made(1.0)
    assert made(1.0, camera_share=0.0) == made(0.0, camera_share=0.0)
    rng = np.random.default_rng(0)
    rng.random(2)  # consume the choices of camera noise and of raw
    assert raw[0] == NoiseModel("raw").degrade(gt, rng).tobytes()
    assert not set(camera) & set(raw)
    assert 4 < sum(made == like for made, like in zip(mixed, raw, strict=True)) < 20


def test_a_share_of_white_noise_of_patches_is_not_clipped():
    """The same images without clipping; values below black are as frequent as above it."""
    gt = np.zeros((48, 48, 3), np.uint8)

    def made(share, add=NoiseModel.degrade_patch):
        model = NoiseModel(sigma=(30, 30), unclipped_share=share)
        return [add(model, gt, np.random.default_rng(seed)) for seed in range(24)]

    some, none = made(0.5), made(0.0)
    assert 4 < sum(noisy.dtype == np.int16 for noisy in some) < 20
    for noisy, clipped in zip(some, made(0.5, NoiseModel.degrade), strict=True):
        assert clipped.dtype == np.uint8
        np.testing.assert_array_equal(np.clip(noisy, 0, 255), clipped)
        if noisy.dtype == np.int16:
            assert noisy.mean() == pytest.approx(0, abs=2)
            assert noisy.std() == pytest.approx(30, rel=0.05)
    assert all(noisy.dtype == np.uint8 for noisy in none)
    assert all(noisy.dtype == np.int16 for noisy in made(1.0))


def test_noise_without_an_unclipped_share_consumes_no_further_random_number():
    """Otherwise runs that are older than the option would resume with other noise."""
    gt = np.full((8, 8, 3), 128, np.uint8)
    new, old = np.random.default_rng(3), np.random.default_rng(3)
    noisy = NoiseModel().degrade_patch(gt, new)
    np.testing.assert_array_equal(noisy, gaussian_noise(gt, old.uniform(5.0, 50.0), old))
    assert new.random() == old.random()


def test_raw_noise_grows_with_shot_and_is_stored_as_jpeg():
    gt = np.full((120, 120, 3), 120, np.uint8)
    weak, strong = (
        NoiseModel(kind="raw", shot=(s, s)).degrade(gt, np.random.default_rng(0)).std()
        for s in (1e-4, 4e-3)
    )
    assert strong > 3 * weak > 0


def test_cameras_are_sampled_within_their_ranges():
    model = NoiseModel(kind="raw", shot=(1e-4, 1e-3), luma=(0.2, 0.6), tone=(0.5, 0.5))
    cameras = [random_camera(model, np.random.default_rng(i)) for i in range(50)]
    assert all(1e-4 <= one.shot <= 1e-3 and 0.2 <= one.luma <= 0.6 for one in cameras)
    assert {one.tone for one in cameras} == {0.5}
    assert len({one.red for one in cameras}) == 50


def test_gains_and_read_noise_of_cameras_fill_their_ranges():
    """docs/synthesis.md; read noise is a share of shot noise, uniform in its logarithm."""
    cameras = [random_camera(NoiseModel("raw"), np.random.default_rng(i)) for i in range(400)]
    red, blue, read, shot = (
        np.array([value(one) for one in cameras])
        for value in (
            lambda one: one.red,
            lambda one: one.blue,
            lambda one: np.log(one.read / one.shot),
            lambda one: np.log(one.shot),
        )
    )
    for values, low, high in (
        (red, 1.6, 2.6),
        (blue, 1.4, 2.6),
        (read, np.log(0.003), np.log(0.05)),
        (shot, np.log(1e-4), np.log(1.2e-2)),
    ):
        width = high - low
        assert low <= values.min() < low + 0.02 * width
        assert high - 0.02 * width < values.max() <= high
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.05 * width)
