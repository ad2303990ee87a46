"""Camera shake kernels, exposures, and blur in linear light."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data as photos

from c2fdft_cli.data.synthesis.blur import (
    BlurModel,
    apply_kernel,
    shake_kernel,
)
from c2fdft_cli.data.synthesis.linear_light import to_linear

QUIET = (0.0, 0.0)
STILL = BlurModel(
    kind="exposure", size=QUIET, noise=QUIET, objects=0.0, defocus_share=0.0, jpeg_share=0.0
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.floats(0.0, 101.0), st.floats(0.01, 10.0), st.integers(0, 10**6))
def test_a_kernel_is_a_centred_distribution(size, inertia, seed):
    kernel = shake_kernel(size, inertia, np.random.default_rng(seed))
    k = kernel.shape[0]
    assert kernel.shape == (k, k)
    assert k % 2 == 1
    assert kernel.min() >= 0
    assert kernel.sum() == pytest.approx(1.0, abs=1e-9)
    middle = np.arange(k) - k // 2
    assert kernel.sum(axis=0) @ middle == pytest.approx(0.0, abs=1e-6)
    assert kernel.sum(axis=1) @ middle == pytest.approx(0.0, abs=1e-6)
    assert k // 2 <= BlurModel(size=(0.0, max(size, 0.1))).margin


@pytest.mark.parametrize("size", [4.0, 15.0, 40.0])
def test_a_kernel_has_the_requested_length(size):
    for seed in range(10):
        kernel = shake_kernel(size, 0.3, np.random.default_rng(seed))
        extent = max(np.flatnonzero(kernel.any(axis=axis)).size for axis in (0, 1))
        assert size <= extent <= size + 3


def test_inertia_straightens_the_path():
    def straightness(inertia: float) -> float:
        ratios = []
        for seed in range(40):
            kernel = shake_kernel(21.0, inertia, np.random.default_rng(seed))
            y, x = np.mgrid[: len(kernel), : len(kernel)] - len(kernel) // 2
            cov = [[(kernel * a * b).sum() for a in (x, y)] for b in (x, y)]
            low, high = np.linalg.eigvalsh(cov)
            ratios.append(low / high)
        return float(np.mean(ratios))

    assert straightness(10.0) < straightness(0.3)


@pytest.mark.parametrize("level", [0, 1, 77, 200, 255])
def test_blurring_a_constant_changes_nothing(level):
    gt = np.full((50, 40, 3), level, np.uint8)
    lq = BlurModel(size=(25.0, 25.0), noise=QUIET).degrade(gt, np.random.default_rng(0))
    np.testing.assert_array_equal(lq, gt)


def test_a_size_of_zero_does_not_blur():
    gt = photos.coffee()[:40, :40]
    lq = BlurModel(size=(0.0, 0.0), noise=QUIET).degrade(gt, np.random.default_rng(0))
    np.testing.assert_array_equal(lq, gt)


def test_a_point_becomes_the_kernel_not_its_mirror():
    kernel = shake_kernel(9.0, 0.3, np.random.default_rng(6))
    gt = np.zeros((41, 41, 3), np.uint8)
    gt[20, 20] = 255
    r = kernel.shape[0] // 2
    lit = apply_kernel(gt, kernel)[20 - r : 21 + r, 20 - r : 21 + r, 0].astype(float)
    assert np.corrcoef(lit.ravel(), kernel.ravel())[0, 1] > 0.8
    assert np.abs(lit[kernel == 0]).max(initial=0) == 0


def test_light_adds_up_linearly():
    """Half black and half white averages to 188 in sRGB, not to 128."""
    gt = np.zeros((20, 40, 3), np.uint8)
    gt[:, 20:] = 255
    lq = apply_kernel(gt, np.full((1, 1), 1.0))
    np.testing.assert_array_equal(lq, gt)
    even = np.zeros((3, 3))
    even[1] = (0.25, 0.5, 0.25)
    assert apply_kernel(gt, even)[10, 19:21, 0].tolist() == [137, 225]


def test_mean_light_is_kept():
    gt = photos.astronaut()[100:300, 100:300]
    lq = BlurModel(size=(9.0, 9.0), noise=QUIET).degrade(gt, np.random.default_rng(1))
    assert to_linear(lq).mean() == pytest.approx(to_linear(gt).mean(), rel=1e-3)
    assert (
        np.abs(np.diff(lq.astype(int), axis=1)).mean()
        < np.abs(np.diff(gt.astype(int), axis=1)).mean()
    )


def test_a_crop_with_margin_equals_the_crop_of_the_whole():
    model = BlurModel(size=(3.0, 12.0), noise=QUIET)
    m = model.margin
    gt = photos.coffee()[:160, :180]
    crop = gt[60 - m : 92 + m, 70 - m : 102 + m]
    for seed in range(5):
        whole = model.degrade(gt, np.random.default_rng(seed))[60:92, 70:102]
        part = model.degrade(crop, np.random.default_rng(seed))[m:-m, m:-m]
        # A Fourier filter rounds differently for each image size: by one level at most.
        assert np.abs(whole.astype(int) - part).max() <= 1
        assert (whole != part).mean() < 0.01


def test_images_may_be_smaller_than_the_kernel():
    gt = photos.coffee()[:5, :7]
    lq = BlurModel(size=(60.0, 60.0), noise=QUIET).degrade(gt, np.random.default_rng(0))
    assert lq.shape == gt.shape


def test_noise_is_added_after_the_blur():
    gt = np.full((60, 60, 3), 128, np.uint8)
    lq = BlurModel(size=(9.0, 9.0), noise=(4.0, 4.0)).degrade(gt, np.random.default_rng(0))
    assert lq.std() == pytest.approx(4.0, rel=0.1)


def test_results_of_kernel_blur_are_reproducible() -> None:
    kernel = shake_kernel(9.0, 0.3, np.random.default_rng(6))
    assert kernel.shape == (13, 13)
    spread = (kernel * np.arange(kernel.size).reshape(kernel.shape) ** 2).sum()
    assert spread == pytest.approx(8076.972259774444, rel=1e-9)


@pytest.mark.parametrize("burst", [0.0, 1.0])
def test_an_exposure_without_motion_is_the_image(burst):
    gt = photos.coffee()[:40, :48]
    model = replace(STILL, burst=burst)
    np.testing.assert_array_equal(model.degrade(gt, np.random.default_rng(0)), gt)


@pytest.mark.parametrize("level", [0, 77, 255])
def test_an_exposure_of_a_constant_is_the_constant(level):
    gt = np.full((60, 70, 3), level, np.uint8)
    model = replace(STILL, size=(25.0, 25.0), objects=1.0, defocus_share=1.0)
    lq = model.degrade(gt, np.random.default_rng(0))
    np.testing.assert_array_equal(lq, gt)


def test_exposure_adds_light_and_a_burst_adds_stored_values():
    gt = photos.astronaut()[100:300, 100:300]
    moving = replace(STILL, size=(20.0, 20.0))
    light = moving.degrade(gt, np.random.default_rng(1)).mean()
    stored = replace(moving, burst=1.0).degrade(gt, np.random.default_rng(1)).mean()
    assert light > stored + 1
    assert stored == pytest.approx(gt.mean(), abs=3)


def test_longer_motion_blurs_more():
    gt = photos.coffee()[:200, :200]
    rough = []
    for size in (2.0, 8.0, 24.0):
        model = replace(STILL, size=(size, size))
        lq = [model.degrade(gt, np.random.default_rng(seed)).astype(int) for seed in range(8)]
        rough.append(np.mean([np.abs(np.diff(one, axis=1)).mean() for one in lq]))
    assert rough[0] > rough[1] > rough[2]


def test_sensor_noise_has_the_requested_deviation_at_mid_grey_and_grows_with_light():
    model = replace(STILL, noise=(3.0, 3.0), gamma=(2.2, 2.2))
    grey = np.full((160, 160, 3), 128, np.uint8)
    lq = model.degrade(grey, np.random.default_rng(0))
    assert lq.std(axis=(0, 1)) == pytest.approx([3.0] * 3, rel=0.1)
    beside = np.corrcoef(lq[:, 1:].ravel(), lq[:, :-1].ravel())[0, 1]
    assert beside > 0.4  # as after demosaicing


def test_jpeg_is_used_for_its_share():
    gt = photos.coffee()[:64, :64]
    always = replace(STILL, jpeg_share=1.0, jpeg=(60, 60))
    assert (always.degrade(gt, np.random.default_rng(0)) != gt).any()


def test_a_range_of_inertia_is_sampled():
    a, b = (shake_kernel(21.0, inertia, np.random.default_rng(3)) for inertia in (0.05, 5.0))
    assert a.shape != b.shape or (a != b).any()
    gt = photos.coffee()[:80, :80]
    fixed, ranged = (
        BlurModel(inertia=i, noise=QUIET).degrade(gt, np.random.default_rng(3))
        for i in ((0.3, 0.3), (0.05, 5.0))
    )
    assert (fixed != ranged).any()
