"""The eight symmetries: all differ, each has its inverse, and rotations are in order."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageOps

from c2fdft_cli.data.symmetries import SYMMETRIES, TURNS, UPRIGHT, inverse, turned

SQUARE = np.arange(9).reshape(3, 3)


def transformed(square: np.ndarray, symmetry: int) -> np.ndarray:
    return turned(square, SYMMETRIES[symmetry])


def test_all_eight_symmetries_differ() -> None:
    assert len({transformed(SQUARE, i).tobytes() for i in range(8)}) == 8


@pytest.mark.parametrize("symmetry", range(8))
def test_the_inverse_undoes_each_symmetry(symmetry: int) -> None:
    there = transformed(SQUARE, symmetry)
    np.testing.assert_array_equal(transformed(there, inverse(symmetry)), SQUARE)


@pytest.mark.parametrize("turn", range(8))
def test_rotations_are_quarter_turns_to_the_left_then_of_the_mirror_image(turn: int) -> None:
    expected = np.rot90(SQUARE[:, ::-1] if turn >= 4 else SQUARE, turn % 4)
    np.testing.assert_array_equal(transformed(SQUARE, TURNS[turn]), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright_as_by_pillow(orientation: int) -> None:
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    image = Image.fromarray(values)
    image.getexif()[0x0112] = orientation
    got = turned(values, UPRIGHT[orientation])
    np.testing.assert_array_equal(got, np.asarray(ImageOps.exif_transpose(image)))
    assert got.flags.c_contiguous
