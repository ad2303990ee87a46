"""Pixel sums, and products added to the stream, on a GPU: each value read once, float32 results.

Products of half-precision values are exact in float32, so a matrix product with a float32 result
needs no float32 copies of its operands. Such products (`out_dtype`, torch 2.8) have no derivative:
they are for inference, and for functions with a hand-written derivative.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from c2fdft_cli.core.attention import PixelSums

PIECE_PIXELS = 1024
"""Limit for the pixels of one product of the Gram matrix (more in wide blocks, see `_piece`). The
products are then summed; a single one over all pixels would leave most of a GPU idle."""

_HAS_OUT_DTYPE = "dtype" in torch.ops.aten.bmm.overloads()  # type: ignore[no-untyped-call]


def runs_on_gpu(x: Tensor) -> bool:
    """Whether the functions of this module apply to x: on CUDA, outside of a compiler."""
    return x.device.type == "cuda" and not torch.compiler.is_compiling()


def sums_without_copies(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `sums_in_pieces` reads q and k without making float32 copies."""
    return device.type == "cuda" and (dtype == torch.float32 or _HAS_OUT_DTYPE)


def sums_in_pieces(q: Tensor, k: Tensor, heads: int) -> PixelSums:
    """Compute `pixel_sums` of q, k: `[n, h, w, c]`, piece by piece; call it outside of autocast.

    One product per piece serves all heads: only the blocks on its diagonal are used.
    """
    q, k = q.flatten(1, 2), k.flatten(1, 2)
    width = q.shape[-1] // heads
    gram = gram_in_pieces(q, k).view(len(q), heads, width, heads, width)
    # `vector_norm` reads half precision, sums in float32, and does not write the squares, as
    # `vecdot` or q * q would.
    q_square, k_square = (
        torch.linalg.vector_norm(x, dim=1, dtype=torch.float32).square_().unflatten(1, (heads, -1))
        for x in (q, k)
    )
    return PixelSums(gram.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2), q_square, k_square)


def gram_in_pieces(q: Tensor, k: Tensor) -> Tensor:
    """Return the sums over pixels of q_i k_j for q, k: `[n, p, c]`, as `[n, c, c]` float32."""
    n, pixels, c = q.shape
    piece = _piece(pixels, c)
    # These are views, although q and k are slices of one tensor with v, because the size of a piece
    # divides the number of pixels.
    a, b = (x.unflatten(1, (-1, piece)).flatten(0, 1) for x in (q, k))  # type: ignore[no-untyped-call]
    return _bmm_float32(a.transpose(1, 2), b).view(n, -1, c, c).sum(1)


def add_product(z: Tensor, x: Tensor, weight: Tensor) -> None:
    """Compute `z += x weight^T` in place; z is float32, and the product is accumulated in it.

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
"""Most output channels for `convolve_to_few`. From 96 channels to 3, at 1280x720 on an H200,
cuDNN's convolution took 0.92 ms in TF32 and 4.9 in float32, `convolve_to_few` 0.41 and 0.56."""


def convolve_to_few(x: Tensor, weight: Tensor) -> Tensor:
    """Apply a 3x3 convolution with zero padding and few output channels.

    One product computes what each pixel contributes to itself and its neighbours, and `fold` adds
    up the contributions.

    Args:
        x: `[n, h, w, c]`.
        weight: `[few, c, 3, 3]`.

    Returns:
        `[n, few, h, w]`.
    """
    _, h, w, c = x.shape
    # Flipped, because a pixel contributes to its left neighbour by the weight with which that one
    # reads its right neighbour.
    matrix = weight.flip(2, 3).permute(0, 2, 3, 1).reshape(-1, c)
    return F.fold(matrix @ x.flatten(1, 2).transpose(1, 2), (h, w), kernel_size=3, padding=1)


@lru_cache
def _piece(pixels: int, width: int) -> int:
    """Return the largest divisor of the number of pixels up to a limit that suits the width.

    The wider the Gram matrix, the more pixels a piece must have to be worth it.
    """
    # 16 pixels per channel: the c^2 float32 values that a piece writes are then few compared with
    # the 2 c values that it reads per pixel.
    most = max(PIECE_PIXELS, 16 * width)
    return next(size for size in range(min(most, pixels), 0, -1) if pixels % size == 0)


def _bmm_float32(a: Tensor, b: Tensor) -> Tensor:
    if a.dtype != torch.float32 and sums_without_copies(a.device, a.dtype):
        return torch.bmm(a, b, out_dtype=torch.float32)
    return torch.bmm(a.float(), b.float())
