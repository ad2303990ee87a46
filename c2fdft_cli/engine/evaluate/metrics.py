"""Further metrics for an evaluation, by the names that people give."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial

from torch import Tensor

from c2fdft_cli.engine.sampling.scoring import Metric
from c2fdft_cli.errors import ResourceError, UsageError
from c2fdft_cli.metrics.full_reference import FULL_SET, METRICS, piq_metric
from c2fdft_cli.metrics.no_reference import METRICS as NO_REFERENCE
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
            if name in NO_REFERENCE:
                raise UsageError(f"--metrics {name} needs --no-reference")
            if name in METRICS:
                raise UsageError(f"--metrics {name} cannot be combined with --no-reference")
            hint = f"metrics: all, {', '.join(known)}"
            raise UsageError(f"--metrics {name}: no such metric", hint=hint)
        wanted += everything if name == ALL else [name]
    return list(dict.fromkeys(wanted))


def _score(name: str, restored: Tensor, target: Tensor) -> float:
    unit = ((image.float() / MAX_VALUE).clamp(0, 1) for image in (restored, target))
    try:
        return piq_metric(name, *unit)
    except ValueError as error:
        raise unusable(error) from error


def unusable(error: ValueError) -> ResourceError:
    """The error for a metric whose package or weights are missing."""
    hint = "leave the metric out, or put its weights where torch.hub keeps its files"
    return ResourceError(str(error), hint=hint)


def describe_metric(name: str) -> str:
    """Direction and range of a metric, for the lines under a table."""
    one = NO_REFERENCE[name] if name in NO_REFERENCE else METRICS[name]
    return f"{name}: {one.describes}, {one.direction}, {one.range}"


def lower_wins(name: str) -> bool:
    """Whether the smaller of two scores that are compared is the better one."""
    return name in NO_REFERENCE
