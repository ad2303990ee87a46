"""From a recipe and shards to batches and validation pairs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from c2fdft_cli.data.loader import PatchLoader
from c2fdft_cli.data.patches import PatchCycle, PatchPlan
from c2fdft_cli.data.shard_format import Pixels
from c2fdft_cli.data.shards import ShardSet
from c2fdft_cli.data.streaks import StreakBank
from c2fdft_cli.data.synthesis import Model, degrade, margin, parse_model
from c2fdft_cli.engine.restorer import noise_generator
from c2fdft_cli.engine.runtime import Runtime
from c2fdft_cli.errors import DataError
from c2fdft_cli.recipe import Data, Recipe, Stage


@dataclass(frozen=True)
class Degradation:
    """A recipe's degradation of clean crops; it can be sent to worker processes."""

    model: Model
    streaks: StreakBank | None

    def __call__(self, gt: Pixels, rng: np.random.Generator) -> Pixels:
        """uint8 `[h, w, 3]` to a degraded image of the same size."""
        return degrade(gt, self.model, rng, streaks=self.streaks)


def patch_cycle(stage: Stage) -> PatchCycle:
    """The stage's patch cycle (paper, section 8)."""
    return PatchCycle(tuple(stage.patches), tuple(stage.batches), stage.switch_every, stage.cycles)


def degradation(data: Data) -> tuple[Degradation | None, int]:
    """The recipe's on-the-fly degradation and the margin that it needs around a crop."""
    if data.synthesize is None:
        return None, 0
    model = parse_model(data.synthesize, data.synthesis)
    bank = None if data.streaks is None else StreakBank(Path(data.streaks))
    return Degradation(model, bank), margin(model)


def rank_rows(runtime: Runtime, batch: int) -> tuple[int, int]:
    """This process's rows of the global batch; an empty share takes one row that will not count."""
    lo = batch * runtime.rank // runtime.world
    hi = batch * (runtime.rank + 1) // runtime.world
    return (lo, hi) if hi > lo else (min(lo, batch - 1), min(lo, batch - 1) + 1)


def rank_share(runtime: Runtime, batch: int) -> float:
    """This process's share of the global batch, 0 where it has no row of its own."""
    lo = batch * runtime.rank // runtime.world
    hi = batch * (runtime.rank + 1) // runtime.world
    return (hi - lo) / batch


def make_loader(
    recipe: Recipe, stage: Stage, shards: ShardSet, start: int, runtime: Runtime, prefetch: int = 2
) -> PatchLoader:
    """Batches of this process from iteration `start` to the stage's last."""
    plan = PatchPlan(
        len(shards), shards.sizes, patch_cycle(stage), recipe.train.seed, stage.mixup_beta
    )
    degrade_crop, crop_margin = degradation(recipe.data)
    return PatchLoader(
        shards,
        plan,
        start=start,
        stop=stage.iterations + 1,
        slice_of=partial(rank_rows, runtime),
        degrade=degrade_crop,
        margin=crop_margin,
        timesteps=recipe.diffusion.timesteps,
        workers=recipe.data.workers,
        prefetch=prefetch,
        pin=runtime.device.type == "cuda",
    )


class ValidationPairs:
    """The validation split as (lq, gt) pairs; a clean-only split is degraded by the recipe.

    Raises:
        DataError: a clean-only split and no degradation in the recipe.
    """

    def __init__(self, shards: ShardSet, data: Data, seed: int) -> None:
        self.shards = shards
        self.names = shards.names
        self._seed = seed
        self._degrade, _ = (None, 0) if shards.has_lq else degradation(data)
        if not shards.has_lq and self._degrade is None:
            raise DataError(
                "the validation shards hold clean images only",
                where=shards.paths[0],
                hint="set data.synthesize",
            )

    def __len__(self) -> int:
        return len(self.shards)

    def pair(self, i: int) -> tuple[Pixels, Pixels]:
        """uint8 `[h, w, 3]` lq and gt; a synthetic lq is a function of the seed and the name."""
        if self._degrade is None:
            return self.shards.pair(i)
        gt = np.array(self.shards.gt(i))
        rng = np.random.default_rng(noise_generator(self._seed, self.names[i]).initial_seed())
        return self._degrade(gt, rng), gt


def open_validation(folder: Path, recipe: Recipe) -> ValidationPairs | None:
    """The validation split of a shard folder, or None when it has none."""
    if not any(folder.glob("val-*.h5")):
        return None
    return ValidationPairs(ShardSet.open(folder, "val"), recipe.data, recipe.train.seed)
