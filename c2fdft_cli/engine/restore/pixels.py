"""Pictures to tensors and back, and the pictures that explain a result."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from c2fdft_cli.data.images.picture import Picture, to_8bit

DIFFERENCE_GAIN = 4.0
_GAP = 8
_HEAT_PERCENTILE = 99.0


def to_tensor(picture: Picture) -> Tensor:
    """The colours of a picture as `[3, h, w]` float32 in [0, 1]."""
    white = 2**picture.bit_depth - 1
    values = torch.from_numpy(picture.pixels.astype(np.float32))
    return values.permute(2, 0, 1).contiguous().div_(white)


def to_picture(image: Tensor, source: Picture, bit_depth: int | None = None) -> Picture:
    """A restored image with everything else of the picture that it came from.

    Args:
        image: `[3, h, w]` in [0, 1]; grey sources get the mean of its channels.
        source: alpha, profile, EXIF and greyness are taken over.
        bit_depth: 8 or 16; None for the source's own.
    """
    depth = bit_depth or source.bit_depth
    alpha = source.alpha
    if alpha is not None and depth != source.bit_depth:
        alpha = alpha.astype(np.uint16) * np.uint16(257) if depth == 16 else to_8bit(alpha)
    return replace(source, pixels=quantise(image, depth, grey=source.grey), alpha=alpha)


def quantise(image: Tensor, depth: int, *, grey: bool = False) -> npt.NDArray[np.unsignedinteger]:
    """`[3, h, w]` in [0, 1] to `[h, w, 3]` of 8 or 16 bits, rounded."""
    if grey:
        image = image.mean(0, keepdim=True).expand(3, -1, -1)
    values = image.mul(2**depth - 1).round_().permute(1, 2, 0).contiguous().cpu().numpy()
    return values.astype(np.uint8 if depth == 8 else np.uint16)


def comparison(source: Picture, image: Tensor) -> Picture:
    """Degraded | restored | difference (grey where they agree, 4 times magnified), 8 bit."""
    degraded = to_8bit(source.pixels)
    restored = quantise(image, 8, grey=source.grey)
    change = restored.astype(np.float32) - degraded
    difference = np.clip(128 + DIFFERENCE_GAIN * change, 0, 255).round().astype(np.uint8)
    gap = np.full((len(degraded), _GAP, 3), 255, np.uint8)
    return Picture(np.concatenate([degraded, gap, restored, gap, difference], axis=1))


def spread_map(spread: Tensor) -> Picture:
    """A 16-bit grey picture: the standard deviation, 65535 standing for the whole range [0, 1]."""
    return Picture(quantise(spread.clamp(0, 1).expand(3, -1, -1), 16), grey=True)


def heat_map(image: Tensor, spread: Tensor) -> Picture:
    """The restored image in dim grey under the spread in black-red-yellow-white, 8 bit.

    image: `[3, h, w]`, spread: `[1, h, w]`, both in [0, 1].
    White is the spread's 99th percentile in this image: the picture says where, not how much.
    """
    top = float(np.percentile(spread.cpu().numpy(), _HEAT_PERCENTILE)) or 1.0
    share = (spread / top).clamp(0, 1)
    colours = torch.cat([(3 * share - i).clamp(0, 1) for i in range(3)])
    dim = 0.35 * image.mean(0, keepdim=True).expand(3, -1, -1)
    return Picture(quantise(dim * (1 - share) + colours * share, 8))
