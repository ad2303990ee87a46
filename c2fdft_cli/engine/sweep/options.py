"""The options of `sweep-steps`."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from c2fdft_cli.errors import UsageError
from c2fdft_cli.settings import (
    DEVICE,
    OVERWRITE,
    PRECISION,
    PROTOCOL,
    SEED,
    SHARDS,
    check_settings,
    numbers,
    parse_numbers,
    setting,
    split_words,
)
from c2fdft_cli.vocabulary import SPACINGS, check_choice

Timesteps = tuple[int, ...]

SCHEDULES, SCORES = "Schedules", "Scores"
"""Headings in the help for options that most users need not change."""


@dataclass(frozen=True)
class Rule:
    """How a schedule is chosen: best "psnr", best "ssim", or fewest steps "within" `decibels`."""

    kind: str
    decibels: float = 0.0

    @property
    def describes(self) -> str:
        """The rule in words."""
        if self.kind == "within":
            return f"fewest sampling steps within {self.decibels:g} dB of the best PSNR"
        return f"the best {self.kind.upper()}"


def parse_steps(text: str) -> tuple[int, ...]:
    """Parse counts such as "4", "1-10" or "1,2,4-6", ascending; UsageError for anything else."""
    counts = sorted(set(parse_numbers("--steps", text, "1-10", ranges=True)))
    if counts[0] < 1:
        raise UsageError(f"--steps must be numbers of at least 1, got {text}")
    return tuple(counts)


def parse_spacings(text: str) -> tuple[str, ...]:
    """Parse names of spacings, separated by commas; UsageError for an unknown one."""
    names = split_words(text)
    for name in names:
        check_choice("--spacing", name, SPACINGS)
    return tuple(names)


def parse_rule(text: str) -> Rule:
    """Parse a choice rule: "psnr", "ssim", "within:0.2dB"; UsageError for anything else."""
    if text in ("psnr", "ssim"):
        return Rule(text)
    # digits are limited, because a number of hundreds of digits would become infinite
    found = re.fullmatch(r"within:(\d{1,9}(?:\.\d{1,9})?)\s*(?:dB)?", text, re.IGNORECASE)
    if not found:
        raise UsageError(f"--choose must be psnr, ssim or within:0.2dB, got {text!r}")
    return Rule("within", float(found[1]))


@dataclass(frozen=True)
class SweepOptions:
    """Which schedules to try, on which pairs, and what to do with the result.

    Args:
        data: folder of shards; None for the shards that the weights were trained on.
        steps, spacings, starts: counts x spacings x first timesteps (`make_schedules`).
        schedules: further explicit timesteps to try.
        out: folder for the report; None for the checkpoint's folder.
    """

    data: Path | None = setting(None, SHARDS)
    steps: tuple[int, ...] = setting(
        "1-10",
        "Sampling steps to try: 1-10 or 2,4,8.",
        metavar="COUNTS",
        parse=parse_steps,
    )
    spacings: tuple[str, ...] = setting(
        "linspace",
        "Any of linspace, leading, trailing, separated by commas.",
        option="--spacing",
        metavar="NAMES",
        parse=parse_spacings,
        panel=SCHEDULES,
    )
    starts: tuple[int, ...] = setting(
        (),
        "First timesteps to try: 999,750 (default: 999).",
        option="--start",
        metavar="TIMES",
        parse=numbers("--start", "999,750"),
        panel=SCHEDULES,
    )
    schedules: tuple[Timesteps, ...] = setting(
        (),
        "Further timesteps to try: 999,500. Repeatable.",
        option="--grid",
        metavar="TIMES",
        parse=numbers("--grid", "999,500"),
        several=True,
        panel=SCHEDULES,
    )
    images: int = setting(
        0, "Validation pairs to use, 0 for all.", metavar="N", low=0, panel=SCORES
    )
    seeds: int = setting(
        1,
        "Noise samples per image, for a standard deviation",
        metavar="N",
        low=1,
        high=1000,
        panel=SCORES,
    )
    seed: int = setting(0, replace(SEED, panel=SCORES))
    rule: Rule = setting(
        "within:0.2dB",
        "psnr, ssim, or fewest steps within:XdB of the best.",
        option="--choose",
        metavar="RULE",
        parse=parse_rule,
    )
    protocol: str | None = setting(None, replace(PROTOCOL, panel=SCORES))
    stamp: bool = setting(
        True, "Do not store the timesteps in the checkpoint.", option="--no-stamp"
    )
    out: Path | None = setting(
        None, "Folder for sweep.json/.csv/.png (default: the checkpoint's).", metavar="DIR"
    )
    overwrite: bool = setting(False, OVERWRITE)
    device: str = setting("auto", DEVICE)
    precision: str = setting("auto", PRECISION)

    def __post_init__(self) -> None:
        check_settings(self)
