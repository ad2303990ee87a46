"""The layers of the core prepared for inference on strips of rows: flattened, cast, packed."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from c2fdft_cli.core.attention import PixelSums, mixing_matrix
from c2fdft_cli.core.block import Block
from c2fdft_cli.core.layers import PixelNorm
from c2fdft_cli.core.network import embedding_frequencies
from c2fdft_cli.execution.cuda.products import (
    FEW,
    add_product,
    convolve_to_few,
    runs_on_gpu,
    sums_in_pieces,
)
from c2fdft_cli.execution.kernels import (
    has_onednn_linear,
    onednn_linear,
    pixel_norm,
    sums_of_pixels,
    with_halo,
)


class Projection(NamedTuple):
    """A 1x1 convolution."""

    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, conv: nn.Conv2d, dtype: torch.dtype, packed: bool) -> Projection:
        """Take the weights of conv; if packed, in oneDNN's layout, they cannot be compiled."""
        weight = conv.weight.detach().flatten(1).to(dtype)
        if packed and has_onednn_linear(weight.device, dtype):
            weight = torch.ops.mkldnn._reorder_linear_weight(weight)
        return cls(weight, _to(conv.bias, dtype))

    def __call__(self, x: Tensor, gelu: bool = False) -> Tensor:
        """Map x: `[n, h, w, in]` to `[n, h, w, out]`, followed by GELU (erf form) if `gelu`."""
        if has_onednn_linear(x.device, x.dtype):
            return onednn_linear(x, self.weight, self.bias, gelu)
        y = F.linear(x, self.weight, self.bias)
        return F.gelu(y) if gelu else y


class Conv(NamedTuple):
    """A 3x3 convolution."""

    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, conv: nn.Conv2d, dtype: torch.dtype) -> Conv:
        """Take the weights of conv."""
        # In the memory layout of the activations; otherwise each convolution would copy one of the
        # two.
        weight = conv.weight.detach().to(dtype, memory_format=torch.channels_last)
        return cls(weight, _to(conv.bias, dtype))

    def __call__(self, x: Tensor, top: int, bottom: int) -> Tensor:
        """Return rows top to bottom of the convolution of `x: [n, h, w, c]`."""
        first, last = with_halo(top, bottom, x.shape[1])
        # Between strips the convolution's zero padding affects only rows of the halo, which are
        # cropped. At the image's edge there is no halo, and the network pads with zeros as well.
        y = self.padded(x[:, first:last].to(self.weight.dtype))
        return y[:, top - first : bottom - first]

    def padded(self, x: Tensor) -> Tensor:
        """Return the convolution of `x: [n, h, w, c]` with zero padding."""
        if len(self.weight) <= FEW and runs_on_gpu(x):
            y = convolve_to_few(x, self.weight).permute(0, 2, 3, 1)
            return y if self.bias is None else y + self.bias
        groups = x.shape[-1] // self.weight.shape[1]
        y = F.conv2d(x.permute(0, 3, 1, 2), self.weight, self.bias, padding=1, groups=groups)
        return y.permute(0, 2, 3, 1)


