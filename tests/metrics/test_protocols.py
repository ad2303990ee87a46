"""Scores by protocol equal scikit-image, the reference numbers and explicit formulas."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from c2fdft_cli.core.ssim import ssim_terms
from c2fdft_cli.metrics.protocols import PROTOCOLS, crop, luma, psnr, score, ssim

metrics = pytest.importorskip("skimage.metrics")


def photo(name: str = "astronaut", side: int = 96) -> np.ndarray[Any, Any]:
    from skimage import data

    return np.ascontiguousarray(getattr(data, name)()[40 : 40 + side, 60 : 60 + side + 9, :3])


def rainy(image: np.ndarray[Any, Any], strength: float = 60) -> np.ndarray[Any, Any]:
    y, x = np.mgrid[0 : image.shape[0], 0 : image.shape[1]]
    streaks = strength * np.maximum(0, np.sin(0.9 * x + 0.3 * y)) ** 8
    return np.clip(image + streaks[..., None], 0, 255).astype(np.uint8)


def tensor(image: np.ndarray[Any, Any]) -> torch.Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None]


def skimage_scores(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> tuple[float, float]:
    """PSNR and the valid-region SSIM of images `[h, w, c]` on the scale 0 .. 255."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    peak = metrics.peak_signal_noise_ratio(b, a, data_range=255)
    _, maps = metrics.structural_similarity(
        a, b, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        channel_axis=2, full=True,
    )  # fmt: skip
    return float(peak), float(maps[5:-5, 5:-5].mean())


