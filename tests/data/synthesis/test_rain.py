"""Rain: an additive grey layer with the statistics of Rain100L and Rain100H."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from skimage import data as photos

from c2fdft_cli.data.synthesis import streaks
from c2fdft_cli.data.synthesis.degrade import Degradation
from c2fdft_cli.data.synthesis.rain import (
    RainModel,
    add_veil,
    heavy_styles,
    layered_styles,
    rain_layer,
)
from c2fdft_cli.data.synthesis.streaks import StreakBank
from c2fdft_cli.errors import UsageError

REAL = os.environ.get("C2FDFT_TEST_DATA")
LIGHT, HEAVY = RainModel(heavy=0.0), RainModel(heavy=1.0)


def luma_psnr(lq: np.ndarray, gt: np.ndarray) -> float:
    error = (lq.astype(float) - gt) @ np.array([65.481, 128.553, 24.966]) / 255
    return float(10 * np.log10(255**2 / (error**2).mean()))


def statistics(model: RainModel, count: int, streaks: StreakBank | None = None) -> np.ndarray:
    """Mean of (mean S, share of S > 8, PSNR-Y) over samples of rain on skimage photos."""
    crops = [image[40:240, 60:300] for image in (photos.astronaut(), photos.coffee())]
    rows = []
    for i in range(count):
        gt = crops[i % 2]
        lq = model.degrade(gt, np.random.default_rng((5, i)), streaks)
        layer = (lq.astype(int) - gt).max(axis=2)
        rows.append((layer.mean(), (layer > 8).mean(), luma_psnr(lq, gt)))
    return np.mean(rows, axis=0)


@pytest.mark.parametrize("model", [LIGHT, HEAVY], ids=["light", "heavy"])
@pytest.mark.parametrize("source", ["drawn", "bank"])
def test_the_rain_layer_is_grey_additive_and_never_wraps(model, source, bank):
    gt = photos.astronaut()[:150, :170]
    streaks = bank if source == "bank" else None
    layer = rain_layer(model, np.random.default_rng(3), 150, 170, streaks)
    lq = model.degrade(gt, np.random.default_rng(3), streaks)
    assert layer.dtype == np.uint8
    assert layer.any()
    np.testing.assert_array_equal(lq, np.minimum(gt.astype(int) + layer[..., None], 255))


def test_white_stays_white():
    white = np.full((64, 64, 3), 255, np.uint8)
    assert (HEAVY.degrade(white, np.random.default_rng(0)) == 255).all()


def test_a_strength_of_zero_adds_no_rain():
    gt = photos.coffee()[:50, :60]
    dry = RainModel(strength=(0.0, 0.0)).degrade(gt, np.random.default_rng(0))
    np.testing.assert_array_equal(dry, gt)


def test_synthetic_light_rain_has_the_statistics_of_rain100l():
    mean, share, psnr = statistics(LIGHT, 120)
    assert 4.6 < mean < 7.4
    assert 0.14 < share < 0.23
    assert 25.4 < psnr < 28.4


def test_synthetic_heavy_rain_has_the_statistics_of_rain100h():
    mean, share, psnr = statistics(HEAVY, 40)
    assert 44 < mean < 68
    assert 0.77 < share < 0.92
    assert 12.3 < psnr < 15.2


def test_the_amount_of_rain_varies_as_in_rain100l():
    means = [rain_layer(LIGHT, np.random.default_rng(i), 160, 160).mean() for i in range(150)]
    assert 0.35 < np.std(means) / np.mean(means) < 0.85


def test_heavy_sets_the_share_of_heavy_images():
    model = RainModel(heavy=0.3)
    means = [rain_layer(model, np.random.default_rng(i), 48, 48).mean() for i in range(300)]
    assert 0.2 < np.mean(np.array(means) > 25) < 0.4


@pytest.mark.parametrize(
    "model", [LIGHT, pytest.param(HEAVY, marks=pytest.mark.acceptance)], ids=["light", "heavy"]
)
def test_a_small_crop_has_the_statistics_of_a_large_image(model):
    """Streaks that start outside are drawn too: no dry border, and no bias by crop size."""
    small = [rain_layer(model, np.random.default_rng((1, i)), 32, 32).mean() for i in range(900)]
    large = [rain_layer(model, np.random.default_rng((2, i)), 160, 160).mean() for i in range(120)]
    error = np.hypot(np.std(small) / len(small) ** 0.5, np.std(large) / len(large) ** 0.5)
    assert abs(np.mean(small) - np.mean(large)) < 4 * error


def test_no_row_or_column_of_a_crop_is_drier_than_another():
    total = sum(
        rain_layer(HEAVY, np.random.default_rng(i), 32, 32).astype(float) for i in range(600)
    )
    for profile in (total.mean(axis=0), total.mean(axis=1)):
        assert np.ptp(profile) / profile.mean() < 0.2


def test_extreme_options_still_give_rain():
    model = RainModel(strength=(4.0, 4.0), lean=60.0, cover=(0.99, 0.99), heavy=0.0)
    assert rain_layer(model, np.random.default_rng(0), 40, 40).mean() > 50
    upright = RainModel(lean=0.0, heavy=0.5)
    for i in range(20):
        rain_layer(upright, np.random.default_rng(i), 16, 16)


@pytest.mark.parametrize(
    ("model", "moments"), [(LIGHT, (7.503, 195.0)), (HEAVY, (136.4, 2770))], ids=["light", "heavy"]
)
def test_rain_from_the_bank_is_reproducible(bank, model, moments):
    layer = rain_layer(model, np.random.default_rng(1), 40, 48, bank).astype(float)
    got = layer.mean(), (layer * np.arange(48)).mean()
    assert got == pytest.approx(moments, rel=0.02)  # OpenCV may round differently


def test_rain_from_the_bank_scales_with_strength(bank):
    gt = np.zeros((64, 64, 3), np.uint8)
    sums = [
        RainModel(strength=(s, s), heavy=0.0)
        .degrade(gt, np.random.default_rng(0), bank)
        .sum(dtype=np.int64)
        for s in (0.5, 1.0)
    ]
    assert sums[1] == pytest.approx(2 * sums[0], rel=0.02)


@pytest.fixture(scope="module")
def bank_with_layers(folder, tmp_path_factory) -> StreakBank:
    path = tmp_path_factory.mktemp("layers") / "streaks"
    shutil.copytree(folder, path)
    (path / "heavy").mkdir()
    cv2.imwrite(str(path / "heavy" / "a.png"), np.full((96, 128), 200, np.uint8))
    return StreakBank(path)


def test_half_of_the_heavy_rain_is_a_complete_layer_of_the_bank(bank, bank_with_layers):
    assert (len(bank_with_layers.masks), len(bank_with_layers.layers)) == (len(bank.masks), 1)
    heavy = RainModel(strength=(1, 1), heavy=1.0)
    layers = [
        rain_layer(heavy, np.random.default_rng(i), 40, 40, bank_with_layers) for i in range(60)
    ]
    whole = [bool((layer == 200).all()) for layer in layers]
    assert 18 < sum(whole) < 42


def test_layers_change_neither_light_rain_nor_banks_without_layers(bank, bank_with_layers):
    light = RainModel(heavy=0.0)
    for i in range(5):
        a, b = (
            rain_layer(light, np.random.default_rng(i), 40, 40, one)
            for one in (bank, bank_with_layers)
        )
        np.testing.assert_array_equal(a, b)
    assert bank.layers == ()


def test_streaks_cannot_be_combined_with_noise(folder):
    for kind in ("noise", "blur"):
        with pytest.raises(UsageError, match="only for rain"):
            Degradation.open(kind, None, folder)
        assert Degradation.open(kind, None, None).streaks is None
    assert len(Degradation.open("rain", None, folder).streaks.masks)


@pytest.mark.skipif(not REAL, reason="C2FDFT_TEST_DATA is not set")
def test_bank_rain_has_the_statistics_of_rain100l_and_rain100h(monkeypatch):
    monkeypatch.setattr(streaks, "MAX_IMAGES", 60)
    bank = StreakBank(Path(REAL) / "streaks")
    mean, share, psnr = statistics(LIGHT, 100, bank)
    assert 4.6 < mean < 7.4
    assert 0.14 < share < 0.21
    assert 25.2 < psnr < 28.2
    mean, share, psnr = statistics(HEAVY, 30, bank)
    assert 44 < mean < 68
    assert 0.77 < share < 0.93
    assert 12.3 < psnr < 15.2


# -- overlapping layers and the veil -------------------------------------------------


def test_layers_range_from_thin_dense_and_dim_to_wide_and_bright():
    ratios = []
    for seed in range(60):
        styles = layered_styles(3, 15.0, np.random.default_rng(seed))
        assert len(styles) == 3
        assert [style.level for style in styles] == sorted(style.level for style in styles)
        ratios.append((styles[-1].length / styles[0].length, styles[-1].width / styles[0].width))
        assert 0.75 <= 1 - np.prod([1 - style.coverage for style in styles]) <= 0.98
    assert (np.median(ratios, axis=0) > 1.2).all()


def test_the_number_of_layers_has_both_ends_of_its_range():
    model = RainModel(layers=(1, 3))
    counts = [len(heavy_styles(model, np.random.default_rng(seed))) for seed in range(20)]
    assert set(counts) == {1, 2, 3}


def test_layers_have_the_statistics_of_heavy_rain():
    """Real heavy pairs: mean S 58, 83 % above 8, 12.7 dB (nine of RainTrainH)."""
    mean, share, psnr = statistics(RainModel(heavy=1.0, layers=(2, 4)), 60)
    assert 45 < mean < 72
    assert 0.75 < share < 0.95
    assert 11.5 < psnr < 15


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_camera_share_is_the_share_of_images_with_rain_as_in_photographs(share):
    """Only that rain darkens something white, unless its drops are white as well."""
    white = np.full((64, 64, 3), 255, np.uint8)
    model = RainModel(camera_share=share, heavy=0.5)
    dark = [(model.degrade(white, np.random.default_rng(i)) < 255).any() for i in range(100)]
    assert np.mean(dark) == pytest.approx(share, abs=0.12 if share else 0)


def test_rain_as_in_photographs_may_be_behind_a_veil():
    black = np.zeros((64, 64, 3), np.uint8)
    model = RainModel(camera_share=1.0, veil_share=1.0, veil=(0.3, 0.3))
    assert model.degrade(black, np.random.default_rng(0)).min() > 20


def test_without_layers_veil_and_camera_the_generator_state_is_unchanged():
    a, b = np.random.default_rng(4), np.random.default_rng(4)
    gt = photos.coffee()[:60, :60]
    np.testing.assert_array_equal(
        HEAVY.degrade(gt, a), RainModel(heavy=1.0, veil=(0.5, 0.5)).degrade(gt, b)
    )
    assert a.random() == b.random()


def test_a_veil_moves_pixels_towards_one_grey_by_at_most_its_opacity():
    rng = np.random.default_rng(0)
    black, white = np.zeros((150, 200, 3), np.uint8), np.full((150, 200, 3), 255, np.uint8)
    dark = add_veil(black, 0.4, np.random.default_rng(8)).astype(float)
    light = add_veil(white, 0.4, np.random.default_rng(8)).astype(float)
    contrast = (light - dark) / 255
    assert contrast.min() >= 1 - 0.4 - 0.01
    assert contrast.max() <= 1 - 0.2 + 0.01
    assert np.ptp(contrast[..., 0]) > 0.02
    assert np.abs(np.diff(dark, axis=1)).max() <= 3
    np.testing.assert_array_equal(dark[..., 0], dark[..., 2])
    image = photos.coffee()[:50, :50]
    np.testing.assert_array_equal(add_veil(image, 0.0, rng), image)
