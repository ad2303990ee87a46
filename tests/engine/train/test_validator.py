"""Validation of weights in a training; tests of trainings cover when it happens."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from c2fdft_cli.data.shards.format import Entry
from c2fdft_cli.engine.sampling.executor import Executor
from c2fdft_cli.engine.train import validator as module
from c2fdft_cli.engine.train.events import Notice
from c2fdft_cli.engine.train.setup import set_up
from c2fdft_cli.engine.train.tensorboard import TensorBoard
from c2fdft_cli.engine.train.validator import Validator, scorable_validation
from c2fdft_cli.errors import ResourceError
from c2fdft_cli.signals import StopRequest
from tests.kit.shards import HEADER, pairs_of, write_shard
from tests.kit.training import request


@pytest.fixture
def validator(tmp_path, shard_folder, tiny_net):
    """A validator with its state; one image is scored."""
    options = set_up(request("coarse", shard_folder, tmp_path / "run", "train.validation_images=1"))
    options.run.samples.mkdir(parents=True)
    pairs = scorable_validation(shard_folder, options.recipe)
    saved = []
    state = SimpleNamespace(
        ema=tiny_net(), best_psnr=None, metrics={}, saved=saved, save_best=saved.append
    )
    return Validator(options, pairs, state, TensorBoard(tmp_path, "false")), state


def validate(validator, step):
    (scored,) = validator.validate(step, StopRequest())
    return scored


def test_the_same_weights_have_the_same_score_at_any_step(validator):
    """Every validation samples the same noise, so that scores differ only by the weights."""
    scorer, state = validator
    first, second = (validate(scorer, step) for step in (4, 8))
    assert (first.psnr, first.ssim) == (second.psnr, second.ssim)
    assert (first.is_best, second.is_best, state.saved) == (True, False, [4])
    assert state.metrics == {
        "step": 8, "protocol": first.protocol, "images": 1, "psnr": first.psnr, "ssim": first.ssim
    }  # fmt: skip
    recipe = scorer._plan.recipe
    other = replace(recipe, train=replace(recipe.train, seed=recipe.train.seed + 1))
    scorer._plan = replace(scorer._plan, recipe=other)
    assert validate(scorer, 12).psnr != first.psnr


@pytest.mark.parametrize(("best", "is_best"), [(0.0, True), (99.0, False), (None, True)])
def test_the_best_score_is_the_highest_so_far(validator, best, is_best):
    scorer, state = validator
    state.best_psnr = best
    scored = validate(scorer, 4)
    assert scored.is_best == is_best
    assert state.best_psnr == (scored.psnr if is_best else best)
    assert state.saved == [4] * is_best


def test_a_lack_of_memory_costs_the_score_and_a_full_disk_ends_the_training(validator, monkeypatch):
    """Both are resource errors."""
    scorer, state = validator

    def fails(*_):
        raise ResourceError("out of it")

    with monkeypatch.context() as patch:
        patch.setattr(Executor, "__call__", fails)
        (told,) = scorer.validate(4, StopRequest())
    assert isinstance(told, Notice)
    assert (state.best_psnr, state.saved) == (None, [])
    monkeypatch.setattr(module, "save_rgb8", fails)
    with pytest.raises(ResourceError, match="out of it"):
        list(scorer.validate(4, StopRequest()))


@pytest.mark.parametrize(("wanted", "chosen"), [(2, ["0", "2"]), (0, ["0", "1"])])
def test_samples_are_of_the_first_two_images_that_are_scored(validator, tmp_path, wanted, chosen):
    """Those are spread over all images; a sample is degraded, restored and clean."""
    scorer, _ = validator
    entries = [Entry(str(number), 16, 16) for number in range(4)]
    header, pairs = replace(HEADER, split="val"), pairs_of(entries)
    write_shard(tmp_path / "val-00000.h5", entries, pairs, header)
    recipe = scorer._plan.recipe
    two = replace(recipe, train=replace(recipe.train, validation_images=wanted))
    scorer._plan = replace(scorer._plan, recipe=two)
    scorer._pairs = scorable_validation(tmp_path, two)
    assert scorer.images == (wanted or 4)
    validate(scorer, 4)
    samples = scorer._plan.run.samples
    assert {one.name for one in samples.iterdir()} == {f"{name}-000000004.png" for name in chosen}
    for name in chosen:
        lq, gt = pairs[int(name)]
        degraded, _, clean = np.split(cv2.imread(str(samples / f"{name}-000000004.png")), 3, axis=1)
        assert np.array_equal(degraded[..., ::-1], lq)
        assert np.array_equal(clean[..., ::-1], gt)


def test_images_are_scored_in_the_precision_of_the_training_and_not_kept(validator, monkeypatch):
    scorer, _ = validator
    strips, mean, seen = module.StripNetwork, module.mean_scores, []

    def network(net, dtype):
        seen.append(dtype)
        return strips(net, dtype=dtype)

    def means(scored):
        seen.extend(one.pictures for one in scored)
        return mean(scored)

    monkeypatch.setattr(module, "StripNetwork", network)
    monkeypatch.setattr(module, "mean_scores", means)
    plan = scorer._plan
    runtime = replace(plan.runtime, dtype=torch.bfloat16)
    scorer._plan = replace(plan, runtime=runtime)
    validate(scorer, 4)
    assert seen == [torch.bfloat16, None]
