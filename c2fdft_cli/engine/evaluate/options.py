"""The options with which `eval` restores images before it scores them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from c2fdft_cli.settings import (
    DEVICE,
    PRECISION,
    SEED,
    SELF_ENSEMBLE,
    check_settings,
    numbers,
    setting,
)

RUNS = "With --weights"
"""Heading of these options in the help."""


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
