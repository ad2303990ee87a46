"""The two passes over a strip (`prepared`) by the fused kernels: the same results but for rounding.

Per value of the stream the first pass moves 18 bytes in half precision (norm and product 10, the
rest 8), the second one 10. In wider blocks the mixing, the widening product with norm and GELU, and
the narrowing one are apart, in the widest all of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from c2fdft_cli.core.attention import PixelSums
from c2fdft_cli.execution.cuda.cards import WIDEST_NORMED, WIDEST_ON_CHIP
from c2fdft_cli.execution.fused import operators  # noqa: F401 - defines torch.ops.c2fdft
from c2fdft_cli.execution.prepared import (
    Norm,
    PreparedBlock,
    Projection,
    add_attention,
    add_narrowed,
)


def norm(layer: Norm, z: Tensor, time: Tensor) -> Tensor:
    """`layer(z, time)`, which is not written as float32 first."""
    y: Tensor = torch.ops.c2fdft.norm(z, layer.weight, layer.bias, time, layer.dtype)
    return y


def gather(
    block: PreparedBlock, z: Tensor, time: Tensor, skip: int, rows: int
) -> tuple[PixelSums, Tensor]:
    """`prepared.gather`."""
    qkv, depthwise = _product(block.norm1, z, time, block.qkv), block.depthwise
    v, pieces = torch.ops.c2fdft.depthwise(
        qkv, depthwise.weight, depthwise.bias, block.heads, skip, rows
    )
    sums = pieces.sum(1)
    d = sums.shape[-1]
    return PixelSums(sums[:, :, :d], sums[:, :, d], sums[:, :, d + 1]), v


def mixing(block: PreparedBlock, sums: PixelSums) -> Tensor:
    """`PreparedBlock.mixing` in the precision of the block."""
    matrix: Tensor = torch.ops.c2fdft.mixing(
        *sums, block.temperature, block.out, block.qkv.weight.dtype
    )
    return matrix


def apply(block: PreparedBlock, z: Tensor, v: Tensor, time: Tensor, mixing: Tensor) -> None:
    """`prepared.apply`."""
    if z.shape[-1] <= WIDEST_ON_CHIP:
        torch.ops.c2fdft.second_pass(
            z, v, mixing.to(v.dtype), block.out_bias, block.norm2.weight, block.norm2.bias, time,
            block.widen.weight, block.widen.bias, block.narrow.weight, block.narrow.bias,
        )  # fmt: skip
        return
    add_attention(block, z, v, mixing)
    add_narrowed(block, z, _product(block.norm2, z, time, block.widen, gelu=True))


def _product(
    layer: Norm, z: Tensor, time: Tensor, product: Projection, gelu: bool = False
) -> Tensor:
    """`product(layer(z, time), gelu)`, with GELU in place."""
    if z.shape[-1] <= WIDEST_NORMED:
        out: Tensor = torch.ops.c2fdft.norm_product(
            z, layer.weight, layer.bias, time, product.weight, product.bias, gelu
        )
        return out
    out = product(norm(layer, z, time))
    return torch.ops.aten.gelu_(out) if gelu else out
