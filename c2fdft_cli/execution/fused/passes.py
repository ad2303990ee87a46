"""The two passes over a strip (`prepared`) by the fused kernels: same results except for rounding.

Per value of the stream the first pass moves 18 bytes in half precision (norm and product 10, the
rest 8), the second one 10. In wider blocks the second pass is three kernels: the mixing, the
widening product with norm and GELU, and the narrowing product. In the widest blocks norm and GELU
are separate as well.
"""

from __future__ import annotations

import torch
from torch import Tensor

from c2fdft_cli.core.attention import PixelSums
from c2fdft_cli.execution.cuda.cards import WIDEST_NORMED, WIDEST_SECOND_PASS
from c2fdft_cli.execution.fused import operators  # noqa: F401 - defines torch.ops.c2fdft
from c2fdft_cli.execution.prepared import (
    Norm,
    PreparedBlock,
    Projection,
    add_attention,
    add_narrowed,
)


def norm(layer: Norm, z: Tensor, time: Tensor) -> Tensor:
    """Return `layer(z, time)` without writing it as float32 first."""
    y: Tensor = torch.ops.c2fdft.norm(z, layer.weight, layer.bias, time, layer.dtype)
    return y


def gather(
    block: PreparedBlock, z: Tensor, time: Tensor, skip: int, rows: int
) -> tuple[PixelSums, Tensor]:
    """Run `prepared.gather` by the kernels."""
    qkv, depthwise = _product(block.norm1, z, time, block.qkv), block.depthwise
    v, sums = torch.ops.c2fdft.depthwise(
        qkv, depthwise.weight, depthwise.bias, block.heads, skip, rows
    )
    d = sums.shape[-1]
    return PixelSums(sums[:, :, :d], sums[:, :, d], sums[:, :, d + 1]), v


def mixing(block: PreparedBlock, sums: PixelSums) -> Tensor:
    """Return `PreparedBlock.mixing` in the precision of the block."""
    matrix: Tensor = torch.ops.c2fdft.mixing(
        *sums, block.temperature, block.out, block.qkv.weight.dtype
    )
    return matrix


def apply(block: PreparedBlock, z: Tensor, v: Tensor, time: Tensor, mixing: Tensor) -> None:
    """Run `prepared.apply` by the kernels."""
    if z.shape[-1] <= WIDEST_SECOND_PASS:  # if this kernel is no better, plain torch runs
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
    """Return `product(layer(z, time), gelu)`, with GELU applied in place."""
    if z.shape[-1] <= WIDEST_NORMED:
        out: Tensor = torch.ops.c2fdft.norm_product(
            z, layer.weight, layer.bias, time, product.weight, product.bias, gelu
        )
        return out
    out = product(norm(layer, z, time))
    return torch.ops.aten.gelu_(out) if gelu else out
