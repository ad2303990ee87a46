"""What the user asks `restore` for, checked before anything is loaded."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from c2fdft_cli.core.diffusion import check_grid, time_grid
from c2fdft_cli.engine.weights.checkpoint import Meta
from c2fdft_cli.errors import UsageError
from c2fdft_cli.vocabulary import COMPILE, SPACINGS, check_choice, parse_numbers

FORMATS = {"png": ".png", "jpg": ".jpg", "jpeg": ".jpg", "tif": ".tif", "tiff": ".tif",
           "bmp": ".bmp", "webp": ".webp"}  # fmt: skip
SAME_FORMAT = "same"
DEEP_SUFFIXES = frozenset({".png", ".tif", ".tiff"})
STDIO = "-"
UNCERTAINTY_SAMPLES = 8
TEMPORAL_NOISE = ("fixed", "per-frame")
CRF = 18
MAX_CRF = 51
MIN_TILE = 32
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True)
class RestoreOptions:
    """A request to `plan_restore`.

    Args:
        source: a file, a folder, a glob, `@list.txt`, or `-` for the bytes in `stdin`.
        out: a folder; for a single image also a file with an image suffix, or `-`.
        weights: a checkpoint file, or a name of packaged weights; None for those of `task`.
        task: whose packaged weights are taken; None for deraining.
        steps, spacing: network calls and how they are spread; None for the checkpoint's grid. A
            count that is the checkpoint's own means its grid, where no spacing is named.
        grid: explicit times instead.
        eta: 0 is deterministic after the start noise, 1 ancestral.
        seed: of the noise, together with each image's base name.
        format: "png", "jpg", "tif", "bmp", "webp" or "same"; None for PNG or the suffix of `out`.
        quality: of JPEG, 1 to 100.
        suffix: put behind each output's base name.
        bit_depth: 8 or 16; None for the input's own.
        overwrite: replace outputs that are there.
        batch: images of one size that go through the network together; 0 for what is sensible.
        max_memory: bytes that restoring may take; None for what is free, with a margin.
        tile: side in pixels of overlapping tiles, blended inside each sampler step; None for none.
        compile: "auto", "on" or "off": torch.compile, see `compiles_bands`.
        samples: draws to average; None for 1, or 8 where `uncertainty` asks for a spread.
        self_ensemble: average over flips and turns as well (`ensemble_positions`).
        uncertainty: folder for spread maps.
        compare: folder for side-by-side pictures.
        stdin: the bytes of the one image when `source` is `-`.
        temporal_noise: "fixed" for one noise for all frames of a video, or "per-frame".
        crf: quality of encoded videos, 0 (best) to 51.
    """

    source: str
    out: str
    weights: str | None = None
    task: str | None = None
    steps: int | None = None
    spacing: str | None = None
    grid: tuple[int, ...] | None = None
    eta: float = 0.0
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    format: str | None = None
    quality: int = 95
    suffix: str = ""
    bit_depth: int | None = None
    overwrite: bool = False
    batch: int = 0
    max_memory: int | None = None
    tile: int | None = None
    compile: str = "auto"
    samples: int | None = None
    self_ensemble: bool = False
    uncertainty: Path | None = None
    compare: Path | None = None
    stdin: bytes | None = None
    temporal_noise: str = TEMPORAL_NOISE[0]
    crf: int = CRF

    @property
    def draws(self) -> int:
        """How many times the sampler draws each image, without the flips and turns."""
        if self.samples is not None:
            return self.samples
        return UNCERTAINTY_SAMPLES if self.uncertainty and not self.self_ensemble else 1

    def check(self) -> None:
        """Raise UsageError for what can be known to be wrong before anything is loaded."""
        for name, value in (("IN", self.source), ("OUT", str(self.out))):
            if not value:
                raise UsageError(f"{name} is empty", hint="name a file or a folder")
        _check_grid_options(self)
        _check_output_options(self)
        if not 0 <= self.eta <= 1:
            raise UsageError(f"eta is 0 to 1, got {self.eta}", where="--eta")
        if self.draws < 1:
            raise UsageError(f"samples is at least 1, got {self.samples}", where="--samples")
        if self.uncertainty is not None and self.draws < 2 and not self.self_ensemble:
            raise UsageError(
                "a spread needs two draws", where="--uncertainty", hint="give --samples 2 or more"
            )
        check_choice("--compile", self.compile, COMPILE)
        if self.tile is not None and (self.tile < MIN_TILE or self.tile % 8):
            raise UsageError(
                f"a tile is at least {MIN_TILE} px and a multiple of 8, got {self.tile}",
                where="--tile",
            )


def _check_grid_options(options: RestoreOptions) -> None:
    if options.grid is not None and (options.steps is not None or options.spacing is not None):
        raise UsageError("give --grid, or --steps with --spacing, not both", where="--grid")
    if options.spacing is not None:
        check_choice("--spacing", options.spacing, SPACINGS)
    if options.spacing is not None and options.steps is None:
        raise UsageError("needs --steps", where="--spacing")


def _check_output_options(options: RestoreOptions) -> None:
    name = options.format
    if name is not None and name.lower() not in {*FORMATS, SAME_FORMAT}:
        known = ", ".join([*FORMATS, SAME_FORMAT])
        raise UsageError(f"no such format: {name}", where="--format", hint=known)
    if options.bit_depth not in (None, 8, 16):
        raise UsageError(f"bit depth is 8 or 16, got {options.bit_depth}", where="--bit-depth")
    if not 1 <= options.quality <= 100:
        raise UsageError(f"quality is 1 to 100, got {options.quality}", where="--quality")
    if options.temporal_noise not in TEMPORAL_NOISE:
        known = ", ".join(TEMPORAL_NOISE)
        raise UsageError(
            f"no such noise: {options.temporal_noise}", where="--temporal-noise", hint=known
        )
    if not 0 <= options.crf <= MAX_CRF:
        raise UsageError(f"crf is 0 to {MAX_CRF}, got {options.crf}", where="--crf")
    if any(sign in options.suffix for sign in "/\\\0"):
        raise UsageError("a suffix cannot hold a path", where="--suffix")


def parse_grid(text: str) -> tuple[int, ...]:
    """Times out of "999,500"; UsageError when they are not descending integers."""
    try:
        return tuple(check_grid(parse_numbers("--grid", text, "999,500"), 1 << 31))
    except ValueError as error:
        raise UsageError(
            f"cannot read the grid: {error}", where=text, hint="descending times, such as 999,500"
        ) from error


def parse_size(text: str) -> int:
    """Bytes out of "900M", "6G" or "1.5 GiB"; UsageError when it is not a size."""
    found = _SIZE.fullmatch(text.strip())
    size = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if size < 1:
        raise UsageError("cannot read this size", where=text, hint="such as 900M or 6G")
    return size


def choose_grid(options: RestoreOptions, meta: Meta, own: Sequence[int]) -> list[int]:
    """The sampler's times: as asked, else the checkpoint's own; UsageError when out of range."""
    total = meta.diffusion.timesteps
    try:
        if options.grid is not None:
            return check_grid(options.grid, total)
        if options.steps == len(own) and options.spacing is None:
            return list(own)
        if options.steps is not None:
            return time_grid(options.steps, options.spacing or "linspace", total)
    except ValueError as error:
        where = "--steps" if options.grid is None else "--grid"
        raise UsageError(str(error), where=where) from error
    return list(own)


def grid_warning(meta: Meta, grid: Sequence[int]) -> str | None:
    """Fine weights belong to the grid they were trained on; None where all is well."""
    if meta.stage != "fine" or meta.grid is None or list(grid) == list(meta.grid):
        return None
    asked, trained = (",".join(map(str, times)) for times in (grid, meta.grid))
    return (
        f"these fine weights were trained on the grid {trained}; on {asked} they are likely to "
        "restore worse - leave --steps and --grid out to use theirs"
    )


def settings_digest(
    options: RestoreOptions, weights: str, grid: Sequence[int], precision: str
) -> str:
    """A short name for everything that decides an output's pixels, besides its input."""
    facts: dict[str, Any] = {
        "weights": weights,
        "grid": list(grid),
        "precision": precision,
        "draws": options.draws,
    }
    for name in ("eta", "seed", "quality", "bit_depth", "tile", "self_ensemble"):
        facts[name] = getattr(options, name)
    # left out where they are usual: records of images from before there were videos stay good
    if options.temporal_noise != TEMPORAL_NOISE[0]:
        facts["temporal_noise"] = options.temporal_noise
    if options.crf != CRF:
        facts["crf"] = options.crf
    text = json.dumps(facts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
