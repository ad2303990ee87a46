"""Pairs to restore and score: what a source of them offers, and the validation pairs of shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

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


class PairSource(Protocol):
    """Degraded images and their targets, wherever they come from."""

    found_by: str
    """How the pairs were found, for people."""
    note: str | None
    """What else people should know of them."""
    unit: str
    """What one of them is called."""

    def __len__(self) -> int: ...

    @property
    def names(self) -> Sequence[str]:
        """Of the pairs."""
        ...

    def pair(self, i: int) -> tuple[Any, Any]:
        """`[h, w, 3]` in 8-bit levels: lq (uint8, or float32 where it is not rounded), uint8 gt."""
        ...

    def noise_name(self, i: int) -> str:
        """The name from which the start noise of pair i is made: that of its degraded file."""
        ...


class ValidationPairs(PairSource):
    """The validation split as (lq, gt) pairs; a clean-only split is degraded by the recipe.

    Raises:
        DataError: a clean-only split and no degradation in the recipe.
    """

    def __init__(self, shards: ShardSet, data: Data, seed: int) -> None:
        self.found_by, self.note, self.unit = "shards", None, "image"
        self.shards = shards
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

    @property
    def names(self) -> Sequence[str]:
        """Of the pairs."""
        return self.shards.names

    def noise_name(self, i: int) -> str:
        """The pair's own name."""
        return self.names[i]

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