class TimeEmbedding(NamedTuple):
    """`DFT.time_embeddings` except for the last bit: those of all levels in five operations.

    frequencies: those of all levels, once for the sines and once for the cosines, `[sum(widths)]`.
    is_sine: which of them are for sines, `[sum(widths)]`.
    widths: widths of the levels.
    """

    frequencies: Tensor
    is_sine: Tensor
    widths: list[int]

    @classmethod
    def of(cls, dim: int, device: torch.device) -> TimeEmbedding:
        """Make the embedding of a network of width `dim`."""
        widths = [dim << level for level in range(4)]
        each = [embedding_frequencies(width, device) for width in widths]
        kinds = [torch.arange(width, device=device) < width // 2 for width in widths]
        return cls(torch.cat([f for f in each for _ in range(2)]), torch.cat(kinds), widths)

    def __call__(self, t: Tensor) -> list[Tensor]:
        """Embed t: `[n]`; a time expanded over the batch (stride 0) is embedded only once."""
        angle = (t[:1] if t.stride(0) == 0 else t).float()[:, None] * self.frequencies
        waves = torch.where(self.is_sine, angle.sin(), angle.cos())
        return list(torch.split(F.silu(waves), self.widths, dim=1))


class Norm(NamedTuple):
    """`PixelNorm`: float32 in, the block's precision out."""

    weight: Tensor
    bias: Tensor | None
    dtype: torch.dtype

    @classmethod
    def of(cls, norm: PixelNorm, dtype: torch.dtype) -> Norm:
        """Take the weights of norm."""
        return cls(norm.body.weight.detach().float(), _to(norm.body.bias, torch.float32), dtype)

    def __call__(self, x: Tensor, time: Tensor) -> Tensor:
        """Return `norm(x) + time`; x: `[n, h, w, c]`, time: `[n or 1, c]`."""
        y, _, _ = pixel_norm(x, self.weight, self.bias, time)
        return y.to(self.dtype)


class PreparedBlock(NamedTuple):
    """A `Block` with its weights prepared."""

    norm1: Norm
    qkv: Projection
    depthwise: Conv
    heads: int
    temperature: Tensor
    out: Tensor
    out_bias: Tensor | None
    norm2: Norm
    widen: Projection
    narrow: Projection

    @classmethod
    def of(cls, block: Block, dtype: torch.dtype, packed: bool) -> PreparedBlock:
        """Take the weights of block."""
        attn, ffn = block.attn, block.ffn
        return cls(
            norm1=Norm.of(block.norm1, dtype),
            qkv=Projection.of(attn.qkv, dtype, packed),
            depthwise=Conv.of(attn.qkv_dwconv, dtype),
            heads=attn.heads,
            temperature=attn.temperature.detach().float(),
            out=attn.project_out.weight.detach().flatten(1).float(),
            out_bias=_to(attn.project_out.bias, torch.float32),
            norm2=Norm.of(block.norm2, dtype),
            widen=Projection.of(ffn.project_in, dtype, packed),
            narrow=Projection.of(ffn.project_out, dtype, packed),
        )

    def mixing(self, sums: PixelSums) -> Tensor:
        """Return the matrix that the second pass applies to v, `[n, c, c]` float32."""
        return mixing_matrix(sums, self.temperature, self.out)


def gather(
    block: PreparedBlock, z: Tensor, time: Tensor, skip: int, rows: int
) -> tuple[PixelSums, Tensor]:
    """Run the first pass over a strip: return its sums and its v, `[n, rows, w, c]`.

    Args:
        block: the block whose attention is computed.
        z: the strip with its halo, `[n, rows + 0..2, w, c]` float32.
        time: `[n or 1, c]`.
        skip: rows of halo above the strip.
        rows: rows of the strip.
    """
    # The halo belongs to the projection's output: outside the image that is zero, even with a bias.
    qkv = block.depthwise.padded(block.qkv(block.norm1(z, time)))
    q, k, v = qkv[:, skip : skip + rows].chunk(3, dim=-1)
    sums = sums_in_pieces if runs_on_gpu(z) else sums_of_pixels
    return sums(q, k, block.heads), v


def apply(block: PreparedBlock, z: Tensor, v: Tensor, time: Tensor, mixing: Tensor) -> None:
    """Run the second pass over a strip: add attention and feed-forward network to z in place.

    Args:
        block: the block.
        z: the strip, `[n, rows, w, c]` float32.
        v: v of the strip's pixels, `[n, rows, w, c]`.
        time: `[n or 1, c]`.
        mixing: `[n, c, c]` float32.
    """
    add_attention(block, z, v, mixing)
    if runs_on_gpu(z):
        add_narrowed(block, z, torch.ops.aten.gelu_(block.widen(block.norm2(z, time))))
    else:
        z.add_(block.narrow(block.widen(block.norm2(z, time), gelu=True)))


def add_attention(block: PreparedBlock, z: Tensor, v: Tensor, mixing: Tensor) -> None:
    """Run the first half of `apply`: add attention to z in place."""
    # A view of z, because the rows of a strip are contiguous. Of other tensors `flatten` would
    # silently make a copy, and what is added in place would be lost.
    pixels = z.flatten(1, 2)
    add_product(pixels, v.flatten(1, 2), mixing.to(v.dtype))
    if block.out_bias is not None:
        pixels.add_(block.out_bias)


def add_narrowed(block: PreparedBlock, z: Tensor, hidden: Tensor) -> None:
    """Run the end of `apply` on a GPU: add the feed-forward network's result to z in place.

    hidden: the hidden layer after GELU, `[n, h, w, 4 c]`.
    """
    pixels = z.flatten(1, 2)
    add_product(pixels, hidden.flatten(1, 2), block.narrow.weight[None])
    if block.narrow.bias is not None:
        pixels.add_(block.narrow.bias)


def _to(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if x is None else x.detach().to(dtype)
