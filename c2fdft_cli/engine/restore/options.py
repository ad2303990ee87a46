"""What the user asks `restore` for: what to compute, on what, and which files to write.

Each group checks its own values when it is made and raises UsageError.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from c2fdft_cli.core.diffusion import check_grid, time_grid
from c2fdft_cli.errors import UsageError
from c2fdft_cli.vocabulary import COMPILE, SPACINGS, check_choice, parse_numbers

FORMATS = {"png": ".png", "jpg": ".jpg", "jpeg": ".jpg", "tif": ".tif", "tiff": ".tif",
           "bmp": ".bmp", "webp": ".webp"}  # fmt: skip
SAME_FORMAT = "same"
STDIO = "-"
UNCERTAINTY_SAMPLES = 8
TEMPORAL_NOISE = ("fixed", "per-frame")
CRF = 18
MAX_CRF = 51
MIN_TILE = 32
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True)
class Sampling:
    """What is computed.

    Args:
        weights: a checkpoint file, or a name of packaged weights; None for those of `task`.
        task: whose packaged weights are taken; None for deraining.
        steps, spacing: number of sampling steps and how their timesteps are spaced; None for the
            checkpoint's own. A number that is the checkpoint's own means its timesteps, where no
            spacing is named.
        grid: explicit timesteps instead.
        eta: 0 is deterministic after the start noise, 1 ancestral.
        seed: of the noise, together with each image's base name.
        samples: how many to average; None for the default of `sample_count`.
        self_ensemble: average over flips and turns as well (`ensemble_transforms`).
        temporal_noise: "fixed" for one noise for all frames of a video, or "per-frame".
    """

    weights: str | None = None
    task: str | None = None
    steps: int | None = None
    spacing: str | None = None
    grid: tuple[int, ...] | None = None
    eta: float = 0.0
    seed: int = 0
    samples: int | None = None
    self_ensemble: bool = False
    temporal_noise: str = TEMPORAL_NOISE[0]

    def __post_init__(self) -> None:
        if self.grid is not None and (self.steps is not None or self.spacing is not None):
            raise UsageError("--grid cannot be combined with --steps or --spacing")
        if self.spacing is not None:
            check_choice("--spacing", self.spacing, SPACINGS)
            if self.steps is None:
                raise UsageError("--spacing works only together with --steps")
        _check_range("--eta", self.eta, 0, 1)
        if self.samples is not None and self.samples < 1:
            raise UsageError(f"--samples must be at least 1, got {self.samples}")
        check_choice("--temporal-noise", self.temporal_noise, TEMPORAL_NOISE)


@dataclass(frozen=True)
class Machine:
    """What it is computed on, and how.

    Args:
        device, precision: as `make_runtime`.
        batch: images of one size that go through the network together; 0 for what is sensible.
        max_memory: bytes that restoring may take; None for what is free, with a margin.
        tile: side in pixels of overlapping tiles, blended inside each sampling step; None for none.
        compile: "auto", "on" or "off": torch.compile, see `compiles_strips`.
    """

    device: str = "auto"
    precision: str = "auto"
    batch: int = 0
    max_memory: int | None = None
    tile: int | None = None
    compile: str = "auto"

    def __post_init__(self) -> None:
        check_choice("--compile", self.compile, COMPILE)
        if self.tile is not None and (self.tile < MIN_TILE or self.tile % 8):
            what = f"--tile must be a multiple of 8 and at least {MIN_TILE}, got {self.tile}"
            raise UsageError(what)


@dataclass(frozen=True)
class Writing:
    """Which files are written.

    Args:
        format: "png", "jpg", "tif", "bmp", "webp" or "same"; None for PNG or the suffix of OUT.
        quality: JPEG quality, 1 to 100.
        bit_depth: 8 or 16; None for the input's own.
        suffix: appended to each output's base name.
        overwrite: replace outputs that exist.
        compare: folder for side-by-side pictures.
        uncertainty: folder for pictures of the per-pixel standard deviation.
        crf: quality of encoded videos, 0 (best) to 51.
    """

    format: str | None = None
    quality: int = 95
    bit_depth: int | None = None
    suffix: str = ""
    overwrite: bool = False
    compare: Path | None = None
    uncertainty: Path | None = None
    crf: int = CRF

    def __post_init__(self) -> None:
        if self.format is not None:
            check_choice("--format", self.format.lower(), [*FORMATS, SAME_FORMAT])
        _check_range("--quality", self.quality, 1, 100)
        if self.bit_depth not in (None, 8, 16):
            raise UsageError(f"--bit-depth must be 8 or 16, got {self.bit_depth}")
        if any(sign in self.suffix for sign in "/\\\0"):
            raise UsageError(f"--suffix must not contain a path separator, got {self.suffix!r}")
        _check_range("--crf", self.crf, 0, MAX_CRF)


def _check_range(option: str, value: float, low: int, high: int) -> None:
    if not low <= value <= high:
        raise UsageError(f"{option} must be {low} to {high}, got {value}")


def sample_count(samples: int | None, self_ensemble: bool, uncertainty: bool) -> int:
    """How many samples are drawn of each image, under each transform.

    Args:
        samples: as asked; None for 1, or 8 where `uncertainty` needs several.
        self_ensemble: whether there are several transforms.
        uncertainty: whether a standard deviation is asked for.

    Raises:
        UsageError: the standard deviation of a single result is asked for.
    """
    if uncertainty and not self_ensemble:
        samples = UNCERTAINTY_SAMPLES if samples is None else samples
        if samples < 2:
            raise UsageError("--uncertainty needs at least 2 samples", hint="use --samples 2")
    return samples or 1


def parse_grid(text: str) -> tuple[int, ...]:
    """Timesteps out of "999,500"; UsageError when they are not descending integers."""
    try:
        return tuple(check_grid(parse_numbers("--grid", text, "999,500"), 1 << 31))
    except ValueError as error:
        what = f"--grid must be descending timesteps such as 999,500, got {text}"
        raise UsageError(what) from error


def parse_size(text: str) -> int:
    """Bytes out of "900M", "6G" or "1.5 GiB"; UsageError when it is not a size."""
    found = _SIZE.fullmatch(text.strip())
    size = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if size < 1:
        raise UsageError(f"--max-memory must be a size such as 900M or 6G, got {text}")
    return size


def choose_grid(sampling: Sampling, own: Sequence[int], total: int) -> list[int]:
    """The sampler's timesteps: as asked, else the checkpoint's own.

    Args:
        sampling: may name `grid`, or `steps` with a `spacing`.
        own: the checkpoint's.
        total: T.

    Raises:
        UsageError: out of range.
    """
    steps, spacing = sampling.steps, sampling.spacing
    if steps is None or (steps == len(own) and spacing is None):
        if sampling.grid is None:
            return list(own)
        if not all(0 <= t < total for t in sampling.grid):
            given = ",".join(map(str, sampling.grid))
            raise UsageError(f"--grid must be timesteps from 0 to {total - 1}, got {given}")
        return check_grid(sampling.grid, total)
    if steps > total:
        raise UsageError(f"--steps must be 1 to {total}, got {steps}")
    return time_grid(steps, spacing or SPACINGS[0], total)


def grid_warning(trained: Sequence[int] | None, grid: Sequence[int]) -> str | None:
    """Fine weights belong to the timesteps they were trained on; None where all is well.

    Args:
        trained: of fine weights; None for others.
        grid: those that are used.
    """
    if trained is None or list(grid) == list(trained):
        return None
    used, own = (",".join(map(str, times)) for times in (grid, trained))
    return (
        f"these fine weights were trained on the timesteps {own} and are likely to restore worse "
        f"on {used}; omit --steps and --grid to use theirs"
    )
