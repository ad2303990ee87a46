"""How much memory a network call in strips of rows needs, and the strips that fit.

What is alive at the worst moment of a call is counted, in bytes, with s the bytes of a value in the
strip's precision, h and w the sides, C the width of level 1 and r the rows of a strip. Only decoder
level 1 matters: at full resolution and width 2C everything in it is largest. The residual stream
and the skips are float32 (4 bytes).

    always        the result, 4 * 3 h w
    a block       stream and v of all rows:       (4 + s) * 2C h w
                  and the wider of one strip's passes:
        gather    q, k, v before and behind the depth-wise convolution, with the halo:
                                                  2 * 3 s * 2C w (r + 2)
                  or behind it only, with the squares (and q, k as float32 where they are cast),
                  which CUDA needs not
        apply     norm and hidden layer:          (s + s * ffn_factor * copies) * 2C w r
                  copies: both sides of GELU, or one where the kernel fuses it or writes in place
                  on CUDA v of an image in one strip is not copied out of q, k, v: 3 s above
        compiled kernels (float32 on a CPU) hold a few tiles beside the norm of one image's strip:
                                                  4 * 2C w (r + 2)
    joining       making the decoder's stream out of the skip (C) and the level below (2C at half
                  the sides: 2C / 4): 4 * (2C + C + 2C / 4) h w, and one strip of the up-sampling;
                  of a skip that waits in host memory one strip only

The peak is the result plus the larger of the block and the joining. `tests/execution` compares it
with the bytes that are alive when the network really runs.
"""

from __future__ import annotations

import torch
from torch import nn

from c2fdft_cli.core.network import DFT, SIZE_MULTIPLE
from c2fdft_cli.execution.cuda.products import sums_without_copies
from c2fdft_cli.execution.kernels import CAST_PIXELS, casts_in_pieces, has_onednn_linear
from c2fdft_cli.execution.native.library import kernels_for
from c2fdft_cli.execution.strips import default_rows

_FULL = 4  # bytes of a float32


def rows_that_fit(
    net: DFT,
    height: int,
    width: int,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    budget_bytes: int | None = None,
    offload_skips: bool = False,
    compiled: bool = False,
) -> int:
    """Rows in a strip: as many as run fast, halved until a call fits.

    Args:
        net: the network, on the device where it will run.
        height: of the images, a multiple of 8.
        width: of the images, a multiple of 8.
        batch: images in a call.
        dtype: of the activations.
        budget_bytes: what a call may take beyond the weights; None for no limit.
        offload_skips: whether skips wait in host memory.
        compiled: whether torch.compile makes the passes: then the kernels for a CPU do not run.

    Raises:
        ValueError: a size that is not positive and a multiple of 8, or not even strips of one row
            fit; says what would.
    """
    if height < 1 or width < 1 or batch < 1 or height % SIZE_MULTIPLE or width % SIZE_MULTIPLE:
        raise ValueError(f"sides must be multiples of {SIZE_MULTIPLE}, got {height}x{width}")
    device = net.output.weight.device
    native = _is_native(net, dtype, compiled)
    rows = default_rows(net.dim, height, width, device.type, native)
    while budget_bytes is not None:
        peak = strip_bytes(net, height, width, batch, dtype, rows, offload_skips, compiled)
        if peak <= budget_bytes:
            break
        if rows == 1:
            # Nearly every term of the peak grows with the pixels; those of a strip of one row,
            # which grow with the width, are too small to matter here.
            fitting = height * width * budget_bytes / peak / 1e6
            raise ValueError(
                f"{height}x{width} needs {peak} bytes in strips of 1 row, {budget_bytes} may be "
                f"used: about {fitting:.2g} megapixels fit"
            )
        rows //= 2
    return rows


