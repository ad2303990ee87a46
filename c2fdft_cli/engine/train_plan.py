"""What a training will take: stages, memory, disk, and time from a few real steps."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass

from c2fdft_cli.data.batches import Batch
from c2fdft_cli.data.shards import ShardSet
from c2fdft_cli.engine.loading import make_loader, patch_cycle, rank_share
from c2fdft_cli.engine.memory import choose_micro_batch, step_bytes
from c2fdft_cli.engine.stepper import Stepper
from c2fdft_cli.engine.train_options import TrainOptions
from c2fdft_cli.engine.training import make_objective, section_of
from c2fdft_cli.progress import Job

BYTES_PER_PARAMETER = {"checkpoint": 8, "state": 16}
"""Weights and their average; with the optimiser's two moments."""


@dataclass(frozen=True)
class StagePlan:
    """One stage of the patch cycle over the whole training.

    memory: estimated bytes of activations of one micro-batch.
    seconds_per_step: of the second of two real steps.
    """

    patch: int
    batch: int
    micro_batch: int
    iterations: int
    memory: int
    seconds_per_step: float

    @property
    def hours(self) -> float:
        """Time in this stage."""
        return self.iterations * self.seconds_per_step / 3600


@dataclass(frozen=True)
class TrainingPlan:
    """The whole training, disk in bytes."""

    device: str
    precision: str
    iterations: int
    hours: float
    disk: int
    stages: list[StagePlan]


def plan_training(options: TrainOptions) -> Job[StagePlan, TrainingPlan]:
    """Try each stage for two steps on throw-away weights; nothing is written."""
    stages = sorted(set(section_of(options).patches))
    return Job(_plan(options), total=len(stages), title="dry run", unit="stage")


def _plan(options: TrainOptions) -> Generator[StagePlan, None, TrainingPlan]:
    section, runtime = section_of(options), options.runtime
    cycle, shards = patch_cycle(section), ShardSet.open(options.data, "train")
    stepper = Stepper(make_objective(options), options.recipe.train, runtime)
    counts: dict[tuple[int, int], int] = {}
    first: dict[tuple[int, int], int] = {}
    for k in range(1, section.iterations + 1):
        stage = cycle.stage(k)
        counts[stage] = counts.get(stage, 0) + 1
        first.setdefault(stage, k)
    plans = []
    for (patch, batch_size), start in first.items():
        each = step_bytes(options.recipe.network, section, len(options.grid), patch, runtime)
        batch = next(iter(make_loader(options.recipe, section, shards, start, runtime)))
        wanted = options.recipe.train.micro_batch
        micro = choose_micro_batch(wanted, len(batch), each, runtime)
        seconds = _time_step(stepper, batch, rank_share(runtime, batch_size), micro)
        iterations = counts[patch, batch_size]
        plan = StagePlan(patch, batch_size, micro, iterations, each * micro, seconds)
        plans.append(plan)
        yield plan
    parameters = sum(p.numel() for p in stepper.net.parameters())
    # the numbered ones that are kept, best, the finished one, and the one being written
    checkpoints = options.recipe.train.keep + 3
    disk = parameters * (
        checkpoints * BYTES_PER_PARAMETER["checkpoint"] + 2 * BYTES_PER_PARAMETER["state"]
    )
    hours = sum(plan.hours for plan in plans)
    return TrainingPlan(
        str(runtime.device), runtime.precision, section.iterations, hours, disk, plans
    )


def _time_step(stepper: Stepper, batch: Batch, share: float, micro_batch: int) -> float:
    """Seconds of a step after one that warms up."""
    stepper.step(batch, share, 0.0, micro_batch)
    begin = time.perf_counter()
    stepper.step(batch, share, 0.0, micro_batch)
    return time.perf_counter() - begin
