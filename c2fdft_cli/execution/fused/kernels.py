"""The Triton kernels of the forward pass: intermediate results of a kernel stay on the chip.

Activations are `[pixels, channels]`: a pixel is a row. The dimensions of a tile are powers of two.
Other numbers of channels are padded by masks or, in the products, split into two tiles that fit
them (48 = 32 + 16, 96 = 64 + 32; the second tile is None if one suffices). Sums, norms and GELU are
computed in float32; products take the precision of their factors and accumulate in float32.

A tensor may have more than 2^31 values. Therefore the address at which a program's share begins is
computed in 64 bits, and the offsets within the share in 32.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def floats(at, mask):
    """Load the values at these addresses as float32; zero where the mask is false."""
    return tl.load(at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def moments(a, b, of_a, of_b, C: tl.constexpr, EPS: tl.constexpr):
    """Return mean and 1 / sqrt(variance + EPS) over each pixel's channels, both `[M, 1]`.

    a, b: two tiles `[M, padded]` float32 of a pixel's channels, zero in the padding; b may be None.
    of_a, of_b: channel indices of a and b.
    """
    mean = tl.sum(a, 1)
    if b is not None:
        mean += tl.sum(b, 1)
    mean = (mean / C)[:, None]
    # The padding is zero in a, but not in a - mean: without the mask it would add to the variance.
    centred = tl.where((of_a < C)[None, :], a - mean, 0.0)
    variance = tl.sum(centred * centred, 1)
    if b is not None:
        centred = tl.where((of_b < C)[None, :], b - mean, 0.0)
        variance += tl.sum(centred * centred, 1)
    return mean, (1.0 / tl.sqrt(variance / C + EPS))[:, None]


@triton.jit
def scaled(x, mean, rstd, weight, bias, time, columns, C: tl.constexpr):
    """Apply `PixelNorm` to the channels `columns` of x, and add the time embedding.

    mean, rstd: as `moments` returns them; time: the image's time embedding, `[C]`.
    """
    inside = columns < C
    w = floats(weight + columns, inside)
    now = floats(time + columns, inside)
    if bias is None:  # the norm without bias does not subtract the mean
        y = x * rstd * w[None, :]
    else:
        y = (x - mean) * rstd * w[None, :] + floats(bias + columns, inside)[None, :]
    return y + now[None, :]


@triton.jit
def normed(x, weight, bias, time, columns, C: tl.constexpr, EPS: tl.constexpr):
    """Apply `PixelNorm` to all channels of x, and add the time embedding.

    x: `[M, padded C]` float32, zero in the padding; time: the image's time embedding, `[C]`.
    """
    mean, rstd = moments(x, None, columns, None, C, EPS)
    return scaled(x, mean, rstd, weight, bias, time, columns, C)


@triton.jit
def product(a, b, weight, bias, unit, of_a, of_b, C: tl.constexpr, OUT: tl.constexpr,
            PRECISION: tl.constexpr):  # fmt: skip
    """Compute some output channels of a 1x1 convolution, `[M, units]` float32.

    a, b: two tiles `[M, padded]` of the input channels of_a and of_b, b may be None.
    weight: `[OUT, C]`; bias: `[OUT]` or None; unit: indices of the output channels.
    """
    there = unit < OUT
    w = transposed(weight, unit, of_a, C, OUT)
    units = tl.dot(a, w, input_precision=PRECISION)
    if b is not None:
        w = transposed(weight, unit, of_b, C, OUT)
        units = tl.dot(b, w, units, input_precision=PRECISION)
    if bias is not None:
        units += floats(bias + unit, there)[None, :]
    return units


@triton.jit
def transposed(matrix, row, column, C: tl.constexpr, OUT: tl.constexpr):
    """Load some rows and columns of a matrix `[OUT, C]` transposed, `[columns, rows]`.

    Indices beyond the matrix give zeros.
    """
    mask = (column < C)[:, None] & (row < OUT)[None, :]
    return tl.load(matrix + row[None, :] * C + column[:, None], mask=mask, other=0.0)


@triton.jit
def normal_cdf(x):
    """CDF of the standard normal distribution within 1.2e-5; x times it is GELU within 5e-5.

    1/2 plus an odd polynomial, minimax for |x| up to 4.25 (by Lawson's iteration). Beyond that the
    polynomial leaves [0, 1] and is clamped, which costs a GPU no instruction. GELU is then rounded
    to half precision, which is 20 times as coarse as this error, or to bfloat16, 150 times. CUDA's
    exact erf takes three times as many instructions, more than everything else in the feed-forward
    network.
    """
    u = x * x
    p = tl.fma(u, 5.56487322e-11, -5.32776889e-09)
    p = tl.fma(p, u, 2.25543147e-07)
    p = tl.fma(p, u, -5.6264339e-06)
    p = tl.fma(p, u, 9.34187628e-05)
    p = tl.fma(p, u, -0.00110856118)
    p = tl.fma(p, u, 0.00981597137)
    p = tl.fma(p, u, -0.0663444921)
    p = tl.fma(p, u, 0.398902327)
    return tl.minimum(tl.maximum(tl.fma(p, x, 0.5), 0.0), 1.0)


@triton.jit
def norm_kernel(
    z, weight, bias, time, y, pixels, time_stride,
    C: tl.constexpr, PADDED: tl.constexpr, M: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """Write `norm(z) + time` to y in its precision; each program computes M pixels of an image.

    z, y: `[n, pixels, C]`; time: `[n or 1, C]`, time_stride is 0 if all images share one.
    """
    first, image = tl.program_id(0) * M, tl.program_id(1).to(tl.int64)
    z += (image * pixels + first) * C
    y += (image * pixels + first) * C
    pixel = tl.arange(0, M)
    columns = tl.arange(0, PADDED)
    inside = (pixel < pixels - first)[:, None] & (columns < C)[None, :]
    place = pixel[:, None] * C + columns[None, :]
    x = floats(z + place, inside)
    out = normed(x, weight, bias, time + image * time_stride, columns, C, EPS)
    tl.store(y + place, out.to(y.dtype.element_ty), mask=inside)


@triton.jit
def norm_product_kernel(
    z, weight, bias, time, matrix, matrix_bias, out, pixels, time_stride,
    C: tl.constexpr, OUT: tl.constexpr, A: tl.constexpr, B: tl.constexpr,
    M: tl.constexpr, H: tl.constexpr, EPS: tl.constexpr, PRECISION: tl.constexpr,
    GELU: tl.constexpr,
):  # fmt: skip
    """Write a 1x1 convolution of `norm(z) + time`, followed by GELU if GELU is true.

    Each program computes M pixels of an image.

    z: `[n, pixels, C]`.
    matrix: `[OUT, C]` and matrix_bias: `[OUT]` or None, in the precision of out.
    out: `[n, pixels, OUT]`, written.
    time: `[n or 1, C]`, time_stride is 0 if all images share one.
    A, B: channels of the two tiles; B is 0 if there is only one.
    """
    first_pixel, image = tl.program_id(0) * M, tl.program_id(1).to(tl.int64)
    z += (image * pixels + first_pixel) * C
    out += (image * pixels + first_pixel) * OUT
    time += image * time_stride
    half = out.dtype.element_ty
    pixel, of_a = tl.arange(0, M), tl.arange(0, A)
    of_b = None
    xb = None
    yb = None
    there = (pixel < pixels - first_pixel)[:, None]
    xa = floats(z + pixel[:, None] * C + of_a[None, :], there & (of_a < C)[None, :])
    if B > 0:
        of_b = A + tl.arange(0, B)
        xb = floats(z + pixel[:, None] * C + of_b[None, :], there & (of_b < C)[None, :])
    mean, rstd = moments(xa, xb, of_a, of_b, C, EPS)
    ya = scaled(xa, mean, rstd, weight, bias, time, of_a, C).to(half)
    if B > 0:
        yb = scaled(xb, mean, rstd, weight, bias, time, of_b, C).to(half)
    for first in range(0, OUT, H):
        unit = first + tl.arange(0, H)
        units = product(ya, yb, matrix, matrix_bias, unit, of_a, of_b, C, OUT, PRECISION)
        if GELU:
            units *= normal_cdf(units)
        at = out + pixel[:, None] * OUT + unit[None, :]
        tl.store(at, units.to(half), mask=there & (unit < OUT)[None, :])


@triton.jit
def taps_of(weight, channel, inside):
    """Load the nine taps of some channels, row by row, each `[padded]` float32.

    weight: `[3 C, 9]`; channel: channel indices; inside: mask of those that exist.
    """
    at = weight + channel * 9
    return (
        floats(at, inside), floats(at + 1, inside), floats(at + 2, inside),
        floats(at + 3, inside), floats(at + 4, inside), floats(at + 5, inside),
        floats(at + 6, inside), floats(at + 7, inside), floats(at + 8, inside),
    )  # fmt: skip


@triton.jit
def load_row(at, step, there, left, middle, right):
    """Load P pixels of an input row with their left and right neighbours, each `[P, padded]`.

    The values keep the precision of the input.

    Args:
        at: addresses of the pixels; their neighbours are `step` values before and after.
        there: whether the row is inside the image, `[P, 1]`; otherwise zeros are returned.
        left, middle, right: masks of the left neighbours, the pixels, and the right neighbours.
    """
    return (
        tl.load(at - step, mask=left & there, other=0.0),
        tl.load(at, mask=middle & there, other=0.0),
        tl.load(at + step, mask=right & there, other=0.0),
    )


@triton.jit
def add_row(pixels, taps, above, here):
    """Add what a row of the input contributes to the output rows above, at and below it.

    Args:
        pixels: the input row, from `load_row`.
        taps: the channels' taps, from `taps_of`.
        above, here: partial sums of the output rows above and at the input row, `[P, padded]`
            float32.

    Returns:
        The three output rows (above, at, below); the one above is now complete.
    """
    a, b, c = pixels[0].to(tl.float32), pixels[1].to(tl.float32), pixels[2].to(tl.float32)
    above = three_taps(a, b, c, taps[6], taps[7], taps[8], above)
    here = three_taps(a, b, c, taps[3], taps[4], taps[5], here)
    below = three_taps(a, b, c, taps[0], taps[1], taps[2], tl.zeros_like(above))
    return above, here, below


@triton.jit
def three_taps(a, b, c, of_a, of_b, of_c, total):
    """Return `total + a of_a + b of_b + c of_c` by fused multiply-adds.

    a, b, c, total: `[P, padded]`; of_a, of_b, of_c: `[padded]`.
    """
    total = tl.fma(a, of_a[None, :], total)
    total = tl.fma(b, of_b[None, :], total)
    return tl.fma(c, of_c[None, :], total)


@triton.jit
def first_rows(at, line, step, level, left, middle, right, taps, zero):
    """Start the sums of a program's first two output rows.

    Adds the program's first input row and, if it is inside the image, the row before it.
    """
    before = load_row(at - line, step, level > 0, left, middle, right)
    first = load_row(at, step, level >= 0, left, middle, right)
    _, _, here = add_row(before, taps, zero, zero)
    _, here, below = add_row(first, taps, zero, here)
    return here, below


@triton.jit
def store_rows(
    at, to, line, to_line, step, level, height, count, left, middle, right, taps, bias, inside,
    zero, STAGES: tl.constexpr,
):  # fmt: skip
    """Convolve `count` rows and write them.

    Args:
        at, to: addresses of the first row's pixels, read and written; each next row is `line` and
            `to_line` values further.
        level: index of the first row in the image, which has `height` rows.
        bias: addresses of the channels' biases, or None.
        STAGES: as in `depthwise_kernel`.
    """
    row, below = first_rows(at, line, step, level, left, middle, right, taps, zero)
    for i in tl.range(0, count, num_stages=STAGES):
        at += line
        pixels = load_row(at, step, level + i + 1 < height, left, middle, right)
        row, below, next_ = add_row(pixels, taps, row, below)
        if bias is not None:
            row += floats(bias, inside)[None, :]
        tl.store(to, row.to(to.dtype.element_ty), mask=middle)
        row, below = below, next_
        to += to_line


@triton.jit
def rounded(row, bias, channel, inside, there, like):
    """Add the bias to a row of q or k, and round it for the sums.

    Padding (pixels outside the image, channels beyond the head) must not count in the sums, so it
    stays zero although the bias would make it nonzero. The row is rounded because the plain pass
    has q and k in half precision only, and Gram matrix and squares must be of the same values.

    like: a pointer whose element type is the precision to round to.
    """
    if bias is not None:
        row = tl.where(there, row + floats(bias + channel, inside)[None, :], 0.0)
    return row.to(like.dtype.element_ty)


@triton.jit
def add_sums(q, k, gram, q_square, k_square, PRECISION: tl.constexpr):
    """Add a row to the Gram matrix and to the squares, and return all three.

    q, k: `[P, padded]`; gram: `[padded, padded]`; q_square, k_square: `[P, padded]`; sums are
    float32.
    """
    gram = tl.dot(tl.trans(q), k, gram, input_precision=PRECISION)
    q, k = q.to(tl.float32), k.to(tl.float32)
    return gram, q_square + q * q, k_square + k * k


@triton.jit
def masks_of(pixel, width, inside):
    """Masks of which left neighbours, pixels and right neighbours are inside, `[P, padded]` each.

    pixel: column indices in the image, `[P]`; inside: which channels exist, `[padded]`.
    """
    middle = (pixel < width)[:, None] & inside[None, :]
    right = (pixel < width - 1)[:, None] & inside[None, :]
    return middle & (pixel > 0)[:, None], middle, right


@triton.jit
def places(pixel, channel, step: tl.constexpr, TOGETHER: tl.constexpr):
    """Offsets of channels of pixels that are `step` values apart, `[P, padded]`.

    Tells the compiler that TOGETHER channels are contiguous.
    """
    place = pixel[:, None] * step + channel[None, :]
    return tl.max_contiguous(tl.multiple_of(place, [1, TOGETHER]), [1, TOGETHER])


@triton.jit
def store_sums(out, gram, q_square, k_square, columns, D: tl.constexpr):
    """Write a program's sums for one head: the Gram matrix, then the squares summed over pixels.

    out: `[D + 2, D]`; gram: `[padded, padded]`; q_square, k_square: `[P, padded]`.
    """
    inside = columns < D
    both = inside[:, None] & inside[None, :]
    tl.store(out + columns[:, None] * D + columns[None, :], gram, mask=both)
    tl.store(out + D * D + columns, tl.sum(q_square, 0), mask=inside)
    tl.store(out + (D + 1) * D + columns, tl.sum(k_square, 0), mask=inside)


@triton.jit
def depthwise_kernel(
    x, weight, bias, v, sums, height, width, skip, rows, share,
    C: tl.constexpr, D: tl.constexpr, PADDED: tl.constexpr,
    P: tl.constexpr, PRECISION: tl.constexpr, TOGETHER: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Convolve x depth-wise (3x3) to q, k and v; write sums over the pixels of q and k, and v.

    Each program computes P columns of `share` rows, for one head of one image. It moves down row
    by row and reads each row once: an input row contributes to three output rows, the upper one of
    which is then complete. The taps stay in registers, so v is computed in a second loop, which
    reuses the registers that the taps of q and k occupied.

    x: `[n, height, width, 3 C]`, padded with zeros; rows `skip` to `skip + rows` are convolved.
    weight: `[3 C, 9]`; bias: `[3 C]` or None.
    v: `[n, rows, width, C]`, written.
    sums: `[n, programs, heads, D + 2, D]` float32, written: Gram matrix, squares of q, squares
        of k.
    TOGETHER: contiguous channels that a thread reads, a divisor of D. With few channels a thread
        keeps few taps, and uses each for several pixels.
    STAGES: pipeline stages, i.e. rows that are being loaded or used at a time. The bytes in flight
        divided by the memory latency bound the speed of this kernel.
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
    left, middle, right = masks_of(pixel, width, inside)
    place = places(pixel, channel, 3 * C, TOGETHER)
    level = row + tl.zeros([P, 1], tl.int32)  # a tensor: Triton's interpreter needs tensor masks
    count = tl.minimum(share, rows - begin)
    zero = tl.zeros([P, PADDED], tl.float32)

    q_taps, k_taps = taps_of(weight, channel, inside), taps_of(weight, channel + C, inside)
    at, step = x + place, 3 * C
    q0, q1 = first_rows(at, line, step, level, left, middle, right, q_taps, zero)
    k0, k1 = first_rows(at + C, line, step, level, left, middle, right, k_taps, zero)
    gram = tl.zeros([PADDED, PADDED], tl.float32)
    q_square, k_square = zero, zero
    for i in tl.range(0, count, num_stages=STAGES):
        at += line
        there = level + i + 1 < height
        q_row = load_row(at, step, there, left, middle, right)
        k_row = load_row(at + C, step, there, left, middle, right)
        q0, q1, q2 = add_row(q_row, q_taps, q0, q1)
        k0, k1, k2 = add_row(k_row, k_taps, k0, k1)
        q = rounded(q0, bias, channel, inside, middle, x)
        k = rounded(k0, bias, channel + C, inside, middle, x)
        gram, q_square, k_square = add_sums(q, k, gram, q_square, k_square, PRECISION)
        q0, q1, k0, k1 = q1, q2, k1, k2
    number = (image * tl.num_programs(0) + piece) * tl.num_programs(1) + head
    store_sums(sums + number * ((D + 2) * D), gram, q_square, k_square, columns, D)

    taps = taps_of(weight, channel + 2 * C, inside)
    of_channel = None if bias is None else bias + 2 * C + channel
    store_rows(
        x + 2 * C + place, v + places(pixel, channel, C, TOGETHER), line, width * C, step,
        level, height, count, left, middle, right, taps, of_channel, inside, zero, STAGES,
    )  # fmt: skip


@triton.jit
def mixing_kernel(
    gram, q_square, k_square, temperature, project_out, mixing,
    gram_image, gram_head, square_image, square_head,
    C: tl.constexpr, D: tl.constexpr, PADDED: tl.constexpr,
    ROWS: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Compute `mixing_matrix`: a head's attention times its columns of the output projection.

    Each program computes ROWS rows and PART columns of one head of one image.

    gram, q_square, k_square: as in `PixelSums`, with the strides of images and heads.
    project_out: `[C, C]` float32; mixing: `[n, C, C]` in its own precision, written.
    """
    head, image = tl.program_id(0) // tl.cdiv(C, ROWS), tl.program_id(1)
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
    # The softmax is over all columns of the head, but this program writes only some of them, so
    # every program of the head computes the same sums.
    largest = tl.max(logit, 1)
    total = tl.sum(tl.exp(logit - largest[:, None]), 1)
    both = inside[:, None] & wanted[None, :]
    cosine = tl.load(row + part[None, :], mask=both, other=0.0)
    cosine = cosine / (q_norm[:, None] * part_norm[None, :])
    attention = tl.exp(cosine * scale - largest[:, None]) / total[:, None]
    attention = tl.where(both, attention, 0.0)
    out_row = tl.program_id(0) % tl.cdiv(C, ROWS) * ROWS + tl.arange(0, ROWS)
    of_row = (out_row < C)[:, None]
    place = out_row[:, None] * C + head * D
    weights = tl.load(
        project_out + place + columns[None, :], mask=of_row & inside[None, :], other=0.0
    )
    out = tl.dot(weights, attention, input_precision="tf32x3").to(mixing.dtype.element_ty)
    at = mixing + image * C * C + place + part[None, :]
    tl.store(at, out, mask=of_row & wanted[None, :])


@triton.jit
def mixed(x, a, b, mixing, columns, of_a, of_b, C: tl.constexpr, PRECISION: tl.constexpr):
    """Compute the channels `columns` of `x + mixing v`; a, b: v's channels of_a and of_b."""
    x = tl.dot(a, transposed(mixing, columns, of_a, C, C), x, input_precision=PRECISION)
    if b is not None:
        x = tl.dot(b, transposed(mixing, columns, of_b, C, C), x, input_precision=PRECISION)
    return x


@triton.jit
def second_pass_kernel(
    z, v, mixing, out_bias, weight, bias, time, widen, widen_bias, narrow, narrow_bias, out,
    pixels, v_image, v_pixel, time_stride,
    C: tl.constexpr, HIDDEN: tl.constexpr, A: tl.constexpr, B: tl.constexpr,
    M: tl.constexpr, H: tl.constexpr, EPS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute `x = z + mixing v` and write `out = x + narrow(GELU(widen(norm(x) + time)))`.

    Each program computes M pixels of an image.

    z, out: `[n, pixels, C]` in one precision; out may be the same tensor as z.
    v: `[n, pixels, C]` with its own strides, or None for the feed-forward network alone.
    mixing: `[n, C, C]`, widen: `[HIDDEN, C]`, narrow: `[C, HIDDEN]`, all in one half precision.
    A, B: channels of the two tiles; B is 0 if there is only one.
    """
    first_pixel, image = tl.program_id(0) * M, tl.program_id(1).to(tl.int64)
    z += (image * pixels + first_pixel) * C
    out += (image * pixels + first_pixel) * C
    time += image * time_stride
    mixing = None if mixing is None else mixing + image * C * C
    half = widen.dtype.element_ty
    pixel, of_a = tl.arange(0, M), tl.arange(0, A)
    of_b = None
    in_b = None
    xb = None
    vb = None
    yb = None
    there = (pixel < pixels - first_pixel)[:, None]
    in_a = there & (of_a < C)[None, :]
    xa = floats(z + pixel[:, None] * C + of_a[None, :], in_a)
    if B > 0:
        of_b = A + tl.arange(0, B)
        in_b = there & (of_b < C)[None, :]
        xb = floats(z + pixel[:, None] * C + of_b[None, :], in_b)
    if v is not None:
        v += image * v_image + first_pixel.to(tl.int64) * v_pixel
        va = tl.load(v + pixel[:, None] * v_pixel + of_a[None, :], mask=in_a, other=0.0)
        if B > 0:
            vb = tl.load(v + pixel[:, None] * v_pixel + of_b[None, :], mask=in_b, other=0.0)  # type: ignore[index]
            xb = mixed(xb, va, vb, mixing, of_b, of_a, of_b, C, PRECISION)
        xa = mixed(xa, va, vb, mixing, of_a, of_a, of_b, C, PRECISION)
    if out_bias is not None:
        xa += floats(out_bias + of_a, of_a < C)[None, :]
        if B > 0:
            xb += floats(out_bias + of_b, of_b < C)[None, :]
    mean, rstd = moments(xa, xb, of_a, of_b, C, EPS)
    ya = scaled(xa, mean, rstd, weight, bias, time, of_a, C).to(half)
    if B > 0:
        yb = scaled(xb, mean, rstd, weight, bias, time, of_b, C).to(half)
    for first in range(0, HIDDEN, H):
        unit = first + tl.arange(0, H)
        hidden = product(ya, yb, widen, widen_bias, unit, of_a, of_b, C, HIDDEN, PRECISION)
        hidden = (hidden * normal_cdf(hidden)).to(half)
        u = transposed(narrow, of_a, unit, HIDDEN, C)
        xa = tl.dot(hidden, u, xa, input_precision=PRECISION)
        if B > 0:
            u = transposed(narrow, of_b, unit, HIDDEN, C)
            xb = tl.dot(hidden, u, xb, input_precision=PRECISION)
    if narrow_bias is not None:
        xa += floats(narrow_bias + of_a, of_a < C)[None, :]
        if B > 0:
            xb += floats(narrow_bias + of_b, of_b < C)[None, :]
    tl.store(out + pixel[:, None] * C + of_a[None, :], xa.to(out.dtype.element_ty), mask=in_a)
    if B > 0:
        tl.store(out + pixel[:, None] * C + of_b[None, :], xb.to(out.dtype.element_ty), mask=in_b)  # type: ignore[index, union-attr]
