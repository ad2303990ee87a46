"""Derivatives of the Transformer block written out, for training on a CPU.

Autograd's own derivatives of the same formulas hand every product to the BLAS behind torch, which
is slow on the narrow matrices of the wide levels, and walk through memory once for each of their
small steps. Here each product goes to the library that is fastest at its shape, and what belongs
to one tensor is written into it at once. The numbers are those of `core.block`, to rounding.

Under autocast the products run in its dtype, the pixel sums and the attention matrix in float32.

Written as matrices over the pixels p of one image (rows) and the channels (columns), with dy the
gradient of a result y:

    y = x W^T + b          dx = dy W,  dW = dy^T x,  db = sum_p dy
    y = W_out gelu(W_in x) dh = (dy W_out) * gelu'(h),  h = W_in x kept from the forward pass
    y = v M^T              dv = dy M,  dM = sum_p dy^T v   (M: the c x c mixing matrix)

M depends on q and k by three sums alone, G_ij = sum_p q_i k_j, Q_i = sum_p q_i^2 and
K_j = sum_p k_j^2. Autograd takes dM back to dG, dQ, dK (small matrices, no pixels); from there

    dq_i = sum_j dG_ij k_j + 2 dQ_i q_i        dk_j = sum_i dG_ij q_i + 2 dK_j k_j

because dG_ij/dq_i = k_j at each pixel, and dQ_i/dq_i = 2 q_i. So q, k and v are read once more and
nothing of the size of the image is kept but them.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from c2fdft_cli.core.attention import PixelSums, mixing_matrix
from c2fdft_cli.core.block import Block
from c2fdft_cli.core.layers import Conv1x1
from c2fdft_cli.execution.kernels import has_onednn_linear, onednn_linear, sums_of_pixels

_MANY_ROWS = 2048  # from here on a float32 product repays the transposed copy of its weight


def install(net: nn.Module) -> None:
    """Let the blocks and 1x1 convolutions of a network train by the derivatives written here.

    Where they do not apply (inference, another device or dtype, a compiler that looks on) each
    module computes as the core has it. The network is changed in place.
    """
    for module in net.modules():
        if isinstance(module, Block):
            module.forward = MethodType(_block, module)  # type: ignore[method-assign]
        elif isinstance(module, Conv1x1):
            module.forward = MethodType(_conv1x1, module)  # type: ignore[method-assign]


def use_custom_backward(x: Tensor) -> bool:
    """Whether the derivatives written here are for x: training on a CPU that has the kernels."""
    return torch.is_grad_enabled() and has_onednn_linear(x.device, _compute_dtype(x))


def _conv1x1(conv: Conv1x1, x: Tensor) -> Tensor:
    if not use_custom_backward(x):
        return Conv1x1.forward(conv, x)
    return _Project.apply(x, conv.weight.flatten(1), conv.bias)  # type: ignore[no-any-return, no-untyped-call]


def _block(block: Block, x: Tensor, time: Tensor) -> Tensor:
    """`Block.forward`, its sums with the residual stream within the functions."""
    if not use_custom_backward(x):
        return Block.forward(block, x, time)
    attn, ffn = block.attn, block.ffn
    qkv = attn.qkv_dwconv(attn.qkv(block.norm1(x, time)))
    out = attn.project_out
    x = _Attend.apply(qkv, x, attn.temperature, out.weight.flatten(1), out.bias)  # type: ignore[no-untyped-call]
    widen, narrow = ffn.project_in, ffn.project_out
    return _FeedForward.apply(  # type: ignore[no-any-return, no-untyped-call]
        block.norm2(x, time),
        x,
        widen.weight.flatten(1),
        widen.bias,
        narrow.weight.flatten(1),
        narrow.bias,
    )


def _compute_dtype(x: Tensor) -> torch.dtype:
    if torch.is_autocast_enabled("cpu") and x.dtype == torch.float32:
        return torch.get_autocast_dtype("cpu")
    return x.dtype


def _cast(bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if bias is None else bias.to(dtype)


def _back(grad: Tensor, weight: Tensor) -> Tensor:
    """Gradient of `linear` by its input."""
    if grad.dtype == torch.float32 and grad.numel() >= _MANY_ROWS * grad.shape[-1]:
        return onednn_linear(grad, weight.t().contiguous(), None)
    return grad @ weight


def _outer(grad: Tensor, x: Tensor) -> Tensor:
    """Gradient of `linear` by its weight."""
    return grad.flatten(0, -2).t() @ x.flatten(0, -2)


def _total(grad: Tensor, needed: bool) -> Tensor | None:
    """Gradient by a bias."""
    return grad.flatten(0, -2).sum(0) if needed else None


class _Project(torch.autograd.Function):
    """`x weight^T + bias`; x: `[n, h, w, in]`, weight: `[out, in]`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        dtype = _compute_dtype(x)
        x, weight = x.to(dtype), weight.to(dtype)
        ctx.save_for_backward(x, weight)
        return onednn_linear(x, weight, _cast(bias, dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grad.to(x.dtype)
        dx = _back(grad, weight) if ctx.needs_input_grad[0] else None
        return dx, _outer(grad, x), _total(grad, ctx.needs_input_grad[2])


class _FeedForward(torch.autograd.Function):
    """`residual + W_out gelu(W_in x)`: x `[n, h, w, c]`, weights `[hidden, c]`, `[c, hidden]`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor,
        weight_in: Tensor,
        bias_in: Tensor | None,
        weight_out: Tensor,
        bias_out: Tensor | None,
    ) -> Tensor:
        dtype = _compute_dtype(x)
        x, weight_in, weight_out = x.to(dtype), weight_in.to(dtype), weight_out.to(dtype)
        hidden = onednn_linear(x, weight_in, _cast(bias_in, dtype))
        active = F.gelu(hidden)
        ctx.save_for_backward(x, hidden, active, weight_in, weight_out)
        return residual + onednn_linear(active, weight_out, _cast(bias_out, dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, active, weight_in, weight_out = ctx.saved_tensors
        inner = grad.to(x.dtype)
        dhidden = _back(inner, weight_out)
        torch.ops.aten.gelu_backward.grad_input(dhidden, hidden, grad_input=dhidden)
        needs = ctx.needs_input_grad
        return (
            _back(dhidden, weight_in),
            grad,
            _outer(dhidden, x),
            _total(dhidden, needs[3]),
            _outer(inner, active),
            _total(grad, needs[5]),
        )


class _Attend(torch.autograd.Function):
    """Attention over `qkv: [n, h, w, 3c]` and its output projection, added to the residual stream.

    residual: `[n, h, w, c]`; temperature: `[heads, 1, 1]`; project_out: `[c, c]`. The result is
    in the wider dtype of the first two.
    """

    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        residual: Tensor,
        temperature: Tensor,
        project_out: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        q, k, v = qkv.chunk(3, dim=-1)
        sums = sums_of_pixels(q, k, len(temperature))
        mixing = mixing_matrix(sums, temperature, project_out).to(qkv.dtype)
        ctx.save_for_backward(qkv, mixing, temperature, project_out, *sums)
        out = torch.bmm(v.flatten(1, 2), mixing.transpose(1, 2)).view_as(v)
        return residual + (out if bias is None else out + bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        qkv, mixing, temperature, project_out, *sums = ctx.saved_tensors
        inner = grad.to(qkv.dtype).flatten(1, 2)
        flat = qkv.flatten(1, 2)
        v = flat.chunk(3, dim=-1)[2]
        dmixing = torch.bmm(inner.transpose(1, 2), v).float()
        with torch.enable_grad():  # the matrices are small: autograd may do this part
            leaves = [z.detach().requires_grad_() for z in (*sums, temperature, project_out)]
            matrix = mixing_matrix(PixelSums(*leaves[:3]), *leaves[3:])
        dgram, dq_square, dk_square, dtemperature, dproject = torch.autograd.grad(
            matrix, leaves, dmixing
        )
        dqkv = torch.empty_like(flat)
        torch.bmm(inner, mixing, out=dqkv.chunk(3, dim=-1)[2])
        _write_sums_grad(flat, PixelSums(dgram, dq_square, dk_square), dqkv)
        dbias = _total(grad, ctx.needs_input_grad[4])
        return dqkv.view_as(qkv), grad, dtemperature, dproject, dbias


def _write_sums_grad(qkv: Tensor, d: PixelSums, dqkv: Tensor) -> None:
    """Write the derivatives of the sums by q and k into `dqkv: [n, p, 3c]`, given theirs, d."""
    heads, dtype = d.gram.shape[1], qkv.dtype
    (q, k, _), (dq, dk, _) = qkv.chunk(3, dim=-1), dqkv.chunk(3, dim=-1)
    torch.mul(q, 2 * d.q_square.flatten(1)[:, None].to(dtype), out=dq)
    torch.mul(k, 2 * d.k_square.flatten(1)[:, None].to(dtype), out=dk)
    gram = d.gram.to(dtype)
    pieces = (z.chunk(heads, dim=-1) for z in (q, k, dq, dk))
    for h, (qh, kh, dqh, dkh) in enumerate(zip(*pieces, strict=True)):
        dqh.baddbmm_(kh, gram[:, h].transpose(1, 2))
        dkh.baddbmm_(qh, gram[:, h])
