"""Write an evaluation as one self-contained HTML page, which opens offline from disk."""

from __future__ import annotations

import base64
import io
import json
import platform
from collections.abc import Generator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from c2fdft_cli.engine.evaluate.job import EvalResult
from c2fdft_cli.engine.sampling.scoring import Pictures, Scored
from c2fdft_cli.engine.weights.checkpoint import versions
from c2fdft_cli.files import atomic_write_text, ensure_folder
from c2fdft_cli.progress import Job
from c2fdft_cli.vocabulary import finite_or_none

LARGEST_SIDE = 1024
QUALITY = 80
ERROR_WHITE = 48
"""Difference, mean of the channels in 8-bit levels, from which the error map is white."""
_ABOUT_PICTURES = (
    "The error maps show the absolute difference, mean of the channels; white means at least "
    f"{ERROR_WHITE} of 255 levels. The pictures on this page are compressed and have at most "
    f"{LARGEST_SIDE} px per side; the scores are those of the original files."
)
REPORT_FILES = ("index.html", "eval.json")
_TEMPLATE = "page.html"
_SLOT = "@@DATA@@"

Pixels = np.ndarray[Any, Any]


Encoded: TypeAlias = dict[str, dict[str, str]]
"""For each image, by its name, its views (degraded, restored, target, error) as data URIs."""


def with_pictures(job: Job[Scored, EvalResult], encoded: Encoded) -> Job[Scored, EvalResult]:
    """Wrap a job so that the pictures of its events are encoded into `encoded`.

    The job's options must have `pictures` set.
    """

    def work() -> Generator[Scored, None, EvalResult]:
        for event in job:
            if event.pictures is not None:
                views = _views(event.pictures)
                encoded[event.name] = {view: _data_uri(pixels) for view, pixels in views.items()}
            yield event
        return job.result

    return Job(work(), total=len(job), title=job.title, unit=job.unit)


def _views(pictures: Pictures) -> dict[str, Pixels]:
    views = {"restored": pictures.restored}
    if pictures.target is not None:
        error = error_map(pictures.restored, pictures.target)
        views = {**views, "target": pictures.target, "error": error}
    return views if pictures.degraded is None else {"degraded": pictures.degraded, **views}


def error_map(restored: Pixels, target: Pixels) -> Pixels:
    """Draw |restored - target|, mean of the channels: black-red-yellow-white at `ERROR_WHITE`."""
    difference = np.abs(restored.astype(np.int16) - target).mean(2)
    level = np.clip(difference / ERROR_WHITE, 0, 1)[..., None] * 3 - np.arange(3)
    colours: Pixels = (np.clip(level, 0, 1) * 255).round().astype(np.uint8)
    return colours


def _data_uri(pixels: Pixels) -> str:
    data, image = io.BytesIO(), Image.fromarray(pixels)
    # This filter has no negative weights: a sharper one would add false colours at the edges of
    # the error map.
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.HAMMING)
    image.save(data, "WEBP", quality=QUALITY)
    return "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode("ascii")


def write_report(
    folder: Path,
    document: dict[str, Any],
    pictures: Encoded,
    command: str,
    lines: Sequence[str],
    recipe: dict[str, Any] | None = None,
) -> list[Path]:
    """Write the `REPORT_FILES` to a folder and return their paths; ResourceError if that fails.

    Args:
        folder: created if missing.
        document: the JSON document of the evaluation.
        pictures: the pictures of its rows.
        command: the exact command line.
        lines: protocol and other remarks.
        recipe: the recipe of the weights, if they have one.
    """
    ensure_folder(folder)
    content = {
        **document,
        "pictures": [pictures[row["name"]] for row in document["images"]],
        "about": {
            "command": command,
            "lines": [*lines, _ABOUT_PICTURES],
            "recipe": finite_or_none(recipe),
            "versions": {**versions(), "platform": platform.platform()},
        },
    }
    template = resources.files("c2fdft_cli.engine.evaluate").joinpath(_TEMPLATE).read_text("utf-8")
    # Only a "<" in the text could end the script element that it is in.
    text = json.dumps(content, allow_nan=False).replace("<", "\\u003c")
    page, facts = (folder / name for name in REPORT_FILES)
    atomic_write_text(page, template.replace(_SLOT, text))
    atomic_write_text(facts, json.dumps(document, indent=1, allow_nan=False) + "\n")
    return [page, facts]
