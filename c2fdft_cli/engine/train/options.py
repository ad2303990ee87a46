"""The options of a training, as the user gives them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from c2fdft_cli.errors import UsageError
from c2fdft_cli.settings import DEVICE, PRECISION, SHARDS, check_settings, setting
from c2fdft_cli.vocabulary import TrainedStage

RUN = "Start and end"
"""Help panel of the options that few runs need."""


def parse_minutes(text: str) -> float:
    """Parse a number of minutes into seconds; raise UsageError unless it is finite and >= 0."""
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not 0 <= minutes < math.inf:
        raise UsageError(f"--max-time must be a number of minutes, got {text!r}")
    return minutes * 60


@dataclass(frozen=True)
class TrainOptions:
    """What to train; `setup.set_up` turns it into `TrainPlan`.

    Args:
        overrides: changes to the recipe, as `key=value`.
        init: checkpoint to start from.
        recipe: name or file of the recipe; None for the checkpoint's own.
        data: folder of shards; None for the recipe's, or else the checkpoint's own.
        max_seconds: save and stop after this time.
    """

    stage: TrainedStage = "coarse"
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
        "Start the run in --out (default: runs/RECIPE-STAGE), or resume it if it has a state: one "
        "command line for jobs that are submitted repeatedly. A finished run exits with 0.",
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
        # the text of the option is checked when it is parsed, but a Python caller may pass any
        # number
        if self.max_seconds is not None and not self.max_seconds >= 0:
            raise UsageError(f"--max-time must be at least 0, got {self.max_seconds}")
