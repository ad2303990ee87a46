"""Score images without targets, such as photographs with no clean version, without reference."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

from c2fdft_cli.data.layouts.listing import beyond_the_first, refuse_videos, some_images
from c2fdft_cli.engine.evaluate.files import read_image
from c2fdft_cli.engine.evaluate.job import EvalOptions, EvalResult, score_each
from c2fdft_cli.engine.evaluate.pairing import own_names, without_suffix
from c2fdft_cli.engine.sampling.scoring import Scored, pictures_of
from c2fdft_cli.errors import DataError, UsageError
from c2fdft_cli.files.reading import require_existing
from c2fdft_cli.metrics.protocols import Protocol
from c2fdft_cli.progress import Job

PROTOCOL = Protocol("no-reference", "without targets, RGB, 8-bit images")


def evaluate_alone(source: Path, options: EvalOptions) -> Job[Scored, EvalResult]:
    """Score images with no-reference metrics.

    Images that cannot be read are skipped and listed in the result.

    Args:
        source: a folder (with its sub-folders) or one image.
        options: border and metrics; a protocol cannot be chosen.

    Raises:
        UsageError: a protocol was chosen.
        DataError: nothing to score; from the iteration, no image that can be scored.
        ResourceError: from the iteration, a missing package, or weights that cannot be loaded.
    """
    if options.protocol is not None:
        raise UsageError("--protocol cannot be combined with --no-reference")
    require_existing(source)
    refuse_videos(source)
    images = some_images(source, recursive=True) if source.is_dir() else [source]
    root = source if source.is_dir() else source.parent
    names = [without_suffix(path.relative_to(root)) for path in images]
    tasks = [
        (name, partial(_score_image, name, path, options))
        for name, path in zip(own_names(names, images), images, strict=True)
    ]
    known = EvalResult(
        PROTOCOL,
        [],
        "saved files",
        options.border,
        has_targets=False,
        chosen_by="the only one without targets",
    )

    def notes(_: list[Scored]) -> list[str]:
        return [f"note: {one}" for one in beyond_the_first(images)]

    return score_each(tasks, known, options, notes=notes)


def _score_image(name: str, path: Path, options: EvalOptions) -> Scored:
    whole = read_image(path, PROTOCOL)
    border, (height, width) = options.border, whole.shape[-2:]
    if 2 * border >= min(height, width):
        raise DataError(f"{width} x {height} px: nothing is left inside a border of {border} px")
    image = whole[..., border : height - border, border : width - border]
    more = {key: metric(image, image) for key, metric in options.metrics.items()}
    pictures = pictures_of(whole, None, None) if options.pictures else None
    return Scored(name, math.nan, math.nan, more, pictures=pictures)
