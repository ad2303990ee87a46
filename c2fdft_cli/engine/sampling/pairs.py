"""Validation pairs of shards, degraded by the recipe where they hold clean images only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from c2fdft_cli.data.shards.format import Pixels
from c2fdft_cli.data.shards.reader import ShardSet
from c2fdft_cli.data.synthesis.degrade import Model, degrade, margin, parse_model
from c2fdft_cli.data.synthesis.streaks import StreakBank
from c2fdft_cli.engine.sampling.restorer import noise_generator
from c2fdft_cli.errors import DataError
from c2fdft_cli.recipe.schema import Data, Recipe


@dataclass(frozen=True)
class Degradation:
    """A recipe's degradation of clean crops; it can be sent to worker processes."""

    model: Model
    streaks: StreakBank | None

    def __call__(self, gt: Pixels, rng: np.random.Generator) -> Pixels:
        """uint8 `[h, w, 3]` to a degraded image of the same size."""
        return degrade(gt, self.model, rng, streaks=self.streaks)


def degradation(data: Data) -> tuple[Degradation | None, int]:
    """The recipe's on-the-fly degradation and the margin that it needs around a crop."""
    if data.synthesize is None:
        return None, 0
    model = parse_model(data.synthesize, data.synthesis)
    bank = None if data.streaks is None else StreakBank(Path(data.streaks))
    return Degradation(model, bank), margin(model)


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
