"""The fastest exact route of this machine for the core's 1x1 convolutions, norms and pixel sums.

On a CPU oneDNN's linear kernel outruns the BLAS behind `F.linear` in float32, and applies GELU
while its result is still in cache. In bfloat16 `F.linear` is oneDNN's.

What is done pixel by pixel is done on a few rows at a time there (`rows_in_cache`), for the same
reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from operator import add

import torch
from torch import Tensor

from c2fdft_cli.core.attention import PixelSums, pixel_sums
from c2fdft_cli.core.layers import NORM_EPS

# 1,024 took 1.0 to 1.4 times as long (docs/performance.md).
CAST_PIXELS = 4096
"""Pixels of half-precision q and k that a CPU turns to float32 at a time."""

# The kernel that torch's own compiler calls for a linear layer; absent on builds without oneDNN.
_ONEDNN = bool(torch.backends.mkldnn.is_available()) and hasattr(  # type: ignore[no-untyped-call]
    torch.ops.mkldnn, "_linear_pointwise"
)

# Values of the stream: 2.6 MB of it, 10 of the hidden layer. 16384 * 48 was 2 to 4 % faster than
# 8192 * 48; this is what keeps 1024x1024 within 1 GiB.
_CACHED_VALUES = 13312 * 48
# Without AVX-512 a product over this many channels and its GELU are faster one after the other.
_WIDE = 192
_WIDE_FUSES = torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2")


def rows_in_cache(height: int, values: int) -> int:
    """Rows of an image to work on at a time on a CPU, of `height` with so many values each."""
    return min(height, max(8, _CACHED_VALUES // values))


def row_ranges(height: int, rows: int) -> Iterator[tuple[int, int]]:
    """The first row of each strip of `rows` rows, and the one behind its last."""
    for top in range(0, height, rows):
        yield top, min(top + rows, height)


def with_halo(top: int, bottom: int, height: int) -> tuple[int, int]:
    """The rows that a 3x3 convolution of rows top to bottom reads within the image."""
    return max(top - 1, 0), min(bottom + 1, height)


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> Tensor:
    """`x weight^T + bias`, then GELU (erf form) if asked, where `has_onednn_linear`.

    It has no derivative.

    Args:
        x: `[n, h, w, in]`.
        weight: `[out, in]`, as it is or reordered for this kernel.
        bias: `[out]` or None.
        gelu: apply GELU to the result.
    """
    fused = gelu and (_WIDE_FUSES or x.shape[-1] < _WIDE)
    kind, algorithm = ("gelu", "none") if fused else ("none", "")
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, kind, [], algorithm)
    return torch.ops.aten.gelu_(y) if gelu and not fused else y


def has_onednn_linear(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `onednn_linear` runs here: float32, or bfloat16 where the CPU computes in it."""
    if not _ONEDNN or device.type != "cpu" or is_traced():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def is_traced() -> bool:
    """Whether a compiler or an exporter looks on, which wants plain operators."""
    return torch.compiler.is_compiling() or bool(torch._C._get_tracing_state())


def pixel_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, time: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`PixelNorm` of x in few passes; it has no derivative.

    Args:
        x: `[n, h, w, c]` float32.
        weight: `[c]` float32.
        bias: as weight; None leaves the mean in.
        time: `[n or 1, c]` float32.

    Returns:
        `norm(x) + time`, and of each pixel mean and 1 / sqrt(var + eps), `[n, h, w, 1]`.
    """
    shared = time[0] if len(time) == 1 else None
    # What all pixels share goes into the norm's own bias instead of one more pass.
    shift = shared if bias is None else bias
    if shared is not None and bias is not None:
        shift = bias + shared
    y, mean, rate = torch.native_layer_norm(x, weight.shape, weight, shift, NORM_EPS)
    # (x - m) r w + m r w = x r w: `native_layer_norm` returns m and r anyway.
    if bias is None:
        y = y.addcmul_(mean * rate, weight)
    if shared is None:
        y = y.add_(time[:, None, None])
    return y, mean, rate


def sums_of_pixels(q: Tensor, k: Tensor, heads: int) -> PixelSums:
    """`pixel_sums` of q, k: `[n, h, w, c]`; half precision is cast piece by piece on a CPU."""
    q, k = q.flatten(1, 2), k.flatten(1, 2)
    if q.dtype == torch.float32 or not casts_in_pieces(q.device):
        return pixel_sums(q, k, heads)
    pieces = zip(
        torch.split(q, CAST_PIXELS, dim=1), torch.split(k, CAST_PIXELS, dim=1), strict=True
    )
    return reduce(add, (pixel_sums(a, b, heads) for a, b in pieces))


def casts_in_pieces(device: torch.device) -> bool:
    """Whether half-precision q and k are turned to float32 piece by piece.

    On a CPU a copy of all of them is more memory traffic than the sums; on a GPU many small
    kernels cost more than one large one, and a compiler would unroll the pieces.
    """
    return device.type == "cpu" and not torch.compiler.is_compiling()
