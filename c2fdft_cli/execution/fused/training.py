"""Norm and feed-forward network of a block in training, by the kernels in half precision.

Under autocast torch computes the norm in float32, writes it as float32, and casts it in another
kernel. In the backward pass the gradient is cast, passes through the norm, and is added to the
gradient of the residual branch, which bypassed the norm. That moves 44 bytes per value of the
stream; the kernels move 20. The function of the norm also returns the stream itself, so that the
sum of the two gradients is part of its derivative.

The feed-forward network has four hidden values per value of the stream. Plain torch writes them
before and after GELU, keeps both, and reads and writes them again in the backward pass. The kernels
keep only the stream and recompute the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from c2fdft_cli.core.block import Block
from c2fdft_cli.core.layers import PixelNorm
from c2fdft_cli.execution.cuda.cards import WIDEST_ON_CHIP
from c2fdft_cli.execution.fused import choose
from c2fdft_cli.execution.fused.choose import KernelTrial, try_part

Normed = Callable[[PixelNorm, Tensor, Tensor, torch.dtype], tuple[Tensor, Tensor]]
"""Function of a norm, the stream `z: [n, h, w, c]`, time and dtype: `norm(z) + time` and z."""
FedForward = Callable[[Block, Tensor, Tensor, torch.dtype], Tensor]
"""Function of a block, the stream, time and dtype: `z + DFN(norm2(z) + time)`."""

Kernels = frozenset[tuple[str, int]]
"""What runs by the kernels: the names of the parts, each with a width."""
NORM, FEED_FORWARD = "norm", "feed-forward"

_Way = TypeVar("_Way", Normed, FedForward)

_assumed: ContextVar[Kernels | None] = ContextVar("assumed", default=None)
_log = logging.getLogger(__name__)


def plain_norm(
    layer: PixelNorm, z: Tensor, time: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Compute the norm as the core does; the operation that follows casts the result."""
    return layer(z, time), z


