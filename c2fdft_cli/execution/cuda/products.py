"""Pixel sums and products into the stream on a GPU: each value read once, results in float32.

Half-precision factors have exact products in float32, so a product whose result is float32 needs no
float32 copies of its factors. Such products (`out_dtype`, torch 2.8) have no derivative: they are
for inference, and for functions whose derivative is written out.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from c2fdft_cli.core.attention import PixelSums

PIECE_PIXELS = 1024
"""Pixels whose Gram matrix is one product, at least; the products are then summed. One product
over all pixels would leave most of a GPU without work."""

_HAS_OUT_DTYPE = "dtype" in torch.ops.aten.bmm.overloads()  # type: ignore[no-untyped-call]


def runs_on_gpu(x: Tensor) -> bool:
    """Whether the functions of this module are for x: on CUDA, outside of a compiler."""
    return x.device.type == "cuda" and not torch.compiler.is_compiling()


def sums_without_copies(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `sums_in_pieces` reads q and k as they are."""
    return device.type == "cuda" and (dtype == torch.float32 or _HAS_OUT_DTYPE)


def sums_in_pieces(q: Tensor, k: Tensor, heads: int) -> PixelSums:
    """`pixel_sums` of q, k: `[n, h, w, c]`, piece by piece; outside of autocast.

    One product serves all heads of a piece: its blocks on the diagonal are wanted.
    """
    q, k = q.flatten(1, 2), k.flatten(1, 2)
    width = q.shape[-1] // heads
    gram = gram_in_pieces(q, k).view(len(q), heads, width, heads, width)
    # `vector_norm` sums in float32 what it reads in half precision, and writes no squares; `vecdot`
    # or q * q would write them.
    q_square, k_square = (
        torch.linalg.vector_norm(x, dim=1, dtype=torch.float32).square_().unflatten(1, (heads, -1))
        for x in (q, k)
    )
    return PixelSums(gram.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2), q_square, k_square)


def gram_in_pieces(q: Tensor, k: Tensor) -> Tensor:
    """`sum over pixels of q_i k_j` for q, k: `[n, p, c]`, as `[n, c, c]` float32."""
    n, pixels, c = q.shape
    piece = _piece(pixels, c)
    # Views, although q and k are slices of one tensor with v: a piece is a divisor of the pixels,
    # so nothing is left over.
    a, b = (x.unflatten(1, (-1, piece)).flatten(0, 1) for x in (q, k))  # type: ignore[no-untyped-call]
    return _bmm_float32(a.transpose(1, 2), b).view(n, -1, c, c).sum(1)


def add_product(z: Tensor, x: Tensor, weight: Tensor) -> None:
    """`z += x weight^T` in place, z float32 and the product summed up in it.

    Args:
        z: `[n, p, c]`.
        x: `[n, p, k]` in any precision.
        weight: `[n or 1, c, k]` in the precision of x.
    """
    matrix = weight.transpose(1, 2).expand(len(z), -1, -1)
    if x.dtype == z.dtype:
        z.baddbmm_(x, matrix)
    elif runs_on_gpu(x) and sums_without_copies(x.device, x.dtype):
        torch.baddbmm(z, x, matrix, out_dtype=z.dtype, out=z)
    else:
        z.add_(torch.bmm(x, matrix))


FEW = 4
"""Channels that are few. From 96 to 3 of them, at 1280x720 on an H200, cuDNN's convolution took
0.92 ms in TF32 and 4.9 in float32, `convolve_to_few` 0.41 and 0.56."""


def convolve_to_few(x: Tensor, weight: Tensor) -> Tensor:
    """3x3 convolution with zeros around the image, to few channels.

    One product computes what each pixel adds to its nine neighbours, and `fold` sums that up.

    Args:
        x: `[n, h, w, c]`.
        weight: `[few, c, 3, 3]`.

    Returns:
        `[n, few, h, w]`.
    """
    _, h, w, c = x.shape
    # a pixel adds to its left neighbour what that one takes from its right one: hence the flip
    matrix = weight.flip(2, 3).permute(0, 2, 3, 1).reshape(-1, c)
    return F.fold(matrix @ x.flatten(1, 2).transpose(1, 2), (h, w), kernel_size=3, padding=1)


@lru_cache
def _piece(pixels: int, width: int) -> int:
    """The largest divisor of the pixels up to what suits the width.

    The wider the Gram matrix, the more pixels are worth one.
    """
    # 16 pixels for each channel: the c^2 float32 that a piece writes are then small beside the 2 c
    # values that it reads of each pixel.
    most = max(PIECE_PIXELS, 16 * width)
    return next(size for size in range(min(most, pixels), 0, -1) if pixels % size == 0)


def _bmm_float32(a: Tensor, b: Tensor) -> Tensor:
    if a.dtype != torch.float32 and sums_without_copies(a.device, a.dtype):
        return torch.bmm(a, b, out_dtype=torch.float32)
    return torch.bmm(a.float(), b.float())
