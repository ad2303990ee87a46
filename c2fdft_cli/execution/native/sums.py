"""The sums over the pixels as the compiled kernels write them (sums.h)."""

from __future__ import annotations

import torch
from torch import Tensor

from c2fdft_cli.core.attention import PixelSums


def empty_sums(like: Tensor, n: int, heads: int, d: int) -> Tensor:
    """Return memory for the sums of n images with heads of d channels."""
    return like.new_empty(n, heads * d * d + 2 * heads * d)


def pixel_sums(sums: Tensor, heads: int, d: int) -> PixelSums:
    """Return the parts of the sums that a kernel has written."""
    gram, q, k = torch.split(sums, [heads * d * d, heads * d, heads * d], dim=1)
    return PixelSums(
        gram.reshape(-1, heads, d, d), q.reshape(-1, heads, d), k.reshape(-1, heads, d)
    )
