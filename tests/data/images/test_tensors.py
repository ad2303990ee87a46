"""Pixels to tensors and back, bit for bit as by NumPy in float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from c2fdft_cli.data.images.tensors import (
    interleaved,
    planes_of,
    to_integers,
    to_unit,
)

LEVELS = {8: np.arange(256, dtype=np.uint8), 16: np.arange(65536, dtype=np.uint16)}


@pytest.mark.parametrize("depth", [8, 16])
def test_every_level_survives_the_division_by_its_maximum(depth: int) -> None:
    levels = LEVELS[depth]
    unit = to_unit(torch.from_numpy(levels))
    assert np.array_equal(unit.numpy(), levels.astype(np.float32) / np.float32(2**depth - 1))
    assert np.array_equal(to_integers(unit, depth).numpy(), levels)


@pytest.mark.parametrize("depth", [8, 16])
def test_rounding_is_to_the_nearest_even_and_grey_the_mean(depth: int) -> None:
    image = torch.rand(2, 3, 33, 17, generator=torch.Generator().manual_seed(depth))
    white = np.float32(2**depth - 1)
    assert np.array_equal(to_integers(image, depth).numpy(), np.rint(image.numpy() * white))
    grey = to_integers(image, depth, grey=True).numpy()
    assert grey.shape == (2, 1, 33, 17)
    assert np.array_equal(grey, np.rint(image.mean(1, keepdim=True).numpy() * white))


def test_planes_and_pixels_are_inverse_to_each_other() -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (2, 5, 7, 3), dtype=np.uint16)
    planes = planes_of(torch.from_numpy(pixels))
    assert planes.is_contiguous()
    assert np.array_equal(interleaved(planes[1]), pixels[1])
    assert np.array_equal(interleaved(planes[1, :1]), np.repeat(pixels[1, ..., :1], 3, axis=2))
