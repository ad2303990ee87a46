"""All draws of the sampler for one batch, on the plan's executor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from c2fdft_cli.engine.restore_draws import Restored, draw
from c2fdft_cli.engine.restore_executor import Ran
from c2fdft_cli.engine.restore_plan import RestorePlan
from c2fdft_cli.errors import CheckpointError


def run_network(plan: RestorePlan, lq: Tensor, names: Sequence[str]) -> tuple[Restored, Ran]:
    """Restore `lq: [n, 3, h, w]` in [0, 1]; the result is on the CPU.

    The `Ran` is that of the last draw, with the notes of all. ResourceError when out of memory.
    """
    notes: list[str] = []
    last: list[Ran] = []

    def run(lq: Tensor, names: Sequence[str], number: int) -> Tensor:
        ran = plan.executor(lq, names, number)
        notes.extend(note for note in ran.notes if note not in notes)
        last[:] = [ran]
        return ran.image

    result = draw(run, lq, names, plan.options.draws, plan.positions)
    spread = None if result.spread is None else result.spread.cpu()
    return Restored(result.image.cpu(), spread), last[0]._replace(notes=notes)


def refuse_not_finite(plan: RestorePlan, image: Tensor) -> None:
    """CheckpointError for a result that holds NaN or infinity, which no file can."""
    if not torch.isfinite(image).all():
        hint = "other weights, or --precision fp32" if plan.runtime.precision != "fp32" else None
        raise CheckpointError("the weights restore to NaN", where=plan.weights, hint=hint)
