"""Hand-written derivatives of the Transformer block, for training on a CPU or on CUDA.

Autograd's derivatives of the same formulas pass through memory once for each small step, and keep
q and k in float32 in addition to their half-precision values. Here everything that belongs to one
tensor is written into it at once. The numbers agree with those of `core.block` to rounding.

On a CPU the layers in float32 are compiled kernels (`native.training`). Where there are none, and
in bfloat16, each product runs in the library that is fastest for its shape: autograd uses torch's
BLAS for all of them, which is slow on the narrow matrices of the levels with the most pixels. On
CUDA the products are autograd's, and only attention is hand-written.

Under autocast the products run in its dtype, the pixel sums and the attention matrix in float32.

The norm without bias does not subtract the mean, y = x r w + t with r = 1 / sqrt(var + eps), and
torch has no kernel for it: computing its variance by separate operations alone took an eighth of a
step. Over the c channels of a pixel with mean m, y = LN(x) + m r w, and with g = sum_j dy_j w_j

    dx = dx of LN + r g / c - m r^3 (x - m) g / c          dw = dw of LN + sum_p m r dy

Written as matrices over the pixels p of one image (rows) and the channels (columns), with dy the
gradient of a result y:

    y = x W^T + b          dx = dy W,  dW = dy^T x,  db = sum_p dy
    y = W_out gelu(W_in x) dh = (dy W_out) * gelu'(h),  h = W_in x kept from the forward pass
    y = v M^T              dv = dy M,  dM = sum_p dy^T v   (M: the c x c mixing matrix)

M depends on q and k only through three sums, G_ij = sum_p q_i k_j, Q_i = sum_p q_i^2 and
K_j = sum_p k_j^2. For each head, with its columns P of the projection, its temperature tau, the
cosines C_ij = G_ij / sqrt(Q_i K_j) and the attention A = softmax over j of tau C, M = P A, so

    dP = dM A^T      dA = P^T dM      dS_ij = A_ij (dA_ij - sum_j dA_ij A_ij),  S = tau C
    dtau = sum_ij dS_ij C_ij          dG_ij = tau dS_ij / sqrt(Q_i K_j)
    dQ_i = -tau sum_j dS_ij C_ij / 2 Q_i           dK_j = -tau sum_i dS_ij C_ij / 2 K_j

(small matrices, no pixels; a Q or K below the smallest norm counts as a constant), and from these

    dq_i = sum_j dG_ij k_j + 2 dQ_i q_i        dk_j = sum_i dG_ij q_i + 2 dK_j k_j

because dG_ij/dq_i = k_j at each pixel, and dQ_i/dq_i = 2 q_i. So q, k and v are read once more, and
nothing else of the size of the image is kept for attention.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from c2fdft_cli.core.attention import (
    Attention,
    Similarity,
    projected,
    similarity,
)
from c2fdft_cli.core.block import Block
from c2fdft_cli.core.layers import Conv1x1, PixelNorm
from c2fdft_cli.core.precision import full_precision
from c2fdft_cli.execution.attention_passes import (
    PassesInTorch,
    PassesOnCuda,
    back_through_mixing,
)
from c2fdft_cli.execution.fused.training import feed_forward_for, norm_for
from c2fdft_cli.execution.kernels import (
    bias_grad,
    has_onednn_linear,
    onednn_linear,
    pixel_norm,
    weight_grad,
)
from c2fdft_cli.execution.native import training as native
from c2fdft_cli.execution.native.training import training_kernels

# oneDNN's kernel expects weights as [out, in], so a product with the weight itself, not its
# transpose, needs a transposed copy. From this many rows on, that pays off for float32.
_MANY_ROWS = 2048


def install(net: nn.Module, device: torch.device) -> None:
    """Let the blocks of a network train on a device with the derivatives of this module.

    If they do not apply (in inference, in another dtype, under a compiler that traces), each module
    computes as in the core.

    Args:
        net: the network, changed in place.
        device: a CPU or CUDA; on other devices nothing changes.
    """
    # Bound methods are set on the instances: the modules keep their names and classes, the core's
    # forward remains as the fallback, and a deep copy of the network (the moving average) binds
    # its own methods.
    for module in net.modules():
        if isinstance(module, Block) and device.type == "cuda":
            module.forward = MethodType(_block_on_cuda, module)  # type: ignore[method-assign]
        elif isinstance(module, Block) and device.type == "cpu":
            module.forward = MethodType(_block_on_cpu, module)  # type: ignore[method-assign]
        elif isinstance(module, Conv1x1) and device.type == "cpu":
            module.forward = MethodType(_conv1x1, module)  # type: ignore[method-assign]


def use_cpu_kernels(x: Tensor) -> bool:
    """Whether the CPU derivatives apply to x: in training, if the CPU has the kernels."""
    return torch.is_grad_enabled() and has_onednn_linear(x.device, _compute_dtype(x))


def use_one_product(x: Tensor) -> bool:
    """Whether the CUDA derivatives apply to x: in training, outside of a compiler.

    Not in float16: derivatives with respect to a sum over all pixels are too small for it.
    """
    plain = torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return plain and _compute_dtype(x) in (torch.float32, torch.bfloat16)


def _conv1x1(conv: Conv1x1, x: Tensor) -> Tensor:
    if not use_cpu_kernels(x):
        return Conv1x1.forward(conv, x)
    if kernels := training_kernels(x, conv.weight, conv.bias):
        return native.linear(x, conv.weight.flatten(1), conv.bias, kernels)
    return _Project.apply(x, conv.weight.flatten(1), conv.bias)  # type: ignore[no-any-return, no-untyped-call]


def _block_on_cpu(block: Block, x: Tensor, time: Tensor) -> Tensor:
    """`Block.forward` with the additions to the residual stream inside the autograd functions."""
    if not use_cpu_kernels(x):
        return Block.forward(block, x, time)
    if kernels := training_kernels(x, time, *native.weights_of(block)):
        x = native.attend(x, time, block.norm1, block.attn, kernels)
        return native.feed_forward(x, time, block.norm2, block.ffn, kernels)
    ffn = block.ffn
    x = _attend(block.attn, _normed(block.norm1, x, time), x, PassesInTorch())
    widen, narrow = (
        (conv.weight.flatten(1), conv.bias) for conv in (ffn.project_in, ffn.project_out)
    )
    return _FeedForward.apply(_normed(block.norm2, x, time), x, *widen, *narrow)  # type: ignore[no-any-return, no-untyped-call]


def _normed(norm: PixelNorm, x: Tensor, time: Tensor) -> Tensor:
    """`PixelNorm.forward`; torch has one kernel for the derivative of the norm with a bias."""
    if norm.body.bias is not None or x.dtype != torch.float32:
        return norm(x, time)  # type: ignore[no-any-return]
    return _BiasFreeNorm.apply(x, norm.body.weight, time)  # type: ignore[no-any-return, no-untyped-call]


def _block_on_cuda(block: Block, x: Tensor, time: Tensor) -> Tensor:
    """`Block.forward` with attention's addition to the residual stream inside its function."""
    if not use_one_product(x):
        return Block.forward(block, x, time)
    dtype = _compute_dtype(x)
    # The norm's function also returns the stream, so that the stream's two gradients are added in
    # the derivative of the norm and not by a separate kernel.
    y, x = norm_for(block.norm1, x, dtype)(block.norm1, x, time, dtype)
    x = _attend(block.attn, y, x, PassesOnCuda())
    return feed_forward_for(block, x, dtype)(block, x, time, dtype)


