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

from c2fdft_cli.core.attention import SMALLEST_NORM

SIZES = ["height", "width", "skip", "rows", "share"]
"""Arguments of the depth-wise kernels of which Triton compiles no further versions if they are 1 or
multiples of 16. With these, most new sizes of pictures would wait for a version, which no trial has
compared with the plain passes."""
SMALLEST_SQUARE = tl.constexpr(SMALLEST_NORM**2)  # kernels read no other kind of global value


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
def shifts_of(column, width, P: tl.constexpr, like):
    """Return the matrix that spreads the pixels of a row, `[P, 4 P]`, from one before `column` on.

    The product of these pixels and this matrix is, for each output column from `column` on, the
    pixel before it, then for each the pixel itself, then the one after it, then zeros. The last two
    columns, for which neighbours are missing, and those outside the image are zero.

    like: a pointer whose element type is that of the result.
    """
    k, n = tl.arange(0, P)[:, None], tl.arange(0, 4 * P)[None, :]
    place, n = n // P, n % P
    computed = (place < 3) & (n < P - 2) & (column + n < width)
    return tl.where(computed & (k == n + place), 1.0, 0.0).to(like.dtype.element_ty)


@triton.jit
def spread(x, shifts, PRECISION: tl.constexpr):
    """Return for each output column the pixel before it, itself, the one after it, `[padded, P]`.

    x: pixels of a row, `[P, padded]`; shifts: from `shifts_of`.
    """
    P: tl.constexpr = x.shape[0]
    C: tl.constexpr = x.shape[1]
    y = tl.dot(tl.trans(x), shifts, input_precision=PRECISION)
    y = tl.reshape(tl.permute(tl.reshape(y, [C, 4, P]), [0, 2, 1]), [C, P, 2, 2])
    even, odd = tl.split(y)
    before, after = tl.split(even)
    itself, _ = tl.split(odd)
    return before, itself, after


@triton.jit
def taps_of(weight, channel, inside):
    """Load the nine taps of some channels, row by row, each `[padded, 1]` float32.

    weight: `[3 C, 9]`; channel: channel indices; inside: mask of those that exist.
    """
    at = weight + (channel * 9)[:, None]
    inside = inside[:, None]
    return (
        floats(at, inside), floats(at + 1, inside), floats(at + 2, inside),
        floats(at + 3, inside), floats(at + 4, inside), floats(at + 5, inside),
        floats(at + 6, inside), floats(at + 7, inside), floats(at + 8, inside),
    )  # fmt: skip


@triton.jit
def add_row(x, shifts, taps, above, here, PRECISION: tl.constexpr):
    """Add what a row of the input contributes to the output rows above, at and below it.

    Tensor cores move the pixels to the threads that need them, and convert them to float32: a
    product of finite values with a matrix of zeros and ones is exact. Loading each pixel for itself
    and for its two neighbours would take most of the instructions of a kernel. Channels are the
    rows of the product, so that a thread has pixels of two to four channels only and keeps their
    taps in registers.

    Args:
        x: the input row, `[P, padded]`.
        shifts: the matrix from `shifts_of`.
        taps: the channels' taps, from `taps_of`.
        above, here: partial sums of the output rows above and at the input row, `[padded, P]`
            float32.

    Returns:
        The three output rows (above, at, below); the one above is now complete.
    """
    a, b, c = spread(x, shifts, PRECISION)
    above = three_taps(a, b, c, taps[6], taps[7], taps[8], above)
    here = three_taps(a, b, c, taps[3], taps[4], taps[5], here)
    below = three_taps(a, b, c, taps[0], taps[1], taps[2], tl.zeros_like(above))
    return above, here, below


@triton.jit
def three_taps(a, b, c, of_a, of_b, of_c, total):
    """Return `total + a of_a + b of_b + c of_c` by fused multiply-adds.

    a, b, c, total: `[padded, P]`; of_a, of_b, of_c: `[padded, 1]`.
    """
    total = tl.fma(a, of_a.broadcast_to(a.shape), total)
    total = tl.fma(b, of_b.broadcast_to(b.shape), total)
    return tl.fma(c, of_c.broadcast_to(c.shape), total)


@triton.jit
def first_rows(at, line, level, there, shifts, taps, zero, PRECISION: tl.constexpr):
    """Start the sums of a program's first two output rows.

    Adds the program's first input row and, if it is inside the image, the row before it.
    """
    before = tl.load(at - line, mask=there & (level > 0), other=0.0)
    first = tl.load(at, mask=there & (level >= 0), other=0.0)
    _, _, here = add_row(before, shifts, taps, zero, zero, PRECISION)
    _, here, below = add_row(first, shifts, taps, zero, here, PRECISION)
    return here, below


