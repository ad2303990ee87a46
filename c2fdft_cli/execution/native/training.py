"""Layers whose forward and backward passes are compiled kernels: training on a CPU in float32.

The formulas are those of `execution.block_gradients`. The kernels work on tiles of pixels, and
apply GELU and its derivative to a product while it is in the cache. Products that sum over the
pixels, such as the gradients of weights, are torch's: its BLAS is faster there.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from c2fdft_cli.core.attention import PixelSums
from c2fdft_cli.execution.attention_passes import PassesInTorch
from c2fdft_cli.execution.kernels import bias_grad, weight_grad
from c2fdft_cli.execution.native.library import Kernels, kernels_for

Layer: TypeAlias = tuple[Tensor, Tensor | None]
"""Weight `[out, in]` and bias of a linear layer."""


def training_kernels(x: Tensor, *others: Tensor | None) -> Kernels | None:
    """Return the kernels that train with these tensors; None if torch's operators have to.

    The kernels get addresses, so they need plain float32 tensors on a CPU.
    """
    tensors = [x, *(one for one in others if one is not None)]
    if not all(map(_is_plain, tensors)) or not x.numel() or torch.is_autocast_enabled("cpu"):
        return None
    return kernels_for(x.device, x.dtype)


def _is_plain(x: Tensor) -> bool:
    kinds = (Tensor, nn.Parameter)
    return type(x) in kinds and x.device.type == "cpu" and x.dtype == torch.float32


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, kernels: Kernels) -> Tensor:
    """Return `x weight^T + bias`; x: `[n, h, w, in]`, weight: `[out, in]`.

    Raises:
        ValueError: the widths of x and weight differ.
    """
    _check_width(x, weight.shape[1])
    return _Linear.apply(x, weight, bias, kernels)  # type: ignore[no-any-return, no-untyped-call]


def feed_forward(
    x: Tensor, stream: Tensor, widen: Layer, narrow: Layer, kernels: Kernels
) -> Tensor:
    """Return `stream + narrow(gelu(widen(x)))`; x, stream: `[n, h, w, c]`.

    Raises:
        ValueError: the widths of x and the weights differ.
    """
    _check_width(x, widen[0].shape[1])
    return _FeedForward.apply(x, stream, *widen, *narrow, kernels)  # type: ignore[no-any-return, no-untyped-call]


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, kernels: Kernels) -> Tensor:
    """Convolve `x: [n, h, w, c]` depth-wise with 3x3 weights `[c, 1, 3, 3]`, with zero padding.

    Raises:
        ValueError: the widths of x and weight differ.
    """
    _check_width(x, len(weight))
    return _Depthwise.apply(x, weight, bias, kernels)  # type: ignore[no-any-return, no-untyped-call]


def _check_width(x: Tensor, width: int) -> None:
    if x.shape[-1] != width:
        raise ValueError(f"expected {width} channels, got {list(x.shape)}")


class NativePasses(PassesInTorch):
    """The passes of attention, of which two are compiled; these read contiguous tensors."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels

    def mixed(self, qkv: Tensor, mixing: Tensor, bias: Tensor | None, stream: Tensor) -> Tensor:
        """Return `stream + v mixing^T + bias`; mixing: `[n, c, c]`."""
        n, h, w, wide = qkv.shape
        c = wide // 3
        qkv, stream = qkv.contiguous(), stream.contiguous()
        y = torch.empty_like(stream)
        packed = torch.cat([self._kernels.pack(matrix, bias) for matrix in mixing])
        self._kernels.call(
            *("linear", n, h * w, c, c, qkv[..., 2 * c :].data_ptr(), wide),
            *(packed.data_ptr(), stream.data_ptr(), y.data_ptr()),
        )
        return y

    def qkv_grad(self, grad: Tensor, qkv: Tensor, mixing: Tensor, d: PixelSums) -> Tensor:
        """Return the gradient with respect to qkv, given those of `mixed` and of the sums."""
        n, h, w, c = grad.shape
        qkv, grad = qkv.contiguous(), grad.contiguous()
        dqkv = torch.empty_like(qkv)
        packed = torch.cat([self._kernels.pack(matrix.t()) for matrix in mixing])
        # The kernel reads whole vectors, so up to 16 numbers beyond the end.
        room = grad.new_empty(2 * d.gram.numel() + 16)
        gram, turned = room[:-16].view(2, *d.gram.shape).unbind()
        gram.copy_(d.gram)
        turned.copy_(d.gram.transpose(-1, -2))
        scale = torch.cat([2 * d.q_square.flatten(1), 2 * d.k_square.flatten(1)], dim=1)
        self._kernels.call(
            *("attention_back", n, h * w, c, d.gram.shape[1], grad.data_ptr(), qkv.data_ptr()),
            *(packed.data_ptr(), gram.data_ptr(), turned.data_ptr(), scale.data_ptr()),
            dqkv.data_ptr(),
        )
        return dqkv


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
        grad = grad.contiguous()
        dx = _product(ctx.kernels, grad, weight.t(), None) if ctx.needs_input_grad[0] else None
        return dx, weight_grad(grad, x), bias_grad(grad, ctx.needs_input_grad[2]), None


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor,
        weight_in: Tensor,
        bias_in: Tensor | None,
        weight_out: Tensor,
        bias_out: Tensor | None,
        kernels: Kernels,
    ) -> Tensor:
        x, residual = x.contiguous(), residual.contiguous()
        c, width = x.shape[-1], len(weight_in)
        pixels = x.numel() // c
        widen, narrow = kernels.pack(weight_in, bias_in), kernels.pack(weight_out, bias_out)
        hidden, active = x.new_empty(2, *x.shape[:-1], width).unbind()
        y = torch.empty_like(x)
        kernels.call(
            *("feed_forward", pixels, c, width, x.data_ptr(), residual.data_ptr()),
            *(widen.data_ptr(), narrow.data_ptr()),
            *(hidden.data_ptr(), active.data_ptr(), y.data_ptr()),
        )
        # Keep both sides of GELU: its derivative needs its input, that of the second weight its
        # output.
        ctx.save_for_backward(x, hidden, active, weight_in, weight_out)
        ctx.kernels = kernels
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, active, weight_in, weight_out = ctx.saved_tensors
        kernels: Kernels = ctx.kernels
        grad = grad.contiguous()
        c, width = x.shape[-1], len(weight_in)
        narrow, widen = kernels.pack(weight_out.t()), kernels.pack(weight_in.t())
        dhidden, dx = torch.empty_like(hidden), torch.empty_like(x)
        kernels.call(
            *("feed_forward_back", x.numel() // c, c, width, grad.data_ptr(), hidden.data_ptr()),
            *(narrow.data_ptr(), widen.data_ptr(), dhidden.data_ptr(), dx.data_ptr()),
        )
        needs = ctx.needs_input_grad
        return (
            dx,
            grad,
            weight_grad(dhidden, x),
            bias_grad(dhidden, needs[3]),
            weight_grad(grad, active),
            bias_grad(grad, needs[5]),
            None,
        )


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, kernels: Kernels
    ) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, weight)
        ctx.kernels = kernels
        taps, y = _taps(weight.flatten(1), bias), torch.empty_like(x)
        kernels.call("depthwise", *x.shape, x.data_ptr(), taps.data_ptr(), y.data_ptr())
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        turned, dx = _taps(weight.flatten(1).flip(1), None), torch.empty_like(x)
        dtaps = x.new_empty(9, x.shape[-1])
        ctx.kernels.call(
            *("depthwise_back", *x.shape, x.data_ptr(), grad.data_ptr()),
            *(turned.data_ptr(), dx.data_ptr(), dtaps.data_ptr()),
        )
        return dx, dtaps.t().reshape(weight.shape), bias_grad(grad, ctx.needs_input_grad[2]), None


def _product(kernels: Kernels, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out, width = weight.shape
    packed, y = kernels.pack(weight, bias), x.new_empty(*x.shape[:-1], out)
    kernels.call(
        *("linear", 1, x.numel() // width, width, out, x.data_ptr(), width),
        *(packed.data_ptr(), None, y.data_ptr()),
    )
    return y


def _taps(weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the nine weights of each channel and its bias, `[10, c]`; weight: `[c, 9]`."""
    last = weight.new_zeros(len(weight)) if bias is None else bias
    return torch.cat([weight.t(), last[None]])
