"""What channel attention needs to know of all pixels, and the matrix that follows: section 3.

The norms of q and k are taken out of the product, `norm(q) norm(k)^T = q k^T / (|q| |k|)`: what
couples distant pixels are then only sums over all of them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from operator import add
from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 4096
"""Pixels of q and k that are turned to float32 at a time, where `in_pieces`."""


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """No autocast on the device of x; the meta device has none to switch off."""
    if x.device.type == "meta":
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


class Statistics(NamedTuple):
    """What attention needs to know of all pixels; sums, so pieces of an image simply add up.

    gram: `[n, heads, d, d]` float32, sum over pixels of q_i * k_j.
    q_square, k_square: `[n, heads, d]` float32, sums over pixels of q_i^2 and k_i^2.
    """

    gram: Tensor
    q_square: Tensor
    k_square: Tensor

    def __add__(self, other: Statistics) -> Statistics:  # type: ignore[override]
        return Statistics(*(a + b for a, b in zip(self, other, strict=True)))


def gather_statistics(q: Tensor, k: Tensor, heads: int) -> Statistics:
    """Sums over the pixels of q, k: `[n, h, w, c]`; float32 whatever comes in.

    A Gram matrix that is not normalised yet passes float16's largest number (65504).
    """
    q, k = q.flatten(1, 2), k.flatten(1, 2)
    if q.dtype == torch.float32:
        return _sums(q, k, heads)
    if not in_pieces(q.device):
        return _sums(q.float(), k.float(), heads)
    pieces = zip(torch.split(q, CHUNK, dim=1), torch.split(k, CHUNK, dim=1), strict=True)
    return reduce(add, (_sums(a.float(), b.float(), heads) for a, b in pieces))


def in_pieces(device: torch.device) -> bool:
    """Whether half-precision q and k are turned to float32 piece by piece.

    On a CPU a copy of all of them is more memory traffic than the sums; on a GPU many small
    kernels cost more than one large one, and a compiler would unroll the pieces.
    """
    return device.type == "cpu" and not torch.compiler.is_compiling()


def _sums(q: Tensor, k: Tensor, heads: int) -> Statistics:
    with full_precision(q):
        gram = [
            torch.bmm(a.transpose(1, 2), b)
            for a, b in zip(q.chunk(heads, -1), k.chunk(heads, -1), strict=True)
        ]
        return Statistics(
            torch.stack(gram, dim=1),
            torch.linalg.vecdot(q, q, dim=1).unflatten(-1, (heads, -1)),
            torch.linalg.vecdot(k, k, dim=1).unflatten(-1, (heads, -1)),
        )


def mixing_matrix(statistics: Statistics, temperature: Tensor, project_out: Tensor) -> Tensor:
    """Attention and output projection as one matrix, `[n, c, c]`: rows out, columns in.

    Args:
        statistics: of all the pixels.
        temperature: `[heads, 1, 1]`.
        project_out: weight of the output projection, `[c, c]`.
    """
    gram, q_square, k_square = statistics
    with full_precision(gram):
        # clamp before the root: the other order has NaN gradients at zero
        q_norm = q_square.clamp_min(1e-24).sqrt()
        k_norm = k_square.clamp_min(1e-24).sqrt()
        cosine = gram / (q_norm[..., :, None] * k_norm[..., None, :])
        attention = (cosine * temperature.float()).softmax(-1)
        out = project_out.float().view(len(project_out), len(temperature), -1)
        return torch.einsum("ohi,nhij->nohj", out, attention).flatten(2)
