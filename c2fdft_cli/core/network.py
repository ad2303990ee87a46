"""The Diffusion Transformer (DFT) that predicts noise: docs/paper.md, eq. (1).

Inside, activations are channels-last, `[n, h, w, c]`. Parameter names and shapes are those of the
official program, so its weights load strictly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from c2fdft_cli.core.block import Block, Level
from c2fdft_cli.core.layers import Conv1x1, Conv3x3
from c2fdft_cli.core.precision import full_precision

SIZE_MULTIPLE = 8


def time_embedding(t: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding of the diffusion time, before its SiLU: docs/paper.md, eq. (2).

    Args:
        t: diffusion times, `[n]`.
        width: channels of the level that uses the embedding, at least 4.

    Returns:
        `[n, width]` float32, sines then cosines of `t * freq_i`,
        `freq_i = exp(-i * ln(10000) / (width // 2 - 1))`.
    """
    angle = t.float()[:, None] * embedding_frequencies(width, t.device)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def embedding_frequencies(width: int, device: torch.device) -> Tensor:
    """Return freq_i of `time_embedding`, `[width // 2]` float32."""
    half = width // 2
    i = torch.arange(half, dtype=torch.float32, device=device)
    return torch.exp(i * (-math.log(10000) / (half - 1)))


def padded_side(side: int) -> int:
    """Round a height or width up to a multiple of 8, as `pad_to_multiple` does."""
    return -(-side // SIZE_MULTIPLE) * SIZE_MULTIPLE


def pad_to_multiple(x: Tensor) -> Tensor:
    """Pad right and bottom to a multiple of 8: reflect, or replicate if the side is too short.

    Args:
        x: `[n, c, h, w]`, any size from 1x1 up.

    Returns:
        `[n, c, h', w']`; crop with `[..., :h, :w]` to undo.
    """
    for axis in (-1, -2):
        size = x.shape[axis]
        short = -size % SIZE_MULTIPLE
        if short:
            # `F.pad` cannot reflect as many pixels as the side has.
            mode = "reflect" if short < size else "replicate"
            x = F.pad(x, (0, short, 0, 0) if axis == -1 else (0, 0, 0, short), mode=mode)
    return x


def unshuffle(x: Tensor) -> Tensor:
    """Pixel-unshuffle by 2: `[n, h, w, c]` to `[n, h/2, w/2, 4c]`."""
    return unshuffled_view(x).flatten(3)


def unshuffled_view(x: Tensor) -> Tensor:
    """Return a view of x with the values of `unshuffle` in order: `[n, h/2, w/2, c, 2, 2]`."""
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 5, 2, 4)


def shuffle(x: Tensor) -> Tensor:
    """Pixel-shuffle by 2: `[n, h, w, 4c]` to `[n, 2h, 2w, c]`."""
    return shuffled_view(x).flatten(3, 4).flatten(1, 2)


