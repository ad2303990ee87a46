"""The two passes over a strip (`prepared`) by the fused kernels: the same results but for rounding.

Per value of the stream the first pass moves 18 bytes in half precision (norm and product 10, the
rest 8), the second one 10; in wider blocks the norms, products and GELU are apart.
"""

from __future__ import annotations

import torch
from torch import Tensor

from c2fdft_cli.core.attention import PixelSums
from c2fdft_cli.execution.cuda.cards import WIDEST_ON_CHIP
from c2fdft_cli.execution.fused import operators  # noqa: F401 - defines torch.ops.c2fdft
from c2fdft_cli.execution.prepared import Norm, PreparedBlock, apply_on_gpu


def norm(layer: Norm, z: Tensor, time: Tensor) -> Tensor:
    """`layer(z, time)`, which is not written as float32 first."""
    y: Tensor = torch.ops.c2fdft.norm(z, layer.weight, layer.bias, time, layer.dtype)
    return y


def gather(
    block: PreparedBlock, z: Tensor, time: Tensor, skip: int, rows: int
) -> tuple[PixelSums, Tensor]:
    """`prepared.gather`."""
    depthwise = block.depthwise
    if z.shape[-1] <= WIDEST_ON_CHIP:
        qkv = torch.ops.c2fdft.norm_product(
            z, block.norm1.weight, block.norm1.bias, time, block.qkv.weight, block.qkv.bias
        )
    else:
        qkv = block.qkv(norm(block.norm1, z, time))
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
    apply_on_gpu(block, z, v, mixing, lambda: norm(block.norm2, z, time))
