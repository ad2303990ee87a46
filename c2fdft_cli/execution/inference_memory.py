"""An estimate of the memory of a network call in strips of rows, and the strips that fit.

The estimate counts the bytes that are alive at the worst moment of a call. In it, s is the bytes of
a value in the strip's precision, h and w are the sides of the image, C is the width of level 1, and
r is the number of rows in a strip. Only decoder level 1 matters: at full resolution and width 2C,
it has the largest tensors. The residual stream and the skips are float32 (4 bytes).

    always        the result:                     4 * 3 h w
    a block       stream and v of all rows:       (4 + s) * 2C h w
                  and the larger of the two passes over a strip:
        gather    q, k, v before and after the depth-wise convolution, with the halo:
                                                  2 * 3 s * 2C w (r + 2)
                  or only those after it, with temporary tensors of the sums: the squares, and
                  float32 copies of q and k if they are cast (CUDA needs neither, except for half
                  precision before torch 2.8)
        apply     norm and hidden layer:          (s + s * ffn_factor * copies) * 2C w r
                  copies: 2 if the values before and after GELU coexist, 1 if the kernel fuses
                  GELU or applies it in place
                  If the image is one strip on CUDA, v is not copied out of q, k, v: the s above
                  does not apply, but in this pass the whole q, k, v (3 s) are alive
        fused kernels (on CUDA) replace each pass, or not, and need less: in gather q, k, v before
                  the convolution and v after it, which is then no part of q, k, v; in apply
                  nothing up to 192 channels (and above them at most what the plain passes need)
        compiled kernels (on a CPU) have, besides stream and v, only a few tiles in the cache and
                  the norm of one image's strip:  s * 2C w (r + 2)
    joining       the decoder's stream (2C) is made from the skip (C) and the level below (2C at
                  half the sides: 2C / 4):        4 * (2C + C + 2C / 4) h w
                  and one strip of the up-sampling; of a skip in host memory only one strip counts

The peak is the result plus the larger of block and joining. `tests/execution` compares it with the
bytes that are alive when the network really runs.
"""

from __future__ import annotations

import torch
from torch import nn

from c2fdft_cli.core.network import DFT, SIZE_MULTIPLE
from c2fdft_cli.execution.cuda.cards import WIDEST_SECOND_PASS
from c2fdft_cli.execution.cuda.products import sums_without_copies
from c2fdft_cli.execution.fused.choose import PLAIN
from c2fdft_cli.execution.kernels import CAST_PIXELS, casts_in_pieces, has_onednn_linear
from c2fdft_cli.execution.strips import StripNetwork, default_rows

_FULL = 4  # bytes of a float32


def rows_that_fit(
    strips: StripNetwork,
    height: int,
    width: int,
    batch: int = 1,
    budget_bytes: int | None = None,
    offload_skips: bool = False,
) -> int:
    """Return the rows in a strip: the number that runs fast, halved until a call fits.

    Args:
        strips: the network, on the device where it will run.
        height: height of the images, a multiple of 8.
        width: width of the images, a multiple of 8.
        batch: images in a call.
        budget_bytes: most bytes that a call may use in addition to the weights; None for no limit.
        offload_skips: whether skips are kept in host memory.

    Raises:
        ValueError: a size that is not positive and a multiple of 8; or even strips of one row do
            not fit (the message states the size that would).
    """
    if height < 1 or width < 1 or batch < 1 or height % SIZE_MULTIPLE or width % SIZE_MULTIPLE:
        raise ValueError(f"sides must be multiples of {SIZE_MULTIPLE}, got {height}x{width}")
    device = strips.net.output.weight.device
    rows = default_rows(strips.net.dim, height, width, device.type, strips.is_native)
    while budget_bytes is not None:
        peak = strip_bytes(strips, height, width, batch, rows, offload_skips)
        if peak <= budget_bytes:
            break
        if rows == 1:
            # Nearly every term of the peak is proportional to the pixels. Those of a strip of one
            # row, which are proportional to the width, are too small to matter here.
            fitting = height * width * budget_bytes / peak / 1e6
            raise ValueError(
                f"{height}x{width} needs {peak} bytes in strips of 1 row, {budget_bytes} may be "
                f"used: about {fitting:.2g} megapixels fit"
            )
        rows //= 2
    return rows