def shuffled_view(x: Tensor) -> Tensor:
    """Return a view of x with the values of `shuffle` in order: `[n, h, 2, w, 2, c]`."""
    n, h, w, c = x.shape
    return x.reshape(n, h, w, c // 4, 2, 2).permute(0, 1, 4, 2, 5, 3)


class PatchEmbed(nn.Module):
    """3x3 convolution from the input's channels to the width of the first level."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.proj = Conv3x3(in_channels, width)


class Resample(nn.Module):
    """3x3 convolution, then a pixel shuffle that halves or doubles height and width."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(Conv3x3(width, out))

    @property
    def conv(self) -> Conv3x3:
        """The convolution before the shuffle."""
        return self.body[0]  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """Map x: `[n, h, w, c]` to `[n, h/2, w/2, 2c]` or `[n, 2h, 2w, c/2]`."""
        y = self.body(x)
        return unshuffle(y) if self.conv.out_channels < self.conv.in_channels else shuffle(y)


class DFT(nn.Module):
    """The four-level U-shape: docs/paper.md, "Diffusion Transformer".

    Args:
        dim: width C of the first level.
        blocks: Transformer blocks of levels 1 to 4, the same in encoder and decoder.
        heads: attention heads of levels 1 to 4.
        ffn_factor: hidden width of the feed-forward network divided by the level's width.
        bias: biases in the convolutions (patch embedding and resampling never have one).
        norm: "with_bias" or "bias_free".
        dual_pixel: add a 1x1 projection of the embedded input before the output convolution and
            omit the final `+ x_t`.

    Raises:
        ValueError: sizes that do not fit together.
    """

    in_channels, out_channels = 6, 3
    """Channels of condition and noisy image together, and of the predicted noise."""

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
        _check_sizes(dim, blocks, heads, ffn_factor)
        self.dim = dim

        def level(width: int, i: int) -> Level:
            shape = (width, heads[i], ffn_factor, bias, norm)
            return Level((Block(*shape) for _ in range(blocks[i])), width, i)

        self.patch_embed = PatchEmbed(self.in_channels, dim)
        self.encoder_level1 = level(dim, 0)
        self.down1_2 = Resample(dim, dim // 2)
        self.encoder_level2 = level(2 * dim, 1)
        self.down2_3 = Resample(2 * dim, dim)
        self.encoder_level3 = level(4 * dim, 2)
        self.down3_4 = Resample(4 * dim, 2 * dim)
        self.latent = level(8 * dim, 3)
        self.up4_3 = Resample(8 * dim, 16 * dim)
        self.reduce_chan_level3 = Conv1x1(8 * dim, 4 * dim, bias)
        self.decoder_level3 = level(4 * dim, 2)
        self.up3_2 = Resample(4 * dim, 8 * dim)
        self.reduce_chan_level2 = Conv1x1(4 * dim, 2 * dim, bias)
        self.decoder_level2 = level(2 * dim, 1)
        self.up2_1 = Resample(2 * dim, 4 * dim)
        self.decoder_level1 = level(2 * dim, 0)
        self.skip_conv = Conv1x1(dim, 2 * dim, bias) if dual_pixel else None
        self.output = Conv3x3(2 * dim, self.out_channels, bias)

    def levels(self) -> dict[str, Level]:
        """Return the levels by name, in the order of the forward pass."""
        return {name: each for name, each in self.named_children() if isinstance(each, Level)}

    def time_embeddings(self, t: Tensor) -> list[Tensor]:
        """Embed t, followed by SiLU, for the widths C, 2C, 4C, 8C: `[n or 1, width]` float32.

        A time that was expanded over the batch (stride 0) is embedded only once.
        """
        if t.stride(0) == 0:
            t = t[:1]
        return [F.silu(time_embedding(t, self.dim << level)) for level in range(4)]

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Predict the noise.

        Args:
            x: `cat([2 * lq - 1, x_t], dim=1)`, `[n, in_channels, h, w]`, h and w multiples of 8.
            t: diffusion times, `[n]`.

        Returns:
            eps_hat, `[n, out_channels, h, w]` float32.
        """
        self.check_input(x)
        time = self.time_embeddings(t)
        # Channels-last from here on: a convolution keeps the memory layout of its input, and 1x1
        # products need the channels of a pixel to be contiguous.
        embedded = self.patch_embed.proj(x.permute(0, 2, 3, 1).contiguous())
        level1 = self.encoder_level1(embedded, time[0])
        level2 = self.encoder_level2(self.down1_2(level1), time[1])
        level3 = self.encoder_level3(self.down2_3(level2), time[2])
        z = self.latent(self.down3_4(level3), time[3])
        z = torch.cat([self.up4_3(z), level3], dim=-1)
        z = self.decoder_level3(self.reduce_chan_level3(z), time[2])
        z = torch.cat([self.up3_2(z), level2], dim=-1)
        z = self.decoder_level2(self.reduce_chan_level2(z), time[1])
        z = torch.cat([self.up2_1(z), level1], dim=-1)
        z = self.decoder_level1(z, time[1])  # twice the width of encoder level 1
        if self.skip_conv is not None:
            z = z + self.skip_conv(embedded)
        with full_precision(x):  # the output convolution and the last sum stay float32
            eps_hat = self.output(z.float()).permute(0, 3, 1, 2)
            return eps_hat if self.skip_conv is not None else eps_hat + self.x_t(x)  # type: ignore[no-any-return]

    def x_t(self, x: Tensor) -> Tensor:
        """Return the noisy image, the last channels of the network's input, in float32."""
        return x[:, -self.out_channels :].float()

    def check_input(self, x: Tensor) -> None:
        """Raise ValueError if x is not `[n, in_channels, 8 * i, 8 * j]`."""
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"expected [n, {self.in_channels}, h, w], got {list(x.shape)}")
        if x.shape[2] % SIZE_MULTIPLE or x.shape[3] % SIZE_MULTIPLE:
            raise ValueError(f"sides must be multiples of {SIZE_MULTIPLE}, got {list(x.shape[2:])}")


def _check_sizes(dim: int, blocks: Sequence[int], heads: Sequence[int], ffn_factor: float) -> None:
    if len(blocks) != 4 or len(heads) != 4:
        raise ValueError(
            f"blocks and heads must be for 4 levels, got {list(blocks)}, {list(heads)}"
        )
    if min(blocks) < 1 or min(heads) < 1:
        raise ValueError(f"blocks and heads must be at least 1, got {list(blocks)}, {list(heads)}")
    # The time embedding divides by dim // 2 - 1, and the first Resample halves dim.
    if dim < 4 or dim % 2:
        raise ValueError(f"dim must be even and at least 4, got {dim}")
    for level, count in enumerate(heads):
        # Decoder level 1 has twice the width of encoder level 1, so its heads divide that as well.
        if (dim << level) % count:
            raise ValueError(f"level {level + 1}: {count} heads do not divide width {dim << level}")
    if int(dim * ffn_factor) < 1:
        raise ValueError(f"ffn_factor is too small, no hidden channel remains, got {ffn_factor}")
