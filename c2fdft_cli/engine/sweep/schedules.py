"""Which timestep schedules a sweep tries, and the rules of choice."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from c2fdft_cli.core.diffusion import T, check_grid, time_grid
from c2fdft_cli.errors import UsageError
from c2fdft_cli.vocabulary import SPACINGS, check_choice, parse_numbers, split_words

Timesteps = tuple[int, ...]
MAX_SCHEDULES = 1000
ONE_STEP = (0.3, 0.5, 0.7)
"""Single steps that are tried with coarse weights, as shares of T: one step need not start at T."""
DEFAULT_STEPS = "1-10"
DEFAULT_RULE = "within:0.2dB"
_RULES = "psnr, ssim or within:0.2dB"


@dataclass(frozen=True)
class Schedule:
    """The descending timesteps of a restoration, and where they come from, for people."""

    timesteps: Timesteps
    label: str


@dataclass(frozen=True)
class Rule:
    """How a schedule is chosen: best "psnr", best "ssim", or fewest steps "within" `decibels`."""

    kind: str
    decibels: float = 0.0

    def __str__(self) -> str:
        return f"within:{self.decibels:g}dB" if self.kind == "within" else self.kind

    @property
    def describes(self) -> str:
        """The rule in words."""
        if self.kind == "within":
            return f"fewest sampling steps within {self.decibels:g} dB of the best PSNR"
        return f"the best {self.kind.upper()}"


def parse_steps(text: str) -> list[int]:
    """Counts such as "4", "1-10" or "1,2,4-6", ascending; UsageError when it is none."""
    counts = sorted(set(parse_numbers("--steps", text, "1-10", ranges=True)))
    if not 1 <= counts[0] <= counts[-1] <= T:
        raise UsageError(f"--steps must be numbers from 1 to {T}, got {text}")
    return counts


def parse_spacings(text: str) -> list[str]:
    """Names of spacings with commas between them; UsageError for an unknown one."""
    names = split_words(text)
    for name in names:
        check_choice("--spacing", name, SPACINGS)
    return names


def parse_rule(text: str) -> Rule:
    """A choice rule: "psnr", "ssim", "within:0.2dB"; UsageError for anything else."""
    if text in ("psnr", "ssim"):
        return Rule(text)
    found = re.fullmatch(r"within:(\d+(?:\.\d+)?)\s*(?:dB)?", text, re.IGNORECASE)
    if not found:
        raise UsageError(f"--choose must be {_RULES}, got {text!r}")
    return Rule("within", float(found[1]))


def make_schedules(
    steps: Sequence[int],
    spacings: Sequence[str] = ("linspace",),
    starts: Sequence[int] = (),
    given: Iterable[Sequence[int]] = (),
    total: int = T,
) -> list[Schedule]:
    """Counts x spacings x first timesteps, and given ones; equal timesteps once.

    A start s spaces n steps over s .. 0 as `time_grid` does over T - 1 .. 0.

    Raises:
        UsageError: an unknown spacing, a timestep outside 0 .. total - 1, more steps than
            timesteps, or too many schedules.
    """
    found: dict[Timesteps, str] = {}
    try:
        for spacing in spacings:
            for start in starts or (total - 1,):
                check_grid([start], total)
                label = spacing if start == total - 1 else f"{spacing} from {start}"
                for n in steps:
                    found.setdefault(tuple(time_grid(n, spacing, start + 1)), label)
        for timesteps in given:
            found.setdefault(tuple(check_grid(timesteps, total)), "given")
    except ValueError as error:
        raise UsageError(f"--steps, --spacing, --start or --grid: {error}") from error
    if not 0 < len(found) <= MAX_SCHEDULES:
        raise UsageError(f"a sweep tries 1 to {MAX_SCHEDULES} schedules, got {len(found)}")
    return [Schedule(timesteps, label) for timesteps, label in found.items()]


def one_step_schedules(total: int) -> list[Timesteps]:
    """Single steps in the middle of the diffusion, such as 300, 500 and 700 of 1000."""
    return [(round(share * total),) for share in ONE_STEP]
