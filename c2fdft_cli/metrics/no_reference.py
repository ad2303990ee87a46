"""No-reference metrics: scores of one image without a target, with direction and range of each.

All take RGB images `[1, 3, h, w]` on the scale 0 .. 255. An image with a side below a metric's
minimum has no value. The wavelet transform is PyWavelets', the blur metric is scikit-image's, and
the others are piq's.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from c2fdft_cli.errors import ResourceError
from c2fdft_cli.execution.memory import is_out_of_memory
from c2fdft_cli.metrics.full_reference import ImageMetric, load_piq, not_loaded
from c2fdft_cli.metrics.protocols import MAX_VALUE

_NORMAL_QUARTILE = 0.6744897501960817
"""The 75 % point of the normal distribution."""
_ROUNDING = 1e-9
"""Smaller wavelet coefficients of 8-bit values are only rounding errors."""


def noise_sigma(image: Tensor) -> float:
    """Estimate noise by the median absolute detail (Donoho and Johnstone 1994, section 4.2).

    The median of the coefficients in the finest diagonal sub-band of the Daubechies wavelet with
    two vanishing moments, divided by 0.6745, averaged over the channels; 0 if there is no detail.
    scikit-image's `estimate_sigma` does the same, but counts the rounding errors of flat or
    clipped areas as coefficients, and so gives 0 as soon as half of an image is clipped.

    Args:
        image: `[1, 3, h, w]` on the scale 0 .. 255.

    Returns:
        Standard deviation of Gaussian noise, in 8-bit levels.
    """
    try:
        import pywt
    except ImportError as error:
        raise _missing("noise_sigma") from error
    sigmas = []
    for plane in _pixels(image).transpose(2, 0, 1):
        _, (_, _, diagonal) = pywt.dwt2(plane, "db2")
        size = np.abs(diagonal)
        size = size[size > _ROUNDING]
        sigmas.append(float(np.median(size)) / _NORMAL_QUARTILE if size.size else 0.0)
    return sum(sigmas) / len(sigmas)


def blur_effect(image: Tensor) -> float:
    """Measure how little sharpness a further blur removes (Crete et al. 2007), by scikit-image.

    Args:
        image: `[1, 3, h, w]` on the scale 0 .. 255.

    Returns:
        In [0, 1]: 0 is sharp, 1 is blurred or without any edge.
    """
    try:
        from skimage.measure import blur_effect as skimage_blur_effect
    except ImportError as error:
        raise _missing("blur_effect") from error
    with np.errstate(invalid="ignore"):  # scikit-image before 0.26: 0 / 0 without any edge
        effect = float(skimage_blur_effect(_pixels(image) / MAX_VALUE, channel_axis=-1))
    return 1.0 if math.isnan(effect) else effect


def total_variation(image: Tensor) -> float:
    """Absolute steps to the neighbours across and down, summed: piq's l1 total variation per value.

    Args:
        image: `[1, 3, h, w]` on the scale 0 .. 255.

    Returns:
        The sum of both steps in 8-bit levels, so about twice the mean step between neighbours;
        noise and detail both raise it.
    """
    return float(load_piq().total_variation(image.double(), norm_type="l1")) / image.numel()


def brisque(image: Tensor) -> float:
    """BRISQUE (Mittal et al. 2012) by piq; NaN for an image without any variation.

    Raises:
        ValueError: its weights cannot be loaded.
    """
    piq, unit = load_piq(), image.float() / MAX_VALUE
    try:
        return float(piq.brisque(unit, data_range=1.0))
    except AssertionError:  # raised by piq if the image has no variance
        return math.nan
    except (OSError, RuntimeError, EOFError) as error:
        if is_out_of_memory(error):
            raise
        raise not_loaded("brisque", error) from error


NO_REFERENCE = {
    one.name: one
    for one in (
        ImageMetric("blur_effect", blur_effect, "lower is sharper", "0 to 1", 16, "blur"),
        ImageMetric(
            "noise_sigma", noise_sigma, "lower is less noise", "0 up, 8-bit levels", 16, "noise"
        ),
        ImageMetric(
            "total_variation",
            total_variation,
            "lower is smoother: less noise or less detail",
            "0 up, 8-bit levels",
            16,
            "steps to the neighbours across and down, summed",
        ),
        ImageMetric(
            "brisque", brisque, "lower is better", "0 to about 100", 32, "natural statistics", True
        ),
    )
}
"""All metrics by name; for none of them is a higher value better."""


def _pixels(image: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    return image[0].permute(1, 2, 0).double().cpu().numpy()


def _missing(name: str) -> ResourceError:
    hint = 'pip install "c2fdft[no-reference]"'
    return ResourceError(f"{name} needs scikit-image and PyWavelets", hint=hint)
