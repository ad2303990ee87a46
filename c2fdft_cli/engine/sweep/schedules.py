"""Which timesteps a sweep tries, and which it chooses."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from c2fdft_cli.core.diffusion import T, check_grid, time_grid
from c2fdft_cli.errors import UsageError
from c2fdft_cli.vocabulary import SPACINGS, check_choice, parse_numbers, split_words

Grid = tuple[int, ...]
MAX_GRIDS = 1000
MAX_STEPS = 9999
DEFAULT_STEPS = "1-10"
DEFAULT_RULE = "within:0.2dB"
_RULES = "psnr, ssim or within:0.2dB"


@dataclass(frozen=True)
class NamedGrid:
    """The descending timesteps of a restoration, and where they come from, for people."""

    times: Grid
    label: str

    @property
    def calls(self) -> int:
        """Sampling steps that an image costs."""
        return len(self.times)


@dataclass(frozen=True)
class Rule:
    """How timesteps are chosen: best "psnr", best "ssim", or fewest steps "within" `decibels`."""

    kind: str
    decibels: float = 0.0

    def __str__(self) -> str:
        return f"within:{self.decibels:g}dB" if self.kind == "within" else self.kind

    @property
    def describes(self) -> str:
        """The rule in words."""
        if self.kind == "within":
            return f"the fewest steps within {self.decibels:g} dB of the best PSNR"
        return f"the best {self.kind.upper()}"


@dataclass(frozen=True)
class Quality:
    """Mean scores at some timesteps; NaN where a restoration is not finite."""

    calls: int
    psnr: float
    ssim: float


def parse_steps(text: str) -> list[int]:
    """Counts such as "4", "1-10" or "1,2,4-6", ascending; UsageError when it is none."""
    counts = sorted(set(parse_numbers("--steps", text, "1-10", ranges=True)))
    if not 1 <= counts[0] <= counts[-1] <= MAX_STEPS:
        raise UsageError(f"--steps must be numbers from 1 to {MAX_STEPS}, got {text}")
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


def make_grids(
    steps: Sequence[int],
    spacings: Sequence[str] = ("linspace",),
    starts: Sequence[int] = (),
    explicit: Mapping[str, Iterable[Sequence[int]]] | None = None,
    total: int = T,
) -> list[NamedGrid]:
    """counts x spacings x start times, and explicit timesteps by label; each set once.

    A start s spaces n steps over the times s .. 0 as `time_grid` does over T - 1 .. 0.

    Raises:
        UsageError: an unknown spacing, times outside 0 .. total - 1, more steps than times, or
            too many sets.
    """
    found: dict[Grid, str] = {}
    try:
        for spacing in spacings:
            for start in starts or (total - 1,):
                check_grid([start], total)
                label = spacing if start == total - 1 else f"{spacing} from {start}"
                for n in steps:
                    found.setdefault(tuple(time_grid(n, spacing, start + 1)), label)
        for label, grids in (explicit or {}).items():
            for times in grids:
                found.setdefault(tuple(check_grid(times, total)), label)
    except ValueError as error:
        options = "--steps, --spacing, --start or --grid"
        raise UsageError(f"{options} cannot be used: {error}") from error
    if not 0 < len(found) <= MAX_GRIDS:
        raise UsageError(f"1 to {MAX_GRIDS} sets of timesteps can be tried, got {len(found)}")
    return [NamedGrid(times, label) for times, label in found.items()]


def choose(rows: Sequence[Quality], rule: Rule) -> int | None:
    """Index of the row that the rule chooses, None when no row is finite.

    Equal scores go to fewer steps, equal steps to the better PSNR.
    """
    usable = [i for i, row in enumerate(rows) if not math.isnan(row.psnr)]
    if not usable:
        return None
    if rule.kind == "within":
        best = max(rows[i].psnr for i in usable)
        near = [i for i in usable if rows[i].psnr >= best - rule.decibels]
        return min(near, key=lambda i: (rows[i].calls, -rows[i].psnr))
    return min(usable, key=lambda i: (-getattr(rows[i], rule.kind), rows[i].calls))


def pareto(rows: Sequence[Quality]) -> list[bool]:
    """Which rows no other row beats: at most as many steps, at least its PSNR, and one better."""

    def beats(a: Quality, b: Quality) -> bool:
        no_worse = a.calls <= b.calls and a.psnr >= b.psnr
        return no_worse and (a.calls < b.calls or a.psnr > b.psnr)

    return [
        not math.isnan(row.psnr) and not any(beats(other, row) for other in rows) for row in rows
    ]
