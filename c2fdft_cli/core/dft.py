"""The Diffusion Transformer (DFT) that predicts noise: C2F-DFT paper, section 3 (network).

Inside, activations are channels-last, `[n, h, w, c]`: a 1x1 convolution is then a matrix product
over the pixels and the layer norm runs over the contiguous axis. Parameter names and shapes are
those of the released program, so its weights load strictly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from c2fdft_cli.core.kernels import project

NORMS = ("with_bias", "bias_free")
SIZE_MULTIPLE = 8
_EPS = 1e-5


def time_embedding(t: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding of the diffusion time, before its SiLU (section 3, time embedding).

    Args:
        t: diffusion times, `[n]`.
        width: channels of the level that it is for, at least 4.

    Returns:
        `[n, width]` float32, sines then cosines of `t * freq_i`,
        `freq_i = exp(-i * ln(10000) / (width // 2 - 1))`.
    """
    half = width // 2
    i = torch.arange(half, dtype=torch.float32, device=t.device)
    angle = t.float()[:, None] * torch.exp(i * (-math.log(10000) / (half - 1)))
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def pad_to_multiple(x: Tensor, multiple: int = SIZE_MULTIPLE) -> Tensor:
    """Pad right and bottom to a multiple: reflect, or replicate where the side is too short.

    Args:
        x: `[n, c, h, w]`, any size from 1x1 up.
        multiple: what both sides are to be divisible by.

    Returns:
        `[n, c, h', w']`; crop with `[..., :h, :w]` to undo.
    """
    for axis in (-1, -2):
        size = x.shape[axis]
        short = -size % multiple
        if short:
            mode = "reflect" if short < size else "replicate"
            x = F.pad(x, (0, short, 0, 0) if axis == -1 else (0, 0, 0, short), mode=mode)
    return x


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """No autocast on the device of x; the meta device has none to switch off."""
    if x.device.type == "meta":
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def pointwise(x: Tensor, conv: nn.Conv2d, gelu: bool = False) -> Tensor:
    """1x1 convolution of `x: [n, h, w, c]` as a matrix product, then GELU if asked."""
    return project(x, conv.weight.flatten(1), conv.bias, gelu)


def spatial(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """3x3 convolution of `x: [n, h, w, c]`; both permutations are views."""
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # type: ignore[no-any-return]


def unshuffle(x: Tensor) -> Tensor:
    """Pixel-unshuffle by 2: `[n, h, w, c]` to `[n, h/2, w/2, 4c]`."""
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 5, 2, 4).flatten(3)


