"""The dry run: estimates a training's memory and disk space, and its time from a few real steps."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator, Mapping
from dataclasses import dataclass

from c2fdft_cli.data.batches.batch import Batch
from c2fdft_cli.data.shards.reader import ShardSet
from c2fdft_cli.engine.sampling.pairs import degradation
from c2fdft_cli.engine.train.batches import make_loader, patch_cycle
from c2fdft_cli.engine.train.fallbacks import Fallbacks
from c2fdft_cli.engine.train.plan import TrainPlan
from c2fdft_cli.engine.train.step.objective import make_objective
from c2fdft_cli.engine.train.step.stepper import Stepper
from c2fdft_cli.engine.train.validator import scorable_validation
from c2fdft_cli.execution.device import Runtime
from c2fdft_cli.execution.distributed import all_reduce_min
from c2fdft_cli.progress import Job
from c2fdft_cli.recipe.schema import Stage

BYTES_PER_PARAMETER = {"checkpoint": 8, "state": 16}
"""A checkpoint holds the weights and their average; a state also the optimiser's two moments."""

SECONDS = 60.0
"""Seconds for all timed steps of a dry run, if steps may be smaller than the batch (on a CPU)."""

GROWTH = 4
"""Factor by which the number of images grows from one timed step to the next."""


@dataclass(frozen=True)
class SizeEstimate:
    """One size of patch and batch over the whole training.

    memory: estimated bytes of activations of one micro-batch.
    seconds_per_step: measured for a whole batch, or estimated from a smaller step.
    timed_images: number of images in the step that was timed; 0 if the time is estimated from the
        previous size.
    """

    patch: int
    batch: int
    micro_batch: int
    iterations: int
    memory: int
    seconds_per_step: float
    timed_images: int

    @property
    def hours(self) -> float:
        """Hours that the training spends with this size."""
        return self.iterations * self.seconds_per_step / 3600


@dataclass(frozen=True)
class TrainingEstimate:
    """Estimates for the whole training, in bytes of `disk`, and what to know before it starts.

    stages: one for each size of patch and batch; the name is the key of the JSON document.
    """

    device: str
    precision: str
    iterations: int
    hours: float
    disk: int
    stages: list[SizeEstimate]
    notices: list[str]


def estimate_training(
    plan: TrainPlan, seconds: float = SECONDS
) -> Job[SizeEstimate, TrainingEstimate]:
    """Make the job that times a few steps of each size on temporary weights; nothing is written.

    On a CPU the steps start with one image and grow while there is time left. Each size has a
    share of `seconds`.
    """
    sizes = _sizes(plan.section, plan.done)
    return Job(_estimate(plan, sizes, seconds), total=len(sizes), title="dry run", unit="size")


def _sizes(section: Stage, done: int) -> dict[tuple[int, int], tuple[int, int]]:
    """Return the first remaining iteration and the number of them, by (patch, batch) size."""
    cycle, first, last = patch_cycle(section), done + 1, section.iterations
    counts: Counter[tuple[int, int]] = Counter()
    sides = zip(cycle.patches, cycle.batches, strict=True)
    ends = zip(cycle.iterations_before(first), cycle.iterations_before(last + 1), strict=True)
    for size, (before, after) in zip(sides, ends, strict=True):
        counts[size] += after - before
    # A size that is not the current one starts at one of the next len(patches) switches.
    switch = (done // cycle.switch_every + 1) * cycle.switch_every + 1
    starts = [first, *(switch + n * cycle.switch_every for n in range(len(cycle.patches)))]
    sizes: dict[tuple[int, int], tuple[int, int]] = {}
    for k in starts:
        if k <= last:
            sizes.setdefault(cycle.size_at(k), (k, counts[cycle.size_at(k)]))
    return sizes


def _estimate(
    plan: TrainPlan, sizes: Mapping[tuple[int, int], tuple[int, int]], budget: float
) -> Generator[SizeEstimate, None, TrainingEstimate]:
    section, runtime = plan.section, plan.runtime
    if plan.resume is not None:
        plan.resume.take()  # steps are timed on temporary weights: those of the run are freed
    shards = ShardSet.open(plan.data, "train")
    scorable_validation(plan.data, plan.recipe)  # refuses what the training would refuse
    degrade = degradation(plan.recipe.data)
    stepper = Stepper(make_objective(plan), plan.recipe.train, runtime)
    fallbacks = Fallbacks(plan, stepper, notify=lambda _: None)
    fallbacks.compile()
    estimates: list[SizeEstimate] = []
    end, per_pixel = time.monotonic() + budget, 0.0
    for number, ((patch, batch_size), (first, iterations)) in enumerate(sizes.items()):
        batch = next(iter(make_loader(plan.recipe, section, shards, degrade, first, runtime)))
        fallbacks.fit(batch)
        allowed = (end - time.monotonic()) / (len(sizes) - number)
        timed, seconds = _time_step(fallbacks, batch, allowed, per_pixel * patch**2, runtime)
        per_pixel = seconds / len(batch) / patch**2
        micro = fallbacks.micro[patch]
        memory = fallbacks.bytes_per_image(patch) * micro
        estimates.append(SizeEstimate(patch, batch_size, micro, iterations, memory, seconds, timed))
        yield estimates[-1]
    parameters = sum(p.numel() for p in stepper.net.parameters())
    # Checkpoints: the numbered ones that are kept, best.pt, the final one, and the one being
    # written. States: the newest, the previous one, and the one being written.
    checkpoints = plan.recipe.train.keep + 3
    disk = parameters * (
        checkpoints * BYTES_PER_PARAMETER["checkpoint"] + 3 * BYTES_PER_PARAMETER["state"]
    )
    hours = sum(one.hours for one in estimates)
    total = sum(one.iterations for one in estimates)
    notices = list(plan.remarks(shards.has_lq))
    return TrainingEstimate(
        str(runtime.device), runtime.precision, total, hours, disk, estimates, notices
    )


def _time_step(
    fallbacks: Fallbacks, batch: Batch, allowed: float, expected: float, runtime: Runtime
) -> tuple[int, float]:
    """Time the largest step that fits in `allowed`.

    Args:
        fallbacks: runs the steps.
        batch: this process's rows of a global batch.
        allowed: seconds that all steps together may take.
        expected: seconds for an image, estimated from the previous size; 0 if there is none.
        runtime: device and processes.

    Returns:
        The number of images in that step (0 if there is no time even for a single image), and the
        estimated seconds of a step with the whole batch.
    """
    # On CUDA and in compiled code a smaller step would be compiled or tuned for shapes that the
    # training does not have.
    whole = runtime.device.type == "cuda" or fallbacks.is_compiled
    rows, start = len(batch) if whole else 1, time.perf_counter()
    # A step waits for all processes, so they decide together on each further one: it is run only
    # if all of them have time for it.
    if not whole and expected and not all_reduce_min(int(2 * expected < allowed), runtime.device):
        return 0, expected * len(batch)
    for _ in range(2 if whole else 1):  # warm-up; a CUDA graph is recorded in the second step
        fallbacks.step(batch.rows(0, rows))
    while True:
        before = time.perf_counter()
        fallbacks.step(batch.rows(0, rows))
        now = time.perf_counter()
        more = rows < len(batch) and GROWTH * (now - before) < allowed - (now - start)
        if not all_reduce_min(int(more), runtime.device):
            return rows, (now - before) * len(batch) / rows
        rows = min(GROWTH * rows, len(batch))
