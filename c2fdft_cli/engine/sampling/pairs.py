"""Pairs to restore and score, from any source, and the pairs of the validation shards."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from c2fdft_cli.data.images.picture import is_image_path
from c2fdft_cli.data.shards.reader import ShardSet
from c2fdft_cli.data.synthesis.degrade import Degradation, parse_model, without_effect
from c2fdft_cli.engine.sampling.sampler import noise_generator
from c2fdft_cli.errors import DataError
from c2fdft_cli.recipe.schema import Data, Recipe


@dataclass(frozen=True)
class DecodedPair:
    """A degraded image and its target.

    Args:
        name: the pair's name, unique in its source.
        lq: `[h, w, 3]`, uint8 or uint16, or float32 in 8-bit levels, neither rounded nor clipped.
        gt: uint8 or uint16 `[h, w, 3]`.
        noise_name: base name of the degraded file; with the seed it decides the sampler's noise.
        grey: whether the degraded file is grey, and so is the file that `restore` makes of it.
    """

    name: str
    lq: np.ndarray[Any, Any]
    gt: np.ndarray[Any, Any]
    noise_name: str
    grey: bool = False


@dataclass(frozen=True)
class PairSource:
    """A set of pairs, read one at a time.

    Args:
        names: the names of the pairs.
        pair: reads pair i; DataError if it cannot be read.
        size: reads (height, width) of pair i from the headers alone; DataError if the two images
            differ in size, or if a header cannot be read.
        found_by: how degraded images and targets were matched, for the user.
        note: a further note on the pairs, for the user.
        unit: the noun for one of them.
        without_target, without_input: degraded images and targets whose partner is missing.
    """

    names: Sequence[str]
    pair: Callable[[int], DecodedPair]
    size: Callable[[int], tuple[int, int]]
    found_by: str
    note: str | None = None
    unit: str = "image"
    without_target: Sequence[Path] = ()
    without_input: Sequence[Path] = ()

    def __len__(self) -> int:
        return len(self.names)


def degradation(data: Data) -> Degradation | None:
    """Return the recipe's on-the-fly degradation, if any.

    Raises:
        UsageError: settings that do not fit the degradation.
        DataError: no usable streak masks.
    """
    if data.synthesize is None:
        return None
    folder = None if data.streaks is None else Path(data.streaks)
    return Degradation.open(data.synthesize, data.synthesis, folder)


def settings_without_effect(data: Data, given: Collection[str]) -> tuple[str, ...]:
    """Return a notice if settings of the recipe's on-the-fly degradation change no picture.

    Args:
        data: the settings.
        given: dotted keys, such as "data.streaks", to report on; not those that a recipe inherits.

    Raises:
        UsageError: settings that do not fit the degradation.
    """
    section = "data.synthesis."
    options = [key.removeprefix(section) for key in given if key.startswith(section)]
    if data.synthesize is not None:
        streaks = None if data.streaks is None else Path(data.streaks)
        model = parse_model(data.synthesize, data.synthesis, streaks)
        return without_effect(model, options, bank=streaks is not None)
    idle = [f"{section}{option}" for option in options]
    if data.streaks is not None and "data.streaks" in given:
        idle.append("data.streaks")
    return tuple(f"{key} has no effect without data.synthesize" for key in idle)


@dataclass(frozen=True)
class ShardPairs(PairSource):
    """The validation split of a shard folder."""

    shards: ShardSet = field(kw_only=True)


def _base_name(name: str) -> str:
    """Return the base name of the file that a pair was made from.

    The pair's name ends in a suffix only if two pairs shared the name without it. Any other text
    after a dot belongs to the name, as in IMG.2024.01.
    """
    path = PurePosixPath(name)
    return path.stem if is_image_path(path) else path.name


def open_validation(folder: Path, recipe: Recipe) -> ShardPairs | None:
    """Open the validation split of a shard folder; None if there is none.

    A split of clean images only is degraded as the recipe defines: a synthetic lq is a function of
    the recipe's seed and the pair's name.

    Raises:
        DataError: the split has clean images only, and the recipe no degradation.
    """
    if not any(folder.glob("val-*.h5")):
        return None
    shards = ShardSet.open(folder, "val")
    degrade_clean = None if shards.has_lq else degradation(recipe.data)
    if not shards.has_lq and degrade_clean is None:
        raise DataError(
            "the validation shards hold clean images only",
            where=shards.paths[0],
            hint="set data.synthesize in the recipe",
        )

    def pair(i: int) -> DecodedPair:
        name = shards.names[i]
        own = _base_name(name)
        if degrade_clean is None:
            return DecodedPair(name, *shards.pair(i), own)
        gt = np.array(shards.gt(i))
        seed = noise_generator(recipe.train.seed, own).initial_seed()
        return DecodedPair(name, degrade_clean(gt, np.random.default_rng(seed)), gt, own)

    return ShardPairs(shards.names, pair, shards.sizes.__getitem__, "shards", shards=shards)
