"""The Transformer block of the network: C2F-DFT paper, section 3; attention as statistics + apply.

Activations are channels-last, `[n, h, w, c]`: a 1x1 convolution is then a matrix product over the
pixels and the layer norm runs over the contiguous axis. Parameter names and shapes are those of
the released program, so its weights load strictly.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from c2fdft_cli.core.kernels import project

NORMS = ("with_bias", "bias_free")
_EPS = 1e-5


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """No autocast on the device of x; the meta device has none to switch off."""
    if x.device.type == "meta":
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def pointwise(x: Tensor, conv: nn.Conv2d, gelu: bool = False) -> Tensor:
    """1x1 convolution of `x: [n, h, w, c]` as a matrix product, then GELU if asked."""
    return project(x, conv.weight.flatten(1), conv.bias, gelu)


def spatial(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """3x3 convolution of `x: [n, h, w, c]`; both permutations are views."""
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # type: ignore[no-any-return]


class _Affine(nn.Module):
    def __init__(self, width: int, with_bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if with_bias else None


class PixelNorm(nn.Module):
    """Layer norm over the channels of each pixel, with the time embedding added (section 3, norm).

    `bias_free` divides by sqrt(var + eps) *without* removing the mean from the numerator; the
    variance is the biased one around the mean.
    """

    def __init__(self, width: int, norm: str) -> None:
        super().__init__()
        self.body = _Affine(width, norm == "with_bias")

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Return `norm(x) + time`; x: `[n, h, w, c]`, time: `[n or 1, c]` float32."""
        weight, bias = self.body.weight, self.body.bias
        if bias is None:
            var = x.var(-1, correction=0, keepdim=True)
            return x * torch.rsqrt(var + _EPS) * weight + time[:, None, None]
        if len(time) == 1:  # one time for the whole batch: the norm's own bias can carry it
            return F.layer_norm(x, weight.shape, weight, bias + time[0], _EPS)
        return F.layer_norm(x, weight.shape, weight, bias, _EPS) + time[:, None, None]


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
    with full_precision(q):
        q, k = q.flatten(1, 2).float(), k.flatten(1, 2).float()
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


class Attention(nn.Module):
    """Diffusion self-attention (DFSA) between channels: section 3.

    `softmax(norm(q) norm(k)^T * temperature) v` per head, with q and k normalised along the pixel
    axis. The norms are taken out of the product, `norm(q) norm(k)^T = q k^T / (|q| |k|)`, so one
    pass over the pixels gathers `Statistics` and a second applies a `c x c` matrix to v.
    """

    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(width, 3 * width, 1, bias=bias)
        self.qkv_dwconv = nn.Conv2d(3 * width, 3 * width, 3, padding=1, groups=3 * width, bias=bias)
        self.project_out = nn.Conv2d(width, width, 1, bias=bias)

    def statistics(self, q: Tensor, k: Tensor) -> Statistics:
        """Sums over the pixels of q, k: `[n, h, w, c]`; float32 whatever comes in."""
        return gather_statistics(q, k, self.heads)

    def mixing(self, statistics: Statistics) -> Tensor:
        """Attention and output projection as one matrix, `[n, c, c]`: rows out, columns in."""
        return mixing_matrix(statistics, self.temperature, self.project_out.weight.flatten(1))

    def apply_mixing(self, v: Tensor, mixing: Tensor) -> Tensor:
        """Mix the channels of v: `[n, h, w, c]` by `mixing: [n, c, c]`."""
        n, h, w, c = v.shape
        out = torch.bmm(v.flatten(1, 2), mixing.to(v.dtype).transpose(1, 2)).view(n, h, w, c)
        bias = self.project_out.bias
        return out if bias is None else out + bias

    def forward(self, x: Tensor) -> Tensor:
        """x: `[n, h, w, c]` to the same."""
        q, k, v = spatial(pointwise(x, self.qkv), self.qkv_dwconv).chunk(3, dim=-1)
        return self.apply_mixing(v, self.mixing(self.statistics(q, k)))


class FeedForward(nn.Module):
    """Diffusion feed-forward network (DFN): 1x1 convolution, GELU, 1x1 convolution (section 3)."""

    def __init__(self, width: int, factor: float, bias: bool) -> None:
        super().__init__()
        hidden = int(width * factor)
        self.project_in = nn.Conv2d(width, hidden, 1, bias=bias)
        self.project_out = nn.Conv2d(hidden, width, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: `[n, h, w, c]` to the same."""
        return pointwise(pointwise(x, self.project_in, gelu=True), self.project_out)


class Block(nn.Module):
    """Diffusion Transformer block (DTB): x + DFSA(norm1(x) + T), then x + DFN(norm2(x) + T)."""

    def __init__(self, width: int, heads: int, factor: float, bias: bool, norm: str) -> None:
        super().__init__()
        self.norm1 = PixelNorm(width, norm)
        self.attn = Attention(width, heads, bias)
        self.norm2 = PixelNorm(width, norm)
        self.ffn = FeedForward(width, factor, bias)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x: `[n, h, w, c]`, time: `[n or 1, c]`, its SiLU already taken."""
        x = x + self.attn(self.norm1(x, time))
        return x + self.ffn(self.norm2(x, time))  # type: ignore[no-any-return]