def _attend(attn: Attention, y: Tensor, x: Tensor, passes: PassesInTorch) -> Tensor:
    """Add the attention over y, the norm of the residual stream x, to x."""
    qkv, out = attn.qkv_dwconv(attn.qkv(y)), attn.project_out
    return _Attend.apply(  # type: ignore[no-any-return, no-untyped-call]
        qkv, x, attn.temperature, out.weight.flatten(1), out.bias, passes
    )


def _compute_dtype(x: Tensor) -> torch.dtype:
    if torch.is_autocast_enabled(x.device.type) and x.dtype == torch.float32:
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def _cast(bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if bias is None else bias.to(dtype)


def _back(grad: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of `linear` with respect to its input."""
    # In bfloat16 torch's own product is already oneDNN's.
    if grad.dtype == torch.float32 and grad.numel() >= _MANY_ROWS * grad.shape[-1]:
        return onednn_linear(grad, weight.t().contiguous(), None)
    return grad @ weight


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
        return dx, weight_grad(grad, x), bias_grad(grad, ctx.needs_input_grad[2])


class _BiasFreeNorm(torch.autograd.Function):
    """`x r w + t`; x: `[n, h, w, c]`, weight: `[c]`, time: `[n or 1, c]`, all float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, time: Tensor) -> Tensor:
        y, mean, rate = pixel_norm(x, weight, None, time)
        ctx.save_for_backward(x, weight, mean, rate)
        ctx.one_time = len(time) == 1
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, weight, mean, rate = ctx.saved_tensors
        with full_precision(x):  # the caller may run the backward pass under its autocast
            dx, dweight, _ = torch.ops.aten.native_layer_norm_backward(
                grad, x, weight.shape, mean, rate, weight, None, (True, True, False)
            )
            left = (grad @ weight)[..., None] * rate / len(weight)
            dx.addcmul_(x - mean, left * mean * rate.square(), value=-1).add_(left)
            dweight += (mean * rate).flatten() @ grad.flatten(0, -2)
        dtime = grad.sum((1, 2))
        return dx, dweight, dtime.sum(0, keepdim=True) if ctx.one_time else dtime


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
        # Keep both sides of GELU: its derivative needs its input, that of the second weight its
        # output.
        ctx.save_for_backward(x, hidden, active, weight_in, weight_out)
        return residual + onednn_linear(active, weight_out, _cast(bias_out, dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, active, weight_in, weight_out = ctx.saved_tensors
        inner = grad.to(x.dtype)
        dhidden = _back(inner, weight_out)
        # In place, because each value depends only on the one that it replaces.
        torch.ops.aten.gelu_backward.grad_input(dhidden, hidden, grad_input=dhidden)
        needs = ctx.needs_input_grad
        return (
            _back(dhidden, weight_in),
            grad,
            weight_grad(dhidden, x),
            bias_grad(dhidden, needs[3]),
            weight_grad(inner, active),
            bias_grad(grad, needs[5]),
        )


class _Attend(torch.autograd.Function):
    """Attention over `qkv: [n, h, w, 3c]` and its output projection, added to the residual stream.

    residual: `[n, h, w, c]`; temperature: `[heads, 1, 1]`; project_out: `[c, c]`. The result has
    the wider dtype of qkv and residual.
    """

    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        residual: Tensor,
        temperature: Tensor,
        project_out: Tensor,
        bias: Tensor | None,
        passes: PassesInTorch,
    ) -> Tensor:
        ctx.passes = passes
        # The caller's autocast also applies inside custom functions, and would cast the operands of
        # products whose result must be float32.
        with full_precision(qkv):
            alike = similarity(passes.sums(qkv, len(temperature)), temperature)
            mixing = projected(alike.attention, project_out).to(qkv.dtype)
            y = passes.mixed(qkv, mixing, bias, residual)
        ctx.save_for_backward(qkv, mixing, temperature, project_out, *alike)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # Read only once, because a recomputed level provides the saved tensors only once.
        qkv, mixing, temperature, project_out, *alike = ctx.saved_tensors
        passes: PassesInTorch = ctx.passes
        inner = grad.to(qkv.dtype)
        with full_precision(qkv):  # the caller may run the backward pass under its autocast, too
            d, dtemperature, dproject = back_through_mixing(
                passes.mixing_grad(inner, qkv), Similarity(*alike), temperature, project_out
            )
        dqkv = passes.qkv_grad(inner, qkv, mixing, d)
        dbias = bias_grad(grad, ctx.needs_input_grad[4])
        return dqkv, grad, dtemperature, dproject, dbias, None
