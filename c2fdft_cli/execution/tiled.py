"""Overlapping tiles, blended inside each sampler step, for those who want locality.

Attention (docs/paper.md, eq. (5)) sees the whole image; in tiles each sees its own tile. That is a
different result, and exact strips need no more memory to speak of: tiles are for images that are
far larger than the patches the network was trained on and whose parts differ.
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
    """A network run tile by tile behind the same call; the estimates of the noise are blended.

    Args:
        net: eps_hat of (x, t).
        side: of a tile in pixels, a multiple of 8.
    """

    def __init__(self, net: PredictNoise, side: int) -> None:
        if side < SIZE_MULTIPLE or side % SIZE_MULTIPLE:
            raise ValueError(f"a tile's side is a multiple of {SIZE_MULTIPLE}, got {side}")
        self.net, self.side = net, side

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """x: `[n, 6, h, w]` to eps_hat `[n, 3, h, w]`, h and w multiples of 8."""
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
    """How many tiles make up an image."""
    return sum(1 for _ in spans(height, side)) * sum(1 for _ in spans(width, side))


def spans(size: int, side: int) -> Iterator[slice]:
    """Where tiles lie along one axis: evenly spread, overlapping by a quarter at least.

    Those of side 8 lie side by side.
    """
    if size <= side:
        yield slice(0, size)
        return
    step = max(SIZE_MULTIPLE, (side - side // OVERLAP) // SIZE_MULTIPLE * SIZE_MULTIPLE)
    count = -(-(size - side) // step) + 1
    for i in range(count):
        # At multiples of 8: where tiles overlap, the network's three halvings divide them into the
        # same blocks.
        start = (size - side) * i // (count - 1) // SIZE_MULTIPLE * SIZE_MULTIPLE
        yield slice(start, start + side)


def _ramp(span: slice, size: int, side: int, device: torch.device) -> Tensor:
    """Weights along one axis: rising from the edges that have a neighbour, 1 elsewhere."""
    length = span.stop - span.start
    overlap = side // OVERLAP
    # Centres of pixels: no weight is 0, so their sum can be divided by even where one tile alone
    # covers a pixel.
    position = torch.arange(length, device=device, dtype=torch.float32) + 0.5
    weight = torch.ones(length, device=device)
    if span.start > 0:
        weight = torch.minimum(weight, position / overlap)
    if span.stop < size:
        weight = torch.minimum(weight, (length - position) / overlap)
    return weight
