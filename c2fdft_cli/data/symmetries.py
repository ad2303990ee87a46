"""The eight flips and rotations of a square, as one table for arrays and tensors."""

from __future__ import annotations

SYMMETRIES = tuple((i & 4 > 0, i & 2 > 0, i & 1 > 0) for i in range(8))
"""(transpose, then flip rows, then flip columns): bits 2, 1 and 0 of a symmetry's number."""

TURNS = (0, 6, 3, 5, 1, 4, 2, 7)
"""The same eight in another order: counter-clockwise rotations by 0, 90, 180 and 270 degrees, then
the same rotations of the left-right mirror image."""


def inverse(symmetry: int) -> int:
    """Return the symmetry that undoes another: itself, except for the two quarter turns."""
    return {5: 6, 6: 5}.get(symmetry, symmetry)
