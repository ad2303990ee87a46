"""1x1 convolutions of channels-last activations, each by the fastest exact route of its device.

On a CPU oneDNN's linear kernel outruns the BLAS behind `F.linear` in float32, and applies GELU
while its result is still in cache. In bfloat16 `F.linear` is oneDNN's.

What is done pixel by pixel is done on a few rows at a time there (`rows_in_cache`), for the same
reason.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

# The kernel that torch's own compiler calls for a linear layer; absent on builds without oneDNN.
_ONEDNN = bool(torch.backends.mkldnn.is_available()) and hasattr(  # type: ignore[no-untyped-call]
    torch.ops.mkldnn, "_linear_pointwise"
)

_CACHED_VALUES = 13312 * 48  # of the stream: 2.6 MB of it, 10 of the hidden layer
# Without AVX-512 a product over this many channels and its GELU are faster one after the other.
_WIDE = 192
_WIDE_FUSES = torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2")


def rows_in_cache(height: int, values: int) -> int:
    """Rows of an image to work on at a time on a CPU, of `height` with so many values each."""
    return min(height, max(8, _CACHED_VALUES // values))


def bands(height: int, rows: int) -> Iterator[tuple[int, int]]:
    """The first row of each band of `rows` rows, and the one behind its last."""
    for top in range(0, height, rows):
        yield top, min(top + rows, height)


def halo(top: int, bottom: int, height: int) -> tuple[int, int]:
    """The rows that a 3x3 convolution of rows top to bottom reads within the image."""
    return max(top - 1, 0), min(bottom + 1, height)


def project(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> Tensor:
    """`x weight^T + bias`, then GELU (erf form) if asked.

    Args:
        x: `[n, h, w, in]`.
        weight: `[out, in]`; for inference, what `pack` made of it does too.
        bias: `[out]` or None.
        gelu: apply GELU to the result.

    Returns:
        `[n, h, w, out]`.
    """
    outside_autocast = not torch.is_autocast_enabled("cpu")
    if outside_autocast and not torch.is_grad_enabled() and fusable(x.device, x.dtype):
        return linear(x, weight, bias, gelu)
    y = F.linear(x, weight, bias)
    return F.gelu(y) if gelu else y


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> Tensor:
    """`project` by oneDNN's kernel, which the caller has found `fusable`; it has no derivative."""
    fused = gelu and (_WIDE_FUSES or x.shape[-1] < _WIDE)
    kind, algorithm = ("gelu", "none") if fused else ("none", "")
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, kind, [], algorithm)
    return torch.ops.aten.gelu_(y) if gelu and not fused else y


def pack(weight: Tensor) -> Tensor:
    """The weight in the layout that `project` likes best in inference on its device."""
    if fusable(weight.device, weight.dtype):
        return torch.ops.mkldnn._reorder_linear_weight(weight)  # type: ignore[no-any-return]
    return weight


def is_traced() -> bool:
    """Whether a compiler or an exporter looks on: it wants plain operators, without loops."""
    return torch.compiler.is_compiling() or bool(torch._C._get_tracing_state())


def fusable(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `linear` runs here: float32, or bfloat16 where the CPU computes in it."""
    if not _ONEDNN or device.type != "cpu" or is_traced():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32
