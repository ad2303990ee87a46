"""Overlapping tiles, blended inside each sampling step, so that each part is restored by itself.

Attention (docs/paper.md, eq. (5)) spans the whole image; in a tile it spans only the tile. The
result differs, and strips, which are exact, need hardly more memory. So tiles are for images that
are far larger than the patches the network was trained on, and whose parts differ.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from c2fdft_cli.core.diffusion import PredictNoise
from c2fdft_cli.core.network import SIZE_MULTIPLE

OVERLAP = 4
"""Neighbouring tiles share 1/4 of their side."""


class Tiled:
    """A network run tile by tile, with the same interface; the noise estimates are blended.

    Args:
        net: returns eps_hat for (x, t).
        side: side of a tile in pixels, a multiple of 8.
    """

    def __init__(self, net: PredictNoise, side: int) -> None:
        if side < SIZE_MULTIPLE or side % SIZE_MULTIPLE:
            raise ValueError(f"side must be a multiple of {SIZE_MULTIPLE}, got {side}")
        self.net, self.side = net, side

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Map x: `[n, 6, h, w]` to eps_hat `[n, 3, h, w]`, h and w multiples of 8."""
        height, width = x.shape[-2:]
        total: Tensor | None = None
        weights = x.new_zeros((height, width), dtype=torch.float32)
        for rows in spans(height, self.side):
            for columns in spans(width, self.side):
                eps_hat = self.net(x[..., rows, columns].contiguous(), t)
                if total is None:
                    total = eps_hat.new_zeros((*eps_hat.shape[:2], height, width))
                weight = _ramp(rows, height, self.side, x.device)[:, None] * _ramp(
                    columns, width, self.side, x.device
                )
                total[..., rows, columns] += eps_hat * weight
                weights[rows, columns] += weight
        if total is None:
            raise ValueError(f"an empty image: {list(x.shape)}")
        return total / weights


def tiles(height: int, width: int, side: int) -> int:
    """Return the number of tiles that cover an image."""
    return sum(1 for _ in spans(height, side)) * sum(1 for _ in spans(width, side))


def spans(size: int, side: int) -> Iterator[slice]:
    """Yield the tiles' ranges along one axis: evenly spread, overlapping by at least a quarter.

    Tiles of side 8 need not overlap.
    """
    if size <= side:
        yield slice(0, size)
        return
    step = max(SIZE_MULTIPLE, (side - side // OVERLAP) // SIZE_MULTIPLE * SIZE_MULTIPLE)
    count = -(-(size - side) // step) + 1
    for i in range(count):
        # Multiples of 8: where tiles overlap, the network's three halvings then divide both into
        # the same blocks of pixels.
        start = (size - side) * i // (count - 1) // SIZE_MULTIPLE * SIZE_MULTIPLE
        yield slice(start, start + side)


def _ramp(span: slice, size: int, side: int, device: torch.device) -> Tensor:
    """Return weights along one axis: they rise from edges with a neighbour, and are 1 elsewhere."""
    length = span.stop - span.start
    overlap = side // OVERLAP
    # Distances are measured to the centres of pixels, so no weight is 0 and it is safe to divide by
    # their sum, even for a pixel that only one tile covers.
    position = torch.arange(length, device=device, dtype=torch.float32) + 0.5
    weight = torch.ones(length, device=device)
    if span.start > 0:
        weight = torch.minimum(weight, position / overlap)
    if span.stop < size:
        weight = torch.minimum(weight, (length - position) / overlap)
    return weight
