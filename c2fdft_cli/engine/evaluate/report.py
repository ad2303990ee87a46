"""Write an evaluation as one self-contained HTML page, which opens offline from disk."""

from __future__ import annotations

import base64
import io
import json
import math
import platform
from bisect import insort
from collections.abc import Generator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from c2fdft_cli.data.pixels import Pixels
from c2fdft_cli.engine.evaluate.job import EvalResult
from c2fdft_cli.engine.sampling.scoring import Pictures, Scored
from c2fdft_cli.engine.weights.checkpoint import versions
from c2fdft_cli.files.folders import ensure_folder
from c2fdft_cli.files.writing import atomic_write_text
from c2fdft_cli.metrics.protocols import PROTOCOLS
from c2fdft_cli.progress import Job
from c2fdft_cli.words import finite_or_none

LARGEST_SIDE = 1024
QUALITY = 80
ERROR_WHITE = 48
"""Difference, mean of the channels in 8-bit levels, from which the error map is white."""
MAX_BYTES = 64 << 20
"""Most characters of pictures on a page: a browser opens no page of several hundred million."""
VIEWS = ("degraded", "restored", "target", "error")
_ABOUT_PICTURES = (
    f"The pictures on this page are compressed and have at most {LARGEST_SIDE} px per side; the "
    "scores are those of the original files."
)
_ABOUT_ERRORS = (
    "The error maps show the absolute difference, mean of the channels; white means at least "
    f"{ERROR_WHITE} of 255 levels."
)
_ABOUT_SHIFTS = (
    "The error maps compare the images as they are, without the shift at which they are scored."
)
REPORT_FILES = ("index.html", "eval.json")
_TEMPLATE = "page.html"
_SLOT = "@@DATA@@"

Views: TypeAlias = dict[str, str]
"""The pictures of an image as data URIs; the keys are some of `VIEWS`."""


class Gallery:
    """The pictures of a report, of at most `MAX_BYTES` characters in all.

    If there are more, those of the images with the lowest and with the highest scores are kept.
    `views` holds them by the names of the images.
    """

    def __init__(self) -> None:
        self.views: dict[str, Views] = {}
        self._ranking: list[tuple[float, str]] = []
        self._bytes = 0

    def add(self, name: str, score: float, views: Views) -> None:
        """Add the pictures of an image; drop those from the middle of the ranking if too many."""
        insort(self._ranking, (score, name))
        self.views[name] = views
        self._bytes += _size(views)
        while self._bytes > MAX_BYTES:
            _, dropped = self._ranking.pop(len(self._ranking) // 2)
            self._bytes -= _size(self.views.pop(dropped))

    def merge(self, other: Gallery) -> None:
        """Add the pictures of another gallery."""
        for score, name in other._ranking:
            self.add(name, score, other.views[name])

    def note(self, total: int) -> list[str]:
        """Report that not all of `total` images are shown: [] or one sentence."""
        if len(self.views) == total:
            return []
        return [
            f"the page has the pictures of {len(self.views)} of {total} images, those with the "
            f"lowest and the highest scores: those of all would take more than {MAX_BYTES >> 20} "
            "MiB"
        ]


def _size(views: Views) -> int:
    return sum(map(len, views.values()))


def with_pictures(job: Job[Scored, EvalResult], gallery: Gallery) -> Job[Scored, EvalResult]:
    """Wrap a job so that the pictures of its events are encoded into a gallery.

    The job's options must have `pictures` set.
    """

    def work() -> Generator[Scored, None, EvalResult]:
        for event in job:
            if event.pictures is not None:
                views = _views(event.pictures)
                uris = {view: _data_uri(pixels) for view, pixels in views.items()}
                gallery.add(event.name, _rank(event), uris)
            yield event
        return job.result

    return Job(work(), total=len(job), title=job.title, unit=job.unit)


def _rank(event: Scored) -> float:
    """Return PSNR or, without a target, the first metric; a score without a value is lowest."""
    score = next(iter(event.more.values())) if math.isnan(event.psnr) else event.psnr
    return -math.inf if math.isnan(score) else score


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
    gallery: Gallery,
    command: str,
    lines: Sequence[str],
    recipe: dict[str, Any] | None = None,
) -> list[Path]:
    """Write the `REPORT_FILES` to a folder and return their paths; ResourceError if that fails.

    Args:
        folder: created if missing.
        document: the JSON document of the evaluation.
        gallery: the pictures of its rows.
        command: the exact command line.
        lines: protocol and other remarks.
        recipe: the recipe of the weights, if they have one.
    """
    ensure_folder(folder)
    pictures = [gallery.views.get(row["name"], {}) for row in document["images"]]
    views = [view for view in VIEWS if any(view in one for one in pictures)]
    about = [*gallery.note(len(pictures)), _ABOUT_PICTURES]
    if "error" in views:
        about.append(_ABOUT_ERRORS)
        if PROTOCOLS[document["protocol"]].reach:
            about.append(_ABOUT_SHIFTS)
    content = {
        **document,
        "views": views,
        "pictures": pictures,
        "about": {
            "command": command,
            "lines": [*lines, *about],
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
