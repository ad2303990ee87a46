"""Find the additional metrics of an evaluation by their names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from torch import Tensor

from c2fdft_cli.engine.sampling.scoring import Metric, Scored
from c2fdft_cli.errors import ResourceError, UsageError
from c2fdft_cli.metrics.full_reference import METRICS, ImageMetric, without_download
from c2fdft_cli.metrics.no_reference import NO_REFERENCE
from c2fdft_cli.metrics.protocols import MAX_VALUE
from c2fdft_cli.settings import split_words
from c2fdft_cli.words import many

ALL = "all"
_BY_NAME = METRICS | NO_REFERENCE


def find_metrics(names: str, *, no_reference: bool = False) -> dict[str, Metric]:
    """Return the named metrics, each once.

    Args:
        names: names separated by commas; "all" stands for every metric that needs no download.
        no_reference: whether to use metrics of a single image instead of those that need a target.

    Raises:
        UsageError: an unknown name, or a metric of the other kind.
    """
    known = NO_REFERENCE if no_reference else METRICS
    wanted: list[str] = []
    for name in split_words(names.lower()):
        if name == ALL:
            wanted += without_download(known)
        elif name in known:
            wanted.append(name)
        elif name in NO_REFERENCE:
            raise UsageError(f"--metrics {name} needs --no-reference")
        elif name in METRICS:
            raise UsageError(f"--metrics {name} cannot be combined with --no-reference")
        else:
            hint = f"metrics: all, {', '.join(known)}"
            raise UsageError(f"--metrics {name}: no such metric", hint=hint)
    return {name: partial(_score, known[name], no_reference) for name in dict.fromkeys(wanted)}


def _score(metric: ImageMetric, alone: bool, restored: Tensor, target: Tensor) -> float:
    """Compute one metric, `alone` without the target; ResourceError if something is missing."""
    try:
        if alone:
            return metric(restored)
        return metric(*((image.float() / MAX_VALUE).clamp(0, 1) for image in (restored, target)))
    except ValueError as error:
        hint = "omit the metric, or put its weights into the cache folder of torch.hub"
        raise ResourceError(str(error), hint=hint) from error


def describe_metric(name: str) -> str:
    """Return the direction and range of a metric, for the lines under a table."""
    one = _BY_NAME[name]
    return f"{name}: {one.describes}, {one.direction}, {one.range}"


def lower_wins(name: str) -> bool:
    """Whether the smaller of two scores is the better one; False for PSNR and SSIM."""
    return name in _BY_NAME and _BY_NAME[name].lower_wins


def without_mean(rows: Sequence[Scored]) -> list[str]:
    """Return a note for each metric that has no mean, because an image has no value."""
    notes = []
    for name in rows[0].more if rows else ():
        bare = [row.name for row in rows if math.isnan(row.more[name])]
        if bare:
            count = f"{len(bare)} of {many(len(rows), 'image')} have no value, such as {bare[0]}"
            side = _BY_NAME[name].min_size
            why = f"it needs sides of at least {side} px without the border, and must be finite"
            notes.append(f"note: {name} has no mean: {count} ({why})")
    return notes
