"""Layers whose forward and backward passes are compiled kernels: training on a CPU in float32.

The formulas are those of `execution.block_gradients`, for the norm those of norm.h. The kernels
work on tiles of pixels, and apply the norm, GELU and their derivatives to a tile while it is in the
cache. Products that sum over the pixels, such as the gradients of weights, are torch's: its BLAS is
faster there. The backward pass takes a few images at a time, in the feed-forward network also a
part of one, so that what one kernel writes is still in the cache for the next. It computes norms
and GELU again, which is faster than to keep them.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from c2fdft_cli.core.attention import Attention
from c2fdft_cli.core.block import FeedForward
from c2fdft_cli.core.layers import NORM_EPS, PixelNorm
from c2fdft_cli.core.precision import full_precision
from c2fdft_cli.execution.kernels import bias_grad, weight_grad
from c2fdft_cli.execution.native.library import Kernels, kernels_for

_CACHED_VALUES = 4 << 20  # of each of two to four tensors: 16 MiB each
_ROOM = 16  # the most values of a vector


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


def attend(
    x: Tensor, time: Tensor, norm: PixelNorm, attention: Attention, kernels: Kernels
) -> Tensor:
    """Return `x + attention(norm(x, time))`; x: `[n, h, w, c]`, time: `[n or 1, c]`.

    Raises:
        ValueError: the widths of x and the weights differ, or are not a multiple of the heads.
    """
    qkv, taps, out = attention.qkv, attention.qkv_dwconv, attention.project_out
    _check_width(x, qkv.in_channels)
    if qkv.in_channels % attention.heads:
        raise ValueError(
            f"{qkv.in_channels} channels are not a multiple of {attention.heads} heads"
        )
    return _Attend.apply(  # type: ignore[no-any-return, no-untyped-call]
        *(x, time, norm.body.weight, norm.body.bias, qkv.weight.flatten(1), qkv.bias),
        *(taps.weight.flatten(1), taps.bias, attention.temperature),
        *(out.weight.flatten(1), out.bias, kernels),
    )


def feed_forward(
    x: Tensor, time: Tensor, norm: PixelNorm, ffn: FeedForward, kernels: Kernels
) -> Tensor:
    """Return `x + ffn(norm(x, time))`; x: `[n, h, w, c]`, time: `[n or 1, c]`.

    Raises:
        ValueError: the widths of x and the weights differ.
    """
    widen, narrow = ffn.project_in, ffn.project_out
    _check_width(x, widen.in_channels)
    return _FeedForward.apply(  # type: ignore[no-any-return, no-untyped-call]
        *(x, time, norm.body.weight, norm.body.bias, widen.weight.flatten(1), widen.bias),
        *(narrow.weight.flatten(1), narrow.bias, kernels),
    )


def _check_width(x: Tensor, width: int) -> None:
    if x.shape[-1] != width:
        raise ValueError(f"expected {width} channels, got {list(x.shape)}")


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


class _Norm(NamedTuple):
    """A layer norm plus time, as the kernels take it."""

    gain: Tensor
    shift: Tensor  # [n, c]: bias plus time
    centred: bool

    @classmethod
    def of(cls, n: int, time: Tensor, gain: Tensor, bias: Tensor | None) -> _Norm:
        shift = time if bias is None else time + bias
        shift = shift.expand(n, len(gain)).contiguous()
        return cls(gain.contiguous(), shift, bias is not None)

    def arguments(self, image: int = 0) -> tuple[int, int, float, bool]:
        """Return a kernel's arguments for the images from this one on."""
        return (self.gain.data_ptr(), _address(self.shift, image), NORM_EPS, self.centred)

    def gradients(self, sums: Tensor, times: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the gradients of time, gain and bias; sums: `[n, 2, c]`, as the kernels return."""
        shift, gain = sums.unbind(1)
        # Not views of one another: each may become the `grad` of a leaf, which others add to.
        time = shift.sum(0, keepdim=True) if times == 1 else shift.clone()
        return time, gain.sum(0), shift.sum(0) if self.centred else None


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        time: Tensor,
        gain: Tensor,
        norm_bias: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        taps: Tensor,
        taps_bias: Tensor | None,
        temperature: Tensor,
        project_out: Tensor,
        out_bias: Tensor | None,
        kernels: Kernels,
    ) -> Tensor:
        x = x.contiguous()
        n, h, w, c = x.shape
        heads, d = len(temperature), c // len(temperature)
        norm, y = _Norm.of(n, time, gain, norm_bias), torch.empty_like(x)
        # qkv before and after the depth-wise convolution
        before, qkv = _with_room(x, 2, n, h, w, 3 * c).unbind()
        sums = x.new_empty(n, c * d + 2 * c)
        packed, nine = kernels.pack(weight, bias), _taps(taps, taps_bias)
        for i, images in _groups(before):
            kernels.call(
                *("norm_linear", images, h * w, c, 3 * c, _address(x, i), *norm.arguments(i)),
                *(packed.data_ptr(), _address(before, i)),
            )
            kernels.call(
                *("depthwise", images, h, w, 3 * c, d, _address(before, i), nine.data_ptr()),
                *(_address(qkv, i), _address(sums, i)),
            )
        # The attention and what else the backward pass needs of it (`Channels` in mixing.h).
        channels, mixing = _with_room(x, n, 2 * c * d + 2 * c), x.new_empty(n, c, c)
        temperature, project_out = temperature.contiguous(), project_out.contiguous()
        kernels.call(
            *("mix", n, c, heads, sums.data_ptr(), temperature.data_ptr(), project_out.data_ptr()),
            *(channels.data_ptr(), mixing.data_ptr()),
        )
        packed = kernels.pack(mixing, out_bias)
        kernels.call(
            *("linear", n, h * w, c, c, qkv[..., 2 * c :].data_ptr(), 3 * c),
            *(packed.data_ptr(), x.data_ptr(), y.data_ptr()),
        )
        ctx.save_for_backward(
            *(x, norm.gain, norm.shift, before, qkv, mixing),
            *(weight, taps, temperature, project_out, channels),
        )
        ctx.centred, ctx.times, ctx.kernels = norm.centred, len(time), kernels
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # Read only once, because a recomputed level provides the saved tensors only once.
        x, gain, shift, before, qkv, mixing, *saved = ctx.saved_tensors
        weight, taps, temperature, project_out, channels = saved
        norm, kernels, needs = _Norm(gain, shift, ctx.centred), ctx.kernels, ctx.needs_input_grad
        n, h, w, c = x.shape
        heads = len(temperature)
        with full_precision(x):  # the caller may run the backward pass under its autocast
            grad = grad.contiguous()
            dmixing = _with_room(x, n, c, c)
            torch.bmm(grad.flatten(1, 2).mT, qkv[..., 2 * c :].flatten(1, 2), out=dmixing)
            d = _through_mixing(kernels, dmixing, channels, temperature, project_out)
            nine, mixed = _taps(taps.flip(1), None), kernels.pack(mixing.transpose(1, 2))
            back, dx = kernels.pack(weight.t()), torch.empty_like(x)
            dweight: Tensor | None = None
            dbias, dtaps_bias = (x.new_zeros(3 * c) if needs[i] else None for i in (5, 7))
            dtaps, dtaps_part = x.new_zeros(2, 9, 3 * c).unbind()
            sums = x.new_empty(n, 2, c)
            groups = _groups(before)
            dqkv, dbefore = x.new_empty(2, groups[0][1] * h * w, 3 * c).unbind()
            normed = x.new_empty(len(dqkv), c)
            for i, images in groups:
                dy = _address(grad, i)
                kernels.call(
                    *("attention_back", images, h * w, c, heads, dy, _address(qkv, i)),
                    *(_address(mixed, i), _address(d.gram, i), _address(d.turned, i)),
                    *(_address(d.scale, i), dqkv.data_ptr()),
                )
                kernels.call(
                    *("depthwise_back", images, h, w, 3 * c, _address(before, i), dqkv.data_ptr()),
                    *(nine.data_ptr(), dbefore.data_ptr(), dtaps_part.data_ptr()),
                )
                kernels.call(
                    *("norm_linear_back", images, h * w, c, 3 * c, _address(x, i)),
                    *(*norm.arguments(i), back.data_ptr(), dbefore.data_ptr(), dy),
                    *(normed.data_ptr(), _address(dx, i), _address(sums, i)),
                )
                pixels = images * h * w
                dweight = _add_product(dweight, dbefore[:pixels], normed[:pixels])
                dtaps += dtaps_part
                if dbias is not None:
                    dbias += dbefore[:pixels].sum(0)
                if dtaps_bias is not None:
                    dtaps_bias += dqkv[:pixels].sum(0)
            dnorm = norm.gradients(sums, ctx.times)
            dout_bias = bias_grad(grad, needs[10])
        of_weights = dweight, dbias, dtaps.t(), dtaps_bias, d.temperature, d.project, dout_bias
        return dx, *dnorm, *of_weights, None


class _MixingGrads(NamedTuple):
    """Gradients that follow from those of the mixing matrices."""

    gram: Tensor  # [n, c, d], the heads' matrices one below the other
    turned: Tensor  # the same with each matrix transposed
    scale: Tensor  # [n, 2c]: twice the gradients of the squares of q and k
    temperature: Tensor
    project: Tensor


def _through_mixing(
    kernels: Kernels, dmixing: Tensor, channels: Tensor, temperature: Tensor, project: Tensor
) -> _MixingGrads:
    n, c = dmixing.shape[:2]
    heads = len(temperature)
    gram, turned = _with_room(dmixing, 2, n, c, c // heads).unbind()
    scale, of_images = dmixing.new_empty(n, 2 * c), dmixing.new_empty(n, *temperature.shape)
    dproject = torch.empty_like(project)
    kernels.call(
        *("mix_back", n, c, heads, dmixing.data_ptr(), channels.data_ptr()),
        *(temperature.data_ptr(), project.data_ptr(), gram.data_ptr(), turned.data_ptr()),
        *(scale.data_ptr(), of_images.data_ptr(), dproject.data_ptr()),
    )
    return _MixingGrads(gram, turned, scale, of_images.sum(0), dproject)


def _with_room(like: Tensor, *shape: int) -> Tensor:
    """Return an empty tensor beyond whose end kernels may read: they read whole vectors."""
    return like.new_empty(math.prod(shape) + _ROOM)[:-_ROOM].view(shape)


def _taps(weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the nine weights of each channel and its bias, `[10, c]`; weight: `[c, 9]`."""
    last = weight.new_zeros(len(weight)) if bias is None else bias
    return torch.cat([weight.t(), last[None]])


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        time: Tensor,
        gain: Tensor,
        norm_bias: Tensor | None,
        weight_in: Tensor,
        bias_in: Tensor | None,
        weight_out: Tensor,
        bias_out: Tensor | None,
        kernels: Kernels,
    ) -> Tensor:
        x = x.contiguous()
        n, h, w, c = x.shape
        norm, width = _Norm.of(n, time, gain, norm_bias), len(weight_in)
        widen, narrow = kernels.pack(weight_in, bias_in), kernels.pack(weight_out, bias_out)
        hidden, y = x.new_empty(n * h * w, width), torch.empty_like(x)
        kernels.call(
            *("feed_forward", n, h * w, c, width, x.data_ptr(), *norm.arguments()),
            *(widen.data_ptr(), narrow.data_ptr(), hidden.data_ptr(), y.data_ptr()),
        )
        ctx.save_for_backward(x, norm.gain, norm.shift, hidden, weight_in, weight_out)
        ctx.centred, ctx.times, ctx.kernels = norm.centred, len(time), kernels
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, shift, hidden, weight_in, weight_out = ctx.saved_tensors
        norm, kernels, needs = _Norm(gain, shift, ctx.centred), ctx.kernels, ctx.needs_input_grad
        n, h, w, c = x.shape
        width = len(weight_in)
        with full_precision(x):  # the caller may run the backward pass under its autocast
            grad, dx = grad.contiguous(), torch.empty_like(x)
            narrow, widen = kernels.pack(weight_out.t()), kernels.pack(weight_in.t())
            dwiden: Tensor | None = None
            dnarrow: Tensor | None = None
            dbias = x.new_zeros(width) if needs[5] else None
            sums = x.new_zeros(n, 2, c)
            pieces = _pieces(n, h * w, width)
            most = pieces[0].images * pieces[0].pixels
            active, dhidden = x.new_empty(2, most, width).unbind()
            normed, part = x.new_empty(most, c), torch.empty_like(sums)
            flat, dflat, dx_flat = (one.view(-1, c) for one in (x, grad, dx))
            for image, images, first, pixels in pieces:
                kernels.call(
                    *("feed_forward_back", images, pixels, c, width, _address(flat, first)),
                    *(*norm.arguments(image), narrow.data_ptr(), widen.data_ptr()),
                    *(_address(dflat, first), _address(hidden, first)),
                    *(active.data_ptr(), dhidden.data_ptr(), normed.data_ptr()),
                    *(_address(dx_flat, first), part.data_ptr()),
                )
                count = images * pixels
                dwiden = _add_product(dwiden, dhidden[:count], normed[:count])
                dnarrow = _add_product(dnarrow, dflat[first : first + count], active[:count])
                sums[image : image + images] += part[:images]
                if dbias is not None:
                    dbias += dhidden[:count].sum(0)
            dnorm = norm.gradients(sums, ctx.times)
            return dx, *dnorm, dwiden, dbias, dnarrow, bias_grad(grad, needs[7]), None


