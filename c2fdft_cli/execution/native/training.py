"""Layers whose forward and backward passes are compiled kernels: training on a CPU in float32.

The formulas are those of `execution.block_gradients`, for the norm those of norm.h. The kernels
work on tiles of pixels, and apply the norm, GELU and their derivatives to a tile while it is in the
cache. Products that sum over the pixels, such as the gradients of weights, are torch's BLAS: it is
faster there. The backward pass takes a few images at a time, in the feed-forward network also a
part of one, so that what one kernel writes is still in the cache for the next. It computes norms
and GELU again, which is faster than to keep them.

A pass of a layer is a single call: between large kernels, Python and torch find nothing of theirs
in the cache, and the hundreds of small operations of a block took a tenth of a step.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from c2fdft_cli.core.attention import Attention
from c2fdft_cli.core.block import Block, FeedForward
from c2fdft_cli.core.layers import NORM_EPS, PixelNorm
from c2fdft_cli.core.precision import full_precision
from c2fdft_cli.execution.kernels import bias_grad, weight_grad
from c2fdft_cli.execution.native.library import Kernels, kernels_for

Weights: TypeAlias = tuple[Tensor | None, ...]

_CACHED_VALUES = 4 << 20  # of each of two to four tensors: 16 MiB each


def training_kernels(x: Tensor, *others: Tensor | None) -> Kernels | None:
    """Return the kernels that train with these tensors; None if torch's operators have to.

    The kernels get addresses, so they need plain float32 tensors on a CPU.
    """
    tensors = [x, *(one for one in others if one is not None)]
    if not all(map(_is_plain, tensors)) or not x.numel() or torch.is_autocast_enabled("cpu"):
        return None
    kernels = kernels_for(x.device, x.dtype)
    return kernels if kernels is not None and kernels.can_train else None


def _is_plain(x: Tensor) -> bool:
    kinds = (Tensor, nn.Parameter)
    return type(x) in kinds and x.device.type == "cpu" and x.dtype == torch.float32


def weights_of(block: Block) -> Weights:
    """Return the weights of a block, without a walk through its modules."""
    attention = _attention_weights(block.norm1, block.attn)
    return (*attention, *_feed_forward_weights(block.norm2, block.ffn))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, kernels: Kernels) -> Tensor:
    """Return `x weight^T + bias`; x: `[n, h, w, in]`, weight: `[out, in]`.

    Raises:
        ValueError: the widths of x and weight differ.
    """
    _check_widths(weight.shape[1], x)
    return _Linear.apply(x, weight, bias, kernels)  # type: ignore[no-any-return, no-untyped-call]


def attend(
    x: Tensor, time: Tensor, norm: PixelNorm, attention: Attention, kernels: Kernels
) -> Tensor:
    """Return `x + attention(norm(x, time))`; x: `[n, h, w, c]`, time: `[n or 1, c]`.

    Raises:
        ValueError: the shapes do not fit, or the width is not a multiple of the heads.
    """
    width, heads = attention.qkv.in_channels, attention.heads
    _check_inputs(width, x, time, norm)
    if width % heads:
        raise ValueError(f"{width} channels are not a multiple of {heads} heads")
    return _NormedLayer.apply(  # type: ignore[no-any-return, no-untyped-call]
        kernels, "attend", heads, x, time, *_attention_weights(norm, attention)
    )


def feed_forward(
    x: Tensor, time: Tensor, norm: PixelNorm, ffn: FeedForward, kernels: Kernels
) -> Tensor:
    """Return `x + ffn(norm(x, time))`; x: `[n, h, w, c]`, time: `[n or 1, c]`.

    Raises:
        ValueError: the shapes do not fit.
    """
    _check_inputs(ffn.project_in.in_channels, x, time, norm)
    hidden = ffn.project_in.out_channels
    return _NormedLayer.apply(  # type: ignore[no-any-return, no-untyped-call]
        kernels, "feed_forward", hidden, x, time, *_feed_forward_weights(norm, ffn)
    )


def _attention_weights(norm: PixelNorm, attention: Attention) -> Weights:
    qkv, taps, out = attention.qkv, attention.qkv_dwconv, attention.project_out
    return (
        *(norm.body.weight, norm.body.bias, qkv.weight, qkv.bias, taps.weight, taps.bias),
        *(attention.temperature, out.weight, out.bias),
    )


def _feed_forward_weights(norm: PixelNorm, ffn: FeedForward) -> Weights:
    widen, narrow = ffn.project_in, ffn.project_out
    return (
        *(norm.body.weight, norm.body.bias),
        *(widen.weight, widen.bias, narrow.weight, narrow.bias),
    )


def _check_inputs(width: int, x: Tensor, time: Tensor, norm: PixelNorm) -> None:
    _check_widths(width, x, time, norm.body.weight)
    if len(time) not in (1, len(x)):
        raise ValueError(f"expected a time, or one for each of {len(x)} images, got {len(time)}")


def _check_widths(width: int, *tensors: Tensor) -> None:
    for one in tensors:
        if one.shape[-1] != width:
            raise ValueError(f"expected {width} channels, got {list(one.shape)}")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, kernels: Kernels
    ) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, weight)
        ctx.kernels = kernels
        return _product(kernels, x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        with full_precision(x):  # the caller may run the backward pass under its autocast
            grad = grad.contiguous()
            dx = _product(ctx.kernels, grad, weight.t(), None) if ctx.needs_input_grad[0] else None
            return dx, weight_grad(grad, x), bias_grad(grad, ctx.needs_input_grad[2]), None


def _product(kernels: Kernels, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out, width = weight.shape
    packed, y = kernels.pack(weight, bias), x.new_empty(*x.shape[:-1], out)
    kernels.call(
        *("linear", 1, x.numel() // width, width, out, x.data_ptr(), width),
        *(packed.data_ptr(), None, y.data_ptr()),
    )
    return y


class _Layer(ctypes.Structure):
    """`Layer` of tiles.h."""

    _fields_: ClassVar = [
        *((name, ctypes.c_int) for name in ("images", "height", "width", "c", "inner", "times")),
        *(("centred", ctypes.c_int), ("cached", ctypes.c_int), ("eps", ctypes.c_float)),
    ]


class _NormedLayer(torch.autograd.Function):
    """`x + f(norm(x, time))`, by the kernels `name` and `name_back`.

    inner: the number of heads, or the width of the hidden layer. weights: gain and bias of the norm
    and what f has, in the order of the kernel's structure.
    """

    @staticmethod
    def forward(
        ctx: Any, kernels: Kernels, name: str, inner: int, x: Tensor, time: Tensor, *weights: Tensor
    ) -> Tensor:
        tensors = [None if one is None else one.contiguous() for one in (x, time, *weights)]
        n, h, w, c = x.shape
        layer = _Layer(
            *(n, h, w, c, inner, len(time), weights[1] is not None, _CACHED_VALUES, NORM_EPS)
        )
        kept = x.new_empty(kernels.floats(f"{name}_floats", n, h * w, c, inner))
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        kernels.call(
            *(name, ctypes.byref(layer), _addresses(tensors), kept.data_ptr(), y.data_ptr())
        )
        ctx.save_for_backward(kept, *tensors)
        ctx.kernels, ctx.name, ctx.layer = kernels, name, layer
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # Read only once, because a recomputed level provides the saved tensors only once.
        kept, x, *others = ctx.saved_tensors
        grad, dx = grad.contiguous(), torch.empty_like(x)
        gradients = [
            torch.empty_like(one) if needed else None
            for one, needed in zip(others, ctx.needs_input_grad[4:], strict=True)
        ]
        ctx.kernels.call_backward(
            *(f"{ctx.name}_back", ctypes.byref(ctx.layer), _addresses([x, *others])),
            *(kept.data_ptr(), grad.data_ptr(), _addresses([dx, *gradients])),
        )
        return None, None, None, dx, *gradients


def _addresses(tensors: Sequence[Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
    """Return the addresses of tensors, which must outlive their use; NULL for None."""
    addresses = (None if one is None else one.data_ptr() for one in tensors)
    return (ctypes.c_void_p * len(tensors))(*addresses)
