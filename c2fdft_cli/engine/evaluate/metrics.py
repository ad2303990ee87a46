"""Further metrics for an evaluation, by the names that people give."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial

from torch import Tensor

from c2fdft_cli.engine.evaluate.types import Metric
from c2fdft_cli.errors import ResourceError, UsageError
from c2fdft_cli.metrics.full_reference import FULL_SET, METRICS, piq_metric
from c2fdft_cli.metrics.no_reference import MEASURES
from c2fdft_cli.metrics.protocols import MAX_VALUE
from c2fdft_cli.vocabulary import split_words

ALL = "all"


def find_metrics(names: str) -> dict[str, Metric]:
    """Metrics by name with commas between; "all" is every one that needs no download.

    Raises:
        UsageError: an unknown name.
    """
    return {name: partial(_score, name) for name in choose_names(names, METRICS, FULL_SET)}


def choose_names(names: str, known: Collection[str], everything: Sequence[str]) -> list[str]:
    """The names in a text with commas between, each once; "all" stands for `everything`.

    Raises:
        UsageError: a name that is not known.
    """
    wanted: list[str] = []
    for name in split_words(names.lower()):
        if name != ALL and name not in known:
            hint = f"all, {', '.join(known)}"
            if name in MEASURES:
                hint = "with --no-reference"
            elif name in METRICS:
                hint = "it needs targets"
            raise UsageError(f"no such metric: {name}", where="--metrics", hint=hint)
        wanted += everything if name == ALL else [name]
    return list(dict.fromkeys(wanted))


def _score(name: str, restored: Tensor, target: Tensor) -> float:
    unit = ((image.float() / MAX_VALUE).clamp(0, 1) for image in (restored, target))
    try:
        return piq_metric(name, *unit)
    except ValueError as error:
        raise weights_missing(name, error) from error


def weights_missing(name: str, error: ValueError) -> ResourceError:
    """The error for a metric whose weights cannot be loaded."""
    hint = "leave it out, or put the weights where torch.hub keeps its files"
    return ResourceError(str(error), where=f"--metrics {name}", hint=hint)


def describe_metric(name: str) -> str:
    """Direction and range of a metric, for the lines under a table."""
    if name in MEASURES:
        alone = MEASURES[name]
        return f"{name}: {alone.describes}, {alone.direction}, {alone.span}"
    one = METRICS[name]
    return f"{name}: {one.describes}, {one.direction}, {one.span}"


def lower_wins(name: str) -> bool:
    """Whether the smaller of two scores is the better one."""
    return name in MEASURES or (name in METRICS and not METRICS[name].higher_is_better)