def luma_by_hand(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    rgb = image.astype(np.float64)
    return 16 + (65.481 * rgb[..., :1] + 128.553 * rgb[..., 1:2] + 24.966 * rgb[..., 2:]) / 255


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee"])
def test_scores_equal_those_of_scikit_image(name: str) -> None:
    gt = photo(name)
    lq = rainy(gt)
    got = score(tensor(lq), tensor(gt), PROTOCOLS["rgb"])[0]
    assert (got.psnr, got.ssim) == pytest.approx(skimage_scores(lq, gt), abs=1e-9)
    got = score(tensor(lq), tensor(gt), PROTOCOLS["derain"])[0]
    want = skimage_scores(luma_by_hand(lq), luma_by_hand(gt))
    assert (got.psnr, got.ssim) == pytest.approx(want, abs=1e-9)
    got = score(tensor(lq), tensor(gt), PROTOCOLS["derain-matlab"])[0]
    want = skimage_scores(luma_by_hand(lq).round(), luma_by_hand(gt).round())
    assert (got.psnr, got.ssim) == pytest.approx(want, abs=1e-9)


def test_protocols_that_share_a_formula_agree() -> None:
    lq, gt = tensor(rainy(photo())), tensor(photo())
    scores = {name: score(lq, gt, protocol)[0] for name, protocol in PROTOCOLS.items()}
    assert scores["derain"] == scores["y"]
    assert scores["deblur"] == scores["rgb"] == scores["denoise"]
    assert scores["levin"].psnr > scores["rgb"].psnr
    assert len(set(scores.values())) == 4
    assert {name for name, one in PROTOCOLS.items() if one.unrounded} == {"denoise"}


def test_scores_equal_the_reference_numbers(misc: dict[str, Any]) -> None:
    stored = misc["metrics"]
    a, b = (misc["arrays"][key].flip(-1).permute(2, 0, 1)[None] for key in ("bgr_a", "bgr_b"))
    rgb, y = (score(a, b, PROTOCOLS[name])[0] for name in ("rgb", "derain"))
    for key, got in (
        ("psnr_rgb", rgb.psnr), ("ssim_rgb", rgb.ssim), ("psnr_y", y.psnr), ("ssim_y", y.ssim),
    ):  # fmt: skip
        assert got == pytest.approx(stored[key], rel=1e-6)


@pytest.mark.skipif("C2FDFT_TEST_DATA" not in os.environ, reason="needs real pairs")
def test_scores_of_real_pairs_equal_those_of_scikit_image() -> None:
    from c2fdft_cli.data.images.picture import list_images, read_rgb8

    folder = Path(os.environ["C2FDFT_TEST_DATA"]) / "rain100h"
    for path in list_images(folder / "input")[:4]:
        lq, gt = read_rgb8(path), read_rgb8(folder / "target" / path.name)
        got = score(tensor(lq), tensor(gt), PROTOCOLS["derain"])[0]
        want = skimage_scores(luma_by_hand(lq), luma_by_hand(gt))
        assert (got.psnr, got.ssim) == pytest.approx(want, abs=1e-8)


@pytest.mark.parametrize("name", ["rgb", "levin"])
@pytest.mark.parametrize("sides", [(30, 60), (60, 24), (8, 8)])
def test_an_image_within_the_border_is_refused(name: str, sides: tuple[int, int]) -> None:
    image = torch.zeros(1, 3, *sides)
    protocol = PROTOCOLS[name]
    with pytest.raises(ValueError, match=r"nothing is left to score of .* border of 15 px"):
        score(image, image, protocol, 15 - protocol.border)


def test_luma_of_black_white_and_primaries() -> None:
    colours = torch.tensor([[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]])
    got = luma(colours.view(5, 3, 1, 1)).flatten()
    assert got.tolist() == pytest.approx([16, 235, 81.481, 144.553, 40.966])


def test_scores_of_equal_images_and_of_known_errors() -> None:
    image = tensor(photo())
    assert psnr(image, image).item() == math.inf
    assert ssim(image, image).item() == pytest.approx(1)
    shifted = image.clamp(0, 254) + 1
    got = psnr(shifted, image.clamp(0, 254)).item()
    assert got == pytest.approx(20 * math.log10(255))


def test_scores_are_symmetric_and_independent_for_each_image() -> None:
    a = torch.cat([tensor(rainy(photo())), tensor(rainy(photo("chelsea"), 20))])
    b = torch.cat([tensor(photo()), tensor(photo("chelsea"))])
    for name in ("rgb", "derain"):
        both = score(a, b, PROTOCOLS[name])
        for i, one in enumerate(both):
            alone = score(a[i : i + 1], b[i : i + 1], PROTOCOLS[name])[0]
            back = score(b[i : i + 1], a[i : i + 1], PROTOCOLS[name])[0]
            assert (one.psnr, one.ssim) == pytest.approx((alone.psnr, alone.ssim))
            assert (one.psnr, one.ssim) == pytest.approx((back.psnr, back.ssim))


def test_a_border_is_not_scored() -> None:
    gt = photo()
    lq = rainy(gt)
    got = score(tensor(lq), tensor(gt), PROTOCOLS["rgb"], border=7)[0]
    want = skimage_scores(lq[7:-7, 7:-7], gt[7:-7, 7:-7])
    assert (got.psnr, got.ssim) == pytest.approx(want, abs=1e-9)
    restored, target = crop(tensor(lq), tensor(gt), PROTOCOLS["levin"], border=7)
    assert torch.equal(target, tensor(gt)[..., 22:-22, 22:-22])  # 7 px and its own 15 px
    assert restored.shape == target.shape


def test_floats_are_scored_unrounded() -> None:
    gt = tensor(photo()).double()
    got = score(gt + 0.25, gt, PROTOCOLS["denoise"])[0]
    assert got.psnr == pytest.approx(20 * math.log10(255 / 0.25))


def test_noise_lowers_every_score() -> None:
    gt = photo()
    scores = [score(tensor(rainy(gt, s)), tensor(gt), PROTOCOLS["rgb"])[0] for s in (20, 60, 120)]
    assert scores[0].psnr > scores[1].psnr > scores[2].psnr
    assert 1 > scores[0].ssim > scores[1].ssim > scores[2].ssim > -1


@pytest.mark.parametrize("function", [psnr, ssim])
def test_shapes_that_do_not_match_are_refused(function: Any) -> None:
    with pytest.raises(ValueError, match="one shape"):
        function(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 17))
    with pytest.raises(ValueError, match="one shape"):
        function(torch.zeros(3, 16, 16), torch.zeros(3, 16, 16))


def test_images_smaller_than_the_window_are_refused() -> None:
    small = torch.zeros(1, 3, 10, 40)
    with pytest.raises(ValueError, match="at least 11"):
        ssim(small, small)
    with pytest.raises(ValueError, match="at least 11"):
        score(torch.zeros(1, 3, 40, 40), torch.zeros(1, 3, 40, 40), PROTOCOLS["rgb"], border=15)


@pytest.mark.parametrize("size", [(11, 11), (74, 40), (75, 11), (139, 200)])
def test_ssim_in_strips_equals_that_of_the_loss(size: tuple[int, int]) -> None:
    source = torch.Generator().manual_seed(0)
    target = torch.rand((2, 3, *size), generator=source) * 255
    restored = (target + 20 * torch.randn(target.shape, generator=source)).clamp(0, 255)
    a, b = restored.double(), target.double()
    expected = ssim_terms(torch.stack([a + b, a - b]), 255, 11, 1.5, 0)[0].mean(1)
    assert torch.allclose(ssim(restored, target), expected, rtol=0, atol=1e-12)
