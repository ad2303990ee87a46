"""The options of `bench`."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

from c2fdft_cli.errors import UsageError
from c2fdft_cli.settings import (
    DEVICE,
    MACHINE,
    PRECISION,
    SHARDS,
    check_settings,
    numbers,
    option_name,
    setting,
    split_words,
)
from c2fdft_cli.vocabulary import RECOMPUTE, Recompute, check_choice

MAX_SIDE, MAX_BATCH = 65_528, 65_536
PARTS = ("forward", "train-step", "restore", "loader")
STEP = "For train-step"
"""Help panel of the options of this part."""

_FINE = "train-step --stage fine"
_ONLY_FOR = {
    "steps": "restore",
    "data": "loader",
    "stage": "train-step",
    "calls": _FINE,
    "recompute": _FINE,
}
"""What each of these options applies to: a part, or a part with one of its stages."""


def parse_recompute(text: str) -> tuple[Recompute, ...]:
    """Parse kinds of recomputation such as "none,call"; raise UsageError for an unknown one."""
    return tuple(check_choice("--recompute", name, RECOMPUTE) for name in split_words(text))


@dataclass(frozen=True)
class BenchOptions:
    """What to time, and with which sizes.

    Args:
        part: one of `PARTS`.
        data: folder of shards, for "loader".
        calls, recompute: numbers of sampling steps and kinds of recomputation in the fine stage;
            all combinations are timed.
    """

    part: str
    size: int = setting(
        256,
        "Side of the square input in px, a multiple of 8",
        metavar="N",
        low=8,
        high=MAX_SIDE,
    )
    batch: int = setting(1, "Images per batch", metavar="N", low=1, high=MAX_BATCH)
    steps: int = setting(4, "Sampling steps of restore", metavar="N", low=1)
    repeats: int = setting(5, "Timed runs, after the warm-up", metavar="N", low=1)
    compile: bool = setting(False, "Use torch.compile.", panel=MACHINE)
    data: Path | None = setting(None, replace(SHARDS, panel="For loader"))
    stage: str = setting("coarse", "Stage.", choices=("coarse", "fine"), panel=STEP)
    calls: tuple[int, ...] = setting(
        "4",
        "Sampling steps of the fine stage, separated by commas.",
        metavar="N,...",
        parse=numbers("--calls", "1,2,4"),
        panel=STEP,
    )
    recompute: tuple[Recompute, ...] = setting(
        "none,call",
        "Recomputation in the fine stage: none, call, level.",
        metavar="WAY,...",
        parse=parse_recompute,
        panel=STEP,
    )
    device: str = setting("auto", DEVICE)
    precision: str = setting("auto", PRECISION)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.part not in PARTS:
            raise UsageError(f"the part must be one of {', '.join(PARTS)}, got {self.part}")
        if self.size % 8 and self.part != "restore":
            what = f"--size must be a multiple of 8, got {self.size}"
            raise UsageError(what, hint="try --size 256")
        timed = _FINE if (self.part, self.stage) == ("train-step", "fine") else self.part
        for one in fields(self):
            whose = _ONLY_FOR.get(one.name, timed)
            if getattr(self, one.name) != one.default and whose not in (self.part, timed):
                what = f"{option_name(one)} cannot be used with {self.part}"
                raise UsageError(what, hint=f"it is for: c2fdft bench {whose}")
        if self.part == "loader" and self.compile:
            raise UsageError("--compile cannot be used with loader: no network runs")
        if self.stage == "fine" and self.compile:
            raise UsageError("--compile cannot be combined with --stage fine")
