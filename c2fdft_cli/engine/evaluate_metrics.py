"""Further metrics for an evaluation, by the names that people give."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from c2fdft_cli.core.metrics import MAX_VALUE
from c2fdft_cli.core.piq_metrics import FULL_SET, METRICS, piq_metric
from c2fdft_cli.engine.evaluate_types import Metric
from c2fdft_cli.errors import ResourceError, UsageError

ALL = "all"


def find_metrics(names: str) -> dict[str, Metric]:
    """Metrics by name with commas between; "all" is every one that needs no download.

    Raises:
        UsageError: an unknown name.
    """
    wanted: list[str] = []
    for name in names.replace(" ", "").lower().split(","):
        if name != ALL and name not in METRICS:
            hint = f"all, {', '.join(METRICS)}"
            raise UsageError(f"no such metric: {name}", where="--metrics", hint=hint)
        wanted += FULL_SET if name == ALL else [name]
    return {name: partial(_score, name) for name in dict.fromkeys(wanted)}


def _score(name: str, restored: Tensor, target: Tensor) -> float:
    unit = ((image.float() / MAX_VALUE).clamp(0, 1) for image in (restored, target))
    try:
        return piq_metric(name, *unit)
    except ValueError as error:
        hint = "leave it out, or put the weights where torch.hub keeps its files"
        raise ResourceError(str(error), where=f"--metrics {name}", hint=hint) from error


def describe_metric(name: str) -> str:
    """Direction and range of a metric, for the lines under a table."""
    one = METRICS[name]
    return f"{name}: {one.describes}, {one.direction}, {one.span}"