def shuffle(x: Tensor) -> Tensor:
    """Pixel-shuffle by 2: `[n, h, w, 4c]` to `[n, 2h, 2w, c]`."""
    n, h, w, c = x.shape
    x = x.reshape(n, h, w, c // 4, 2, 2).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(n, 2 * h, 2 * w, c // 4)


class _Affine(nn.Module):
    def __init__(self, width: int, with_bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if with_bias else None


class PixelNorm(nn.Module):
    """Layer norm over the channels of each pixel, with the time embedding added (section 3, norm).

    `bias_free` divides by sqrt(var + eps) *without* removing the mean from the numerator; the
    variance is the biased one around the mean.
    """

    def __init__(self, width: int, norm: str) -> None:
        super().__init__()
        self.body = _Affine(width, norm == "with_bias")

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Return `norm(x) + time`; x: `[n, h, w, c]`, time: `[n or 1, c]` float32."""
        weight, bias = self.body.weight, self.body.bias
        if bias is None:
            var = x.var(-1, correction=0, keepdim=True)
            return x * torch.rsqrt(var + _EPS) * weight + time[:, None, None]
        if len(time) == 1:  # one time for the whole batch: the norm's own bias can carry it
            return F.layer_norm(x, weight.shape, weight, bias + time[0], _EPS)
        return F.layer_norm(x, weight.shape, weight, bias, _EPS) + time[:, None, None]


class Statistics(NamedTuple):
    """What attention needs to know of all pixels; sums, so pieces of an image simply add up.

    gram: `[n, heads, d, d]` float32, sum over pixels of q_i * k_j.
    q_square, k_square: `[n, heads, d]` float32, sums over pixels of q_i^2 and k_i^2.
    """

    gram: Tensor
    q_square: Tensor
    k_square: Tensor

    def __add__(self, other: Statistics) -> Statistics:  # type: ignore[override]
        return Statistics(*(a + b for a, b in zip(self, other, strict=True)))


def gather_statistics(q: Tensor, k: Tensor, heads: int) -> Statistics:
    """Sums over the pixels of q, k: `[n, h, w, c]`; float32 whatever comes in.

    A Gram matrix that is not normalised yet passes float16's largest number (65504).
    """
    with full_precision(q):
        q, k = q.flatten(1, 2).float(), k.flatten(1, 2).float()
        gram = [
            torch.bmm(a.transpose(1, 2), b)
            for a, b in zip(q.chunk(heads, -1), k.chunk(heads, -1), strict=True)
        ]
        return Statistics(
            torch.stack(gram, dim=1),
            torch.linalg.vecdot(q, q, dim=1).unflatten(-1, (heads, -1)),
            torch.linalg.vecdot(k, k, dim=1).unflatten(-1, (heads, -1)),
        )


def mixing_matrix(statistics: Statistics, temperature: Tensor, project_out: Tensor) -> Tensor:
    """Attention and output projection as one matrix, `[n, c, c]`: rows out, columns in.

    Args:
        statistics: of all the pixels.
        temperature: `[heads, 1, 1]`.
        project_out: weight of the output projection, `[c, c]`.
    """
    gram, q_square, k_square = statistics
    with full_precision(gram):
        # clamp before the root: the other order has NaN gradients at zero
        q_norm = q_square.clamp_min(1e-24).sqrt()
        k_norm = k_square.clamp_min(1e-24).sqrt()
        cosine = gram / (q_norm[..., :, None] * k_norm[..., None, :])
        attention = (cosine * temperature.float()).softmax(-1)
        out = project_out.float().view(len(project_out), len(temperature), -1)
        return torch.einsum("ohi,nhij->nohj", out, attention).flatten(2)


class Attention(nn.Module):
    """Diffusion self-attention (DFSA) between channels: section 3.

    `softmax(norm(q) norm(k)^T * temperature) v` per head, with q and k normalised along the pixel
    axis. The norms are taken out of the product, `norm(q) norm(k)^T = q k^T / (|q| |k|)`, so one
    pass over the pixels gathers `Statistics` and a second applies a `c x c` matrix to v.
    """

    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(width, 3 * width, 1, bias=bias)
        self.qkv_dwconv = nn.Conv2d(3 * width, 3 * width, 3, padding=1, groups=3 * width, bias=bias)
        self.project_out = nn.Conv2d(width, width, 1, bias=bias)

    def statistics(self, q: Tensor, k: Tensor) -> Statistics:
        """Sums over the pixels of q, k: `[n, h, w, c]`; float32 whatever comes in."""
        return gather_statistics(q, k, self.heads)

    def mixing(self, statistics: Statistics) -> Tensor:
        """Attention and output projection as one matrix, `[n, c, c]`: rows out, columns in."""
        return mixing_matrix(statistics, self.temperature, self.project_out.weight.flatten(1))

    def apply_mixing(self, v: Tensor, mixing: Tensor) -> Tensor:
        """Mix the channels of v: `[n, h, w, c]` by `mixing: [n, c, c]`."""
        n, h, w, c = v.shape
        out = torch.bmm(v.flatten(1, 2), mixing.to(v.dtype).transpose(1, 2)).view(n, h, w, c)
        bias = self.project_out.bias
        return out if bias is None else out + bias

    def forward(self, x: Tensor) -> Tensor:
        """x: `[n, h, w, c]` to the same."""
        q, k, v = spatial(pointwise(x, self.qkv), self.qkv_dwconv).chunk(3, dim=-1)
        return self.apply_mixing(v, self.mixing(self.statistics(q, k)))


class FeedForward(nn.Module):
    """Diffusion feed-forward network (DFN): 1x1 convolution, GELU, 1x1 convolution (section 3)."""

    def __init__(self, width: int, factor: float, bias: bool) -> None:
        super().__init__()
        hidden = int(width * factor)
        self.project_in = nn.Conv2d(width, hidden, 1, bias=bias)
        self.project_out = nn.Conv2d(hidden, width, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: `[n, h, w, c]` to the same."""
        return pointwise(pointwise(x, self.project_in, gelu=True), self.project_out)


class Block(nn.Module):
    """Diffusion Transformer block (DTB): x + DFSA(norm1(x) + T), then x + DFN(norm2(x) + T)."""

    def __init__(self, width: int, heads: int, factor: float, bias: bool, norm: str) -> None:
        super().__init__()
        self.norm1 = PixelNorm(width, norm)
        self.attn = Attention(width, heads, bias)
        self.norm2 = PixelNorm(width, norm)
        self.ffn = FeedForward(width, factor, bias)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x: `[n, h, w, c]`, time: `[n or 1, c]`, its SiLU already taken."""
        x = x + self.attn(self.norm1(x, time))
        return x + self.ffn(self.norm2(x, time))  # type: ignore[no-any-return]


class PatchEmbed(nn.Module):
    """3x3 convolution from the input's channels to the first level's width."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)


class Resample(nn.Module):
    """3x3 convolution whose output is then shuffled to half or double the size (section 3)."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(width, out, 3, padding=1, bias=False))

    @property
    def conv(self) -> nn.Conv2d:
        """The convolution, before the shuffle."""
        return self.body[0]  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """x: `[n, h, w, c]` to `[n, h/2, w/2, 2c]` or `[n, 2h, 2w, c/2]`."""
        y = spatial(x, self.conv)
        return unshuffle(y) if self.conv.out_channels < self.conv.in_channels else shuffle(y)


class DFT(nn.Module):
    """The four-level U-shaped Diffusion Transformer (section 3).

    Args:
        in_channels: condition and noisy image together.
        out_channels: channels of the noise.
        dim: width C of the first level.
        blocks: Transformer blocks of levels 1 to 4, encoder and decoder alike.
        heads: attention heads of levels 1 to 4.
        ffn_factor: hidden width of the feed-forward network over the level's width.
        bias: biases in the convolutions (patch embedding and resampling never have one).
        norm: "with_bias" or "bias_free".
        dual_pixel: add a 1x1 projection of the embedded input before the output convolution and
            leave out the final `+ x_t`.

    Raises:
        ValueError: sizes that do not fit together.
    """

    def __init__(
        self,
        in_channels: int = 6,
        out_channels: int = 3,
        dim: int = 48,
        blocks: Sequence[int] = (4, 6, 6, 8),
        heads: Sequence[int] = (1, 2, 4, 8),
        ffn_factor: float = 4.0,
        bias: bool = False,
        norm: str = "with_bias",
        dual_pixel: bool = False,
    ) -> None:
        super().__init__()
        _check_sizes(in_channels, out_channels, dim, blocks, heads, ffn_factor, norm)
        self.in_channels, self.out_channels, self.dim = in_channels, out_channels, dim

        def level(width: int, i: int) -> nn.ModuleList:
            return nn.ModuleList(
                Block(width, heads[i], ffn_factor, bias, norm) for _ in range(blocks[i])
            )

        self.patch_embed = PatchEmbed(in_channels, dim)
        self.encoder_level1 = level(dim, 0)
        self.down1_2 = Resample(dim, dim // 2)
        self.encoder_level2 = level(2 * dim, 1)
        self.down2_3 = Resample(2 * dim, dim)
        self.encoder_level3 = level(4 * dim, 2)
        self.down3_4 = Resample(4 * dim, 2 * dim)
        self.latent = level(8 * dim, 3)
        self.up4_3 = Resample(8 * dim, 16 * dim)
        self.reduce_chan_level3 = nn.Conv2d(8 * dim, 4 * dim, 1, bias=bias)
        self.decoder_level3 = level(4 * dim, 2)
        self.up3_2 = Resample(4 * dim, 8 * dim)
        self.reduce_chan_level2 = nn.Conv2d(4 * dim, 2 * dim, 1, bias=bias)
        self.decoder_level2 = level(2 * dim, 1)
        self.up2_1 = Resample(2 * dim, 4 * dim)
        self.decoder_level1 = level(2 * dim, 0)
        self.skip_conv = nn.Conv2d(dim, 2 * dim, 1, bias=bias) if dual_pixel else None
        self.output = nn.Conv2d(2 * dim, out_channels, 3, padding=1, bias=bias)

    def times(self, t: Tensor) -> dict[int, Tensor]:
        """Time embedding with its SiLU for each level, by width: `[n or 1, width]` float32.

        A time that was expanded over the batch (stride 0) is embedded once.
        """
        if t.stride(0) == 0:
            t = t[:1]
        return {w: F.silu(time_embedding(t, w)) for w in (self.dim * m for m in (1, 2, 4, 8))}

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Predict the noise.

        Args:
            x: `cat([2 * lq - 1, x_t], dim=1)`, `[n, in_channels, h, w]`, h and w multiples of 8.
            t: diffusion times, `[n]`.

        Returns:
            eps_hat, `[n, out_channels, h, w]` float32.
        """
        self.check_input(x)
        times = self.times(t)
        embedded = spatial(x.permute(0, 2, 3, 1).contiguous(), self.patch_embed.proj)
        level1 = self._run(self.encoder_level1, embedded, times)
        level2 = self._run(self.encoder_level2, self.down1_2(level1), times)
        level3 = self._run(self.encoder_level3, self.down2_3(level2), times)
        z = self._run(self.latent, self.down3_4(level3), times)
        z = torch.cat([self.up4_3(z), level3], dim=-1)
        z = self._run(self.decoder_level3, pointwise(z, self.reduce_chan_level3), times)
        z = torch.cat([self.up3_2(z), level2], dim=-1)
        z = self._run(self.decoder_level2, pointwise(z, self.reduce_chan_level2), times)
        z = torch.cat([self.up2_1(z), level1], dim=-1)
        z = self._run(self.decoder_level1, z, times)
        if self.skip_conv is not None:
            z = z + pointwise(embedded, self.skip_conv)
        with full_precision(x):  # the last sum in full precision
            eps_hat = spatial(z.float(), self.output).permute(0, 3, 1, 2)
            return eps_hat if self.skip_conv is not None else eps_hat + self.x_t(x)

    def x_t(self, x: Tensor) -> Tensor:
        """The noisy image within the network's input, float32."""
        return x[:, -self.out_channels :].float()

    def check_input(self, x: Tensor) -> None:
        """Raise ValueError when x is not `[n, in_channels, 8 * i, 8 * j]`."""
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"want [n, {self.in_channels}, h, w], got {list(x.shape)}")
        if x.shape[2] % SIZE_MULTIPLE or x.shape[3] % SIZE_MULTIPLE:
            raise ValueError(f"sides must be multiples of {SIZE_MULTIPLE}, got {list(x.shape[2:])}")

    @staticmethod
    def _run(blocks: nn.ModuleList, z: Tensor, times: dict[int, Tensor]) -> Tensor:
        for block in blocks:
            z = block(z, times[z.shape[-1]])
        return z


def _check_sizes(
    in_channels: int,
    out_channels: int,
    dim: int,
    blocks: Sequence[int],
    heads: Sequence[int],
    ffn_factor: float,
    norm: str,
) -> None:
    if norm not in NORMS:
        raise ValueError(f"norm is one of {', '.join(NORMS)}, got {norm!r}")
    if in_channels < out_channels or out_channels < 1:
        got = f"{in_channels}, {out_channels}"
        raise ValueError(f"want in_channels >= out_channels >= 1, got {got}")
    if len(blocks) != 4 or len(heads) != 4:
        raise ValueError(f"want blocks and heads for 4 levels, got {list(blocks)}, {list(heads)}")
    if min(blocks) < 1 or min(heads) < 1:
        raise ValueError(f"blocks and heads are at least 1, got {list(blocks)}, {list(heads)}")
    if dim < 4 or dim % 2:
        raise ValueError(f"dim is even and at least 4, got {dim}")
    for level, count in enumerate(heads):
        # decoder level 1 works at twice the width of encoder level 1, which divides it too
        if (dim << level) % count:
            raise ValueError(f"level {level + 1}: {count} heads do not divide width {dim << level}")
    if int(dim * ffn_factor) < 1:
        raise ValueError(f"ffn_factor leaves no hidden channel, got {ffn_factor}")