def strip_bytes(
    strips: StripNetwork,
    height: int,
    width: int,
    batch: int,
    rows: int,
    offload_skips: bool = False,
) -> int:
    """Return the peak bytes of a call, in addition to the weights and x.

    The arguments are those of `rows_that_fit`, and the rows in a strip. With several strips the
    images of a batch run one after another.
    """
    net, dtype = strips.net, strips.dtype
    # As in `StripNetwork.__call__`, except for a batch that `MAX_STRIP_VALUES` divides into parts:
    # it is counted as a whole, which may be too much but never too little.
    together = batch if rows >= height else 1
    line = width * together * net.dim  # values of level 1 in one row
    # The result for all images exists from the first image on: each writes its own part. The second
    # result that a recording holds is not counted, because only small calls are recorded.
    out = _FULL * net.out_channels * height * width * batch
    # The rows for which the sums have temporary tensors at a time. Not counted on CUDA: the Gram
    # matrices, c^2 floats for about 16 c pixels, a quarter of a byte per value.
    cast: float = min(rows, height)
    if sums_without_copies(net.output.weight.device, dtype):
        cast = 0
    elif dtype != torch.float32 and casts_in_pieces(net.output.weight.device):
        cast = min(cast, CAST_PIXELS / width)
    if strips.is_native:
        block = _native_block_bytes(line, together, height, dtype, rows)
    else:
        block = _block_bytes(strips, line, height, rows, cast)
    skip_rows = rows if offload_skips else height
    return out + max(_joining_bytes(line, height, dtype, rows, skip_rows), block)


def _joining_bytes(line: int, height: int, dtype: torch.dtype, rows: int, skip_rows: int) -> int:
    """Return the bytes for making decoder level 1's stream from its skip and the level below."""
    streams = _FULL * ((2 + 2 / 4) * height + min(skip_rows, height))
    # The convolution of a strip of the level below, with its halo: rows of half the width, with 2C
    # input channels and 4C output channels in the strip's precision.
    strip = dtype.itemsize * min(rows // 2 + 2, height // 2) * (2 + 4) / 2
    return int(line * (streams + strip))


def _block_bytes(strips: StripNetwork, line: int, height: int, rows: int, cast: float) -> int:
    """Return the bytes of a block of decoder level 1: stream, v, and the larger strip pass."""
    # All terms are in units of a row with 2C channels; `line` has C.
    net, dtype, size = strips.net, strips.dtype, strips.dtype.itemsize
    # Compiled passes are estimated as the plain ones.
    passes = PLAIN if strips.compiled else strips.widest_passes()
    strip, haloed = min(rows, height), min(rows + 2, height)
    # Norm and hidden layer while this layer is computed; hidden layer and the result to be added to
    # the stream while it is narrowed. In both cases at most s in addition to the hidden layer.
    apply = (size + _hidden(net, dtype) * size) * strip
    if passes.apply is not PLAIN.apply and 2 * net.dim <= WIDEST_SECOND_PASS:
        apply = 0
    is_one_strip = net.output.weight.device.type == "cuda" and rows >= height
    # Not counted: the sums, c^2 floats per strip, of which few are held at a time. They are
    # negligible compared with the rows of a large image.
    if passes.gather is not PLAIN.gather:
        # A single strip's v stays where it was computed; that of others is copied.
        copied = 0 if is_one_strip else size * strip
        gathered = 3 * size * haloed + copied
        return int(2 * line * ((_FULL + size) * height + max(gathered, apply)))
    sums = _FULL * cast * (1 if dtype == torch.float32 else 3)  # squares; q and k if they are cast
    # The peak is in the depth-wise convolution, with 3s before it and 3s after it. The norm has
    # been freed by then; at the projection, together with it, there were s + 3s. After the
    # convolution its input has been freed: 3s are left, and what the sums need.
    gather = max(6 * size * haloed, 3 * size * haloed + sums)
    if is_one_strip:  # the first pass creates q, k and v, so they are no additional term there
        return int(2 * line * (_FULL * height + max(gather, 3 * size * height + apply)))
    return int(2 * line * ((_FULL + size) * height + max(gather, apply)))


def _native_block_bytes(
    line: int, together: int, height: int, dtype: torch.dtype, rows: int
) -> int:
    """Return the same as `_block_bytes` if the compiled C kernels run."""
    # The kernels' tiles fit in the cache and are not counted. The buffer for a strip's norm serves
    # one image after another, whereas `line` is a row of all images.
    normed = min(rows + 2, height) / together
    return int(2 * line * (_FULL * height + dtype.itemsize * (height + normed)))


def _hidden(net: DFT, dtype: torch.dtype) -> float:
    """Return the hidden values per channel alive at once: both sides of GELU unless it is fused."""
    project_in: nn.Conv2d = net.get_submodule("decoder_level1.0.ffn.project_in")  # type: ignore[assignment]
    device = project_in.weight.device
    # `gelu_` on CUDA and oneDNN's kernel on a CPU need one layer. The ratio is that of the layer's
    # own widths, because `int(width * ffn_factor)` may have rounded down.
    copies = 1 if device.type == "cuda" or has_onednn_linear(device, dtype) else 2
    return copies * project_in.out_channels / project_in.in_channels
