"""The eight flips and rotations of a picture, as one table for arrays and tensors."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class Symmetry(NamedTuple):
    """A flip or rotation: rows and columns are exchanged, then their order is reversed.

    Args:
        transpose: whether rows become columns.
        rows, columns: whether their order is reversed.
    """

    transpose: bool
    rows: bool
    columns: bool


SYMMETRIES = tuple(Symmetry(i & 4 > 0, i & 2 > 0, i & 1 > 0) for i in range(8))
"""All eight: transpose, rows and columns are the bits 2, 1 and 0 of a symmetry's number."""

TURNS = (0, 6, 3, 5, 1, 4, 2, 7)
"""The same eight in another order: counter-clockwise rotations by 0, 90, 180 and 270 degrees, then
the same rotations of the left-right mirror image."""

UPRIGHT = {exif: SYMMETRIES[i] for exif, i in enumerate((0, 1, 3, 2, 4, 5, 7, 6), start=1)}
"""What turns a picture upright, by its EXIF orientation."""


def inverse(symmetry: int) -> int:
    """Return the symmetry that undoes another: itself, except for the two quarter turns."""
    return {5: 6, 6: 5}.get(symmetry, symmetry)


def turned(array: npt.NDArray[Any], symmetry: Symmetry) -> npt.NDArray[Any]:
    """Apply a symmetry to an array [h, w, ...]; the result is C-contiguous."""
    if symmetry.transpose:
        array = array.swapaxes(0, 1)
    rows, columns = (-1 if flip else 1 for flip in symmetry[1:])
    return np.ascontiguousarray(array[::rows, ::columns])
