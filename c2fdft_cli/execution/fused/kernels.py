"""The Triton kernels forward: what lies between them never leaves the chip.

Pixels are rows of `[pixels, channels]`. Widths that are no power of two are padded by masks; sums,
norms and GELU are float32, products take the precision of their factors and sum in float32.

A tensor may have more than 2^31 values: the first one of a program's share is found in 64 bits, and
those of the share by offsets from it in 32.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def floats(at, mask):
    """What lies at these places as float32, zero where the mask is not."""
    return tl.load(at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def normed(x, weight, bias, time, columns, C: tl.constexpr, EPS: tl.constexpr):
    """`PixelNorm` of x: `[M, padded C]` float32, zero in the padding; time: of these pixels."""
    inside = columns < C
    mean = tl.sum(x, 1) / C
    # The padding is zero in x, not in x - mean, and would count in the variance.
    centred = tl.where(inside[None, :], x - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / C + EPS)
    w = tl.load(weight + columns, mask=inside, other=0.0)
    if bias is None:  # leaves the mean in
        y = x * rstd[:, None] * w[None, :]
    else:
        b = tl.load(bias + columns, mask=inside, other=0.0)
        y = centred * rstd[:, None] * w[None, :] + b[None, :]
    return y + time


@triton.jit
def hidden_units(y, widen, widen_bias, unit, columns, C: tl.constexpr, HIDDEN: tl.constexpr,
                 PRECISION: tl.constexpr):  # fmt: skip
    """Some units of the hidden layer before GELU, `[M, units]` float32; y: `[M, padded C]`."""
    in_h = unit < HIDDEN
    w_mask = (columns < C)[:, None] & in_h[None, :]
    w = tl.load(widen + unit[None, :] * C + columns[:, None], mask=w_mask, other=0.0)
    hidden = tl.dot(y, w, input_precision=PRECISION)
    if widen_bias is not None:
        hidden += floats(widen_bias + unit, in_h)[None, :]
    return hidden


@triton.jit
def normal_cdf(x):
    """Of the standard normal distribution; GELU is x times it."""
    return 0.5 * (1.0 + tl.math.erf(x * 0.7071067811865476))


@triton.jit
def norm_kernel(
    z, weight, bias, time, y, pixels, time_stride,
    C: tl.constexpr, PADDED: tl.constexpr, M: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """`norm(z) + time` in the precision of y; a program has M pixels of an image.

    z, y: `[n, pixels, C]`; time: `[n or 1, C]` with the stride 0 for one.
    """
    first, image = tl.program_id(0) * M, tl.program_id(1).to(tl.int64)
    z += (image * pixels + first) * C
    y += (image * pixels + first) * C
    pixel = tl.arange(0, M)
    columns = tl.arange(0, PADDED)
    inside = (pixel < pixels - first)[:, None] & (columns < C)[None, :]
    place = pixel[:, None] * C + columns[None, :]
    x = floats(z + place, inside)
    now = tl.load(time + image * time_stride + columns, mask=columns < C, other=0.0)
    out = normed(x, weight, bias, now[None, :], columns, C, EPS)
    tl.store(y + place, out.to(y.dtype.element_ty), mask=inside)


@triton.jit
def depthwise_kernel(
    x, weight, bias, v, sums, height, width, skip, rows, share,
    C: tl.constexpr, D: tl.constexpr, PADDED: tl.constexpr,
    P: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Depth-wise 3x3 convolution to q, k, v; sums over the pixels of q and k, and v as it is.

    A program has `share` pixels, one head and one image.

    x: `[n, height, width, 3 C]`, of which rows `skip` to `skip + rows` are wanted; zeros around.
    weight: `[3 C, 9]`; bias: `[3 C]` or None.
    v: `[n, rows, width, C]`, written.
    sums: `[n, programs, heads, D + 2, D]` float32, written: the Gram matrix, squares of q, of k.
    """
    piece, head, image = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    begin = piece * share
    row, column = begin // width + skip, begin % width
    x += (image * height + row) * width * (3 * C)
    v += (image * rows * width + begin) * C
    columns = tl.arange(0, PADDED)
    inside = columns < D
    channel = head * D + columns
    gram = tl.zeros([PADDED, PADDED], tl.float32)
    q_square = tl.zeros([PADDED], tl.float32)
    k_square = tl.zeros([PADDED], tl.float32)
    count = tl.minimum(share, rows * width - begin)
    for first in range(0, count, P):
        pixel = first + tl.arange(0, P)
        wanted = pixel < count
        i, j = (column + pixel) // width, (column + pixel) % width  # of rows from `row` on
        q = tl.zeros([P, PADDED], tl.float32)
        k = tl.zeros([P, PADDED], tl.float32)
        w = tl.zeros([P, PADDED], tl.float32)
        for tap in range(9):  # unrolled, it would not fit the registers
            a, b = i + (tap // 3 - 1), j + (tap % 3 - 1)
            seen = wanted & (a >= -row) & (a < height - row) & (b >= 0) & (b < width)
            mask = seen[:, None] & inside[None, :]
            place = (a * width + b)[:, None] * (3 * C) + channel[None, :]
            at = weight + channel * 9 + tap
            q += floats(x + place, mask) * floats(at, inside)
            k += floats(x + place + C, mask) * floats(at + 9 * C, inside)
            w += floats(x + place + 2 * C, mask) * floats(at + 18 * C, inside)
        mask = wanted[:, None] & inside[None, :]
        if bias is not None:
            # A bias makes something of pixels and channels that are not there; sums must not see
            # it.
            q = tl.where(mask, q + floats(bias + channel, inside)[None, :], 0.0)
            k = tl.where(mask, k + floats(bias + C + channel, inside)[None, :], 0.0)
            w += floats(bias + 2 * C + channel, inside)[None, :]
        place = pixel[:, None] * C + channel[None, :]
        tl.store(v + place, w.to(v.dtype.element_ty), mask=mask)
        # Rounded before the sums, squares included, as the plain pass has them: it knows q and k in
        # half precision only, and Gram matrix and norms must be of the same numbers.
        q_half, k_half = q.to(x.dtype.element_ty), k.to(x.dtype.element_ty)
        gram = tl.dot(tl.trans(q_half), k_half, gram, input_precision=PRECISION)
        q, k = q_half.to(tl.float32), k_half.to(tl.float32)
        q_square += tl.sum(q * q, 0)
        k_square += tl.sum(k * k, 0)
    number = (image * tl.num_programs(0) + piece) * tl.num_programs(1) + head
    out = sums + number * ((D + 2) * D)
    both = inside[:, None] & inside[None, :]
    tl.store(out + columns[:, None] * D + columns[None, :], gram, mask=both)
    tl.store(out + D * D + columns, q_square, mask=inside)
    tl.store(out + (D + 1) * D + columns, k_square, mask=inside)


@triton.jit
def mixing_kernel(
    gram, q_square, k_square, temperature, project_out, mixing,
    gram_image, gram_head, square_image, square_head,
    C: tl.constexpr, D: tl.constexpr, PADDED: tl.constexpr,
    ROWS: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """`mixing_matrix`: attention of a head and its part of the output projection, as one matrix.

    A program has PART columns of a head of an image. Sums as in `PixelSums`, with strides of images
    and heads; project_out: `[C, C]` float32; mixing: `[n, C, C]` in its own precision, written.
    """
    head, image = tl.program_id(0), tl.program_id(1)
    columns = tl.arange(0, PADDED)
    part = tl.program_id(2) * PART + tl.arange(0, PART)
    inside, wanted = columns < D, part < D
    squares = image * square_image + head * square_head
    row = gram + image * gram_image + head * gram_head + columns[:, None] * D
    scale = tl.load(temperature + head)
    q_square_ = tl.load(q_square + squares + columns, mask=inside, other=1.0)
    k_square_ = tl.load(k_square + squares + columns, mask=inside, other=1.0)
    of_part = tl.load(k_square + squares + part, mask=wanted, other=1.0)
    q_norm = tl.sqrt(tl.maximum(q_square_, 1e-24))
    k_norm = tl.sqrt(tl.maximum(k_square_, 1e-24))
    part_norm = tl.sqrt(tl.maximum(of_part, 1e-24))
    both = inside[:, None] & inside[None, :]
    cosine = tl.load(row + columns[None, :], mask=both, other=0.0)
    cosine = cosine / (q_norm[:, None] * k_norm[None, :])
    logit = tl.where(inside[None, :], cosine * scale, float("-inf"))
    # The softmax sums over all columns of the head, of which this program writes a part: each
    # program repeats the sums.
    largest = tl.max(logit, 1)
    total = tl.sum(tl.exp(logit - largest[:, None]), 1)
    both = inside[:, None] & wanted[None, :]
    cosine = tl.load(row + part[None, :], mask=both, other=0.0)
    cosine = cosine / (q_norm[:, None] * part_norm[None, :])
    attention = tl.exp(cosine * scale - largest[:, None]) / total[:, None]
    attention = tl.where(both, attention, 0.0)
    for first in range(0, C, ROWS):
        out_row = first + tl.arange(0, ROWS)
        of_row = (out_row < C)[:, None]
        place = out_row[:, None] * C + head * D
        weights = tl.load(
            project_out + place + columns[None, :], mask=of_row & inside[None, :], other=0.0
        )
        out = tl.dot(weights, attention, input_precision="tf32x3").to(mixing.dtype.element_ty)
        at = mixing + image * C * C + place + part[None, :]
        tl.store(at, out, mask=of_row & wanted[None, :])


@triton.jit
def second_pass_kernel(
    z, v, mixing, out_bias, weight, bias, time, widen, widen_bias, narrow, narrow_bias, out,
    pixels, v_image, v_pixel, time_stride,
    C: tl.constexpr, HIDDEN: tl.constexpr, PADDED: tl.constexpr,
    M: tl.constexpr, H: tl.constexpr, EPS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`x = z + mixing v`, then `out = x + narrow(GELU(widen(norm(x) + time)))`, M pixels a program.

    z, out: `[n, pixels, C]` in one precision, also the same one.
    v: `[n, pixels, C]` with strides of its own, or None for the feed-forward network alone.
    mixing: `[n, C, C]`, widen: `[HIDDEN, C]`, narrow: `[C, HIDDEN]`, all in one half precision.
    """
    first_pixel, image = tl.program_id(0) * M, tl.program_id(1).to(tl.int64)
    z += (image * pixels + first_pixel) * C
    out += (image * pixels + first_pixel) * C
    half = widen.dtype.element_ty
    pixel = tl.arange(0, M)
    columns = tl.arange(0, PADDED)
    in_c = columns < C
    inside = (pixel < pixels - first_pixel)[:, None] & in_c[None, :]
    place = pixel[:, None] * C + columns[None, :]
    x = floats(z + place, inside)
    if v is not None:
        v += image * v_image + first_pixel.to(tl.int64) * v_pixel
        v_place = pixel[:, None] * v_pixel + columns[None, :]
        values = tl.load(v + v_place, mask=inside, other=0.0)
        matrix = tl.load(  # transposed: columns in, rows out
            mixing + image * C * C + columns[None, :] * C + columns[:, None],
            mask=in_c[:, None] & in_c[None, :],
            other=0.0,
        )
        x = tl.dot(values, matrix, x, input_precision=PRECISION)
    if out_bias is not None:
        x += floats(out_bias + columns, in_c)[None, :]
    now = floats(time + image * time_stride + columns, in_c)
    y = normed(x, weight, bias, now[None, :], columns, C, EPS).to(half)
    for first in range(0, HIDDEN, H):
        unit = first + tl.arange(0, H)
        hidden = hidden_units(y, widen, widen_bias, unit, columns, C, HIDDEN, PRECISION)
        hidden *= normal_cdf(hidden)
        u_mask = (unit < HIDDEN)[:, None] & in_c[None, :]
        u = tl.load(narrow + columns[None, :] * HIDDEN + unit[:, None], mask=u_mask, other=0.0)
        x = tl.dot(hidden.to(half), u, x, input_precision=PRECISION)
    if narrow_bias is not None:
        x += floats(narrow_bias + columns, in_c)[None, :]
    tl.store(out + place, x.to(out.dtype.element_ty), mask=inside)
