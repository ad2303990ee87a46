"""The search for the shift between two images."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage import data

from c2fdft_cli.metrics.alignment import align
from c2fdft_cli.metrics.protocols import PROTOCOLS, psnr, score

LEVIN = PROTOCOLS["levin"]


def photo(h: int = 100, w: int = 120) -> torch.Tensor:
    image = data.coffee()[100 : 100 + h, 200 : 200 + w]
    return torch.from_numpy(image.copy()).permute(2, 0, 1).double()


def bilinear(image: torch.Tensor, dy: float, dx: float) -> torch.Tensor:
    """The image sampled at (y + dy, x + dx); valid for interior pixels."""
    y, x = math.floor(dy), math.floor(dx)
    fy, fx = dy - y, dx - x

    def at(j: int, i: int) -> torch.Tensor:
        return torch.roll(image, (-j, -i), (-2, -1))

    return (
        (1 - fy) * (1 - fx) * at(y, x) + (1 - fy) * fx * at(y, x + 1)
        + fy * (1 - fx) * at(y + 1, x) + fy * fx * at(y + 1, x + 1)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("dy", "dx"),
    [(0, 0), (3, -2), (0.25, 0.5), (-4.75, 1.25), (5, 5), (-5, -5), (5, -5), (4.75, -5)],
)
def test_every_shift_of_the_grid_is_undone_exactly(dy: float, dx: float) -> None:
    image = photo()
    target = bilinear(image, dy, dx)[:, 15:-15, 15:-15]
    got = align(image[:, 10:-10, 10:-10], target, 5)
    torch.testing.assert_close(got, target, rtol=0, atol=1e-9)


def test_the_error_is_the_smallest_of_all_shifts() -> None:
    """Compared with trying every shift, on images that no shift makes equal."""
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 20, (3, 60, 64)))
    image = photo(60, 64)
    target = (bilinear(image, 0.6, -1.4) + noise)[:, 6:-6, 6:-6]
    tried = {
        (y, x): (bilinear(image, y / 4, x / 4)[:, 6:-6, 6:-6] - target).square().sum().item()
        for y in range(-8, 9)
        for x in range(-8, 9)
    }
    got = align(image[:, 4:-4, 4:-4], target, 2)
    assert (got - target).square().sum().item() == pytest.approx(min(tried.values()), rel=1e-12)


@pytest.mark.parametrize("shift", [(0.5, 0.25), (-1.25, 2.5), (3.0, -4.0)])
def test_a_shifted_image_scores_as_the_unshifted_one(shift: tuple[float, float]) -> None:
    """With the protocol levin; the shift uses splines, its search bilinear interpolation."""
    smooth = torch.from_numpy(ndimage.gaussian_filter(photo().numpy(), (0, 2, 2)))
    noise = torch.from_numpy(np.random.default_rng(1).normal(0, 3, tuple(smooth.shape)))
    noise = torch.from_numpy(ndimage.gaussian_filter(noise.numpy() * 6, (0, 2, 2)))
    restored = smooth + noise
    moved = torch.from_numpy(ndimage.shift(restored.numpy(), (0, *shift), order=5, mode="mirror"))
    want = score(restored[None], smooth[None], LEVIN)[0]
    got = score(moved[None], smooth[None], LEVIN)[0]
    plain = score(moved[None], smooth[None], PROTOCOLS["rgb"])[0]
    assert want.psnr < 45
    assert got.psnr == pytest.approx(want.psnr, abs=0.25)
    assert got.ssim == pytest.approx(want.ssim, abs=0.005)
    assert got.psnr > plain.psnr + 3


def test_levin_skips_its_border_and_a_requested_one() -> None:
    image = torch.from_numpy(np.random.default_rng(3).uniform(0, 255, (1, 3, 80, 90)))
    broken = image.clone()
    broken[..., :10, :] = 0
    assert score(broken, image, LEVIN)[0].psnr == math.inf
    broken[..., :14, :] = 0
    assert score(broken, image, LEVIN)[0].psnr == math.inf
    noisy = image + torch.from_numpy(np.random.default_rng(0).normal(0, 2, tuple(image.shape)))
    a, b = (x[..., 20:-20, 20:-20] for x in (noisy, image))
    assert score(noisy, image, LEVIN, border=5)[0].psnr == pytest.approx(psnr(a, b).item())


def test_each_image_of_a_batch_has_its_own_shift() -> None:
    image = photo()
    targets = torch.stack([bilinear(image, 1, 0), bilinear(image, -2.5, 0.75)])
    scores = score(torch.stack([image, image]), targets, LEVIN)
    assert scores[0].psnr == math.inf
    assert scores[1].psnr > 200


def test_odd_sizes_and_8_bit_images_are_scored() -> None:
    image: Any = photo(85, 77).to(torch.uint8)[None]
    assert score(image, image, LEVIN)[0].psnr == math.inf


def test_images_without_pixels_inside_the_border_are_refused() -> None:
    small = torch.zeros(1, 3, 40, 60)
    with pytest.raises(ValueError, match="at least 11"):
        score(small, small, LEVIN)
