"""The scores of a sweep so far, kept in sweep.json so that an interrupted sweep can resume."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from pydantic import ConfigDict, StrictFloat, StrictInt, StrictStr

from c2fdft_cli.engine.sampling.scoring import Scored
from c2fdft_cli.engine.sweep.options import Timesteps
from c2fdft_cli.errors import DataError
from c2fdft_cli.files.failures import read_error
from c2fdft_cli.files.writing import atomic_write_text
from c2fdft_cli.validation import adapter
from c2fdft_cli.words import finite_or_none

FORMAT = "c2fdft-sweep"
FORMAT_VERSION = 1
_SPARING = 20
"""Scores are saved when this many times as long as the last save took has passed since then: saving
after each image would take a time that is quadratic in their number."""
_NOT_OURS = (ValueError, KeyError, TypeError, RecursionError)
"""What parsing a file raises that this program did not write, or that was edited."""


class _LaterVersionError(ValueError):
    """A sweep has a later format version than this program reads."""


class Trial(NamedTuple):
    """A restoration to score: the image's name, the seed of its noise, and the timesteps."""

    name: str
    seed: int
    timesteps: Timesteps


class SweepLog:
    """The scores by trial, kept in a file.

    Args:
        path: the path of sweep.json.
        settings: everything that the scores depend on besides the trial; scores with other settings
            are not mixed with these.
        overwrite: discard the file's scores if it has other settings or is not a sweep.

    Raises:
        DataError: the file is not a sweep, or has other settings, and `overwrite` is off; or it
            cannot be read.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, overwrite: bool) -> None:
        self.path = path
        self.settings = dict(settings)
        self.scores: dict[Trial, Scored] = {}
        self._is_new = False
        self._saved_at = self._save_seconds = 0.0
        if path.exists():
            self._resume(overwrite)

    def _resume(self, overwrite: bool) -> None:
        hint = "use --overwrite, or --out for another folder"
        try:
            settings, scores = _read(self.path)
        except OSError as error:  # its scores may be intact
            raise read_error(error, self.path) from error
        except _NOT_OURS as error:
            if overwrite:
                return
            if isinstance(error, _LaterVersionError):
                what, hint = str(error), f"upgrade c2fdft, or {hint}"
            else:
                what = "not a sweep of this program"
            raise DataError(what, where=self.path, hint=hint) from error
        if settings == self.settings:
            self.scores = scores
        elif not overwrite:
            other = [
                f"{key}: {_shown(settings.get(key))} in the file, {_shown(value)} now"
                for key, value in self.settings.items()
                if settings.get(key) != value
            ]
            what = "this file holds a sweep with other settings"
            raise DataError(what, where=self.path, hint=hint, details=other)

    def add(self, trial: Trial, scored: Scored) -> None:
        """Add a score, which one of the methods below writes to the file."""
        self.scores[trial], self._is_new = scored, True

    def save_if_due(self) -> None:
        """Save the new scores of an unfinished sweep, unless the last save was just before."""
        if time.monotonic() - self._saved_at >= _SPARING * self._save_seconds:
            self.save_new()

    def save_new(self) -> None:
        """Save the new scores of an unfinished sweep, if there are any."""
        if self._is_new:
            self.save({"complete": False})

    def save(self, document: Mapping[str, Any]) -> None:
        """Write the scores and the entries of `document` to the file, atomically."""
        began = time.monotonic()
        content = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "settings": self.settings,
            **document,
            "trials": [vars(_as_row(trial, scored)) for trial, scored in self.scores.items()],
        }
        atomic_write_text(self.path, json.dumps(content, indent=1, allow_nan=False) + "\n")
        self._is_new, self._saved_at = False, time.monotonic()
        self._save_seconds = self._saved_at - began


def is_of_other_weights(path: Path, digest: str) -> bool:
    """Whether a file is a sweep by this program over other weights than those of this digest."""
    try:
        settings, _ = _read(path)
    except (OSError, *_NOT_OURS):
        return False
    return settings.get("weights") != digest


def _shown(value: object) -> str:
    """Format a setting for the user; a SHA-256 is shortened to its first eight digits."""
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value):
        return value[:8]
    return repr(value)


@dataclass(frozen=True)
class _Row:
    """A trial with its score, as in the file.

    A null PSNR means infinite; if the SSIM is null too, the restoration had non-finite values.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(allow_inf_nan=False)

    name: StrictStr
    seed: StrictInt
    grid: list[StrictInt]
    psnr: StrictFloat | None
    ssim: StrictFloat | None
    seconds: StrictFloat


def _as_row(trial: Trial, scored: Scored) -> _Row:
    psnr, ssim = finite_or_none(scored.psnr), finite_or_none(scored.ssim)
    return _Row(trial.name, trial.seed, list(trial.timesteps), psnr, ssim, scored.seconds)


def _read(path: Path) -> tuple[dict[str, Any], dict[Trial, Scored]]:
    """Read settings and scores; OSError, or one of `_NOT_OURS` if `save` did not write the file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    kind, version = content["format"], content["format_version"]
    if kind == FORMAT and isinstance(version, int) and version > FORMAT_VERSION:
        raise _LaterVersionError(
            f"the sweep has format version {version}, this program reads {FORMAT_VERSION}"
        )
    if (kind, version) != (FORMAT, FORMAT_VERSION):
        raise ValueError("another format")
    scores = {}
    rows: list[_Row] = adapter(list[_Row]).validate_python(content["trials"])
    for row in rows:
        trial = Trial(row.name, row.seed, tuple(row.grid))
        ssim = math.nan if row.ssim is None else row.ssim
        nothing = math.nan if math.isnan(ssim) else math.inf
        psnr = nothing if row.psnr is None else row.psnr
        scores[trial] = Scored(row.name, psnr, ssim, seconds=row.seconds)
    return dict(content["settings"]), scores
