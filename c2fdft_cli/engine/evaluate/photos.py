"""Scores of images without targets: photographs of which no clean version exists."""

from __future__ import annotations

import math
from collections.abc import Generator
from functools import partial
from pathlib import Path

from torch import Tensor

from c2fdft_cli.data.images.picture import list_images
from c2fdft_cli.engine.evaluate.job import read_image, score_each
from c2fdft_cli.engine.evaluate.metrics import choose_names, weights_missing
from c2fdft_cli.engine.evaluate.types import (
    EvalOptions,
    EvalResult,
    EvalRow,
    Images,
    Metric,
    ScoredRow,
)
from c2fdft_cli.errors import DataError, UsageError
from c2fdft_cli.metrics.no_reference import MEASURES, WITHOUT_DOWNLOAD, measure
from c2fdft_cli.metrics.protocols import Protocol
from c2fdft_cli.progress import Job

PROTOCOL = Protocol("no-reference", False, False, False, "without targets, RGB, 8-bit images")


def find_measures(names: str) -> dict[str, Metric]:
    """Scores without a target by name with commas between; "all" needs no download.

    Raises:
        UsageError: an unknown name.
    """
    chosen = choose_names(names, MEASURES, WITHOUT_DOWNLOAD)
    return {name: partial(_score, name) for name in chosen}


def _score(name: str, image: Tensor, _: Tensor) -> float:
    try:
        return measure(name, image)
    except ValueError as error:
        raise weights_missing(name, error) from error


def evaluate_alone(source: Path, options: EvalOptions) -> Job[ScoredRow, EvalResult]:
    """Score images by themselves.

    Args:
        source: a folder (sub-folders too) or one image.
        options: border and which scores; there is no protocol to choose.

    Raises:
        UsageError: a protocol.
        DataError: nothing to score, a border that leaves nothing, or, from the iteration, an
            image that cannot be read.
        ResourceError: from the iteration, weights that cannot be loaded.
    """
    if options.protocol is not None:
        raise UsageError("--protocol cannot be combined with --no-reference")
    if not source.exists():
        raise DataError("no such file or folder", where=source, hint="check the path")
    images = list_images(source, recursive=True) if source.is_dir() else [source]
    if not images:
        raise DataError("no images in the folder", where=source, hint="check the path")
    root = source if source.is_dir() else source.parent
    mine = options.share([(path.relative_to(root).with_suffix(""), path) for path in images])
    work = _score_images([(name.as_posix(), path) for name, path in mine], options)
    return Job(work, total=len(mine), title="eval", unit="image")


def _score_images(
    images: list[tuple[str, Path]], options: EvalOptions
) -> Generator[ScoredRow, None, EvalResult]:
    tasks = [(name, partial(_score_image, name, path, options)) for name, path in images]
    rows = yield from score_each(tasks, len(images), "images")
    return EvalResult(PROTOCOL, rows, "saved files", options.border, has_targets=False)


def _score_image(name: str, path: Path, options: EvalOptions) -> ScoredRow:
    whole = read_image(path, PROTOCOL)
    border, (height, width) = options.border, whole.shape[-2:]
    if 2 * border >= min(height, width):
        raise DataError(f"nothing of {width} x {height} px is left inside a border of {border} px")
    image = whole[..., border : height - border, border : width - border]
    more = {key: metric(image, image) for key, metric in options.metrics.items()}
    row = EvalRow(name, math.nan, math.nan, more, None)
    return ScoredRow(row, Images(None, whole, None))
