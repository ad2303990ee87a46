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
def product(y, weight, bias, unit, columns, C: tl.constexpr, OUT: tl.constexpr,
            PRECISION: tl.constexpr):  # fmt: skip
    """Some outputs of a 1x1 convolution, `[M, units]` float32; y: `[M, padded C]`.

    weight: `[OUT, C]`, bias: `[OUT]` or None; unit: which outputs.
    """
    there = unit < OUT
    mask = (columns < C)[:, None] & there[None, :]
    w = tl.load(weight + unit[None, :] * C + columns[:, None], mask=mask, other=0.0)
    units = tl.dot(y, w, input_precision=PRECISION)
    if bias is not None:
        units += floats(bias + unit, there)[None, :]
    return units


@triton.jit
def normal_cdf(x):
    """Of the standard normal distribution, within 1.5e-6; GELU is x times it.

    An odd polynomial up to 4.7, beyond which it ends (minimax, by Lawson's iteration; its even part
    in 2 x^2 / 4.7^2 - 1, where float32 has no digits to lose). CUDA's erf is exact and takes twice
    as many instructions, more than all else in the feed-forward network; what is added up here is
    rounded to half precision, 300 times as coarse.
    """
    x = tl.minimum(tl.maximum(x, -4.7), 4.7)
    u = tl.fma(x * 0.0905387053, x, -1.0)
    p = tl.fma(u, 0.0014004896, -0.0036093221)
    p = tl.fma(p, u, 0.0041381281)
    p = tl.fma(p, u, -0.0064642917)
    p = tl.fma(p, u, 0.01326813)
    p = tl.fma(p, u, -0.021346342)
    p = tl.fma(p, u, 0.029976473)
    p = tl.fma(p, u, -0.040491575)
    p = tl.fma(p, u, 0.0535613)
    p = tl.fma(p, u, -0.074364617)
    p = tl.fma(p, u, 0.15031462)
    return tl.fma(p, x, 0.5)


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
def norm_product_kernel(
    z, weight, bias, time, matrix, matrix_bias, out, pixels, time_stride,
    C: tl.constexpr, OUT: tl.constexpr, PADDED: tl.constexpr,
    M: tl.constexpr, H: tl.constexpr, EPS: tl.constexpr, PRECISION: tl.constexpr,
    GELU: tl.constexpr,
):  # fmt: skip
    """A 1x1 convolution of `norm(z) + time`, and GELU of it; a program has M pixels of an image.

    z: `[n, pixels, C]`; matrix: `[OUT, C]` and matrix_bias: `[OUT]` or None in the precision of
    out: `[n, pixels, OUT]`, written; time: `[n or 1, C]` with the stride 0 for one.
    """
    first_pixel, image = tl.program_id(0) * M, tl.program_id(1).to(tl.int64)
    z += (image * pixels + first_pixel) * C
    out += (image * pixels + first_pixel) * OUT
    pixel = tl.arange(0, M)
    columns = tl.arange(0, PADDED)
    in_c = columns < C
    there = (pixel < pixels - first_pixel)[:, None]
    x = floats(z + pixel[:, None] * C + columns[None, :], there & in_c[None, :])
    now = floats(time + image * time_stride + columns, in_c)
    y = normed(x, weight, bias, now[None, :], columns, C, EPS).to(out.dtype.element_ty)
    for first in range(0, OUT, H):
        unit = first + tl.arange(0, H)
        units = product(y, matrix, matrix_bias, unit, columns, C, OUT, PRECISION)
        if GELU:
            units *= normal_cdf(units)
        at = out + pixel[:, None] * OUT + unit[None, :]
        tl.store(at, units.to(out.dtype.element_ty), mask=there & (unit < OUT)[None, :])


@triton.jit
def taps_of(weight, channel, inside):
    """The nine taps of some channels, row by row, each `[padded]` float32; weight: `[3 C, 9]`."""
    at = weight + channel * 9
    return (
        floats(at, inside), floats(at + 1, inside), floats(at + 2, inside),
        floats(at + 3, inside), floats(at + 4, inside), floats(at + 5, inside),
        floats(at + 6, inside), floats(at + 7, inside), floats(at + 8, inside),
    )  # fmt: skip


