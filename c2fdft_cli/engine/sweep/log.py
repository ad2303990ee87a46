"""What a sweep has found so far, kept in sweep.json so that a stopped sweep goes on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from c2fdft_cli.engine.sampling.scoring import finite_or_none
from c2fdft_cli.engine.sweep.schedules import Grid
from c2fdft_cli.errors import DataError
from c2fdft_cli.files import atomic_write_text

FORMAT = "c2fdft-sweep"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Trial:
    """One image restored once: PSNR in dB (infinite for equal images), SSIM, seconds.

    Both scores are NaN where the restoration is not finite.
    """

    psnr: float
    ssim: float
    seconds: float


@dataclass(frozen=True)
class TrialKey:
    """Which image, from which noise, by which grid."""

    name: str
    seed: int
    grid: Grid


class SweepLog:
    """Trials by image, seed and grid, in a file.

    Args:
        path: sweep.json.
        settings: what the trials depend on besides their key; others are not mixed with them.
        overwrite: leave what is there aside if it has other settings.

    Raises:
        DataError: the file is no sweep, or one with other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, overwrite: bool) -> None:
        self.path = path
        self.settings = dict(settings)
        self.trials: dict[TrialKey, Trial] = {}
        if path.exists():
            self._take_over(overwrite)

    def _take_over(self, overwrite: bool) -> None:
        hint = "use --overwrite, or --out for another folder"
        try:
            settings, trials = _read(self.path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if overwrite:
                return
            raise DataError("not a sweep of this program", where=self.path, hint=hint) from error
        if settings == self.settings:
            self.trials = trials
        elif not overwrite:
            other = [
                f"{key}: {settings.get(key)!r} there, {value!r} now"
                for key, value in self.settings.items()
                if settings.get(key) != value
            ]
            what = "another sweep has been here"
            raise DataError(what, where=self.path, hint=hint, details=other)

    def save(self, document: Mapping[str, Any]) -> None:
        """Write the trials, and what is made of them, atomically."""
        content = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "settings": self.settings,
            **document,
            "trials": [_as_json(key, trial) for key, trial in self.trials.items()],
        }
        atomic_write_text(self.path, json.dumps(content, indent=1, allow_nan=False) + "\n")

    def of_grid(
        self, grid: Grid, names: Iterable[str], seeds: Iterable[int]
    ) -> dict[tuple[str, int], Trial]:
        """The trials of a grid over these images and seeds, as far as there are any."""
        wanted = [(name, seed) for seed in seeds for name in names]
        found = {one: self.trials.get(TrialKey(one[0], one[1], grid)) for one in wanted}
        return {one: trial for one, trial in found.items() if trial is not None}


def _as_json(key: TrialKey, trial: Trial) -> dict[str, Any]:
    """A null PSNR is infinite; with a null SSIM beside it the restoration was not finite."""
    return {
        "name": key.name,
        "seed": key.seed,
        "grid": list(key.grid),
        "psnr": finite_or_none(trial.psnr),
        "ssim": finite_or_none(trial.ssim),
        "seconds": trial.seconds,
    }


def _read(path: Path) -> tuple[dict[str, Any], dict[TrialKey, Trial]]:
    """ValueError, KeyError or TypeError for anything that `save` has not written."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["format"] != FORMAT or content["format_version"] != FORMAT_VERSION:
        raise ValueError("another format")
    trials = {}
    for row in content["trials"]:
        key = TrialKey(str(row["name"]), int(row["seed"]), tuple(int(t) for t in row["grid"]))
        ssim = math.nan if row["ssim"] is None else float(row["ssim"])
        nothing = math.nan if math.isnan(ssim) else math.inf
        psnr = nothing if row["psnr"] is None else float(row["psnr"])
        trials[key] = Trial(psnr, ssim, float(row["seconds"]))
    return dict(content["settings"]), trials
