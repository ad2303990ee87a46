"""The Triton kernels of the backward pass: norm with time embedding, feed-forward network.

The hidden layer is computed again from the residual stream, tile by tile, so that no tensor of its
size is kept or written. With y = norm(z) + time, h = widen y, a = GELU(h), out = z + narrow a, and
d the gradient of out (pixels as rows, channels as columns):

    da = d narrow          dh = da * GELU'(h)          GELU'(h) = cdf(h) + h pdf(h)
    dy = dh widen          dwiden = dh^T y             dnarrow = d^T a
    dz = d + (dy through the norm)

The gradients of the weights are sums over all pixels, that of the stream is a sum over all hidden
units. One program cannot accumulate both, so there are two kernels, each of which recomputes h.
Each program writes its own sums over pixels, and these are added in a fixed order: atomic
additions would change the last bits from run to run.
"""

from __future__ import annotations

import triton
import triton.language as tl

from c2fdft_cli.execution.fused.kernels import floats, normal_cdf, normed, product


@triton.jit
def _through_norm(x, dy, gain, inside, C: tl.constexpr, EPS: tl.constexpr,
                  CENTRED: tl.constexpr):  # fmt: skip
    """Return the gradient of x and `dy h`, each pixel's share of the weight's gradient.

    dy is the gradient of `norm(x)`. With m the mean over a pixel's channels, r = 1 / sqrt(var +
    EPS), gain the norm's weight, g = dy * gain, and all means over channels:

        y = (x - m) r gain + ..  dx = r (g - mean(g) - h mean(g h)),  h = (x - m) r
        y = x r gain + ..        dx = r (g - (x - m) r mean(g h)),    h = x r

    x, dy: `[M, padded C]` float32, zero in the padding. CENTRED selects the first pair.
    """
    centred = tl.where(inside, x - (tl.sum(x, 1) / C)[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / C + EPS)
    centred *= rstd[:, None]
    h = centred if CENTRED else x * rstd[:, None]
    g = dy * gain[None, :]
    dx = g - centred * (tl.sum(g * h, 1) / C)[:, None]
    if CENTRED:
        dx -= (tl.sum(g, 1) / C)[:, None]
    return dx * rstd[:, None], dy * h


@triton.jit
def norm_backward_kernel(
    z, weight, dy, passed, dz, sums, pixels, share,
    C: tl.constexpr, PADDED: tl.constexpr, M: tl.constexpr, EPS: tl.constexpr,
    CENTRED: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of z from dy, that of `norm(z) + time`, and from the residual's.

    Each program computes `share` pixels of an image.

    z, dz: `[n, pixels, C]`; dz is written.
    passed: the gradient of the residual connection around the norm, which is added to dz;
        `[n, pixels, C]` in the precision of z and dz.
    dy: `[n, pixels, C]`.
    sums: `[n, programs, 2, C]` float32, written: the gradient of the weight, and that of bias and
        time.
    """
    piece, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    first_value = image * pixels * C
    columns = tl.arange(0, PADDED)
    in_c = columns < C
    pixel = tl.arange(0, M)
    place = pixel[:, None] * C + columns[None, :]
    gain = floats(weight + columns, in_c)
    dweight = tl.zeros([PADDED], tl.float32)
    total = tl.zeros([PADDED], tl.float32)
    last = tl.minimum((piece + 1) * share, pixels)
    for first in range(piece * share, last, M):
        begin = first_value + first * C
        inside = (pixel < last - first)[:, None] & in_c[None, :]
        x, d = floats(z + begin + place, inside), floats(dy + begin + place, inside)
        dx, of_weight = _through_norm(x, d, gain, inside, C, EPS, CENTRED)
        dweight += tl.sum(of_weight, 0)
        total += tl.sum(d, 0)
        dx += floats(passed + begin + place, inside)
        tl.store(dz + begin + place, dx.to(dz.dtype.element_ty), mask=inside)
    out = sums + (image * tl.num_programs(0) + piece) * (2 * C)
    tl.store(out + columns, dweight, mask=in_c)
    tl.store(out + C + columns, total, mask=in_c)


@triton.jit
def feed_forward_backward_kernel(
    z, weight, bias, time, widen, widen_bias, narrow, d, dz, sums, pixels, share, time_stride,
    C: tl.constexpr, HIDDEN: tl.constexpr, PADDED: tl.constexpr,
    M: tl.constexpr, H: tl.constexpr, EPS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of z from d, that of `z + narrow(GELU(widen(norm(z) + time)))`.

    Each program computes `share` pixels of an image.

    z, d, dz: `[n, pixels, C]` in one precision; dz is written.
    widen: `[HIDDEN, C]` and narrow: `[C, HIDDEN]`, in half precision.
    sums: `[n, programs, 3, C]` float32, written: the gradients of the norm's weight, of its bias
        and time, and of narrow's bias.
    """
    piece, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    first_value = image * pixels * C
    half = widen.dtype.element_ty
    columns = tl.arange(0, PADDED)
    in_c = columns < C
    pixel = tl.arange(0, M)
    place = pixel[:, None] * C + columns[None, :]
    now = time + image * time_stride
    gain = floats(weight + columns, in_c)
    dweight = tl.zeros([PADDED], tl.float32)
    dbias = tl.zeros([PADDED], tl.float32)
    total = tl.zeros([PADDED], tl.float32)
    last = tl.minimum((piece + 1) * share, pixels)
    for first in range(piece * share, last, M):
        begin = first_value + first * C
        inside = (pixel < last - first)[:, None] & in_c[None, :]
        x, passed = floats(z + begin + place, inside), floats(d + begin + place, inside)
        total += tl.sum(passed, 0)
        y = normed(x, weight, bias, now, columns, C, EPS).to(half)
        d_half = passed.to(half)
        dy = tl.zeros([M, PADDED], tl.float32)
        for first_unit in range(0, HIDDEN, H):
            unit = first_unit + tl.arange(0, H)
            in_h = unit < HIDDEN
            hidden = product(y, None, widen, widen_bias, unit, columns, None, C, HIDDEN, PRECISION)
            dh = _gradient_of_hidden(hidden, d_half, narrow, unit, columns, C, HIDDEN, PRECISION)
            w_mask = in_h[:, None] & in_c[None, :]
            w = tl.load(widen + unit[:, None] * C + columns[None, :], mask=w_mask, other=0.0)
            dy = tl.dot(dh.to(half), w, dy, input_precision=PRECISION)
        dbias += tl.sum(dy, 0)
        dx, of_weight = _through_norm(x, dy, gain, inside, C, EPS, bias is not None)
        dweight += tl.sum(of_weight, 0)
        tl.store(dz + begin + place, (dx + passed).to(dz.dtype.element_ty), mask=inside)
    out = sums + (image * tl.num_programs(0) + piece) * (3 * C)
    tl.store(out + columns, dweight, mask=in_c)
    tl.store(out + C + columns, dbias, mask=in_c)
    tl.store(out + 2 * C + columns, total, mask=in_c)


@triton.jit
def _gradient_of_hidden(hidden, d_half, narrow, unit, columns, C: tl.constexpr,
                        HIDDEN: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Gradient of some hidden units before GELU, `[M, units]` float32.

    hidden: those units before GELU, `[M, units]`; d_half: the gradient of narrow's result.
    """
    u_mask = (columns < C)[:, None] & (unit < HIDDEN)[None, :]
    u = tl.load(narrow + columns[:, None] * HIDDEN + unit[None, :], mask=u_mask, other=0.0)
    da = tl.dot(d_half, u, input_precision=PRECISION)
    pdf = 0.3989422804014327 * tl.exp(-0.5 * hidden * hidden)
    return da * (normal_cdf(hidden) + hidden * pdf)


@triton.jit
def feed_forward_weights_kernel(
    z, weight, bias, time, widen, widen_bias, narrow, d, dwiden, dnarrow, dbias,
    pixels, tiles, share, time_stride,
    C: tl.constexpr, HIDDEN: tl.constexpr, PADDED: tl.constexpr,
    M: tl.constexpr, H: tl.constexpr, EPS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of widen and narrow in `feed_forward_backward_kernel`'s formula.

    Each program sums over `share` tiles of M pixels, of one or several images, for H hidden units.

    tiles: the number of tiles of all images.
    dwiden, dnarrow: `[programs, HIDDEN, C]` float32, written; dnarrow is transposed.
    dbias: the gradient of widen's bias, `[programs, HIDDEN]` float32, written.
    """
    piece = tl.program_id(1)
    half = widen.dtype.element_ty
    columns = tl.arange(0, PADDED)
    in_c = columns < C
    pixel = tl.arange(0, M)
    place = pixel[:, None] * C + columns[None, :]
    unit = tl.program_id(0) * H + tl.arange(0, H)
    in_h = unit < HIDDEN
    of_widen = tl.zeros([H, PADDED], tl.float32)
    of_narrow = tl.zeros([H, PADDED], tl.float32)
    of_bias = tl.zeros([H], tl.float32)
    of_image = tl.cdiv(pixels, M)
    for tile in range(piece * share, tl.minimum((piece + 1) * share, tiles)):
        image = (tile // of_image).to(tl.int64)
        first = (tile % of_image) * M
        begin = (image * pixels + first) * C
        inside = (pixel < pixels - first)[:, None] & in_c[None, :]
        now = time + image * time_stride
        x = floats(z + begin + place, inside)
        # Zero beyond the last pixel, so that such pixels add nothing to the sums below.
        d_half = floats(d + begin + place, inside).to(half)
        y = normed(x, weight, bias, now, columns, C, EPS).to(half)
        hidden = product(y, None, widen, widen_bias, unit, columns, None, C, HIDDEN, PRECISION)
        dh = _gradient_of_hidden(hidden, d_half, narrow, unit, columns, C, HIDDEN, PRECISION)
        of_bias += tl.sum(dh, 0)
        of_widen = tl.dot(tl.trans(dh.to(half)), y, of_widen, input_precision=PRECISION)
        active = (hidden * normal_cdf(hidden)).to(half)
        of_narrow = tl.dot(tl.trans(active), d_half, of_narrow, input_precision=PRECISION)
    out = (piece.to(tl.int64) * HIDDEN + unit)[:, None] * C + columns[None, :]
    mask = in_h[:, None] & in_c[None, :]
    tl.store(dwiden + out, of_widen, mask=mask)
    tl.store(dnarrow + out, of_narrow, mask=mask)
    tl.store(dbias + piece * HIDDEN + unit, of_bias, mask=in_h)
