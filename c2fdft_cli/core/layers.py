"""The layers of the network, for channels-last activations `[n, h, w, c]`.

In this layout a 1x1 convolution is a matrix product over the pixels, and the layer norm runs along
the contiguous axis. Parameter names and shapes are those of the official program.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-5


class _Conv(nn.Conv2d):
    """A convolution that draws no initial values on the meta device, which cannot hold them."""

    def reset_parameters(self) -> None:
        """Draw initial values as torch does; on the meta device it took most of the time."""
        if not self.weight.is_meta:
            super().reset_parameters()


class Conv1x1(_Conv):
    """1x1 convolution of `x: [n, h, w, in]` to `[n, h, w, out]`."""

    def __init__(self, width: int, out: int, bias: bool) -> None:
        super().__init__(width, out, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x weight^T + bias` at each pixel."""
        return F.linear(x, self.weight.flatten(1), self.bias)


class Conv3x3(_Conv):
    """3x3 convolution of `x: [n, h, w, in]` to `[n, h, w, out]`, with zero padding."""

    def __init__(self, width: int, out: int, bias: bool = False, groups: int = 1) -> None:
        super().__init__(width, out, 3, padding=1, groups=groups, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the convolution; both permutations are views."""
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class _Affine(nn.Module):
    def __init__(self, width: int, with_bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if with_bias else None


class PixelNorm(nn.Module):
    """Layer norm over each pixel's channels, plus the time embedding: docs/paper.md, eq. (4).

    `bias_free` divides by sqrt(var + eps) *without* subtracting the mean in the numerator; the
    variance is still the biased one around the mean.
    """

    def __init__(self, width: int, norm: str) -> None:
        super().__init__()
        if norm not in ("with_bias", "bias_free"):
            raise ValueError(f"norm must be with_bias or bias_free, got {norm!r}")
        self.body = _Affine(width, norm == "with_bias")

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Return `norm(x) + time`; x: `[n, h, w, c]`, time: `[n or 1, c]` float32."""
        weight, bias = self.body.weight, self.body.bias
        if bias is None:
            var = x.var(-1, correction=0, keepdim=True)
            return x * torch.rsqrt(var + NORM_EPS) * weight + time[:, None, None]
        if len(time) == 1:  # one time for the whole batch: it can be added to the norm's own bias
            return F.layer_norm(x, weight.shape, weight, bias + time[0], NORM_EPS)
        # In place is allowed: the norm's derivative reads its input, not its result.
        return F.layer_norm(x, weight.shape, weight, bias, NORM_EPS).add_(time[:, None, None])
