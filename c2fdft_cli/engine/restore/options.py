"""The options of `restore`: the sampling, the machine, and the files to write.

Each group checks its values when it is created and raises UsageError.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from c2fdft_cli.data.images.formats import OUTPUT_FORMATS
from c2fdft_cli.errors import DataError, UsageError
from c2fdft_cli.files.reading import require_existing
from c2fdft_cli.settings import (
    DEVICE,
    MACHINE,
    OVERWRITE,
    PRECISION,
    SEED,
    SELF_ENSEMBLE,
    WEIGHTS,
    check_settings,
    numbers,
    setting,
)
from c2fdft_cli.vocabulary import COMPILE, PACKAGED_TASKS, SPACINGS
from c2fdft_cli.words import for_shell, many

FORMATS = {
    suffix.removeprefix("."): one.suffixes[0] for one in OUTPUT_FORMATS for suffix in one.suffixes
}
"""The values of --format, each with the suffix that outputs get."""
SAME_FORMAT = "same"
STDIO = "-"
UNCERTAINTY_SAMPLES = 8
MAX_SAMPLES = 1000
TEMPORAL_NOISE = ("fixed", "per-frame")
MIN_TILE = 32
SAMPLING, FILES, VIDEO = "Sampling", "Files", "Video"
"""Headings of the options' help."""
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
LEAST_MEMORY = 1 << 16
"""Smallest memory limit in bytes; for a smaller one the user has probably omitted the unit."""
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


parse_timesteps = numbers("--grid", "999,500")
"""Parse timesteps such as "999,500"; UsageError if they are not whole numbers."""


def parse_size(text: str) -> int:
    """Parse a size such as "900M", "6G" or "1.5 GiB" to bytes; UsageError if it is not a size."""
    found = _SIZE.fullmatch(text.strip())
    size = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if size < LEAST_MEMORY:
        meant = f" ({many(size, 'byte')})" if size else ""
        raise UsageError(f"--max-memory must be a size such as 900M or 6G, got {text}{meant}")
    return size


@dataclass(frozen=True)
class SamplingOptions:
    """Which weights and sampling to use."""

    weights: str | None = setting(None, WEIGHTS)
    task: str | None = setting(
        None,
        "Without --weights: use the packaged weights for this task (default: derain).",
        choices=PACKAGED_TASKS,
    )
    steps: int | None = setting(
        None,
        "Sampling steps (default: the checkpoint's; without --weights, packaged weights that were "
        "trained for N steps are chosen if there are any)",
        metavar="N",
        low=1,
    )
    spacing: str | None = setting(
        None, "Spacing of --steps (default: linspace).", choices=SPACINGS, panel=SAMPLING
    )
    grid: tuple[int, ...] | None = setting(
        None,
        "Timesteps in descending order, such as 999,500.",
        metavar="T,T,...",
        parse=parse_timesteps,
        panel=SAMPLING,
    )
    eta: float | None = setting(
        None,
        "Noise added in each step, none (DDIM) to full (ancestral, DDPM) (default: the "
        "checkpoint's).",
        metavar="X",
        low=0,
        high=1,
        panel=SAMPLING,
    )
    seed: int = setting(0, replace(SEED, panel=SAMPLING))
    samples: int | None = setting(
        None, "Average K samples.", metavar="K", low=1, high=MAX_SAMPLES, panel=SAMPLING
    )
    self_ensemble: bool = setting(False, replace(SELF_ENSEMBLE, panel=SAMPLING))
    temporal_noise: str = setting(
        TEMPORAL_NOISE[0],
        "Initial noise: one for all frames (less flicker), or one per frame.",
        choices=TEMPORAL_NOISE,
        panel=VIDEO,
    )

    def __post_init__(self) -> None:
        if self.grid is not None and (self.steps is not None or self.spacing is not None):
            raise UsageError("--grid cannot be combined with --steps or --spacing")
        check_settings(self)
        if self.spacing is not None and self.steps is None:
            raise UsageError("--spacing works only together with --steps")
        if self.grid is not None and (not self.grid or any(a <= b for a, b in pairwise(self.grid))):
            given = ",".join(map(str, self.grid))
            raise UsageError(f"--grid must be descending timesteps such as 999,500, got {given}")


