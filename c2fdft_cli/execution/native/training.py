"""Layers whose forward and backward passes are compiled kernels: training on a CPU in float32.

The formulas are those of `execution.block_gradients`, for the norm those of norm.h. The kernels
work on tiles of pixels, and apply the norm, GELU and their derivatives to a tile while it is in the
cache. The gradients of weight matrices, products that sum over the pixels, are left to torch's
BLAS: it is faster there. The backward pass takes a few images at a time, in the feed-forward
network also a part of one, so that what one kernel writes is still in the cache for the next. It
computes norms and GELU again, which is faster than to keep them.

A pass of a layer is a single call: between large kernels, Python and torch find nothing of theirs
in the cache, and the small operations that this replaced took 2 to 8 % of a step.
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
    if x.shape[-1] != weight.shape[1]:
        raise ValueError(f"expected {weight.shape[1]} channels, got {list(x.shape)}")
    return _Linear.apply(x, weight, bias, kernels)  # type: ignore[no-any-return, no-untyped-call]


def attend(
    x: Tensor, time: Tensor, norm: PixelNorm, attention: Attention, kernels: Kernels
) -> Tensor:
    """Return `x + attention(norm(x, time))`; x: `[n, h, w, c]`, time: `[n or 1, c]`.

    Raises:
        ValueError: the shapes do not fit, or the width is not a multiple of the heads.
    """
    c, heads = x.shape[-1], attention.heads
    if c % heads:
        raise ValueError(f"{c} channels are not a multiple of {heads} heads")
    weights = _attention_weights(norm, attention)
    _check_sizes(x, time, weights, (c, 3 * c * c, 27 * c, heads, c * c, c, 3 * c, 3 * c, c))
    return _NormedLayer.apply(kernels, "attend", heads, 5, x, time, *weights)  # type: ignore[no-any-return, no-untyped-call]


def feed_forward(
    x: Tensor, time: Tensor, norm: PixelNorm, ffn: FeedForward, kernels: Kernels
) -> Tensor:
    """Return `x + ffn(norm(x, time))`; x: `[n, h, w, c]`, time: `[n or 1, c]`.

    Raises:
        ValueError: the shapes do not fit.
    """
    c, hidden = x.shape[-1], ffn.project_in.weight.shape[0]
    weights = _feed_forward_weights(norm, ffn)
    _check_sizes(x, time, weights, (c, c * hidden, c * hidden, c, hidden, c))
    return _NormedLayer.apply(kernels, "feed_forward", hidden, 3, x, time, *weights)  # type: ignore[no-any-return, no-untyped-call]


def _attention_weights(norm: PixelNorm, attention: Attention) -> Weights:
    """Return the weights in the order of `Attend` in attention.c, without x and time."""
    gain, qkv, taps, out = norm.body, attention.qkv, attention.qkv_dwconv, attention.project_out
    return (
        *(gain.weight, qkv.weight, taps.weight, attention.temperature, out.weight),
        *(gain.bias, qkv.bias, taps.bias, out.bias),
    )


def _feed_forward_weights(norm: PixelNorm, ffn: FeedForward) -> Weights:
    """Return the weights in the order of `FeedForward` in feed_forward.c, without x and time."""
    gain, widen, narrow = norm.body, ffn.project_in, ffn.project_out
    return gain.weight, widen.weight, narrow.weight, gain.bias, widen.bias, narrow.bias


def _check_sizes(x: Tensor, time: Tensor, weights: Weights, sizes: Sequence[int]) -> None:
    """Raise ValueError unless the kernels, which get addresses, stay within these tensors."""
    n, width = x.shape[0], x.shape[-1]
    if x.dim() != 4 or time.shape not in ((1, width), (n, width)):
        raise ValueError(f"a time of shape {list(time.shape)} does not fit {list(x.shape)}")
    for one, size in zip(weights, sizes, strict=True):
        if one is not None and one.numel() != size:
            what = f"weights of shape {list(one.shape)} do not fit {width} channels"
            raise ValueError(f"{what}: {size} values expected")


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

    inner: the number of heads, or the width of the hidden layer. weights: those that the backward
    pass reads, `read` of them, then the biases, that of the norm first.
    """

    @staticmethod
    def forward(
        ctx: Any,
        kernels: Kernels,
        name: str,
        inner: int,
        read: int,
        x: Tensor,
        time: Tensor,
        *weights: Tensor | None,
    ) -> Tensor:
        given = (x, *weights[:read], time, *weights[read:])
        tensors = [None if one is None else one.contiguous() for one in given]
        n, h, w, c = x.shape
        centred = weights[read] is not None
        layer = _Layer(n, h, w, c, inner, time.shape[0], centred, _CACHED_VALUES, NORM_EPS)
        kept = x.new_empty(kernels.floats(f"{name}_floats", n, h * w, c, inner))
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        kernels.call(
            *(name, ctypes.byref(layer), _addresses(tensors), kept.data_ptr(), y.data_ptr())
        )
        # Not time and the biases: whoever changes them in place before the backward pass may do so.
        ctx.save_for_backward(kept, *tensors[: read + 1])
        ctx.shapes = [None if one is None else one.shape for one in given]
        ctx.kernels, ctx.name, ctx.layer, ctx.read = kernels, name, layer, read
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # Read only once, because a recomputed level provides the saved tensors only once.
        kept, x, *weights = ctx.saved_tensors
        needs, read, grad = ctx.needs_input_grad[4:], ctx.read, grad.contiguous()
        needed = (True, *needs[2 : 2 + read], needs[1], *needs[2 + read :])
        gradients = [
            grad.new_empty(shape) if need and shape is not None else None
            for shape, need in zip(ctx.shapes, needed, strict=True)
        ]
        tensors = [x, *weights, *[None] * (len(gradients) - len(weights) - 1)]
        ctx.kernels.call_backward(
            *(f"{ctx.name}_back", ctypes.byref(ctx.layer), _addresses(tensors)),
            *(kept.data_ptr(), grad.data_ptr(), _addresses(gradients)),
        )
        dx, *of_weights = gradients[: read + 1]
        dtime, *of_biases = gradients[read + 1 :]
        return None, None, None, None, dx, dtime, *of_weights, *of_biases


def _addresses(tensors: Sequence[Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
    """Return the addresses of tensors, which must outlive their use; NULL for None."""
    addresses = (None if one is None else one.data_ptr() for one in tensors)
    return (ctypes.c_void_p * len(tensors))(*addresses)
