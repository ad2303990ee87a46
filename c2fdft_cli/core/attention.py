"""Diffusion self-attention (DFSA) between channels: docs/paper.md, eqs. (5) and (6).

`softmax(norm(q) norm(k)^T * temperature) v` per head, q and k normalised along the *pixel* axis.
The norms can be taken out of the product: `norm(q) norm(k)^T = q k^T / (|q| |k|)`. Distant pixels
are then coupled only through sums over all pixels, to which the sums of pieces of an image simply
add up, and the output projection is merged into the `c x c` matrix computed from the sums.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from c2fdft_cli.core.layers import Conv1x1, Conv3x3
from c2fdft_cli.core.precision import full_precision

SMALLEST_NORM = 1e-12
"""Lower bound of the norm of q or k over the pixels, the same as in `F.normalize`."""


class PixelSums(NamedTuple):
    """The sums over all pixels that attention depends on; those of pieces of an image add up.

    gram: `[n, heads, d, d]` float32, sum over pixels of q_i * k_j.
    q_square, k_square: `[n, heads, d]` float32, sums over pixels of q_i^2 and k_i^2.
    """

    gram: Tensor
    q_square: Tensor
    k_square: Tensor

    def __add__(self, other: PixelSums) -> PixelSums:  # type: ignore[override]
        return PixelSums(*(a + b for a, b in zip(self, other, strict=True)))


def pixel_sums(q: Tensor, k: Tensor, heads: int) -> PixelSums:
    """Compute the sums over the pixels of q, k: `[n, p, c]`, in float32 whatever their dtype.

    The Gram matrix is not normalised yet and can exceed float16's largest number (65504).
    """
    with full_precision(q):
        q, k = q.float(), k.float()
        # One product per head, on views: with the heads as a further batch dimension q and k would
        # have to be copied.
        gram = [
            torch.bmm(a.transpose(1, 2), b)
            for a, b in zip(q.chunk(heads, -1), k.chunk(heads, -1), strict=True)
        ]
        return PixelSums(
            torch.stack(gram, dim=1),
            torch.linalg.vecdot(q, q, dim=1).unflatten(-1, (heads, -1)),
            torch.linalg.vecdot(k, k, dim=1).unflatten(-1, (heads, -1)),
        )


class Similarity(NamedTuple):
    """Similarity of the channels q_i and k_j, before and after the softmax; float32.

    cosine, attention: `[n, heads, d, d]`, rows i, columns j.
    q_norm, k_norm: `[n, heads, d]`, at least `SMALLEST_NORM`.
    """

    cosine: Tensor
    attention: Tensor
    q_norm: Tensor
    k_norm: Tensor


def similarity(sums: PixelSums, temperature: Tensor) -> Similarity:
    """Compute the attention between the channels of each head from the sums over all pixels.

    temperature: `[heads, 1, 1]`.
    """
    gram, q_square, k_square = sums
    # Autocast changes none of these operations, unlike matrix products and convolutions.
    # The squares are clamped before taking the root: the other order has NaN gradients at zero.
    q_norm = q_square.clamp_min(SMALLEST_NORM**2).sqrt()
    k_norm = k_square.clamp_min(SMALLEST_NORM**2).sqrt()
    cosine = gram / (q_norm[..., :, None] * k_norm[..., None, :])
    attention = (cosine * temperature.float()).softmax(-1)
    return Similarity(cosine, attention, q_norm, k_norm)


def mixing_matrix(sums: PixelSums, temperature: Tensor, project_out: Tensor) -> Tensor:
    """Merge attention and output projection into one matrix, `[n, c, c]`: rows out, columns in.

    Args:
        sums: the sums over all pixels.
        temperature: `[heads, 1, 1]`.
        project_out: weight of the output projection, `[c, c]`.
    """
    return projected(similarity(sums, temperature).attention, project_out)


def projected(attention: Tensor, project_out: Tensor) -> Tensor:
    """Apply the output projection to an attention: the mixing matrix, `[n, c, c]`.

    Args:
        attention: `[n, heads, d, d]`.
        project_out: weight of the output projection, `[c, c]`.
    """
    with full_precision(attention):
        # Attention is linear in v, and the projection in its result, so both are one matrix. Each
        # head's columns of the projection are multiplied by that head's attention only.
        out = project_out.float().view(-1, *attention.shape[1:3])
        return torch.einsum("ohi,nhij->nohj", out, attention).flatten(2)


def mix_channels(v: Tensor, mixing: Tensor, bias: Tensor | None) -> Tensor:
    """Return `mixing v + bias` at each pixel of `v: [n, h, w, c]`; mixing: `[n, c, c]`."""
    out = torch.bmm(v.flatten(1, 2), mixing.to(v.dtype).transpose(1, 2)).view(v.shape)
    return out if bias is None else out + bias


class Attention(nn.Module):
    """DFSA: 1x1 and depth-wise 3x3 convolution to q, k, v; attention; 1x1 output convolution."""

    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = Conv1x1(width, 3 * width, bias)
        self.qkv_dwconv = Conv3x3(3 * width, 3 * width, bias, groups=3 * width)
        self.project_out = Conv1x1(width, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map x: `[n, h, w, c]` to the same shape."""
        q, k, v = self.qkv_dwconv(self.qkv(x)).chunk(3, dim=-1)
        sums = pixel_sums(q.flatten(1, 2), k.flatten(1, 2), self.heads)
        mixing = mixing_matrix(sums, self.temperature, self.project_out.weight.flatten(1))
        return mix_channels(v, mixing, self.project_out.bias)
