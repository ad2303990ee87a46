"""The options of `eval`: what it scores, and how weights restore it before."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from enum import Enum
from pathlib import Path

from c2fdft_cli.errors import UsageError
from c2fdft_cli.files.reading import require_existing
from c2fdft_cli.settings import (
    DEVICE,
    PRECISION,
    SEED,
    SELF_ENSEMBLE,
    SHARDS,
    WEIGHTS,
    check_settings,
    numbers,
    option_name,
    setting,
)

SETS, RUNS = "What is scored", "With --weights"
"""Headings in the help."""
_OF_WEIGHTS = ("images", "seed", "seeds", "grid", "self_ensemble")
"""Options that have no effect without weights."""


@dataclass(frozen=True)
class WeightsOptions:
    """How weights restore the images that are scored; several seeds are counted up from `seed`."""

    images: int = setting(0, "Pairs to score, 0 for all.", metavar="N", low=0, panel=RUNS)
    seeds: int = setting(1, "Noise samples per image", metavar="N", low=1, high=1000, panel=RUNS)
    grid: tuple[int, ...] | None = setting(
        None,
        "Timesteps, such as 999,500 (default: the checkpoint's).",
        metavar="TIMES",
        parse=numbers("--grid", "999,500"),
        panel=RUNS,
    )
    self_ensemble: bool = setting(False, replace(SELF_ENSEMBLE, panel=RUNS))
    device: str = setting("auto", DEVICE)
    precision: str = setting("auto", PRECISION)
    seed: int = setting(0, replace(SEED, panel=RUNS))

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class EvalSource:
    """What is scored: files with or without targets, or weights on shards or an image set."""

    restored: Path | None
    target: Path | None
    weights: str | None = setting(None, WEIGHTS)
    data: Path | None = setting(None, SHARDS)
    degraded: Path | None = setting(
        None, "Folder of the degraded inputs, to score them too.", metavar="DIR", panel=SETS
    )
    sigma: float | None = setting(
        None,
        "With --weights and a folder of clean images: add unclipped Gaussian noise of this "
        "standard deviation, in levels of 0..255.",
        metavar="LEVELS",
        panel=SETS,
    )
    pairs: Path | None = setting(
        None,
        "List of pairs as CSV, for other names: RESTORED,TARGET[,NAME]; with --weights "
        "DEGRADED,TARGET[,NAME].",
        metavar="FILE",
        panel=SETS,
    )
    no_reference: bool = setting(
        False, "Score photos that have no targets, with no-reference metrics.", panel=SETS
    )

    @property
    def place(self) -> Path:
        """The file or folder that is scored; the current folder if only weights are named."""
        return Path(self.pairs or self.restored or self.data or "")

    @property
    def subject(self) -> str:
        """The name of the results or weights, as side A of a comparison."""
        return str(self.place) if self.weights is None else self.weights

    def inputs(self, against: str | None) -> list[Path]:
        """List the files and folders that are read, as far as they exist; `against` is side B."""
        named = (self.restored, self.target, self.degraded, self.pairs, self.data)
        # A name of packaged weights leads to no file here.
        given = [Path(one) for one in (*named, self.weights, against) if one is not None]
        return [path for path in given if os.path.exists(path)]


class Mode(Enum):
    """What is scored: results or, with --weights, what the weights restore of the inputs."""

    IMAGES = "a folder of images, or one image"
    LIST = "the images of a list of pairs"
    BLOCKS = "SIDD blocks"
    SHARDS = "the validation pairs of shards, only with weights"
    PHOTOS = "images without targets, only without weights"


def mode_of(source: EvalSource, runs: WeightsOptions, against: str | None) -> Mode:
    """Return what is to be scored; the disk is looked at only to recognise SIDD blocks.

    Raises:
        UsageError: arguments that cannot be combined, or there is nothing to score.
        DataError: there is no target, and nothing at the path of what is to be scored.
    """
    if source.weights is None and _given(runs):
        raise UsageError(f"{_given(runs)[0]} needs --weights")
    if against == "":  # `Path` would take it for the current folder
        raise UsageError("--against is empty", hint="name a file, a folder, or packaged weights")
    if source.pairs is not None:
        _refuse_with_list(source)
        return Mode.LIST
    if source.sigma is not None and (source.weights is None or source.restored is None):
        raise UsageError("--sigma needs --weights and a folder of clean images")
    if source.no_reference:
        others = (source.target, source.degraded, source.weights, source.data)
        if source.restored is None or any(one is not None for one in others):
            hint = "try: c2fdft eval PHOTOS --no-reference"
            raise UsageError("--no-reference takes one folder or image and no target", hint=hint)
        return Mode.PHOTOS
    return _mode_of_results(source) if source.weights is None else _mode_of_weights(source)


def _mode_of_results(source: EvalSource) -> Mode:
    if source.data is not None:
        raise UsageError("--data needs --weights")
    if _are_blocks(source):
        return Mode.BLOCKS
    if source.restored is None or source.target is None:
        require_existing(source.restored)  # it may have been meant as SIDD blocks
        hint = (
            "c2fdft eval RESTORED TARGET, c2fdft eval --weights CKPT SET, "
            "c2fdft eval --weights CKPT --data SHARDS, or c2fdft eval PHOTOS --no-reference"
        )
        raise UsageError("there is nothing to score", hint=f"try: {hint}")
    return Mode.IMAGES


def _mode_of_weights(source: EvalSource) -> Mode:
    if source.restored is not None and source.data is not None:
        raise UsageError(f"--data cannot be combined with another set, {source.restored}")
    if source.sigma is None and _are_blocks(source):  # noise can be added only to image files
        return Mode.BLOCKS
    if source.target is not None or source.degraded is not None:
        raise UsageError("--weights cannot be combined with TARGET or --degraded")
    return Mode.SHARDS if source.restored is None else Mode.IMAGES


def _are_blocks(source: EvalSource) -> bool:
    """Whether SIDD blocks are named; UsageError if they cannot be combined with the rest."""
    from c2fdft_cli.data.layouts.sidd import are_blocks

    named = source.restored or source.data
    found = named is not None and are_blocks(named)
    if found and source.degraded is not None:
        raise UsageError("--degraded cannot be used with SIDD blocks")
    return found


def _refuse_with_list(source: EvalSource) -> None:
    """Raise UsageError for what cannot be combined with a list of pairs."""
    from c2fdft_cli.data.layouts.sidd import are_blocks

    others = {
        "TARGET": source.target is not None,
        "SIDD blocks": source.restored is not None and are_blocks(source.restored),
        "--data": source.data is not None,
        "--sigma": source.sigma is not None,
        "--no-reference": source.no_reference,
        "--degraded and --weights": None not in (source.degraded, source.weights),
    }
    given = next((name for name, is_given in others.items() if is_given), None)
    if given is not None:
        hint = "try: c2fdft eval --pairs LIST.csv [FOLDER] [--weights CKPT]"
        raise UsageError(f"--pairs cannot be combined with {given}", hint=hint)


def _given(runs: WeightsOptions) -> list[str]:
    """List the options that have no effect without weights and differ from their defaults."""
    return [
        option_name(one)
        for one in fields(runs)
        if one.name in _OF_WEIGHTS and getattr(runs, one.name) != one.default
    ]
