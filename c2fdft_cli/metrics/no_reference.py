"""Scores of one image without a target, with the direction and range of each.

All take RGB images `[1, 3, h, w]` on the scale 0 .. 255; a side below a score's least gives no
number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from c2fdft_cli.metrics.full_reference import load_piq
from c2fdft_cli.metrics.protocols import MAX_VALUE

_BLUR_WINDOW = 11
_GREY = (0.2125, 0.7154, 0.0721)
_NORMAL_QUARTILE = 0.6744897501960817
"""The 75 % point of the normal distribution."""
_ROUNDING = 1e-9
"""A smaller coefficient of 8-bit values is nothing but rounding."""


def noise_sigma(image: Tensor) -> float:
    """Noise as the median absolute detail coefficient (Donoho and Johnstone 1994, section 4.2).

    The finest diagonal sub-band of the Daubechies wavelet with two vanishing moments, zeros (flat
    or clipped areas) left out, over 0.6745; the mean of the channels. 0 without any detail.

    Args:
        image: `[1, 3, h, w]` on the scale 0 .. 255.

    Returns:
        Standard deviation of Gaussian noise, in 8-bit levels.
    """
    sigmas = []
    for channel in _detail(_detail(image.double(), -1), -2)[0]:
        size = channel.abs()
        size = size[size > _ROUNDING]
        sigmas.append(_median(size) / _NORMAL_QUARTILE if size.numel() else 0.0)
    return sum(sigmas) / len(sigmas)


def blur_effect(image: Tensor) -> float:
    """How little sharpness a further blur costs (Crete et al. 2007), the worse of two directions.

    Edges (Sobel) of BT.709 grey, before and after a mean over 11 px along the same direction.

    Args:
        image: `[1, 3, h, w]` on the scale 0 .. 255.

    Returns:
        In [0, 1]: 0 is sharp, 1 is blurred or without any edge.
    """
    weights = torch.tensor(_GREY, dtype=torch.float64, device=image.device).view(1, 3, 1, 1)
    grey = (image.double() * weights).sum(1, keepdim=True) / MAX_VALUE
    return max(_blur_along(grey), _blur_along(grey.mT))


def total_variation(image: Tensor) -> float:
    """Mean absolute step between neighbours: piq's l1 total variation over the number of values.

    Args:
        image: `[1, 3, h, w]` on the scale 0 .. 255.

    Returns:
        In 8-bit levels; noise and detail both raise it.
    """
    return float(load_piq().total_variation(image.double(), norm_type="l1")) / image.numel()


def brisque(image: Tensor) -> float:
    """BRISQUE (Mittal et al. 2012) by piq; NaN for an image without any variation.

    Raises:
        ValueError: its weights cannot be loaded.
    """
    piq, unit = load_piq(), (image.float() / MAX_VALUE).clamp(0, 1)
    try:
        return float(piq.brisque(unit, data_range=1.0))
    except AssertionError:  # piq's word for no variance
        return math.nan
    except (OSError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"the weights of brisque cannot be loaded: {reason}") from error


@dataclass(frozen=True)
class Measure:
    """One score without a target.

    Args:
        name: what it is asked for by, and its column.
        compute: its function.
        direction: in words; all are better when lower, if at all.
        span: the range of its values, in words.
        least_side: in pixels.
        describes: its full name.
        downloads: whether piq fetches weights for it.
    """

    name: str
    compute: Callable[[Tensor], float]
    direction: str
    span: str
    least_side: int
    describes: str
    downloads: bool = False


_LOWER = "lower is better"
MEASURES = {
    one.name: one
    for one in (
        Measure("blur_effect", blur_effect, "lower is sharper", "0 to 1", 16, "blur"),
        Measure(
            "noise_sigma", noise_sigma, "lower is less noise", "0 up, 8-bit levels", 16, "noise"
        ),
        Measure(
            "total_variation",
            total_variation,
            "lower is smoother: less noise or less detail",
            "0 up, 8-bit levels",
            16,
            "mean step between neighbours",
        ),
        Measure("brisque", brisque, _LOWER, "0 to about 100", 32, "natural statistics", True),
    )
}
"""All that can be asked for."""

WITHOUT_DOWNLOAD = tuple(name for name, one in MEASURES.items() if not one.downloads)


def measure(name: str, image: Tensor) -> float:
    """One score of one image.

    Args:
        name: a key of `MEASURES`.
        image: `[1, 3, h, w]` RGB on the scale 0 .. 255.

    Returns:
        Its value, NaN where a side is below its least or it has none.

    Raises:
        ValueError: not one RGB image, or weights that cannot be loaded.
    """
    if image.dim() != 4 or image.shape[:2] != (1, 3):
        raise ValueError(f"want one image [1, 3, h, w], got {list(image.shape)}")
    one = MEASURES[name]
    if min(image.shape[-2:]) < one.least_side:
        return math.nan
    with torch.inference_mode():
        value = one.compute(image)
    return value if math.isfinite(value) else math.nan


def _detail(image: Tensor, dim: int) -> Tensor:
    """Every second value of the high-pass filter along a dimension, mirrored at the ends."""
    root = math.sqrt(3)
    taps = [1 - root, -(3 - root), 3 + root, -(1 + root)]
    taps = [tap / (4 * math.sqrt(2)) for tap in taps]
    mirrored = _mirrored(image, len(taps) - 1, dim)
    count = (image.shape[dim] + len(taps) - 1) // 2
    total = torch.zeros_like(mirrored.narrow(dim, 0, count))
    for i, tap in enumerate(taps):
        every_second = torch.arange(count, device=image.device) * 2 + i + 1
        total += tap * mirrored.index_select(dim, every_second)
    return total


def _mirrored(image: Tensor, width: int, dim: int) -> Tensor:
    """The image with `width` values mirrored at both ends of a dimension, the edge one too."""
    first = image.narrow(dim, 0, width).flip(dim)
    last = image.narrow(dim, image.shape[dim] - width, width).flip(dim)
    return torch.cat([first, image, last], dim)


def _median(values: Tensor) -> float:
    """The mean of the two middle values where their number is even."""
    ordered, half = values.sort().values, values.numel() // 2
    return float((ordered[half] + ordered[-half - 1]) / 2)


def _blur_along(grey: Tensor) -> float:
    """The blur of `[1, 1, h, w]` along its height."""
    window = torch.full((1, 1, _BLUR_WINDOW, 1), 1 / _BLUR_WINDOW, dtype=grey.dtype)
    blurred = F.conv2d(_mirrored(grey, _BLUR_WINDOW // 2, -2), window.to(grey.device))
    sharp, soft = (_edges(one).clamp(min=torch.finfo(one.dtype).eps) for one in (grey, blurred))
    lost = (sharp - soft).clamp(min=0)
    return float(1 - lost.sum() / sharp.sum())


def _edges(grey: Tensor) -> Tensor:
    """|Sobel| along the height, from the third to the last but one row and column."""
    smooth = torch.tensor([1.0, 2.0, 1.0], dtype=grey.dtype, device=grey.device) / 4
    step = torch.tensor([1.0, 0.0, -1.0], dtype=grey.dtype, device=grey.device) / 2
    kernel = (step[:, None] * smooth[None, :])[None, None]
    return F.conv2d(grey, kernel).abs()[..., 1:, 1:]
