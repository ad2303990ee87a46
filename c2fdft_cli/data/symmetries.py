"""The eight flips and turns of a square, stated once for arrays and for tensors."""

from __future__ import annotations

SYMMETRIES = tuple((i & 4 > 0, i & 2 > 0, i & 1 > 0) for i in range(8))
"""(transpose, then flip rows, then flip columns): bits 2, 1 and 0 of the symmetry's number."""

TURNS = (0, 6, 3, 5, 1, 4, 2, 7)
"""The same eight in another order: turned left by 0 to 3 quarters, then so after a mirror image."""


def inverse(symmetry: int) -> int:
    """The symmetry that undoes another: only the two quarter turns are not their own."""
    return {5: 6, 6: 5}.get(symmetry, symmetry)
