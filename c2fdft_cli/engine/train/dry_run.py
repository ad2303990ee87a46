"""What a training will take: stages, memory, disk, and time from a few real steps."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass

from c2fdft_cli.data.batches.batch import Batch
from c2fdft_cli.data.shards.reader import ShardSet
from c2fdft_cli.engine.train.batches import make_loader, patch_cycle
from c2fdft_cli.engine.train.fallbacks import Fallbacks
from c2fdft_cli.engine.train.objective import make_objective
from c2fdft_cli.engine.train.options import TrainOptions
from c2fdft_cli.engine.train.state import load_state
from c2fdft_cli.engine.train.stepper import Stepper
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
    stages = len(_stages(options))
    return Job(_plan(options), total=stages, title="dry run", unit="stage")


def _stages(options: TrainOptions) -> dict[tuple[int, int], list[int]]:
    """The iterations that are still to do, by patch and batch size."""
    cycle = patch_cycle(options.section)
    done = 0 if options.resume is None else load_state(options.resume).step
    stages: dict[tuple[int, int], list[int]] = {}
    for k in range(done + 1, options.section.iterations + 1):
        stages.setdefault(cycle.stage(k), []).append(k)
    return stages


def _plan(options: TrainOptions) -> Generator[StagePlan, None, TrainingPlan]:
    section, runtime = options.section, options.runtime
    shards = ShardSet.open(options.data, "train")
    stepper = Stepper(make_objective(options), options.recipe.train, runtime)
    fallbacks = Fallbacks(options, stepper, notify=lambda _: None)
    fallbacks.compile()
    plans: list[StagePlan] = []
    for (patch, batch_size), iterations in _stages(options).items():
        batch = next(iter(make_loader(options.recipe, section, shards, iterations[0], runtime)))
        fallbacks.fit(batch)
        seconds = _time_step(fallbacks, batch)
        micro = fallbacks.micro[patch]
        memory = fallbacks.bytes_per_image(patch) * micro
        plan = StagePlan(patch, batch_size, micro, len(iterations), memory, seconds)
        plans.append(plan)
        yield plan
    parameters = sum(p.numel() for p in stepper.net.parameters())
    # the numbered ones that are kept, best, the finished one, and the one being written;
    # states: the newest, the one before it, and the one being written
    checkpoints = options.recipe.train.keep + 3
    disk = parameters * (
        checkpoints * BYTES_PER_PARAMETER["checkpoint"] + 3 * BYTES_PER_PARAMETER["state"]
    )
    hours = sum(plan.hours for plan in plans)
    total = sum(plan.iterations for plan in plans)
    return TrainingPlan(str(runtime.device), runtime.precision, total, hours, disk, plans)


def _time_step(fallbacks: Fallbacks, batch: Batch) -> float:
    """Seconds of a step after one that warms up."""
    fallbacks.step(batch)
    begin = time.perf_counter()
    fallbacks.step(batch)
    return time.perf_counter() - begin
