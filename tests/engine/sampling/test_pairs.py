"""Pairs of shards: the names that their noise depends on, and the masks of their rain."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from c2fdft_cli.data.images.picture import save_rgb8
from c2fdft_cli.data.shards.format import Entry, ShardHeader
from c2fdft_cli.engine.sampling.pairs import (
    degradation,
    open_validation,
    settings_without_effect,
)
from c2fdft_cli.engine.sampling.sampler import noise_generator
from c2fdft_cli.errors import DataError
from c2fdft_cli.recipe.schema import Data, Recipe, Train
from tests.kit.shards import pairs_of, write_shard

NAMES = {
    "IMG.2024.01": "IMG.2024.01",  # of a file IMG.2024.01.png
    "IMG.2024.02": "IMG.2024.02",
    "seq/000047": "000047",
    "a.jpg": "a",  # if there is an a.png too
    "b.v2.png": "b.v2",
}


@pytest.mark.parametrize("has_lq", [True, False])
def test_noise_depends_on_the_base_name_of_the_file_as_in_restore(tmp_path, has_lq):
    entries = [Entry(name, 8, 8) for name in NAMES]
    header = ShardHeader("val", "{}", "input/target", "rain", "0.1")
    made = [(lq if has_lq else None, gt) for lq, gt in pairs_of(entries)]
    write_shard(tmp_path / "val-00000.h5", entries, made, header, has_lq=has_lq)
    recipe = Recipe(data=Data(synthesize="noise", synthesis={"sigma": 25}))
    pairs = open_validation(tmp_path, recipe)
    assert {pair.name: pair.noise_name for pair in map(pairs.pair, range(len(NAMES)))} == NAMES
    starts = {noise_generator(0, name).initial_seed() for name in NAMES.values()}
    assert len(starts) == len(NAMES)
    if has_lq:  # these are restored, whatever the recipe makes in training
        assert np.array_equal(pairs.pair(0).lq, made[0][0])
        return
    changes = [pair.lq.astype(int) - pair.gt for pair in map(pairs.pair, range(2))]
    assert not np.array_equal(*changes)
    other = open_validation(tmp_path, replace(recipe, train=Train(seed=7)))
    assert not np.array_equal(other.pair(0).lq, pairs.pair(0).lq)
    with pytest.raises(DataError, match=r"val-00000\.h5: .*hold clean images only") as error:
        open_validation(tmp_path, Recipe())
    assert error.value.hint == "set data.synthesize in the recipe"


def test_inherited_streak_masks_without_effect_are_not_reported():
    data = Data(streaks="masks")
    assert settings_without_effect(data, ["data.shards"]) == ()
    (told,) = settings_without_effect(data, ["data.shards", "data.streaks"])
    assert told == "data.streaks has no effect without data.synthesize"


def test_rain_is_made_of_the_streak_masks_of_the_recipe(tmp_path):
    mask = np.where(np.arange(128) % 23 < 2, 120, 0).astype(np.uint8)
    save_rgb8(tmp_path / "0.png", np.tile(mask[None, :, None], (96, 1, 3)))
    own = degradation(Data(synthesize="rain", streaks=str(tmp_path)))
    plain = degradation(Data(synthesize="rain"))
    black = np.zeros((64, 64, 3), np.uint8)
    made, other = ([one(black, np.random.default_rng(k)) for k in range(4)] for one in (own, plain))
    assert not np.array_equal(made, other)
