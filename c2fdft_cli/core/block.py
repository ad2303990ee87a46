"""The Diffusion Transformer block (DTB): docs/paper.md, eq. (3)."""

from __future__ import annotations

from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor, nn

from c2fdft_cli.core.attention import Attention
from c2fdft_cli.core.layers import Conv1x1, PixelNorm


class FeedForward(nn.Module):
    """Diffusion feed-forward network (DFN): docs/paper.md, eq. (7)."""

    def __init__(self, width: int, factor: float, bias: bool) -> None:
        super().__init__()
        hidden = int(width * factor)
        self.project_in = Conv1x1(width, hidden, bias)
        self.project_out = Conv1x1(hidden, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map x: `[n, h, w, c]` to the same shape."""
        return self.project_out(F.gelu(self.project_in(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """x = x + DFSA(norm1(x) + T), then x = x + DFN(norm2(x) + T)."""

    def __init__(self, width: int, heads: int, factor: float, bias: bool, norm: str) -> None:
        super().__init__()
        self.norm1 = PixelNorm(width, norm)
        self.attn = Attention(width, heads, bias)
        self.norm2 = PixelNorm(width, norm)
        self.ffn = FeedForward(width, factor, bias)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Apply the block to x: `[n, h, w, c]`; time: `[n or 1, c]`, after its SiLU."""
        x = x + self.attn(self.norm1(x, time))
        return x + self.ffn(self.norm2(x, time))  # type: ignore[no-any-return]


class Level(nn.ModuleList):
    """The blocks of one level, in sequence, at one width and one resolution.

    `halvings` is how often the image's height and width are halved there.
    """

    def __init__(self, blocks: Iterable[Block], width: int, halvings: int) -> None:
        super().__init__(blocks)
        self.width, self.halvings = width, halvings

    def values(self, height: int, width: int) -> int:
        """Return pixels x channels of the level, for an image of this height and width."""
        return (height >> self.halvings) * (width >> self.halvings) * self.width

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Apply the blocks in order; arguments and result as for `Block.forward`."""
        for block in self:
            x = block(x, time)
        return x
