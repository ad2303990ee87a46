"""The eight symmetries: all differ, each has its inverse, and rotations are in order."""

from __future__ import annotations

import numpy as np
import pytest

from c2fdft_cli.data.symmetries import SYMMETRIES, TURNS, inverse

SQUARE = np.arange(9).reshape(3, 3)


def transformed(square: np.ndarray, symmetry: int) -> np.ndarray:
    transpose, rows, columns = SYMMETRIES[symmetry]
    square = square.T if transpose else square
    return square[:: -1 if rows else 1, :: -1 if columns else 1]


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