def strip_bytes(
    net: DFT,
    height: int,
    width: int,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    rows: int = 32,
    offload_skips: bool = False,
    compiled: bool = False,
) -> int:
    """Peak bytes of `StripNetwork(net, rows, dtype, offload_skips, compiled)(x, t)` beyond weights
    and x.

    With several strips the images of a batch run one after another.
    """
    # As `StripNetwork.__call__` has it, but for a batch that `MAX_STRIP_VALUES` cuts into parts:
    # that one is planned as a whole, which is too much and never too little.
    together = batch if rows >= height else 1
    line = width * together * net.dim  # values of level 1 in one row
    # The result of all images is there from the first one on: each writes its own part. The second
    # result that a recording holds is left out, as small calls alone are recorded.
    out = _FULL * net.out_channels * height * width * batch
    # The pixel sums beside q and k: of this many rows at a time q * q is there, and float32 copies
    # of q and k where these are half precision. On CUDA the products read them as they are and the
    # squares are never written; what is left out there, a Gram matrix of c^2 floats for about 16 c
    # pixels, is a quarter of a byte a value.
    cast: float = min(rows, height)
    if sums_without_copies(net.output.weight.device, dtype):
        cast = 0
    elif dtype != torch.float32 and casts_in_pieces(net.output.weight.device):
        cast = min(cast, CAST_PIXELS / width)
    if _is_native(net, dtype, compiled):
        block = _native_block_bytes(line, together, height, rows)
    else:
        block = _block_bytes(net, line, height, dtype, rows, cast)
    skip_rows = rows if offload_skips else height
    return out + max(_joining_bytes(line, height, dtype, rows, skip_rows), block)


def _is_native(net: DFT, dtype: torch.dtype, compiled: bool) -> bool:
    """Whether the kernels for a CPU run."""
    return not compiled and kernels_for(net.output.weight.device, dtype) is not None


def _joining_bytes(line: int, height: int, dtype: torch.dtype, rows: int, skip_rows: int) -> int:
    """Making the stream of decoder level 1 out of its skip and the level below."""
    # Whole and float32: what is made (2C), the level below (2C at a quarter of the pixels) and the
    # skip (C), of which a strip comes to the device at a time where it waits in host memory.
    streams = _FULL * ((2 + 2 / 4) * height + min(skip_rows, height))
    # The convolution of a strip of the level below, with its halo: rows of half the width, 2C
    # values in the strip's precision and the 4C that are made of them.
    strip = dtype.itemsize * min(rows // 2 + 2, height // 2) * (2 + 4) / 2
    return int(line * (streams + strip))


def _block_bytes(
    net: DFT, line: int, height: int, dtype: torch.dtype, rows: int, cast: float
) -> int:
    """A block of decoder level 1: stream, v, and the wider of the two passes' strips."""
    # All in values of 2C a row; `line` has C.
    size = dtype.itemsize
    strip, haloed = min(rows, height), min(rows + 2, height)
    sums = _FULL * cast * (1 if dtype == torch.float32 else 3)  # squares; q and k if they are cast
    # Widest in the depth-wise convolution, 3s before it and 3s behind it. The norm is gone by then:
    # with it there were s + 3s at the projection. Behind the convolution its input is gone: 3s are
    # left, and what the sums need.
    gather = max(6 * size * haloed, 3 * size * haloed + sums)
    # Norm and hidden layer while the layer is made; hidden layer and the result to be added to the
    # stream while it is narrowed. Neither is more than s beside the hidden layer.
    apply = (size + _hidden(net, dtype) * size) * strip
    # One strip: v is a third of q, k, v, kept as it is (3s) through the second pass instead of
    # being copied out of it (s) once more. The first pass has made it, so it is no term of that
    # one.
    if net.output.weight.device.type == "cuda" and rows >= height:
        return int(2 * line * (_FULL * height + max(gather, 3 * size * height + apply)))
    # Left out: the sums of each strip, c^2 floats that wait for the last strip's. They are nothing
    # beside the rows of a large image, and a third of the peak for strips of 1 row of 96 px.
    return int(2 * line * ((_FULL + size) * height + max(gather, apply)))


def _native_block_bytes(line: int, together: int, height: int, rows: int) -> int:
    """The same where compiled kernels run."""
    # The kernels' tiles stay in cache and count for nothing. One strip's norm serves the images one
    # after another, while `line` is the row of all of them.
    normed = min(rows + 2, height) / together
    return int(2 * line * _FULL * (2 * height + normed))


def _hidden(net: DFT, dtype: torch.dtype) -> float:
    """Hidden values alive at once, over the width: both sides of GELU where it is not fused."""
    project_in: nn.Conv2d = net.get_submodule("decoder_level1.0.ffn.project_in")  # type: ignore[assignment]
    device = project_in.weight.device
    # `gelu_` on CUDA and oneDNN's kernel on a CPU, fused or in place, leave one layer; `F.gelu` has
    # its argument beside its result. By the layer's own widths: `int(width * ffn_factor)` may have
    # cut the factor.
    copies = 1 if device.type == "cuda" or has_onednn_linear(device, dtype) else 2
    return copies * project_in.out_channels / project_in.in_channels
