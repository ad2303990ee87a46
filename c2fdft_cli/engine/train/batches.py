"""From a recipe and shards to batches."""

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
from c2fdft_cli.engine.sampling.pairs import degradation
from c2fdft_cli.execution.device import Runtime
from c2fdft_cli.pipeline import cores
from c2fdft_cli.recipe.schema import Data, Recipe, Stage

MAX_WORKERS = 8
_SHARED_MEMORY = "/dev/shm"  # noqa: S108
_SHARED_BYTES = 1 << 30
"""For what eight processes have ready."""


def patch_cycle(stage: Stage) -> PatchCycle:
    """The stage's patch cycle: docs/paper.md, "Schedule"."""
    return PatchCycle(tuple(stage.patches), tuple(stage.batches), stage.switch_every, stage.cycles)


def rank_rows(runtime: Runtime, batch: int) -> tuple[int, int]:
    """This process's rows of the global batch; an empty share takes one row that will not count."""
    lo, hi = _bounds(runtime, batch)
    # DDP waits for the gradients of every process: one without rows takes part with weight 0
    return (lo, hi) if hi > lo else (min(lo, batch - 1), min(lo, batch - 1) + 1)


def rank_share(runtime: Runtime, batch: int) -> float:
    """This process's share of the global batch, 0 where it has no row of its own."""
    lo, hi = _bounds(runtime, batch)
    return (hi - lo) / batch


def _bounds(runtime: Runtime, batch: int) -> tuple[int, int]:
    """This process's even share [lo, hi) of the global batch, which may be empty."""
    return batch * runtime.rank // runtime.world, batch * (runtime.rank + 1) // runtime.world


def worker_count(data: Data, device: torch.device, processors: int, shared_bytes: float) -> int:
    """Processes that read batches: as stated, else as many as the device needs.

    The batches are the same with any number of them. They travel through shared memory, of which a
    container may have next to none: then a thread reads.
    """
    if data.workers is not None or device.type != "cuda":
        return data.workers or 0
    if shared_bytes < _SHARED_BYTES:
        return 0
    if data.synthesize is None:
        return 2
    return max(1, min(MAX_WORKERS, processors - 1))


def free_shared_memory() -> float:
    """Bytes; infinite where it is no file system."""
    return disk_usage(_SHARED_MEMORY).free if os.path.isdir(_SHARED_MEMORY) else math.inf


def make_loader(
    recipe: Recipe, stage: Stage, shards: ShardSet, start: int, runtime: Runtime, prefetch: int = 2
) -> PatchLoader:
    """Batches of this process from iteration `start` to the stage's last."""
    plan = PatchPlan(shards.sizes, patch_cycle(stage), recipe.train.seed, stage.mixup_beta)
    degrade_crop, crop_margin = degradation(recipe.data)
    maker = BatchMaker(
        shards,
        plan,
        degrade=degrade_crop,
        margin=crop_margin,
        line_patterns=recipe.data.line_patterns,
        timesteps=recipe.diffusion.timesteps,
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
