"""A block prepared for the compiled kernels: inference on strips of rows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from c2fdft_cli.core.attention import PixelSums, mixing_matrix
from c2fdft_cli.core.block import Block
from c2fdft_cli.core.layers import NORM_EPS, PixelNorm
from c2fdft_cli.execution.native.library import Kernels

_GROUP = 48  # most channels of q that are processed together, in whole heads


class NativeBlock(NamedTuple):
    """A `Block` whose passes over a strip are one compiled call each."""

    kernels: Kernels
    heads: int
    group: int
    norm1: tuple[Tensor, Tensor | None]
    qkv: Tensor
    depthwise: Tensor
    temperature: Tensor
    out: Tensor
    out_bias: Tensor | None
    norm2: tuple[Tensor, Tensor | None]
    widen: Tensor
    narrow: Tensor
    hidden: int

    @classmethod
    def of(cls, block: Block, kernels: Kernels) -> NativeBlock:
        """Take the weights of block."""
        attn, ffn = block.attn, block.ffn
        c = len(attn.project_out.weight)
        head = c // attn.heads
        group = head * max(g for g in range(1, attn.heads + 1) if _fits(g, head, attn.heads))
        # The kernels convolve a group's q, k and v together from one ring buffer of rows, so the
        # weights of these channels must be adjacent.
        groups = torch.arange(3 * c).view(3, c // group, group).transpose(0, 1).flatten(1)
        weight, bias = _matrix(attn.qkv)
        taps, tap_bias = _matrix(attn.qkv_dwconv)
        shift = taps.new_zeros(3 * c) if tap_bias is None else tap_bias
        out, out_bias = _matrix(attn.project_out)
        widen, narrow = _matrix(ffn.project_in), _matrix(ffn.project_out)
        return cls(
            kernels=kernels,
            heads=attn.heads,
            group=group,
            norm1=_norm(block.norm1),
            qkv=torch.cat(
                [kernels.pack(weight[g], None if bias is None else bias[g]) for g in groups]
            ),
            depthwise=torch.cat(
                [torch.cat([taps[g].t(), shift[None, g]]).flatten() for g in groups]
            ),
            temperature=attn.temperature.detach().float(),
            out=out,
            out_bias=out_bias,
            norm2=_norm(block.norm2),
            widen=kernels.pack(*widen),
            narrow=kernels.pack(*narrow),
            hidden=len(widen[0]),
        )

    def gather(self, z: Tensor, v: Tensor, time: Tensor, top: int, bottom: int) -> PixelSums:
        """Run the first pass over rows top to bottom: return their sums, write their v into v.

        z, v: `[n, h, w, c]`, with all rows; z is float32, v has the kernels' precision.
        """
        n, h, w, c = z.shape
        d = c // self.heads
        # An address does not keep its tensor alive, so every tensor that is passed has a name until
        # the call returns.
        gain, shift, centred = _shift(self.norm1, time)
        # The norm of one image, which the next image overwrites.
        normed = v.new_empty((min(bottom + 1, h) - max(top - 1, 0), w, c))
        sums = z.new_empty(n, c * d + 2 * c)
        for i in range(n):
            self.kernels.call(
                *("gather", h, w, c, self.heads, self.group, top, bottom, z[i].data_ptr()),
                *(gain.data_ptr(), shift[i % len(shift)].data_ptr(), NORM_EPS, centred),
                *(self.qkv.data_ptr(), self.depthwise.data_ptr(), normed.data_ptr()),
                *(v[i].data_ptr(), sums[i].data_ptr()),
            )
        gram, q, k = torch.split(sums, [c * d, c, c], dim=1)
        shape = (n, self.heads, d)
        return PixelSums(gram.reshape(*shape, d), q.reshape(shape), k.reshape(shape))

    def mixing(self, sums: PixelSums) -> Tensor:
        """Return the matrix that the second pass applies to v, packed: `[n, ..]`."""
        matrices = mixing_matrix(sums, self.temperature, self.out)
        return self.kernels.pack(matrices, self.out_bias)

    def apply(self, z: Tensor, v: Tensor, time: Tensor, mixing: Tensor) -> None:
        """Run the second pass over a strip `z: [n, rows, w, c]`, in place."""
        n, rows, w, c = z.shape
        gain, shift, centred = _shift(self.norm2, time)
        for i in range(n):
            self.kernels.call(
                *("apply", rows * w, c, self.hidden, z[i].data_ptr(), v[i].data_ptr()),
                *(mixing[i].data_ptr(), gain.data_ptr(), shift[i % len(shift)].data_ptr()),
                *(NORM_EPS, centred, self.widen.data_ptr(), self.narrow.data_ptr()),
            )


def _fits(heads: int, width: int, of: int) -> bool:
    """Whether `heads` of all `of` heads, each of this width, can be a group."""
    return of % heads == 0 and (heads == 1 or heads * width <= _GROUP)


def _matrix(conv: nn.Conv2d) -> tuple[Tensor, Tensor | None]:
    """Return the weight as a matrix `[out, rest]`, and the bias, in float32."""
    bias = None if conv.bias is None else conv.bias.detach().float()
    return conv.weight.detach().flatten(1).float(), bias


def _norm(norm: PixelNorm) -> tuple[Tensor, Tensor | None]:
    bias = norm.body.bias
    return norm.body.weight.detach().float(), None if bias is None else bias.detach().float()


def _shift(norm: tuple[Tensor, Tensor | None], time: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Return gain, bias plus time (`[n or 1, c]`), and whether the norm subtracts the mean."""
    gain, bias = norm
    return gain, (time if bias is None else time + bias).contiguous(), bias is not None
