"""Validation of weights in a training; tests of trainings cover when it happens."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from c2fdft_cli.engine.train.setup import set_up
from c2fdft_cli.engine.train.tensorboard import TensorBoard
from c2fdft_cli.engine.train.validator import Validator, scorable_validation
from c2fdft_cli.signals import StopRequest
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


@pytest.mark.parametrize(("best", "is_best"), [(0.0, True), (99.0, False), (None, True)])
def test_the_best_score_is_the_highest_so_far(validator, best, is_best):
    scorer, state = validator
    state.best_psnr = best
    scored = validate(scorer, 4)
    assert scored.is_best == is_best
    assert state.best_psnr == (scored.psnr if is_best else best)
    assert state.saved == [4] * is_best
