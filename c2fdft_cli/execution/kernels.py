"""The core's 1x1 convolutions, norms and pixel sums by torch's fastest exact operators.

On a CPU in float32, oneDNN's linear kernel is faster than the BLAS that `F.linear` uses, and
applies GELU while its result is still in the cache. In bfloat16 `F.linear` already uses oneDNN.

To stay in the cache, pixel-wise work on a CPU processes a few rows at a time (`rows_in_cache`).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from operator import add

import torch
from torch import Tensor

from c2fdft_cli.core.attention import PixelSums, pixel_sums
from c2fdft_cli.core.layers import NORM_EPS

# With 1,024 it took 1.0 to 1.4 times as long (docs/performance.md).
CAST_PIXELS = 4096
"""Pixels of half-precision q and k that are cast to float32 at a time on a CPU."""

# The kernel that torch's own compiler calls for a linear layer; missing in builds without oneDNN.
_ONEDNN = bool(torch.backends.mkldnn.is_available()) and hasattr(  # type: ignore[no-untyped-call]
    torch.ops.mkldnn, "_linear_pointwise"
)

# Values of the stream in a strip: 2.6 MB of it, 10 MB of the hidden layer. 16384 * 48 was 2 to 4 %
# faster than 8192 * 48; this number keeps 1024x1024 px within 1 GiB.
_CACHED_VALUES = 13312 * 48
# Without AVX-512, from this many channels on, GELU is faster after the product than fused with it.
_WIDE = 192
_WIDE_FUSES = torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2")


def rows_in_cache(height: int, values: int) -> int:
    """Return how many of `height` rows a CPU processes at a time; a row has `values` values."""
    return min(height, max(8, _CACHED_VALUES // values))


def row_ranges(height: int, rows: int) -> Iterator[tuple[int, int]]:
    """Yield the first row of each strip of `rows` rows, and the row after its last."""
    for top in range(0, height, rows):
        yield top, min(top + rows, height)


def with_halo(top: int, bottom: int, height: int) -> tuple[int, int]:
    """Return the range of rows that a 3x3 convolution of rows top to bottom reads in the image."""
    return max(top - 1, 0), min(bottom + 1, height)


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> Tensor:
    """Return `x weight^T + bias`, followed by GELU (erf form) if `gelu`.

    Available if `has_onednn_linear`; it has no derivative.

    Args:
        x: `[n, h, w, in]`.
        weight: `[out, in]`, plain or reordered for this kernel.
        bias: `[out]` or None.
        gelu: apply GELU to the result.
    """
    fused = gelu and (_WIDE_FUSES or x.shape[-1] < _WIDE)
    kind, algorithm = ("gelu", "none") if fused else ("none", "")
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, kind, [], algorithm)
    return torch.ops.aten.gelu_(y) if gelu and not fused else y


def has_onednn_linear(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `onednn_linear` can run: float32, or bfloat16 if the CPU computes in it."""
    if not _ONEDNN or device.type != "cpu" or is_traced():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def is_traced() -> bool:
    """Whether a compiler or an exporter is tracing, which requires plain operators."""
    return torch.compiler.is_compiling() or bool(torch._C._get_tracing_state())


def pixel_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, time: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `PixelNorm` of x in few passes over memory; it has no derivative.

    Args:
        x: `[n, h, w, c]` float32.
        weight: `[c]` float32.
        bias: as weight; with None the mean is not subtracted.
        time: `[n or 1, c]` float32.

    Returns:
        `norm(x) + time`, and each pixel's mean and 1 / sqrt(var + eps), `[n, h, w, 1]`.
    """
    shared = time[0] if len(time) == 1 else None
    # What all pixels share is added to the norm's own bias instead of in another pass.
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
    """Compute `pixel_sums` of q, k: `[n, h, w, c]`; a CPU casts half precision in pieces."""
    q, k = q.flatten(1, 2), k.flatten(1, 2)
    if q.dtype == torch.float32 or not casts_in_pieces(q.device):
        return pixel_sums(q, k, heads)
    pieces = zip(
        torch.split(q, CAST_PIXELS, dim=1), torch.split(k, CAST_PIXELS, dim=1), strict=True
    )
    return reduce(add, (pixel_sums(a, b, heads) for a, b in pieces))


def casts_in_pieces(device: torch.device) -> bool:
    """Whether half-precision q and k are cast to float32 piece by piece.

    On a CPU a copy of all of them causes more memory traffic than the sums. On a GPU many small
    kernels cost more than one large one, and a compiler would unroll the loop over the pieces.
    """
    return device.type == "cpu" and not torch.compiler.is_compiling()


def weight_grad(grad: Tensor, x: Tensor) -> Tensor:
    """Return the gradient of `linear` with respect to its weight."""
    return grad.flatten(0, -2).t() @ x.flatten(0, -2)


def bias_grad(grad: Tensor, needed: bool) -> Tensor | None:
    """Return the gradient with respect to a bias; None if it is not needed."""
    return grad.flatten(0, -2).sum(0) if needed else None