def fused_norm(
    layer: PixelNorm, z: Tensor, time: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Compute the norm by the kernels."""
    weight, bias = layer.body.weight, layer.body.bias
    y, z = _Norm.apply(z, weight, bias, time, dtype)  # type: ignore[no-untyped-call]
    return y, z


def norm_for(layer: PixelNorm, z: Tensor, dtype: torch.dtype) -> Normed:
    """Return `fused_norm` if it agrees and is faster, tried once per process and kind of norm.

    Args:
        layer: the norm.
        z: its stream.
        dtype: the precision of the operation that follows.

    Raises:
        UsageError: the environment variable `C2FDFT_KERNELS` has an unknown value.
    """
    key = (NORM, layer.body.bias is None)
    return _choose(key, z, dtype, fused_norm, plain_norm, lambda: try_norm(layer, z, dtype))


def plain_feed_forward(block: Block, z: Tensor, time: Tensor, dtype: torch.dtype) -> Tensor:
    """Compute the feed-forward network as the core does, after the faster version of the norm."""
    y, z = norm_for(block.norm2, z, dtype)(block.norm2, z, time, dtype)
    return z + block.ffn(y)  # type: ignore[no-any-return]


def fused_feed_forward(block: Block, z: Tensor, time: Tensor, dtype: torch.dtype) -> Tensor:
    """Compute norm and feed-forward network by the kernels."""
    norm, ffn = block.norm2.body, block.ffn
    widen, narrow = ffn.project_in, ffn.project_out
    out: Tensor = _FeedForward.apply(  # type: ignore[no-untyped-call]
        z, norm.weight, norm.bias, time, widen.weight.flatten(1), widen.bias,
        narrow.weight.flatten(1), narrow.bias, dtype,
    )  # fmt: skip
    return out


def feed_forward_for(block: Block, z: Tensor, dtype: torch.dtype) -> FedForward:
    """Do the same as `norm_for` for the feed-forward network of a block."""
    if z.shape[-1] > WIDEST_ON_CHIP:
        return plain_feed_forward
    widen, biased = block.ffn.project_in, block.norm2.body.bias is not None
    key = (FEED_FORWARD, widen.out_channels, biased, widen.bias is not None)
    return _choose(
        key, z, dtype, fused_feed_forward, plain_feed_forward,
        lambda: try_feed_forward(block, z, dtype),
    )  # fmt: skip


def chosen_for(blocks: Iterable[Block], device: torch.device, dtype: torch.dtype) -> Kernels:
    """Return the parts of blocks that train by the kernels on a device; run missing trials."""
    found: set[tuple[str, int]] = set()
    for block in blocks:
        width = block.norm1.body.weight.numel()
        z = torch.zeros(1, 1, 1, width, device=device, dtype=dtype)
        if norm_for(block.norm1, z, dtype) is fused_norm:
            found.add((NORM, width))
        if feed_forward_for(block, z, dtype) is fused_feed_forward:
            found.add((FEED_FORWARD, width))
    return frozenset(found)


@contextmanager
def assume(kernels: Kernels) -> Iterator[None]:
    """In this context exactly these parts run by the kernels, on any device and without trials.

    This serves to count, on tensors without data, what another device would do.
    """
    token = _assumed.set(kernels)
    try:
        yield
    finally:
        _assumed.reset(token)


def _choose(
    key: tuple[object, ...],
    z: Tensor,
    dtype: torch.dtype,
    fused: _Way,
    plain: _Way,
    run: Callable[[], KernelTrial],
) -> _Way:
    """Return one of two versions according to a trial, whose result is stored under the key."""
    # In a network under autocast the stream is in half precision, the result of convolutions.
    if z.dtype not in (torch.float32, dtype) or not z.is_contiguous():
        return plain
    assumed = _assumed.get()
    if assumed is not None:
        return fused if (key[0], z.shape[-1]) in assumed else plain

    def compare(even_slower: bool) -> _Way:
        # In another thread, where the caller's autocast and saved-tensor hooks do not apply.
        with ThreadPoolExecutor(1) as thread:
            trial = thread.submit(_try_where, z, run).result()
        _log.info("%s of %d channels: %s", trial.part, z.shape[-1], trial)
        return fused if trial.is_better(dtype, even_slower) else plain

    return choose.choose_once((*key, z.dtype, z.shape[-1]), z.device, dtype, plain, compare)


def _try_where(z: Tensor, run: Callable[[], KernelTrial]) -> KernelTrial:
    """Run a trial with the GPU of z as the current one, to which CUDA events belong."""
    with torch.cuda.device_of(z):  # type: ignore[no-untyped-call]
        return run()


def try_norm(layer: PixelNorm, stream: Tensor, dtype: torch.dtype) -> KernelTrial:
    """Compare and time the kernels, forward and backward, on random pixels of two images.

    Args:
        layer: the norm.
        stream: a stream of the width, precision and device that are tried.
        dtype: the precision of the operation that follows.
    """
    z, passed, dy, time = _trial_tensors(stream)
    dy = dy.to(dtype)

    def forward_and_backward(way: Callable[..., Any]) -> list[Tensor]:
        with torch.autocast(z.device.type, dtype):
            y, handed_on = way(layer, z, time, dtype)
        # The plain version is timed with the cast that follows it under autocast, which the kernel
        # includes.
        y = y.to(dtype)
        of = [z, time, *layer.parameters()]
        return [y.detach(), *torch.autograd.grad([y, handed_on], of, [dy, passed])]

    return try_part(NORM, forward_and_backward, fused_norm, plain_norm, dtype)


def try_feed_forward(block: Block, stream: Tensor, dtype: torch.dtype) -> KernelTrial:
    """Do the same as `try_norm` for the feed-forward network of a block."""
    z, d, _, time = _trial_tensors(stream)

    def forward_and_backward(way: Callable[..., Any]) -> list[Tensor]:
        with torch.autocast(z.device.type, dtype):
            out = way(block, z, time, dtype)
        of = [z, time, *block.norm2.parameters(), *block.ffn.parameters()]
        dz, *rest = torch.autograd.grad([out], of, [d])
        # Without the stream and its gradient, relative to which an error would look like rounding.
        return [out.detach() - z.detach(), dz - d, *rest]

    ways = fused_feed_forward, plain_feed_forward
    return try_part(FEED_FORWARD, forward_and_backward, *ways, dtype)


def _trial_tensors(stream: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return a stream of two images that requires a gradient, two more of its shape, and a time."""
    width, device = stream.shape[-1], stream.device
    source = torch.Generator(device).manual_seed(0)
    rows = choose.TRIED_ROWS
    shape = (2, rows, max(1, choose.TRIED_VALUES // rows // width), width)
    z, a, b, time = (
        torch.randn(s, device=device, generator=source) for s in (shape, shape, shape, (2, width))
    )
    # A stream of small values, which the norm enlarges: in half precision the rounding of the sum
    # with a large stream would hide errors of what was added.
    z, a, b = (x.to(stream.dtype) for x in (z / 16, a, b))
    return z.requires_grad_(), a, b, time.requires_grad_()


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z: Tensor, weight: Tensor, bias: Tensor | None, time: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        from c2fdft_cli.execution.fused import operators  # noqa: F401 - defines torch.ops.c2fdft

        ctx.save_for_backward(z, weight)
        ctx.centred, ctx.one_time = bias is not None, len(time) == 1
        return torch.ops.c2fdft.norm(z, weight, bias, time, dtype), z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, passed: Tensor) -> tuple[Tensor | None, ...]:
        z, weight = ctx.saved_tensors
        # Autograd passes gradients in any memory layout, such as the expanded one of a sum; the
        # kernel reads dense rows.
        dz, sums = torch.ops.c2fdft.norm_backward(
            z, weight, ctx.centred, dy.contiguous(), passed.contiguous()
        )
        # Each program writes separate sums, which are added here in a fixed order: atomic additions
        # would change the last bits from run to run.
        dweight, total = sums.sum(1).unbind(1)
        dbias = total.sum(0) if ctx.centred else None
        return dz, dweight.sum(0), dbias, _of_time(total, ctx.one_time), None


class _FeedForward(torch.autograd.Function):
    """`z + narrow gelu(widen (norm(z) + time))`; widen: `[hidden, c]`, narrow: `[c, hidden]`."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        time: Tensor,
        widen: Tensor,
        widen_bias: Tensor | None,
        narrow: Tensor,
        narrow_bias: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        from c2fdft_cli.execution.fused import operators  # noqa: F401 - defines torch.ops.c2fdft

        # Keep the weights as they are and cast them again in the backward pass: the cast copies,
        # kept for every call like an activation, would take as much memory as one.
        ctx.save_for_backward(z, weight, bias, time, widen, widen_bias, narrow)
        ctx.dtype = dtype
        layers = (weight, bias, time, widen.to(dtype), widen_bias, narrow.to(dtype))
        out: Tensor = torch.ops.c2fdft.feed_forward(z, *layers, narrow_bias)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        z, weight, bias, time, widen, widen_bias, narrow = ctx.saved_tensors
        layers = (weight, bias, time, widen.to(ctx.dtype), widen_bias, narrow.to(ctx.dtype))
        d = d.contiguous()
        dz, sums = torch.ops.c2fdft.feed_forward_backward(z, d, *layers)
        dwiden, dnarrow, dwiden_bias = torch.ops.c2fdft.feed_forward_weights(z, d, *layers)
        dweight, total, dnarrow_bias = sums.sum(1).unbind(1)
        return (
            dz,
            dweight.sum(0),
            None if bias is None else total.sum(0),
            _of_time(total, len(time) == 1),
            dwiden.sum(0),
            None if widen_bias is None else dwiden_bias.sum(0),
            # in the memory layout of the weight, which DDP expects of gradients
            dnarrow.sum(0).t().contiguous(),
            dnarrow_bias.sum(0) if ctx.needs_input_grad[7] else None,
            None,
        )


def _of_time(total: Tensor, one: bool) -> Tensor:
    """Return the gradient of the time, `[n or 1, c]`, from the sums over each image's pixels."""
    return total.sum(0, keepdim=True) if one else total
