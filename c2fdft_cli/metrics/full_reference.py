"""Full-reference metrics of piq, with the direction and range of each.

All take RGB images `[1, 3, h, w]` in [0, 1]. An image with a side below a metric's minimum has no
value.
"""

from __future__ import annotations

import importlib
import math
import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class PiqMetric:
    """One metric.

    Args:
        name: the name that selects it, and of its column.
        function: its name in piq.
        higher_is_better: whether a higher value is better.
        range: the range of its values, in words.
        min_size: the smallest side of an image, in pixels.
        describes: its full name.
        downloads: whether piq fetches network weights for it.
    """

    name: str
    function: str
    higher_is_better: bool
    range: str
    min_size: int
    describes: str
    downloads: bool = False

    @property
    def direction(self) -> str:
        """The direction in words."""
        return "higher is better" if self.higher_is_better else "lower is better"


METRICS = {
    one.name: one
    for one in (
        PiqMetric("ms_ssim", "multi_scale_ssim", True, "0 to 1", 161, "multi-scale SSIM"),
        PiqMetric("vif", "vif_p", True, "0 to about 1", 41, "visual information fidelity, pixels"),
        PiqMetric("fsim", "fsim", True, "0 to 1", 16, "feature similarity"),
        PiqMetric("gmsd", "gmsd", False, "0 to about 0.35", 16, "gradient deviation"),
        PiqMetric("haarpsi", "haarpsi", True, "0 to 1", 16, "Haar wavelet similarity"),
        PiqMetric("mdsi", "mdsi", False, "0 to about 1", 16, "mean deviation similarity"),
        PiqMetric("vsi", "vsi", True, "0 to 1", 16, "visual saliency similarity"),
        PiqMetric("srsim", "srsim", True, "0 to 1", 40, "spectral residual similarity"),
        PiqMetric("dss", "dss", True, "0 to 1", 32, "DCT sub-band similarity"),
        PiqMetric("lpips", "LPIPS", False, "0 to about 1", 32, "learned distance (VGG16)", True),
        PiqMetric("dists", "DISTS", False, "0 to 1", 32, "structure and texture", True),
    )
}
"""All metrics by name. The ranges are for natural images; equal images give 1 or 0."""

FULL_SET = tuple(name for name, one in METRICS.items() if not one.downloads)
"""The metrics that need no download."""


def piq_metric(name: str, restored: Tensor, target: Tensor) -> float:
    """Compute one metric of one image.

    Args:
        name: a key of `METRICS`.
        restored: `[1, 3, h, w]` RGB in [0, 1].
        target: as restored.

    Returns:
        The value; NaN if a side is below the metric's minimum or the value is not finite.

    Raises:
        ValueError: different shapes, values outside [0, 1], or weights that cannot be loaded.
    """
    metric = METRICS[name]
    if restored.shape != target.shape or restored.dim() != 4 or restored.shape[1] != 3:
        shapes = f"{list(restored.shape)}, {list(target.shape)}"
        raise ValueError(f"expected one shape [n, 3, h, w], got {shapes}")
    if min(restored.shape[-2:]) < metric.min_size:
        return math.nan
    a, b = restored.float(), target.float()
    with torch.inference_mode():
        if metric.downloads:
            value = float(_network(name)(a, b))
        else:
            value = float(getattr(load_piq(), metric.function)(a, b, data_range=1.0))
    return value if math.isfinite(value) else math.nan


def _network(name: str) -> Any:
    """Return a learned metric; it takes RGB in [0, 1] and normalises by itself.

    Several threads score at once. The weights are requested only once, even if that fails.
    """
    with _LOADING:
        found = _load_network(name)
    if isinstance(found, Exception):
        raise not_loaded(name, found) from found
    return found


def not_loaded(name: str, error: Exception) -> ValueError:
    """Return the error that a metric's weights cannot be loaded, with the reason."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ValueError(f"the weights of {name} cannot be loaded: {reason}")


@lru_cache(maxsize=2)
def _load_network(name: str) -> Any:
    """Return the metric, or the error that prevented loading it."""
    try:
        return getattr(load_piq(), METRICS[name].function)()
    except (OSError, RuntimeError, EOFError) as error:
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
