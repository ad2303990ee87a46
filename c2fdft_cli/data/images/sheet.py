"""Sheet of pairs, for a preview."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from c2fdft_cli.data.pixels import Pixels

GAP, BACKGROUND = 4, 64


def contact_sheet(pairs: Sequence[tuple[Pixels, Pixels]], columns: int, tile: int) -> Pixels:
    """Arrange pairs for a preview: degraded on the left, clean on the right of each cell.

    Args:
        pairs: (lq, gt), uint8 [h, w, 3] of any size.
        columns: pairs per row.
        tile: side in px of the square that each image is fitted into (never enlarged).

    Returns:
        uint8 [h, w, 3] on dark grey.

    Raises:
        ValueError: no pair, or a size below 1.
    """
    if not pairs or columns < 1 or tile < 1:
        raise ValueError("a contact sheet needs at least one pair, one column and 1 px per tile")
    columns = min(columns, len(pairs))
    rows = -(-len(pairs) // columns)
    height, width = rows * (tile + GAP) + GAP, columns * 2 * (tile + GAP) + GAP
    sheet = np.full((height, width, 3), BACKGROUND, np.uint8)
    for i, image in enumerate(image for pair in pairs for image in pair):
        row, column = divmod(i, 2 * columns)
        small = _fitted(image, tile)
        top = GAP + row * (tile + GAP) + (tile - small.shape[0]) // 2
        left = GAP + column * (tile + GAP) + (tile - small.shape[1]) // 2
        sheet[top : top + small.shape[0], left : left + small.shape[1]] = small
    return sheet


def _fitted(image: Pixels, tile: int) -> Pixels:
    """Shrink an image to fit the tile, keeping its proportions."""
    import cv2

    h, w = image.shape[:2]
    scale = tile / max(h, w)
    if scale >= 1:
        return image
    size = (max(1, round(w * scale)), max(1, round(h * scale)))
    small: Pixels = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return small
