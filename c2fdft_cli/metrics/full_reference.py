"""Full-reference metrics of piq, with the direction and range of each.

All take RGB images `[1, 3, h, w]` in [0, 1]. An image with a side below a metric's minimum has no
value.
"""

from __future__ import annotations

import importlib
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from c2fdft_cli.execution.memory import is_out_of_memory


@dataclass(frozen=True)
class ImageMetric:
    """A metric of one image, with or without a target.

    Args:
        name: the name that selects it, and of its column.
        compute: its function of the image, or of the image and its target.
        direction: which values are better, in words that begin with "higher" or "lower".
        range: the range of its values, in words.
        min_size: the smallest side of an image, in pixels.
        describes: its full name.
        downloads: whether piq downloads weights for it.
    """

    name: str
    compute: Callable[..., float]
    direction: str
    range: str
    min_size: int
    describes: str
    downloads: bool = False

    @property
    def lower_wins(self) -> bool:
        """Whether the smaller of two values is the better one."""
        return self.direction.startswith("lower")

    def __call__(self, *images: Tensor) -> float:
        """Compute the value for one image, or for an image and its target: each `[1, 3, h, w]`.

        Returns:
            The value; NaN if a side is below the minimum or the value is not finite.

        Raises:
            ValueError: other shapes, values outside the metric's range, or weights that cannot be
                loaded.
            ResourceError: a package that the metric needs is missing.
        """
        shapes = [list(image.shape) for image in images]
        if any(len(one) != 4 or one[:2] != [1, 3] or one != shapes[0] for one in shapes):
            raise ValueError(f"expected images of one shape [1, 3, h, w], got {shapes}")
        if min(images[0].shape[-2:]) < self.min_size:
            return math.nan
        with torch.inference_mode():
            value = float(self.compute(*images))
        return value if math.isfinite(value) else math.nan


def without_download(metrics: Mapping[str, ImageMetric]) -> list[str]:
    """Return the names of those metrics that need no download."""
    return [name for name, one in metrics.items() if not one.downloads]


def _piq(function: str) -> Callable[[Tensor, Tensor], float]:
    return lambda a, b: float(getattr(load_piq(), function)(a, b, data_range=1.0))


def _shrinking(function: str) -> Callable[[Tensor, Tensor], float]:
    """Return a metric of piq that first shrinks images by the factor round(shorter side / 256).

    The authors' programs are in MATLAB, which rounds halves up. Python's `round`, which piq calls,
    rounds them to even numbers: at 640 px the factor would be 2 instead of 3. So a copy of piq's
    function runs whose `round` is MATLAB's.
    """

    def compute(a: Tensor, b: Tensor) -> float:
        own = getattr(load_piq(), function)
        names = {**own.__globals__, "round": lambda value: math.floor(value + 0.5)}
        return float(FunctionType(own.__code__, names, argdefs=own.__defaults__)(a, b))

    return compute


def _haarpsi(a: Tensor, b: Tensor) -> float:
    # Of two black images piq's value is 0 / 0.
    return 1.0 if torch.equal(a, b) else _piq("haarpsi")(a, b)


def _learned(name: str) -> Callable[[Tensor, Tensor], float]:
    return lambda a, b: float(_network(name)(a, b))


_HIGHER, _LOWER = "higher is better", "lower is better"
METRICS = {
    one.name: one
    for one in (
        ImageMetric(
            "ms_ssim", _piq("multi_scale_ssim"), _HIGHER, "0 to 1", 161, "multi-scale SSIM"
        ),
        ImageMetric(
            "vif", _piq("vif_p"), _HIGHER, "0 to about 1", 41, "visual information fidelity, pixels"
        ),
        ImageMetric("fsim", _shrinking("fsim"), _HIGHER, "0 to 1", 16, "feature similarity"),
        ImageMetric("gmsd", _piq("gmsd"), _LOWER, "0 to about 0.35", 16, "gradient deviation"),
        ImageMetric("haarpsi", _haarpsi, _HIGHER, "0 to 1", 16, "Haar wavelet similarity"),
        ImageMetric(
            "mdsi", _shrinking("mdsi"), _LOWER, "0 to about 1", 16, "mean deviation similarity"
        ),
        ImageMetric("vsi", _shrinking("vsi"), _HIGHER, "0 to 1", 16, "visual saliency similarity"),
        ImageMetric(
            "srsim", _shrinking("srsim"), _HIGHER, "0 to 1", 40, "spectral residual similarity"
        ),
        ImageMetric("dss", _piq("dss"), _HIGHER, "0 to 1", 32, "DCT sub-band similarity"),
        ImageMetric(
            "lpips", _learned("LPIPS"), _LOWER, "0 to about 1", 32, "learned distance (VGG16)", True
        ),
        ImageMetric(
            "dists", _learned("DISTS"), _LOWER, "0 to 1", 32, "structure and texture", True
        ),
    )
}
"""All metrics by name. The ranges are for natural images; equal images give 1 or 0."""


def _network(function: str) -> Any:
    """Return a learned metric by its name in piq; it takes RGB in [0, 1] and normalises by itself.

    Several threads score at once. The weights are requested only once, even if that fails.
    """
    with _LOADING:
        found = _load_network(function)
    if isinstance(found, Exception):
        raise not_loaded(function.lower(), found) from found
    return found


def not_loaded(name: str, error: Exception) -> ValueError:
    """Return the error that a metric's weights cannot be loaded, with the reason."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ValueError(f"the weights of {name} cannot be loaded: {reason}")


@lru_cache(maxsize=2)
def _load_network(function: str) -> Any:
    """Return the metric, or the error that prevented loading it."""
    try:
        return getattr(load_piq(), function)()
    except (OSError, RuntimeError, EOFError) as error:
        if is_out_of_memory(error):
            raise
        return error


def load_piq() -> Any:
    """Import piq, even if torch is a CPU build and torchvision, which piq imports, is not.

    Such a torchvision finds two of its compiled operators missing. Declaring them, without an
    implementation, is enough: the metrics never call them. A lock lets several threads call this
    function at once, because an operator can be declared only once.
    """
    with _LOADING:
        try:
            return importlib.import_module("piq")
        except RuntimeError as error:
            if "torchvision::" not in str(error):
                raise
        for schema in (
            "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
            "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        ):
            _DECLARED.define(schema)
        return importlib.import_module("piq")


# Reentrant: a thread that loads a learned metric also loads piq.
_LOADING = threading.RLock()
_LIBRARY: Any = torch.library.Library
# Kept as long as the process runs: a library that is garbage-collected removes its operators.
_DECLARED = _LIBRARY("torchvision", "FRAGMENT")