@dataclass(frozen=True)
class Machine:
    """Which device to use, and how."""

    device: str = setting("auto", DEVICE)
    precision: str = setting("auto", PRECISION)
    batch: int = setting(
        0,
        "Images of one size per batch; 0 for as many as memory allows.",
        metavar="N",
        low=0,
        panel=MACHINE,
    )
    max_memory: int | None = setting(
        None,
        "Memory limit of the network, without its weights, such as 900M or 6G "
        "(default: 80 % of free memory).",
        metavar="SIZE",
        parse=parse_size,
        panel=MACHINE,
    )
    tile: int | None = setting(
        None,
        "Restore in overlapping tiles of N px (default: the whole image).",
        metavar="N",
        panel=MACHINE,
    )
    compile: str = setting(
        "auto",
        "torch.compile: auto is on for large jobs on CUDA.",
        choices=COMPILE,
        panel=MACHINE,
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.max_memory is not None and self.max_memory < 1:
            raise UsageError(f"--max-memory must be at least 1 byte, got {self.max_memory}")
        if self.tile is not None and (self.tile < MIN_TILE or self.tile % 8):
            what = f"--tile must be a multiple of 8 and at least {MIN_TILE}, got {self.tile}"
            raise UsageError(what)


@dataclass(frozen=True)
class Writing:
    """Which files are written."""

    format: str | None = setting(
        None,
        "Format of the outputs (default: the suffix of OUT, or png)",
        choices=(*FORMATS, SAME_FORMAT),
        metavar="NAME",
        parse=str.lower,
        panel=FILES,
    )
    quality: int = setting(95, "JPEG quality.", metavar="N", low=1, high=100, panel=FILES)
    bit_depth: int | None = setting(
        None,
        "Bits per channel (default: those of the input).",
        metavar="8|16",
        panel=FILES,
    )
    suffix: str = setting("", "Append TEXT to output names.", metavar="TEXT", panel=FILES)
    compare: Path | None = setting(
        None, "Write degraded | restored | difference side by side.", metavar="DIR", panel=FILES
    )
    uncertainty: Path | None = setting(
        None,
        "Write the per-pixel standard deviation of 8 (or --samples) samples as PNG.",
        metavar="DIR",
        panel=FILES,
    )
    overwrite: bool = setting(False, OVERWRITE)
    crf: int = setting(
        18,
        "Quality of videos: 0 is the best and the largest file.",
        metavar="N",
        low=0,
        high=51,
        panel=VIDEO,
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.bit_depth not in (None, 8, 16):
            raise UsageError(f"--bit-depth must be 8 or 16, got {self.bit_depth}")
        if any(character in self.suffix for character in "/\\\0"):
            raise UsageError(f"--suffix must not contain a path separator, got {self.suffix!r}")


def require_sources(specs: Sequence[str], out: str) -> None:
    """Raise DataError if the user named a path that does not exist; globs and lists pass."""
    for spec in specs:
        # An empty argument is an error of usage, which `plan_restore` reports.
        if spec and spec != STDIO and not spec.startswith("@") and not glob.has_magic(spec):
            try:
                require_existing(spec)
            except DataError as error:
                hint = _misplaced([*specs, out]) or error.hint
                raise DataError(error.what, where=error.where, hint=hint) from error


def _misplaced(arguments: Sequence[str]) -> str | None:
    """Return a hint if the shell has split a name at spaces, or if IN and OUT are interchanged."""
    for start in range(len(arguments)):
        for end in range(start + 2, len(arguments) + 1):
            if os.path.exists(name := " ".join(arguments[start:end])):
                return f"a name with spaces needs quotes: {for_shell(name)}"
    first, last = arguments[0], arguments[-1]
    # An existing folder as OUT is common: it holds the results of an earlier command.
    if len(arguments) == 2 and os.path.isfile(last):
        swapped = for_shell("c2fdft", "restore", last, first)
        return f"check the path; if {last} is the input, it comes first: {swapped}"
    return None


def sample_count(samples: int | None, self_ensemble: bool, uncertainty: bool) -> int:
    """Return the number of samples of each image under each transform.

    Args:
        samples: the requested number; None for 1, or for 8 if `uncertainty` needs several.
        self_ensemble: whether there are several transforms.
        uncertainty: whether a standard deviation is requested.

    Raises:
        UsageError: a standard deviation of a single result is requested, or `samples` is out of
            range.
    """
    if uncertainty and not self_ensemble:
        samples = UNCERTAINTY_SAMPLES if samples is None else samples
        if samples < 2:
            raise UsageError("--uncertainty needs at least 2 samples", hint="use --samples 2")
    if samples is not None and not 1 <= samples <= MAX_SAMPLES:  # from a Python caller
        raise UsageError(f"--samples must be 1 to {MAX_SAMPLES}, got {samples}")
    return samples or 1


def choose_timesteps(sampling: SamplingOptions, own: Sequence[int], total: int) -> list[int]:
    """Return the sampler's timesteps: those requested, otherwise the checkpoint's own.

    Args:
        sampling: may set `grid`, or `steps` with a `spacing`.
        own: the checkpoint's timesteps.
        total: T.

    Raises:
        UsageError: timesteps, or a number of steps, out of range.
    """
    from c2fdft_cli.core.diffusion import spaced_timesteps

    steps, spacing = sampling.steps, sampling.spacing
    if steps is None or (steps == len(own) and spacing is None):
        if sampling.grid is None:
            return list(own)
        if not all(0 <= t < total for t in sampling.grid):
            given = ",".join(map(str, sampling.grid))
            raise UsageError(f"--grid must be timesteps from 0 to {total - 1}, got {given}")
        return list(sampling.grid)
    if steps > total:
        raise UsageError(f"--steps must be 1 to {total}, got {steps}")
    return spaced_timesteps(steps, spacing or SPACINGS[0], total)


def timesteps_warning(
    trained: Sequence[int] | None, timesteps: Sequence[int], own: Sequence[int]
) -> str | None:
    """Return a warning if fine weights are used on timesteps that they were not trained on.

    Args:
        trained: the timesteps that fine weights were trained on; None for other weights.
        timesteps: those in use.
        own: the checkpoint's timesteps, which a sweep may have chosen after the training.
    """
    if trained is None or list(timesteps) in (list(trained), list(own)):
        return None
    used, before = (",".join(map(str, one)) for one in (timesteps, trained))
    return (
        f"these fine weights were trained on the timesteps {before} and are likely to restore "
        f"worse on {used}; omit --steps and --grid to use theirs"
    )
