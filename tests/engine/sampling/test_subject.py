"""Weights that are scored: how they are sampled, by their metadata, and on which images."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from c2fdft_cli.data.shards.reader import ShardSet
from c2fdft_cli.engine.sampling import subject as subject_module
from c2fdft_cli.engine.sampling.subject import (
    open_subject,
    open_validation_of,
    trained_timesteps,
    weights_digest,
)
from c2fdft_cli.engine.weights.checkpoint import Checkpoint, Meta
from c2fdft_cli.errors import CheckpointError, DataError
from c2fdft_cli.recipe.schema import Network, Recipe, Sampling, Train
from tests.kit.networks import SMALL
from tests.kit.weights import write_random


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


def test_weights_are_tried_as_their_checkpoint_states(tmp_path):
    recipe = Recipe("derain", SMALL, sampling=Sampling(eta=0.5), train=Train(protocol="derain"))
    path = write_random(tmp_path / "coarse.pt", recipe=recipe.to_dict())
    subject = open_subject(path, protocol=None, device="cpu", precision="fp32")
    assert subject.protocol.name == "derain"
    executor = subject.executor([500, 100], 7, self_ensemble=True)
    sampler = executor.sampler
    assert (sampler.timesteps, sampler.eta, sampler.seed) == ([500, 100], 0.5, 7)
    assert executor.runs == 4  # without quarter turns, which rain does not have
    assert subject.executor([500], 0).runs == 1
    assert open_subject(path, protocol="rgb", device="cpu", precision="fp32").protocol.name == "rgb"


def test_the_digest_of_weights_depends_on_names_and_values():
    one = swept(None)
    digests = set()
    for names, value in (("ab", 2.0), ("ac", 2.0), ("ab", 3.0)):
        one.ema.clear()
        one.ema |= {names[0]: torch.tensor([1.0]), names[1]: torch.tensor([value])}
        digests.add(weights_digest(one))
    assert len(digests) == 3


def test_a_folder_without_validation_shards_is_refused(tmp_path, monkeypatch):
    subject, here = SimpleNamespace(recipe=None), re.escape(str(tmp_path))
    for pairs in (None, []):
        monkeypatch.setattr(subject_module, "open_validation", lambda *_, pairs=pairs: pairs)
        with pytest.raises(DataError, match=f"^{here}: no validation shards") as caught:
            open_validation_of(tmp_path, subject)
        assert caught.value.hint == "prepare the set again with --val N"
    with pytest.raises(DataError, match=f"^{here}/none: no such folder of shards"):
        open_validation_of(tmp_path / "none", subject)
