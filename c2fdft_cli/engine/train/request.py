"""A training as a person asks for it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from c2fdft_cli.errors import UsageError
from c2fdft_cli.settings import DEVICE, PRECISION, SHARDS, check_settings, setting

RUN = "Start and end"
"""Heading of the options of a run that most people leave alone."""


def parse_minutes(text: str) -> float:
    """Seconds out of a number of minutes; UsageError when it is none, or below 0."""
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not 0 <= minutes < math.inf:
        raise UsageError(f"--max-time must be a number of minutes, got {text!r}")
    return minutes * 60


@dataclass(frozen=True)
class TrainRequest:
    """What to train; `setup.set_up` makes `TrainOptions` of it.

    Args:
        stage: "coarse" or "fine".
        overrides: `key=value`, on top of the recipe.
        init: checkpoint to start from.
        recipe: None takes the checkpoint's own.
        data: None takes the recipe's, else the checkpoint's own.
        max_seconds: save and stop after this time.
    """

    stage: str = "coarse"
    overrides: list[str] = field(default_factory=list)
    init: Path | None = None
    recipe: str | None = setting(None, "Recipe: a name or a file.", metavar="NAME|FILE")
    data: Path | None = setting(None, SHARDS)
    out: Path | None = setting(
        None, "Run folder (default: a new folder under runs/).", metavar="RUN"
    )
    resume: bool = setting(
        False, "Resume the run in --out (default: the newest run of this stage)."
    )
    resume_auto: bool = setting(
        False,
        "Start the run in --out (default: runs/RECIPE-STAGE) or resume it: the same line, for jobs "
        "that are submitted again; a finished run ends with 0.",
        panel=RUN,
    )
    max_seconds: float | None = setting(
        None,
        "Save and stop (exit 143) after MINUTES.",
        option="--max-time",
        metavar="MINUTES",
        parse=parse_minutes,
        panel=RUN,
    )
    device: str = setting("auto", DEVICE)
    precision: str = setting("auto", PRECISION)

    def __post_init__(self) -> None:
        check_settings(self)
        # the command's text was checked as it was read; a program may give any number
        if self.max_seconds is not None and not self.max_seconds >= 0:
            raise UsageError(f"--max-time must be at least 0, got {self.max_seconds}")
