"""The Transformer block of the network: C2F-DFT paper, section 3; attention as statistics + apply.

Activations are channels-last, `[n, h, w, c]`: a 1x1 convolution is then a matrix product over the
pixels and the layer norm runs over the contiguous axis. Parameter names and shapes are those of
the released program, so its weights load strictly.
"""

from __future__ import annotations

from functools import reduce
from operator import add

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from c2fdft_cli.core.attention import Statistics, gather_statistics, mixing_matrix
from c2fdft_cli.execution import cpu_training as block_grad
from c2fdft_cli.execution.kernels import bands, halo, is_traced, project, rows_in_cache

_EPS = 1e-5


def pointwise(x: Tensor, conv: nn.Conv2d, gelu: bool = False) -> Tensor:
    """1x1 convolution of `x: [n, h, w, c]` as a matrix product, then GELU if asked."""
    weight = conv.weight.flatten(1)
    if not gelu and block_grad.takes(x):
        return block_grad.project(x, weight, conv.bias)
    return project(x, weight, conv.bias, gelu)


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
        if norm not in ("with_bias", "bias_free"):
            raise ValueError(f"unknown norm {norm!r}")
        self.body = _Affine(width, norm == "with_bias")

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Return `norm(x) + time`; x: `[n, h, w, c]`, time: `[n or 1, c]` float32."""
        weight, bias = self.body.weight, self.body.bias
        if bias is None:
            var = x.var(-1, correction=0, keepdim=True)
            return x * torch.rsqrt(var + _EPS) * weight + time[:, None, None]
        if len(time) == 1:  # one time for the whole batch: the norm's own bias can carry it
            return F.layer_norm(x, weight.shape, weight, bias + time[0], _EPS)
        return F.layer_norm(x, weight.shape, weight, bias, _EPS).add_(time[:, None, None])


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

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """Attention of x, added to the residual stream: both `[n, h, w, c]`."""
        if _in_bands(x):
            sums, v = self._gather(x)
        else:
            qkv = spatial(pointwise(x, self.qkv), self.qkv_dwconv)
            if block_grad.takes(qkv):
                project_out = self.project_out
                weight, bias = project_out.weight.flatten(1), project_out.bias
                return block_grad.attend(qkv, residual, self.temperature, weight, bias)
            q, k, v = qkv.chunk(3, dim=-1)
            sums = self.statistics(q, k)
        return _add(self.apply_mixing(v, self.mixing(sums)), residual)

    def _gather(self, x: Tensor) -> tuple[Statistics, Tensor]:
        """The statistics of x and its v, band by band."""
        n, h, w, c = x.shape
        sums, values = [], []
        for top, bottom in bands(h, rows_in_cache(h, n * w * c)):
            first, last = halo(top, bottom, h)
            qkv = spatial(pointwise(x[:, first:last], self.qkv), self.qkv_dwconv)
            q, k, v = qkv[:, top - first : bottom - first].chunk(3, dim=-1)
            sums.append(self.statistics(q, k))
            values.append(v.contiguous())
        return reduce(add, sums), torch.cat(values, dim=1)


class FeedForward(nn.Module):
    """Diffusion feed-forward network (DFN): 1x1 convolution, GELU, 1x1 convolution (section 3)."""

    def __init__(self, width: int, factor: float, bias: bool) -> None:
        super().__init__()
        hidden = int(width * factor)
        self.project_in = nn.Conv2d(width, hidden, 1, bias=bias)
        self.project_out = nn.Conv2d(hidden, width, 1, bias=bias)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """The network's output for x, added to the residual stream: both `[n, h, w, c]`."""
        first, last = self.project_in, self.project_out
        if block_grad.takes(x):
            weights = first.weight.flatten(1), first.bias, last.weight.flatten(1), last.bias
            return block_grad.feed_forward(x, residual, *weights)
        return _add(pointwise(pointwise(x, first, gelu=True), last), residual)


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
        x = self.attn(self.norm1(x, time), x)
        if not _in_bands(x):
            return self.ffn(self.norm2(x, time), x)  # type: ignore[no-any-return]
        # nothing below looks beyond its pixel, and x is this block's own
        n, h, w, c = x.shape
        for top, bottom in bands(h, rows_in_cache(h, n * w * c)):
            band = x[:, top:bottom]
            band.copy_(self.ffn(self.norm2(band, time), band))
        return x


def _in_bands(x: Tensor) -> bool:
    """Whether to work on a few rows of x at a time: for the caches of a CPU, in inference."""
    return x.device.type == "cpu" and not (torch.is_grad_enabled() or is_traced())


def _add(x: Tensor, residual: Tensor) -> Tensor:
    """Their sum, in x where nothing else needs that."""
    if torch.is_grad_enabled() or x.dtype != residual.dtype:
        return residual + x
    return x.add_(residual)
