"""Makes the timestep schedules that a sweep tries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from c2fdft_cli.core.diffusion import T, check_timesteps, spaced_timesteps
from c2fdft_cli.engine.sweep.options import Timesteps
from c2fdft_cli.errors import UsageError

MAX_SCHEDULES = 1000
ONE_STEP = (0.3, 0.5, 0.7)
"""Single timesteps to try with coarse weights, as shares of T (300, 500 and 700 of 1000): one step
need not start at T."""

GIVEN, OWN, SINGLE = "given", "checkpoint", "one step"
"""Labels of schedules without a spacing: requested ones, the checkpoint's own, single steps."""


def make_schedules(
    steps: Sequence[int],
    spacings: Sequence[str] = ("linspace",),
    starts: Sequence[int] = (),
    further: Mapping[str, Iterable[Sequence[int]]] | None = None,
    total: int = T,
) -> dict[Timesteps, str]:
    """Combine counts x spacings x first timesteps, and add further schedules; equal ones once.

    Args:
        steps: numbers of steps n.
        spacings: how the timesteps are spaced.
        starts: first timesteps s; n steps are spaced over s .. 0 as `spaced_timesteps` does over
            total - 1 .. 0. Empty for total - 1.
        further: explicit timesteps, by label.
        total: T, the number of timesteps of the diffusion.

    Returns:
        The label (the schedule's origin, as text for the user) of each schedule, by its descending
        timesteps.

    Raises:
        UsageError: an unknown spacing, a timestep outside 0 .. total - 1, more steps than
            timesteps, or too many schedules.
    """
    found: dict[Timesteps, str] = {}
    try:
        for spacing in spacings:
            for start in starts or (total - 1,):
                check_timesteps([start], total)
                label = spacing if start == total - 1 else f"{spacing} from {start}"
                for n in steps:
                    found.setdefault(tuple(spaced_timesteps(n, spacing, start + 1)), label)
        for label, schedules in (further or {}).items():
            for timesteps in schedules:
                found.setdefault(tuple(check_timesteps(timesteps, total)), label)
    except ValueError as error:
        raise UsageError(f"--steps, --spacing, --start or --grid: {error}") from error
    if not 0 < len(found) <= MAX_SCHEDULES:
        raise UsageError(f"a sweep tries 1 to {MAX_SCHEDULES} schedules, got {len(found)}")
    return found
