"""The norm of a block in training: `norm(z) + time` in half precision in one kernel, and back.

Autocast takes the norm in float32, writes it so, and casts it in another kernel; on the way back
the gradient is cast, goes through the norm, and is added to the one that passed the norm by. Per
value of the stream that is 44 bytes; the kernels move 20. The stream is handed on by the norm
itself, so that the sum of the two gradients belongs to its derivative.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from c2fdft_cli.core.layers import PixelNorm
from c2fdft_cli.execution.fused import choose
from c2fdft_cli.execution.fused.choose import SWITCH, Trial, are_tried, try_part

Normed = Callable[[PixelNorm, Tensor, Tensor, torch.dtype], tuple[Tensor, Tensor]]
"""From a norm, the stream `z: [n, h, w, c]`, the time and a precision to `norm(z) + time` and z."""

_chosen: dict[tuple[object, ...], Normed] = {}
_log = logging.getLogger(__name__)


def plain_norm(
    layer: PixelNorm, z: Tensor, time: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """As the core has it; what comes next casts the result."""
    return layer(z, time), z


def fused_norm(
    layer: PixelNorm, z: Tensor, time: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """By the kernels."""
    from c2fdft_cli.execution.fused import operators  # noqa: F401 - defines torch.ops.c2fdft

    weight, bias = layer.body.weight, layer.body.bias
    y, z = _Norm.apply(z, weight, bias, time, dtype)  # type: ignore[no-untyped-call]
    return y, z


def norm_for(layer: PixelNorm, z: Tensor, dtype: torch.dtype) -> Normed:
    """The faster way that agrees with the plain one, tried once in a process for each kind of norm.

    Args:
        layer: the norm.
        z: its stream.
        dtype: the precision that follows.

    Raises:
        UsageError: the environment variable `C2FDFT_KERNELS` has another value.
    """
    if z.dtype != torch.float32 or not z.is_contiguous():
        return plain_norm
    switch = os.environ.get(SWITCH)
    key = (z.device, dtype, z.shape[-1], layer.body.bias is None, switch)
    # looked up first: each block asks in each step, and whether there is Triton takes a while
    if key not in _chosen and not are_tried(z.device, dtype):
        _chosen[key] = plain_norm
    if key not in _chosen:
        # autocast, and hooks on what is kept for a derivative, belong to the calling thread
        with ThreadPoolExecutor(1) as thread:
            trial = thread.submit(_try_where, z, layer, dtype).result()
        _log.info("norm of %d channels: %s", z.shape[-1], trial)
        _chosen[key] = fused_norm if trial.is_better(dtype, switch == "on") else plain_norm
    return _chosen[key]


def _try_where(z: Tensor, layer: PixelNorm, dtype: torch.dtype) -> Trial:
    """`try_norm` on the GPU of z, whichever the thread's current one is: events belong to that."""
    with torch.cuda.device_of(z):  # type: ignore[no-untyped-call]
        return try_norm(layer, z.device, dtype)


def try_norm(layer: PixelNorm, device: torch.device, dtype: torch.dtype) -> Trial:
    """Compare and time the kernels, there and back, on random pixels of two images."""
    source = torch.Generator(device).manual_seed(0)
    width = layer.body.weight.numel()
    rows = choose.TRIED_ROWS
    shape = (2, rows, max(1, choose.TRIED_VALUES // rows // width), width)
    z, passed, dy, time = (
        torch.randn(s, device=device, generator=source) for s in (shape, shape, shape, (2, width))
    )
    z, time, dy = z.requires_grad_(), time.requires_grad_(), dy.to(dtype)

    def there_and_back(way: Callable[..., Any]) -> list[Tensor]:
        y, handed_on = way(layer, z, time, dtype)
        # The plain way is timed with the cast that follows it under autocast, which the kernel
        # includes.
        y = y.to(dtype)
        of = [z, time, *layer.parameters()]
        return [y.detach(), *torch.autograd.grad([y, handed_on], of, [dy, passed])]

    return try_part("norm", there_and_back, fused_norm, plain_norm, dtype)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z: Tensor, weight: Tensor, bias: Tensor | None, time: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(z, weight)
        ctx.centred, ctx.one_time = bias is not None, len(time) == 1
        return torch.ops.c2fdft.norm(z, weight, bias, time, dtype), z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, passed: Tensor) -> tuple[Tensor | None, ...]:
        z, weight = ctx.saved_tensors
        # Gradients come in whatever layout autograd has, expanded ones of a sum included; the
        # kernel reads dense rows.
        dz, sums = torch.ops.c2fdft.norm_backward(
            z, weight, ctx.centred, dy.contiguous(), passed.contiguous()
        )
        # Each program has sums of its own, added here in a fixed order: atomic additions would
        # change the last bits from run to run.
        dweight, total = sums.sum(1).unbind(1)
        dbias = total.sum(0) if ctx.centred else None
        dtime = total.sum(0, keepdim=True) if ctx.one_time else total
        return dz, dweight.sum(0), dbias, dtime, None
