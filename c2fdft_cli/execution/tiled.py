"""Overlapping tiles, blended inside each sampling step, so that each part is restored by itself.

Attention (docs/paper.md, eq. (5)) spans the whole image; in a tile it spans only the tile. The
result differs, and strips, which are exact, need hardly more memory. So tiles are for images that
are far larger than the patches the network was trained on, and whose parts differ.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from c2fdft_cli.core.diffusion import PredictNoise
from c2fdft_cli.core.network import DFT, SIZE_MULTIPLE

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
        total = x.new_zeros((len(x), DFT.out_channels, height, width), dtype=torch.float32)
        weights = x.new_zeros((height, width), dtype=torch.float32)
        for rows, columns in product(spans(height, self.side), spans(width, self.side)):
            across = _ramp(columns, width, self.side, x.device)
            weight = _ramp(rows, height, self.side, x.device)[:, None] * across
            eps_hat = self.net(x[..., rows, columns].contiguous(), t)
            total[..., rows, columns] += eps_hat * weight
            weights[rows, columns] += weight
        return total.div_(weights)


def tiles(height: int, width: int, side: int) -> int:
    """Return the number of tiles that cover an image."""
    return len(spans(height, side)) * len(spans(width, side))


def spans(size: int, side: int) -> list[slice]:
    """Return the tiles' ranges along one axis: evenly spread, overlapping by at least a quarter.

    Tiles of side 8 need not overlap.
    """
    if size <= side:
        return [slice(0, size)]
    step = max(SIZE_MULTIPLE, (side - side // OVERLAP) // SIZE_MULTIPLE * SIZE_MULTIPLE)
    count = -(-(size - side) // step) + 1
    # Multiples of 8: where tiles overlap, the network's three halvings then divide both into the
    # same blocks of pixels.
    units = [(size - side) * i // (count - 1) // SIZE_MULTIPLE for i in range(count)]
    return [slice(SIZE_MULTIPLE * unit, SIZE_MULTIPLE * unit + side) for unit in units]


def _ramp(span: slice, size: int, side: int, device: torch.device) -> Tensor:
    """Return weights along one axis: they rise from edges with a neighbour, and are 1 elsewhere."""
    length = span.stop - span.start
    overlap = side // OVERLAP
    # Distances are measured to the centres of pixels, so no weight is 0 and it is safe to divide by
    # their sum, even for a pixel that only one tile covers.
    position = torch.arange(length, device=device, dtype=torch.float32) + 0.5
    weight = torch.ones_like(position)
    if span.start > 0:
        weight = torch.minimum(weight, position / overlap)
    if span.stop < size:
        weight = torch.minimum(weight, (length - position) / overlap)
    return weight