@triton.jit
def add_row(at, step, there, left, middle, right, taps, above, here):
    """Add what a row of the input contributes to the rows of the output above, at and below it.

    Args:
        at: its pixels, `[P, padded]`, which have neighbours `step` values before and behind.
        there: whether there is such a row, `[P, 1]`.
        left, middle, right: masks of the pixels before, of these, and behind.
        taps: `taps_of` the channels.
        above, here: the two rows so far, `[P, padded]` float32.

    Returns:
        The three rows, of which the first is then complete.
    """
    a, b = floats(at - step, left & there), floats(at, middle & there)
    c = floats(at + step, right & there)
    above = three_taps(a, b, c, taps[6], taps[7], taps[8], above)
    here = three_taps(a, b, c, taps[3], taps[4], taps[5], here)
    below = three_taps(a, b, c, taps[0], taps[1], taps[2], tl.zeros_like(above))
    return above, here, below


@triton.jit
def three_taps(a, b, c, of_a, of_b, of_c, total):
    """`total` and three products, each a fused multiply-add; of_a: `[padded]`."""
    total = tl.fma(a, of_a[None, :], total)
    total = tl.fma(b, of_b[None, :], total)
    return tl.fma(c, of_c[None, :], total)


@triton.jit
def first_rows(at, line, step, level, left, middle, right, taps, zero):
    """`add_row` of the row before a program's own, which may not be there, and of its first one."""
    _, _, here = add_row(at - line, step, level > 0, left, middle, right, taps, zero, zero)
    _, here, below = add_row(at, step, level >= 0, left, middle, right, taps, zero, here)
    return here, below


@triton.jit
def store_rows(
    at, to, line, to_line, step, level, height, count, left, middle, right, taps, bias, inside, zero
):
    """Convolve `count` rows and write them.

    Args:
        at, to: pixels of the first row, read and written; the next ones are `line` and `to_line`
            values further.
        level: number of the first row, of `height`.
        bias: of the channels, or None.
    """
    row, below = first_rows(at, line, step, level, left, middle, right, taps, zero)
    for i in range(1, count + 1):
        at += line
        row, below, next_ = add_row(
            at, step, level + i < height, left, middle, right, taps, row, below
        )
        if bias is not None:
            row += floats(bias, inside)[None, :]
        tl.store(to, row.to(to.dtype.element_ty), mask=middle)
        to += to_line
        row, below = below, next_


@triton.jit
def store_sums(out, gram, q_square, k_square, columns, D: tl.constexpr):
    """Write a program's sums of a head; squares: `[P, padded]`, still to be added up."""
    inside = columns < D
    both = inside[:, None] & inside[None, :]
    tl.store(out + columns[:, None] * D + columns[None, :], gram, mask=both)
    tl.store(out + D * D + columns, tl.sum(q_square, 0), mask=inside)
    tl.store(out + (D + 1) * D + columns, tl.sum(k_square, 0), mask=inside)