@triton.jit
def add_squares(y, square):
    """Add the squares of a row, four pixels at a time, to save registers.

    On a Hopper GPU one thread has these four: two neighbours in each half of the row.

    y: `[padded, P]`; square: `[padded, P / 4]`.
    """
    C: tl.constexpr = y.shape[0]
    P: tl.constexpr = y.shape[1]
    halves = tl.permute(tl.reshape(y, [C, 2, P // 4, 2]), [0, 2, 3, 1])
    first, second = tl.split(halves)
    for half in tl.static_range(2):
        a, b = tl.split(first if half == 0 else second)
        square = tl.fma(b, b, tl.fma(a, a, square))
    return square


@triton.jit(do_not_specialize=SIZES)
def depthwise_kernel(
    x, weight, bias, v, height, width, skip, rows, share,
    C: tl.constexpr, CHANNELS: tl.constexpr,
    P: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Convolve the last third of x depth-wise (3x3) to v.

    Each program computes P - 2 columns of `share` rows, for CHANNELS channels of one image. It
    moves down row by row and reads each row once: an input row contributes to three output rows,
    the upper one of which is then complete.

    x: `[n, height, width, 3 C]`, padded with zeros; rows `skip` to `skip + rows` are convolved.
    weight: `[3 C, 9]`; bias: `[3 C]` or None.
    v: `[n, rows, width, C]`, written.
    STAGES: pipeline stages, i.e. rows that are being loaded or used at a time.
    """
    piece, image = tl.program_id(0), tl.program_id(2).to(tl.int64)
    across = tl.cdiv(width, P - 2)
    begin, column = piece // across * share, piece % across * (P - 2)
    x += (image * height + begin + skip) * width * (3 * C) + 2 * C
    v += (image * rows + begin) * width * C
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside, of_row = channel < C, tl.arange(0, P)
    pixel = column - 1 + of_row
    there = ((pixel >= 0) & (pixel < width))[:, None] & inside[None, :]
    computed = inside[:, None] & ((of_row < P - 2) & (column + of_row < width))[None, :]
    shifts = shifts_of(column, width, P, x)
    taps = taps_of(weight, channel + 2 * C, inside)
    at, line = x + (pixel[:, None] * (3 * C) + channel[None, :]), width * (3 * C)
    to = v + ((column + of_row)[None, :] * C + channel[:, None])
    level = begin + skip + tl.zeros([P, 1], tl.int32)  # tensors: the interpreter needs tensor masks
    zero = tl.zeros([CHANNELS, P], tl.float32)
    y0, y1 = first_rows(at, line, level, there, shifts, taps, zero, PRECISION)
    for i in tl.range(0, tl.minimum(share, rows - begin), num_stages=STAGES):
        at += line
        pixels = tl.load(at, mask=there & (level + i + 1 < height), other=0.0)
        y0, y1, y2 = add_row(pixels, shifts, taps, y0, y1, PRECISION)
        y = y0 if bias is None else y0 + floats(bias + 2 * C + channel, inside)[:, None]
        tl.store(to, y.to(v.dtype.element_ty), mask=computed)
        y0, y1 = y1, y2
        to += width * C


@triton.jit(do_not_specialize=SIZES)
def sums_kernel(
    x, weight, bias, sums, height, width, skip, rows, share,
    C: tl.constexpr, D: tl.constexpr, PADDED: tl.constexpr,
    P: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Convolve x depth-wise (3x3) to q and k, and write their sums over the pixels.

    Each program is for P - 2 columns of `share` rows and one head of one image, as those of
    `depthwise_kernel`.

    x, weight, bias: as there.
    sums: `[n, programs, heads, D + 2, D]` float32, written, to be added up: Gram matrix (of q and k
        in the precision of x), squares of q, squares of k.
    """
    piece, head, image = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    across = tl.cdiv(width, P - 2)
    begin, column = piece // across * share, piece % across * (P - 2)
    x += (image * height + begin + skip) * width * (3 * C)
    both = tl.arange(0, 2 * PADDED)  # q and k
    part, of_part = both // PADDED, both % PADDED
    inside, channel = of_part < D, part * C + head * D + of_part
    of_row = tl.arange(0, P)
    pixel = column - 1 + of_row
    there = ((pixel >= 0) & (pixel < width))[:, None] & inside[None, :]
    computed = inside[:, None] & ((of_row < P - 2) & (column + of_row < width))[None, :]
    shifts, taps = shifts_of(column, width, P, x), taps_of(weight, channel, inside)
    at, line = x + (pixel[:, None] * (3 * C) + channel[None, :]), width * (3 * C)
    level = begin + skip + tl.zeros([P, 1], tl.int32)
    zero = tl.zeros([2 * PADDED, P], tl.float32)
    y0, y1 = first_rows(at, line, level, there, shifts, taps, zero, PRECISION)
    gram = tl.zeros([PADDED, PADDED], tl.float32)
    square = tl.zeros([2 * PADDED, P // 4], tl.float32)
    for i in tl.range(0, tl.minimum(share, rows - begin), num_stages=STAGES):
        at += line
        pixels = tl.load(at, mask=there & (level + i + 1 < height), other=0.0)
        y0, y1, y2 = add_row(pixels, shifts, taps, y0, y1, PRECISION)
        y = y0
        if bias is not None:  # padding must not count in the sums: it stays zero
            y = tl.where(computed, y0 + floats(bias + channel, inside)[:, None], 0.0)
        square = add_squares(y, square)
        half = tl.reshape(y.to(x.dtype.element_ty), [2, PADDED, P])
        q, k = tl.split(tl.permute(half, [1, 2, 0]))
        gram = tl.dot(q, tl.trans(k), gram, input_precision=PRECISION)
        y0, y1 = y1, y2
    number = (image * tl.num_programs(0) + piece) * tl.num_programs(1) + head
    sums += number * ((D + 2) * D)
    row, column = tl.arange(0, PADDED)[:, None], tl.arange(0, PADDED)[None, :]
    tl.store(sums + row * D + column, gram, mask=(row < D) & (column < D))
    tl.store(sums + (D + part) * D + of_part, tl.sum(square, 1), mask=inside)


@triton.jit
def total_kernel(
    pieces, out, count, VALUES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Add up the partial sums of an image's programs, always in the same order.

    Each program adds COLUMNS of the values, ROWS pieces at a time.

    pieces: `[n, count, VALUES]` float32; out: `[n, VALUES]`, written.
    """
    image = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.arange(0, ROWS)
    pieces += image * count * VALUES
    inside = column < VALUES
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in tl.range(0, count, ROWS, num_stages=4):
        place = (first + row)[:, None] * VALUES + column[None, :]
        there = (first + row < count)[:, None] & inside[None, :]
        total += tl.load(pieces + place, mask=there, other=0.0)
    tl.store(out + image * VALUES + column, tl.sum(total, 0), mask=inside)


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
    q_norm = tl.sqrt(tl.maximum(q_square_, SMALLEST_SQUARE))
    k_norm = tl.sqrt(tl.maximum(k_square_, SMALLEST_SQUARE))
    part_norm = tl.sqrt(tl.maximum(of_part, SMALLEST_SQUARE))
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
def mixed(
    xa, xb, v, there, mixing, of_a, of_b, C: tl.constexpr, H: tl.constexpr, PRECISION: tl.constexpr
):
    """Return xa and xb plus the channels of_a and of_b of `mixing v`; only xa if xb is None.

    v: addresses of the first channel of each pixel, `[M, 1]`; there: mask of the pixels.
    H: channels of v that are read together. The compiler loads the parts of a loop ahead of their
        use.
    """
    a = tl.zeros_like(xa)
    b = None if xb is None else tl.zeros_like(xb)
    for first in range(0, C, H):
        part = first + tl.arange(0, H)
        of_v = tl.load(v + part[None, :], mask=there & (part < C)[None, :], other=0.0)
        a = tl.dot(of_v, transposed(mixing, of_a, part, C, C), a, input_precision=PRECISION)
        if xb is not None:
            b = tl.dot(of_v, transposed(mixing, of_b, part, C, C), b, input_precision=PRECISION)
    if xb is None:
        return xa + a
    else:  # noqa: RET505 - Triton compiles what follows an `if`, even if its condition is known
        return xa + a, xb + b


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
        v += pixel[:, None] * v_pixel
        # z is added last, so that the product need not wait for it.
        if B > 0:
            xa, xb = mixed(xa, xb, v, there, mixing, of_a, of_b, C, H, PRECISION)
        else:
            xa = mixed(xa, xb, v, there, mixing, of_a, of_b, C, H, PRECISION)
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
