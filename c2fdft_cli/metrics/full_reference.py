"""Full-reference metrics of piq, with the direction and range of each.

All take RGB images `[1, 3, h, w]` in [0, 1]; a side below a metric's minimum gives no number.
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
        name: what it is asked for by, and its column.
        function: its name in piq.
        higher_is_better: the direction.
        range: of its values, in words.
        min_size: of the sides of an image, in pixels.
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
"""All that can be asked for; ranges are for natural images, equal ones give 1 or 0."""

FULL_SET = tuple(name for name, one in METRICS.items() if not one.downloads)
"""Those that need no download."""


def piq_metric(name: str, restored: Tensor, target: Tensor) -> float:
    """One metric of one image.

    Args:
        name: a key of `METRICS`.
        restored: `[1, 3, h, w]` RGB in [0, 1].
        target: as restored.

    Returns:
        Its value, NaN where a side is below the metric's minimum or it has no finite value.

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
    """A learned metric; it takes RGB in [0, 1] and normalises by itself.

    Threads score beside each other, and its weights are asked for once, also where there are none.
    """
    with _LOADING:
        found = _load_network(name)
    if isinstance(found, Exception):
        raise not_loaded(name, found) from found
    return found


def not_loaded(name: str, error: Exception) -> ValueError:
    """That a metric's weights cannot be loaded, and why."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ValueError(f"the weights of {name} cannot be loaded: {reason}")


@lru_cache(maxsize=2)
def _load_network(name: str) -> Any:
    """The metric, or what kept it from being loaded."""
    try:
        return getattr(load_piq(), METRICS[name].function)()
    except (OSError, RuntimeError, EOFError) as error:
        return error


def load_piq() -> Any:
    """piq, also where torch is a CPU build and torchvision, which piq imports, is not.

    Such a torchvision finds two of its compiled operators missing; declared, though without an
    implementation, they do not hinder the metrics, which never call them. Threads may call it at
    once: images are scored beside each other, and an operator can be declared only once.
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


# One thread may hold it twice: a learned metric is loaded, and piq for it.
_LOADING = threading.RLock()
_LIBRARY: Any = torch.library.Library
# Kept for as long as the process runs: a library that is collected takes its operators with it.
_DECLARED = _LIBRARY("torchvision", "FRAGMENT")