def _add_product(sums: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """Add the sum over the pixels of a times b, `[pixels, ..]`, to earlier ones, in place."""
    return a.t() @ b if sums is None else sums.addmm_(a.t(), b)


def _address(x: Tensor, row: int) -> int:
    return x.data_ptr() + row * x.stride(0) * x.element_size()


def _groups(x: Tensor) -> list[tuple[int, int]]:
    """Divide images into groups that stay in the cache from one kernel to the next; x: `[n, ..]`.

    Returns the first image and the number of images of each group.
    """
    return _equal_parts(len(x), max(_CACHED_VALUES // x[0].numel(), 1))


class _Piece(NamedTuple):
    """Several whole images, or a part of one."""

    image: int
    images: int
    first: int
    """The first pixel, counted over all images."""
    pixels: int
    """The number of pixels of each image."""


def _pieces(n: int, pixels: int, width: int) -> list[_Piece]:
    """Divide n images into pieces that stay in the cache; a pixel has `width` values."""
    most, whole = _CACHED_VALUES // width, _CACHED_VALUES // (width * pixels)
    return [
        _Piece(image, images, image * pixels + first, size)
        for image, images in _equal_parts(n, max(whole, 1))
        for first, size in _equal_parts(pixels, pixels if whole else max(most, 1))
    ]


def _equal_parts(size: int, most: int) -> list[tuple[int, int]]:
    """Divide range(size) into as few parts of at most `most` as possible, the first the largest.

    Returns start and length of each part.
    """
    step = -(-size // -(-size // most))
    return [(start, min(step, size - start)) for start in range(0, size, step)]
