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
    option_name,
    setting,
)

MAX_SIDE, MAX_BATCH = 65_528, 65_536
PARTS = ("forward", "train-step", "restore", "loader")
_ONLY_FOR = {"steps": "restore", "data": "loader"}
"""The part that each of these options applies to."""


@dataclass(frozen=True)
class BenchOptions:
    """What to time, and with which sizes.

    Args:
        part: one of `PARTS`.
        data: folder of shards, for "loader".
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
    device: str = setting("auto", DEVICE)
    precision: str = setting("auto", PRECISION)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.part not in PARTS:
            raise UsageError(f"the part must be one of {', '.join(PARTS)}, got {self.part}")
        if self.size % 8 and self.part != "restore":
            what = f"--size must be a multiple of 8, got {self.size}"
            raise UsageError(what, hint="try --size 256")
        for one in fields(self):
            whose = _ONLY_FOR.get(one.name, self.part)
            if getattr(self, one.name) != one.default and whose != self.part:
                what = f"{option_name(one)} cannot be used with {self.part}"
                raise UsageError(what, hint=f"it is for: c2fdft bench {whose}")
        if self.part == "loader" and self.compile:
            raise UsageError("--compile cannot be used with loader: no network runs")
