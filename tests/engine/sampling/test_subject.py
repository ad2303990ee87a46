"""The timesteps that the metadata of a checkpoint state."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from c2fdft_cli.data.shards.reader import ShardSet
from c2fdft_cli.engine.sampling import subject as subject_module
from c2fdft_cli.engine.sampling.subject import open_validation_of, trained_timesteps
from c2fdft_cli.engine.weights.checkpoint import Checkpoint, Meta
from c2fdft_cli.errors import CheckpointError, DataError
from c2fdft_cli.recipe.schema import Network, Recipe


def swept(trained: Any) -> Checkpoint:
    """Fine weights whose timesteps were replaced by a sweep."""
    metrics = {"sweep": {"trained_grid": trained, "psnr": 30.0}}
    meta = Meta(Network(), stage="fine", grid=[500], grid_from="sweep", metrics=metrics)
    return Checkpoint(Path("fine.pt"), {}, {}, meta)


def test_the_timesteps_of_the_training_are_kept_after_a_sweep():
    assert trained_timesteps(swept([999, 500])) == [999, 500]
    assert trained_timesteps(swept(None)) is None
    coarse = swept([999])
    coarse.meta.stage = "coarse"
    assert trained_timesteps(coarse) is None


@pytest.mark.parametrize(
    "trained",
    [["x"], "x", 3, True, [True], [1.5], [float("inf")], [float("nan")], [[999]], [None], {}, [],
     [10**400], [1000], [-1], [500, 999]],
)  # fmt: skip
def test_invalid_timesteps_are_refused(trained):
    with pytest.raises(CheckpointError, match=r"fine\.pt: .*metrics\.sweep"):
        trained_timesteps(swept(trained))


def test_a_sweep_without_scores_changes_nothing():
    checkpoint = swept([999])
    checkpoint.meta.metrics.clear()
    assert trained_timesteps(checkpoint) == [500]


def test_another_set_in_the_folder_that_the_weights_name_is_refused(shard_folder):
    """Another folder may have the same relative path, or the set was prepared again."""
    own, other = ShardSet.open(shard_folder, "val").fingerprint, "0" * 64
    for known in (None, own, other):
        weights = swept([999])
        weights.meta.data, weights.meta.data_val = str(shard_folder), known
        subject = SimpleNamespace(recipe=Recipe(), checkpoint=weights)
        if known != other:
            assert len(open_validation_of(None, subject)) == 2
            continue
        what = rf"{own[:8]}\) are not those that fine\.pt was trained with \(00000000\)"
        with pytest.raises(DataError, match=what) as caught:
            open_validation_of(None, subject)
        assert str(caught.value.hint).endswith(f"--data {shard_folder}")
        assert len(open_validation_of(shard_folder, subject)) == 2


def test_a_folder_without_validation_shards_is_refused(tmp_path, monkeypatch):
    subject, here = SimpleNamespace(recipe=None), re.escape(str(tmp_path))
    for pairs in (None, []):
        monkeypatch.setattr(subject_module, "open_validation", lambda *_, pairs=pairs: pairs)
        with pytest.raises(DataError, match=f"^{here}: no validation shards") as caught:
            open_validation_of(tmp_path, subject)
        assert caught.value.hint == "prepare the set again with --val N"
    with pytest.raises(DataError, match=f"^{here}/none: no such folder of shards"):
        open_validation_of(tmp_path / "none", subject)
