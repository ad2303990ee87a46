"""The network of docs/paper.md written down plainly: NCHW, one operator for each symbol.

An oracle for the tests, and the yardstick for ratios of speed (recipes/scripts/compare_speed.py).
Parameter names are those of `c2fdft_cli.core.network.DFT`, so its weights load strictly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Norm(nn.Module):
    """Eq. (4): layer norm over the channels of each pixel."""

    def __init__(self, width: int, norm: str) -> None:
        super().__init__()
        self.body = nn.Module()
        self.body.weight = nn.Parameter(torch.ones(width))
        self.body.bias = nn.Parameter(torch.zeros(width)) if norm == "with_bias" else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x: `[n, c, h, w]`; without bias the mean is not subtracted.

        In the official program's layout, `[n, h w, c]`, so that ratios of speed compare with it.
        """
        weight, bias = self.body.weight, self.body.bias
        z = x.flatten(2).transpose(1, 2)
        deviation = torch.sqrt(z.var(-1, correction=0, keepdim=True) + 1e-5)
        if bias is None:
            z = z / deviation * weight
        else:
            z = (z - z.mean(-1, keepdim=True)) / deviation * weight + bias
        return z.transpose(1, 2).reshape(x.shape)


class Attention(nn.Module):
    """Eq. (5) and (6): each channel of a head attends to the other channels of the head."""

    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(width, 3 * width, 1, bias=bias)
        self.qkv_dwconv = nn.Conv2d(3 * width, 3 * width, 3, padding=1, groups=3 * width, bias=bias)
        self.project_out = nn.Conv2d(width, width, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map x: `[n, c, h, w]` to the same shape."""
        q, k, v = (
            part.unflatten(1, (self.heads, -1)).flatten(3)
            for part in self.qkv_dwconv(self.qkv(x)).chunk(3, dim=1)
        )
        cosine = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        mixed = (cosine * self.temperature).softmax(-1) @ v
        return self.project_out(mixed.reshape(x.shape))


class FeedForward(nn.Module):
    """Eq. (7)."""

    def __init__(self, width: int, factor: float, bias: bool) -> None:
        super().__init__()
        self.project_in = nn.Conv2d(width, int(width * factor), 1, bias=bias)
        self.project_out = nn.Conv2d(int(width * factor), width, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map x: `[n, c, h, w]` to the same shape."""
        return self.project_out(F.gelu(self.project_in(x)))


class Block(nn.Module):
    """Eq. (2) and (3): the time embedding is added after both norms."""

    def __init__(self, width: int, heads: int, factor: float, bias: bool, norm: str) -> None:
        super().__init__()
        self.norm1, self.attn = Norm(width, norm), Attention(width, heads, bias)
        self.norm2, self.ffn = Norm(width, norm), FeedForward(width, factor, bias)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Apply the block to x: `[n, c, h, w]` at times t: `[n]`."""
        half = x.shape[1] // 2
        i = torch.arange(half, device=x.device)
        angle = t[:, None] * torch.exp(-math.log(10000) / (half - 1) * i)
        time = F.silu(torch.cat([angle.sin(), angle.cos()], dim=1))[:, :, None, None]
        x = x + self.attn(self.norm1(x) + time)
        return x + self.ffn(self.norm2(x) + time)


class PatchEmbed(nn.Module):
    """Holds the first convolution under the official program's name."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(6, width, 3, padding=1, bias=False)


class Resample(nn.Module):
    """3x3 convolution, then pixel shuffle or unshuffle by 2."""

    def __init__(self, width: int, out: int, shuffle: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(width, out, 3, padding=1, bias=False), shuffle)

    def forward(self, x: Tensor) -> Tensor:
        """Halve or double the sides of x: `[n, c, h, w]`."""
        return self.body(x)


class Textbook(nn.Module):
    """Eq. (1): the U-shape. Arguments as for `DFT`."""

    def __init__(
        self,
        dim: int = 48,
        blocks: Sequence[int] = (4, 6, 6, 8),
        heads: Sequence[int] = (1, 2, 4, 8),
        ffn_factor: float = 4.0,
        bias: bool = False,
        norm: str = "with_bias",
        dual_pixel: bool = False,
    ) -> None:
        super().__init__()

        def level(width: int, i: int) -> nn.ModuleList:
            return nn.ModuleList(
                Block(width, heads[i], ffn_factor, bias, norm) for _ in range(blocks[i])
            )

        def down(width: int) -> Resample:
            return Resample(width, width // 2, nn.PixelUnshuffle(2))

        def up(width: int) -> Resample:
            return Resample(width, 2 * width, nn.PixelShuffle(2))

        self.patch_embed = PatchEmbed(dim)
        self.encoder_level1, self.down1_2 = level(dim, 0), down(dim)
        self.encoder_level2, self.down2_3 = level(2 * dim, 1), down(2 * dim)
        self.encoder_level3, self.down3_4 = level(4 * dim, 2), down(4 * dim)
        self.latent, self.up4_3 = level(8 * dim, 3), up(8 * dim)
        self.reduce_chan_level3 = nn.Conv2d(8 * dim, 4 * dim, 1, bias=bias)
        self.decoder_level3, self.up3_2 = level(4 * dim, 2), up(4 * dim)
        self.reduce_chan_level2 = nn.Conv2d(4 * dim, 2 * dim, 1, bias=bias)
        self.decoder_level2, self.up2_1 = level(2 * dim, 1), up(2 * dim)
        self.decoder_level1 = level(2 * dim, 0)
        self.skip_conv = nn.Conv2d(dim, 2 * dim, 1, bias=bias) if dual_pixel else None
        self.output = nn.Conv2d(2 * dim, 3, 3, padding=1, bias=bias)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Predict the noise; x: `[n, 6, h, w]`, t: `[n]`."""

        def run(level: nn.ModuleList, z: Tensor) -> Tensor:
            for block in level:
                z = block(z, t)
            return z

        embedded = self.patch_embed.proj(x)
        level1 = run(self.encoder_level1, embedded)
        level2 = run(self.encoder_level2, self.down1_2(level1))
        level3 = run(self.encoder_level3, self.down2_3(level2))
        z = run(self.latent, self.down3_4(level3))
        z = self.reduce_chan_level3(torch.cat([self.up4_3(z), level3], dim=1))
        z = run(self.decoder_level3, z)
        z = self.reduce_chan_level2(torch.cat([self.up3_2(z), level2], dim=1))
        z = run(self.decoder_level2, z)
        z = run(self.decoder_level1, torch.cat([self.up2_1(z), level1], dim=1))
        if self.skip_conv is not None:
            return self.output(z + self.skip_conv(embedded))
        return self.output(z) + x[:, -3:]
