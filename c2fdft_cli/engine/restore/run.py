"""All draws of the sampler for one batch, on the plan's executor; it can be stopped in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from c2fdft_cli.engine.restore.draws import Restored, draw
from c2fdft_cli.engine.restore.plan import RestorePlan
from c2fdft_cli.engine.sampling.executor import Ran
from c2fdft_cli.errors import CheckpointError
from c2fdft_cli.execution.signals import StopRequest


def run_network(
    plan: RestorePlan,
    lq: Tensor,
    names: Sequence[str],
    stop: StopRequest,
    report: Callable[[float], None] | None = None,
) -> tuple[Restored, Ran]:
    """Restore a batch; the result is on the CPU.

    Args:
        plan: decides how.
        lq: `[n, 3, h, w]` in [0, 1].
        names: the images' names.
        stop: ends it, within a moment.
        report: called many times with the share of the work that is done, 0 to 1.

    Returns:
        The result, and the `Ran` of the last draw with the notes of all.

    Raises:
        ResourceError: out of memory.
        StoppedError: `stop` was set.
    """
    notes: list[str] = []
    last: list[Ran] = []
    count, _, height, width = lq.shape
    done, total = 0, plan.runs * plan.executor.work(height, width, count)

    def watch(amount: int) -> None:
        nonlocal done
        stop.check()
        done += amount
        if report is not None:
            report(min(1.0, done / total))  # what is done again after running out of memory is more

    def run(lq: Tensor, names: Sequence[str], number: int) -> Tensor:
        ran = plan.executor(lq, names, number)
        notes.extend(note for note in ran.notes if note not in notes)
        last[:] = [ran]
        return ran.image

    plan.executor.report_to(watch)
    result = draw(run, lq, names, plan.options.draws, plan.positions)
    spread = None if result.spread is None else result.spread.cpu()
    return Restored(result.image.cpu(), spread), last[0]._replace(notes=notes)


def refuse_not_finite(plan: RestorePlan, image: Tensor) -> None:
    """CheckpointError for a result that holds NaN or infinity, which no file can."""
    if not torch.isfinite(image).all():
        hint = "other weights, or --precision fp32" if plan.runtime.precision != "fp32" else None
        raise CheckpointError("the weights restore to NaN", where=plan.weights, hint=hint)