@triton.jit
def depthwise_kernel(
    x, weight, bias, v, sums, height, width, skip, rows, share,
    C: tl.constexpr, D: tl.constexpr, PADDED: tl.constexpr,
    P: tl.constexpr, PRECISION: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    """Depth-wise 3x3 convolution to q, k, v; sums over the pixels of q and k, and v as it is.

    A program has P columns of `share` rows, of one head and one image. It goes down row by row and
    reads each once: a row adds to three of the output, of which the upper one is then complete. The
    taps stay in registers, so v is computed in a second loop, in those that q and k had.

    x: `[n, height, width, 3 C]`, of which rows `skip` to `skip + rows` are wanted; zeros around.
    weight: `[3 C, 9]`; bias: `[3 C]` or None.
    v: `[n, rows, width, C]`, written.
    sums: `[n, programs, heads, D + 2, D]` float32, written: the Gram matrix, squares of q, of k.
    TOGETHER: channels that a thread reads together, a divisor of D. With few of them it has few
        taps to keep, and several pixels to use them for.
    """
    piece, head, image = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    across = tl.cdiv(width, P)
    begin = piece // across * share
    row, line = begin + skip, width * (3 * C)
    x += (image * height + row) * line
    v += (image * rows + begin) * width * C
    columns = tl.arange(0, PADDED)
    inside, channel = columns < D, head * D + columns
    pixel = piece % across * P + tl.arange(0, P)
    middle = (pixel < width)[:, None] & inside[None, :]
    left = middle & (pixel > 0)[:, None]
    right = (pixel < width - 1)[:, None] & inside[None, :]
    place = pixel[:, None] * (3 * C) + channel[None, :]
    place = tl.max_contiguous(tl.multiple_of(place, [1, TOGETHER]), [1, TOGETHER])
    level = row + tl.zeros([P, 1], tl.int32)  # a tensor, since masks of the interpreter are
    count = tl.minimum(share, rows - begin)
    zero = tl.zeros([P, PADDED], tl.float32)

    q_taps, k_taps = taps_of(weight, channel, inside), taps_of(weight, channel + C, inside)
    at, of_v, step = x + place, x + 2 * C + place, 3 * C
    q0, q1 = first_rows(at, line, step, level, left, middle, right, q_taps, zero)
    k0, k1 = first_rows(at + C, line, step, level, left, middle, right, k_taps, zero)
    gram = tl.zeros([PADDED, PADDED], tl.float32)
    q_square, k_square = zero, zero
    for i in range(1, count + 1):
        at += line
        there = level + i < height
        q0, q1, q2 = add_row(at, step, there, left, middle, right, q_taps, q0, q1)
        k0, k1, k2 = add_row(at + C, step, there, left, middle, right, k_taps, k0, k1)
        if bias is not None:
            # A bias makes something of pixels and channels that are not there; sums must not see
            # it.
            q0 = tl.where(middle, q0 + floats(bias + channel, inside)[None, :], 0.0)
            k0 = tl.where(middle, k0 + floats(bias + C + channel, inside)[None, :], 0.0)
        # Rounded before the sums, squares included, as the plain pass has them: it knows q and k in
        # half precision only, and Gram matrix and norms must be of the same numbers.
        q_half, k_half = q0.to(x.dtype.element_ty), k0.to(x.dtype.element_ty)
        gram = tl.dot(tl.trans(q_half), k_half, gram, input_precision=PRECISION)
        q, k = q_half.to(tl.float32), k_half.to(tl.float32)
        q_square += q * q
        k_square += k * k
        q0, q1, k0, k1 = q1, q2, k1, k2
    number = (image * tl.num_programs(0) + piece) * tl.num_programs(1) + head
    store_sums(sums + number * ((D + 2) * D), gram, q_square, k_square, columns, D)

    to = pixel[:, None] * C + channel[None, :]
    to = v + tl.max_contiguous(tl.multiple_of(to, [1, TOGETHER]), [1, TOGETHER])
    taps = taps_of(weight, channel + 2 * C, inside)
    of_channel = None if bias is None else bias + 2 * C + channel
    store_rows(
        of_v, to, line, width * C, step, level, height, count, left, middle, right, taps,
        of_channel, inside, zero,
    )  # fmt: skip


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
        hidden = product(y, widen, widen_bias, unit, columns, C, HIDDEN, PRECISION)
        hidden *= normal_cdf(hidden)
        u_mask = (unit < HIDDEN)[:, None] & in_c[None, :]
        u = tl.load(narrow + columns[None, :] * HIDDEN + unit[:, None], mask=u_mask, other=0.0)
        x = tl.dot(hidden.to(half), u, x, input_precision=PRECISION)
    if narrow_bias is not None:
        x += floats(narrow_bias + columns, in_c)[None, :]
    tl.store(out + place, x.to(out.dtype.element_ty), mask=inside)
