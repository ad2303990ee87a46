"""Make the batches of this process from a recipe and shards."""

from __future__ import annotations

import math
import os
from functools import partial
from shutil import disk_usage

import torch

from c2fdft_cli.data.batches.batch import BatchMaker
from c2fdft_cli.data.batches.loader import PatchLoader
from c2fdft_cli.data.batches.plan import PatchCycle, PatchPlan
from c2fdft_cli.data.shards.reader import ShardSet
from c2fdft_cli.data.synthesis.degrade import Degradation
from c2fdft_cli.execution.device import Runtime
from c2fdft_cli.pipeline import cores
from c2fdft_cli.recipe.schema import Data, Recipe, Stage

MAX_AUTO_WORKERS = 8
_SHARED_MEMORY = "/dev/shm"  # noqa: S108
_SHARED_BYTES = 1 << 30
"""Shared memory in bytes that the prefetched batches of eight worker processes need."""


def patch_cycle(stage: Stage) -> PatchCycle:
    """Return the stage's patch cycle: docs/paper.md, "Schedule"."""
    return PatchCycle(tuple(stage.patches), tuple(stage.batches), stage.switch_every, stage.cycles)


def rank_rows(runtime: Runtime, batch: int) -> tuple[int, int]:
    """Return this process's rows [lo, hi) of the global batch: one row if its share is empty."""
    lo, hi = _bounds(runtime, batch)
    # DDP waits for the gradients of every process, so one with an empty share computes a row, which
    # counts with weight 0 (`rank_share`).
    return lo, max(hi, lo + 1)


def rank_share(runtime: Runtime, batch: int) -> float:
    """Return this process's share of the global batch, 0 to 1; 0 if it has no rows of its own."""
    lo, hi = _bounds(runtime, batch)
    return (hi - lo) / batch


def _bounds(runtime: Runtime, batch: int) -> tuple[int, int]:
    """Return this process's even share [lo, hi) of the global batch, which may be empty."""
    return batch * runtime.rank // runtime.world, batch * (runtime.rank + 1) // runtime.world


def worker_count(data: Data, device: torch.device, processors: int, shared_bytes: float) -> int:
    """Return how many processes read batches: `data.workers`, or as many as the device needs.

    The batches do not depend on this number. Worker processes pass them through shared memory; if
    there is too little of it, as in many containers, a thread of this process reads (0 workers).
    """
    if data.workers is not None or device.type != "cuda":
        return data.workers or 0
    if shared_bytes < _SHARED_BYTES:
        return 0
    if data.synthesize is None:
        return 2
    return max(1, min(MAX_AUTO_WORKERS, processors - 1))


def free_shared_memory() -> float:
    """Return the free shared memory in bytes; infinite if it is not a file system here."""
    return disk_usage(_SHARED_MEMORY).free if os.path.isdir(_SHARED_MEMORY) else math.inf


def make_loader(
    recipe: Recipe,
    stage: Stage,
    shards: ShardSet,
    degrade: Degradation | None,
    start: int,
    runtime: Runtime,
    prefetch: int = 2,
) -> PatchLoader:
    """Return a loader of this process's batches, from iteration `start` to the stage's last.

    degrade: the recipe's degradation of clean images, if any.
    """
    plan = PatchPlan(shards.sizes, patch_cycle(stage), recipe.train.seed, stage.mixup_beta)
    maker = BatchMaker(
        shards,
        plan,
        degradation=degrade,
        line_patterns=recipe.data.line_patterns,
        total=recipe.diffusion.timesteps,
    )
    return PatchLoader(
        maker,
        start=start,
        stop=stage.iterations + 1,
        slice_of=partial(rank_rows, runtime),
        workers=worker_count(recipe.data, runtime.device, cores(), free_shared_memory()),
        prefetch=prefetch,
        pin=runtime.device.type == "cuda",
    )
