"""Measures how time and memory of a fine training step grow with the number of sampling steps."""

from __future__ import annotations

import statistics
from collections.abc import Generator
from dataclasses import dataclass, replace

from torch import Tensor

from c2fdft_cli.core.diffusion import spaced_timesteps
from c2fdft_cli.data.batches.batch import Batch
from c2fdft_cli.data.images.tensors import to_unit
from c2fdft_cli.engine.tools.bench import device_name, random_batch, seconds_of
from c2fdft_cli.engine.tools.bench_options import BenchOptions
from c2fdft_cli.engine.tools.live_bytes import Held, held_bytes
from c2fdft_cli.engine.train.step.objective import Objective
from c2fdft_cli.engine.train.step.stepper import Stepper
from c2fdft_cli.engine.weights.build import alpha_bar_of_recipe, make_network, refuse_lost_image
from c2fdft_cli.errors import UsageError
from c2fdft_cli.execution.device import Runtime
from c2fdft_cli.progress import Job
from c2fdft_cli.recipe.schema import MIN_MS_SSIM_PATCH, Recipe
from c2fdft_cli.vocabulary import Recompute


@dataclass(frozen=True)
class FineRow:
    """The measurements for one number of sampling steps and one kind of recomputation.

    calls: number of sampling steps.
    recompute: what the backward pass recomputes.
    seconds: median time of a whole step; `fastest` and `slowest` are the extremes.
    held: peak bytes of a forward and backward pass, without weights and gradients.
    after_forward: bytes that the forward pass keeps for the backward pass.
    time_ratio, held_ratio: relative to "none" with as many sampling steps; None if that was not
        measured.
    """

    calls: int
    recompute: str
    seconds: float
    fastest: float
    slowest: float
    held: int
    after_forward: int
    time_ratio: float | None
    held_ratio: float | None


@dataclass(frozen=True)
class FineBenchResult:
    """The measurements of all kinds of steps; `size` is the side of the patches in px."""

    size: int
    batch: int
    device: str
    precision: str
    rows: list[FineRow]


Kind = tuple[int, Recompute]


def bench_fine(
    options: BenchOptions, recipe: Recipe, runtime: Runtime
) -> Job[float, FineBenchResult]:
    """Make the job that times all kinds of fine steps in turn; an event is one step's seconds.

    Raises:
        UsageError: more sampling steps than the schedule has timesteps, or too small a size for the
            loss.
    """
    if recipe.fine.ssim != "none" and options.size < MIN_MS_SSIM_PATCH:
        what = f"--size must be at least {MIN_MS_SSIM_PATCH} for the MS-SSIM of the fine loss"
        hint = f"try --size {MIN_MS_SSIM_PATCH}, or a recipe with fine.ssim: none"
        raise UsageError(f"{what}, got {options.size}", hint=hint)
    total = recipe.diffusion.timesteps
    for calls in options.calls:
        if not 1 <= calls <= total:
            raise UsageError(f"--calls must be 1 to {total}, got {calls}")
    refuse_lost_image(spaced_timesteps(1, total=total), alpha_bar_of_recipe(recipe.diffusion))
    kinds = [(calls, name) for calls in options.calls for name in options.recompute]
    total = len(kinds) * (options.repeats + 1)
    work = _bench(options, kinds, recipe, runtime)
    return Job(work, total=total, title="fine train-step", unit="step")


def _bench(
    options: BenchOptions, kinds: list[Kind], recipe: Recipe, runtime: Runtime
) -> Generator[float, None, FineBenchResult]:
    net = make_network(recipe.network).to(runtime.device)
    objective = Objective(net, alpha_bar_of_recipe(recipe.diffusion).to(runtime.device), None)
    stepper = Stepper(objective, recipe.train, runtime)
    batch = random_batch(options.batch, options.size, recipe.diffusion.timesteps)
    held: dict[Kind, Held] = {}
    times: dict[Kind, list[float]] = {kind: [] for kind in kinds}
    # The kinds take turns, so that other load on the machine affects all of them alike. On a GPU
    # this also means that no step runs as a CUDA graph: only a step that repeats the one before it
    # is recorded.
    for number in range(options.repeats + 1):
        for kind in kinds:
            _use(objective, recipe, kind)
            if not number:
                held[kind] = _held(objective, batch, runtime)
            seconds = seconds_of(lambda: stepper.step(batch, 1.0, 1e-6, options.batch), runtime)
            if number:  # the first round warms up
                times[kind].append(seconds)
            yield seconds
    return FineBenchResult(
        size=options.size,
        batch=options.batch,
        device=device_name(runtime.device),
        precision=runtime.precision,
        rows=[_row(kind, times, held) for kind in kinds],
    )


def _use(objective: Objective, recipe: Recipe, kind: Kind) -> None:
    calls, recompute = kind
    timesteps = spaced_timesteps(calls, total=recipe.diffusion.timesteps)
    objective.use((replace(recipe.fine, recompute=recompute), timesteps))


def _held(objective: Objective, batch: Batch, runtime: Runtime) -> Held:
    rows = batch.to(runtime.device)
    lq, gt = to_unit(rows.lq), to_unit(rows.gt)

    def loss() -> Tensor:
        with runtime.autocast():
            return objective(lq, gt, rows.noise, rows.times)  # type: ignore[no-any-return]

    return held_bytes(objective.net, loss, runtime.device)


def _row(kind: Kind, times: dict[Kind, list[float]], held: dict[Kind, Held]) -> FineRow:
    plain: Kind = (kind[0], "none")
    seconds = statistics.median(times[kind])
    both = plain in times
    return FineRow(
        calls=kind[0],
        recompute=kind[1],
        seconds=seconds,
        fastest=min(times[kind]),
        slowest=max(times[kind]),
        held=held[kind].peak,
        after_forward=held[kind].after_forward,
        time_ratio=seconds / statistics.median(times[plain]) if both else None,
        held_ratio=held[kind].peak / held[plain].peak if both else None,
    )
