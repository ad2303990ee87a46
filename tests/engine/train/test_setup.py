"""Setting up a training: what its recipe, data, weights and timesteps are, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from c2fdft_cli.data.images.picture import save_rgb8
from c2fdft_cli.engine.prepare.job import prepare
from c2fdft_cli.engine.prepare.options import PrepareOptions, Synthesis
from c2fdft_cli.engine.train import setup
from c2fdft_cli.engine.train.dry_run import estimate_training
from c2fdft_cli.engine.train.job import train
from c2fdft_cli.engine.train.options import TrainOptions
from c2fdft_cli.engine.train.setup import set_up
from c2fdft_cli.engine.weights.checkpoint import load_checkpoint, replace_meta
from c2fdft_cli.engine.weights.tensors import load_tensors, save_tensors
from c2fdft_cli.errors import CheckpointError, DataError, RecipeError, UsageError
from c2fdft_cli.recipe.schema import Data, Recipe
from tests.kit.networks import SMALL
from tests.kit.training import MINI, request, run, stop_after
from tests.kit.weights import write_random


def test_recipe_data_and_timesteps_come_from_the_checkpoint(tmp_path, shard_folder, coarse_run):
    options = set_up(
        TrainOptions(stage="fine", init=coarse_run / "coarse.pt", device="cpu", out=tmp_path / "f")
    )
    assert options.timesteps == [999, 500]
    assert options.data == shard_folder
    assert options.recipe.network.dim == 8
    assert options.recipe_name == "tiny"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data.synthesize=noise", "data.synthesis={shot: 0.1, sigma: 5}"], ["shot has no effect"]),
        (["data.synthesize=noise", "data.synthesis={sigma: 5}"], []),
        (["data.streaks=masks"], ["data.streaks has no effect without data.synthesize"]),
        (["data.synthesis.heavy=1"], ["data.synthesis.heavy has no effect without"]),
        (["data.synthesize=rain", "data.synthesis.turn=5", "data.streaks=masks"], []),
    ],
)
def test_settings_of_a_degradation_without_effect_are_reported(
    overrides, expected, shard_folder, tmp_path
):
    notices = set_up(request("coarse", shard_folder, tmp_path / "run", *overrides)).notices
    assert len(notices) == len(expected)
    assert all(map(str.startswith, notices, expected))


def test_inherited_settings_without_effect_are_not_reported(shard_folder, tmp_path):
    """denoise-real chooses the kind of noise, and has a sigma from what it extends."""
    (tmp_path / "own.yaml").write_text(
        "extends: denoise-real\ndata: {synthesis: {sigma: 5}}\n", encoding="utf-8"
    )
    options = [
        set_up(
            TrainOptions(recipe=str(recipe), data=shard_folder, device="cpu", out=tmp_path / "run")
        )
        for recipe in ("denoise-real", tmp_path / "own.yaml")
    ]
    assert options[0].notices == ()
    assert options[1].notices[0].startswith("sigma has no effect")


def test_what_a_fine_stage_recomputes_is_chosen_once(
    tmp_path, shard_folder, coarse_run, monkeypatch
):
    """On CUDA the choice times kernels; the run's recipe keeps the setting itself."""
    asked = []

    def choose(network, fine, calls, *_):
        asked.append((fine.recompute, calls))
        return "level"

    monkeypatch.setattr(setup, "choose_recompute", choose)
    weights = coarse_run / "coarse.pt"
    options = set_up(
        request("fine", shard_folder, tmp_path / "f", "fine.recompute=auto", init=weights)
    )
    assert options.section.recompute == options.section.recompute == "level"
    assert asked == [("auto", 2)]
    assert options.recipe.fine.recompute == "auto"


def test_another_set_in_the_folder_that_the_checkpoint_names_is_refused(tmp_path, shard_folder):
    weights = tmp_path / "coarse.pt"
    # the recipe of a training names the folder, too
    recipe = Recipe(network=SMALL, data=Data(shards=str(shard_folder))).to_dict()
    write_random(weights, stage="coarse", data=shard_folder, data_train="0" * 64, recipe=recipe)
    wish = TrainOptions(stage="fine", init=weights, device="cpu", out=tmp_path / "f")
    what = r"training images in this folder .* not those that .*coarse\.pt was trained with"
    with pytest.raises(DataError, match=what):
        set_up(wish)
    assert set_up(replace(wish, data=shard_folder)).data == shard_folder
    named = replace(wish, overrides=[f"data.shards={shard_folder}"])
    assert set_up(named).data == shard_folder


@pytest.mark.parametrize(
    ("recipe_name", "folder"),
    [
        ("my rain é", "runs/my rain é-fine"),
        ("../../elsewhere", "runs/run-fine"),
        ("/elsewhere", "runs/run-fine"),
        ("C:elsewhere", "runs/run-fine"),
        ("red\x1b[31m", "runs/run-fine"),
        ("nul\0", "runs/run-fine"),
        ("n" * 300, "runs/run-fine"),
        ("", "runs/run-fine"),
        (None, "runs/run-fine"),
    ],
)
def test_names_in_a_checkpoint_never_lead_outside_of_runs(
    tmp_path, coarse_run, recipe_name, folder
):
    source = Path(shutil.copy(coarse_run / "coarse.pt", tmp_path))
    given = load_checkpoint(source)
    assert replace_meta(source, replace(given.meta, recipe_name=recipe_name), given.ema)
    for auto in (False, True):
        asked = TrainOptions(stage="fine", init=source, device="cpu", resume_auto=auto)
        assert set_up(asked).run.path == Path(folder)


def test_a_state_of_no_stage_is_refused(tmp_path, coarse_run):
    values = load_tensors(coarse_run / "state.pt")
    values["meta"] = json.dumps({**json.loads(values["meta"]), "stage": "released"})
    save_tensors(tmp_path / "state.pt", values)
    with pytest.raises(CheckpointError, match="the state lacks the stage"):
        set_up(TrainOptions("coarse", out=tmp_path, resume=True))


def test_impossible_requests_are_refused(tmp_path, shard_folder, coarse_run):
    empty = tmp_path / "empty"
    empty.mkdir()
    cases = [
        (request("coarse", empty, None), DataError, "no training shards"),
        (request("coarse", None, None), UsageError, "--data is missing"),
        (request("coarse", shard_folder, None, recipe="derrain"), RecipeError, "mean derain"),
        (request("coarse", shard_folder, None, "coarse.lrr=1"), RecipeError, "coarse.lr?"),
        (
            request("fine", shard_folder, None, init=empty),
            CheckpointError,
            "a folder, not a checkpoint",
        ),
        (TrainOptions("coarse", out=empty, resume=True), DataError, "no run to resume"),
        (
            TrainOptions("fine", out=coarse_run, resume=True),
            UsageError,
            "train-fine cannot resume a coarse run",
        ),
        (
            TrainOptions("coarse", out=coarse_run, resume=True, init=coarse_run / "coarse.pt"),
            UsageError,
            "cannot be combined with --from or --init",
        ),
        (
            TrainOptions("coarse", out=coarse_run, resume=True, overrides=["coarse.lr=1"]),
            UsageError,
            "--resume keeps the run's recipe",
        ),
        (
            request("fine", shard_folder, None, "network.dim=16", init=coarse_run / "coarse.pt"),
            RecipeError,
            "differs from the network and diffusion of the given weights",
        ),
        (
            request("fine", shard_folder, None, "network={dim: 16}", init=coarse_run / "coarse.pt"),
            RecipeError,
            "network={dim: 16} differs from the network and diffusion of the given weights",
        ),
        (
            request("coarse", tmp_path / "${a", None),
            DataError,
            "no such folder of shards",
        ),
        (
            request("coarse", shard_folder, None, f"train.seed={1 << 63}"),
            RecipeError,
            "must be less than",
        ),
        (
            request("coarse", shard_folder, None, "diffusion.schedule=jsd"),
            UsageError,
            "nothing of the image is left at timestep 999",
        ),
    ]
    for wish, kind, words in cases:
        with pytest.raises(kind) as caught:
            set_up(wish)
        error = caught.value
        assert words in f"{error} {error.hint} {error.details}"


def test_the_timesteps_in_use_are_those_stored_in_the_recipe(tmp_path, shard_folder, coarse_run):
    """By default those of the checkpoint, with a notice if the named recipe states others."""

    def asked(name: str, *more: str):
        rest = [one for one in MINI if not one.startswith("sampling.")]
        start = {"init": coarse_run / "coarse.pt", "recipe": "derain"}
        return set_up(
            request("fine", shard_folder, tmp_path / name, overrides=[*rest, *more], **start)
        )

    kept = asked("a", "sampling.eta=0.1")
    assert kept.timesteps == kept.recipe.sampling.grid == [999, 500]
    assert (kept.recipe.sampling.steps, kept.recipe.sampling.eta) == (2, 0.1)
    assert any("sampling.grid=[999,666,333,0]" in one for one in kept.notices)
    chosen = asked("b", "sampling.steps=3")
    assert chosen.timesteps == chosen.recipe.sampling.grid == [999, 500, 0]
    assert chosen.notices == ()
    for name, written in enumerate(("sampling={steps: 3}", "sampling.steps =3")):
        other = asked(f"c{name}", written)
        assert (other.timesteps, other.notices) == ([999, 500, 0], ())
    assert asked("d", "sampling={grid: [700]}").timesteps == [700]


def test_a_named_recipe_with_timesteps_that_the_given_weights_lack(tmp_path, shard_folder):
    """Its `sampling` is for its own diffusion, which that of the weights replaces."""
    named = tmp_path / "named.yaml"
    named.write_text("extends: tiny\nsampling: {grid: [500]}\n")
    few = ("diffusion.timesteps=100", "diffusion.beta_end=0.2", "sampling.grid=[50]")
    run(request("coarse", shard_folder, tmp_path / "c", *few, "coarse.iterations=1"))
    start = {"init": tmp_path / "c" / "coarse.pt", "recipe": str(named)}

    def asked(stage: str, *overrides: str, **more: bool):
        return request(stage, shard_folder, tmp_path / "f", overrides=[*overrides], **start, **more)

    kept = set_up(asked("fine"))
    assert kept.timesteps == kept.recipe.sampling.grid == [50]
    (told,) = [one for one in kept.notices if "sampling at" in one]
    assert told.startswith("sampling at the checkpoint's timesteps [50]; the recipe's do not fit")
    for stage, more in (("fine", ["sampling.steps=200"]), ("coarse", [])):
        with pytest.raises(RecipeError, match="the recipe's timesteps do not fit the diff") as got:
            set_up(asked(stage, *more))
        assert got.value.hint == "give timesteps below 100 with sampling.grid"
    stop_after(asked("fine"), 1)
    with pytest.raises(UsageError, match="--resume keeps the run's recipe"):
        set_up(asked("fine", "sampling.steps=200", resume_auto=True))


def test_weights_without_timesteps_use_those_of_the_recipe(tmp_path, shard_folder, coarse_run):
    content = torch.load(coarse_run / "coarse.pt", weights_only=True)
    torch.save({"params": content["params"]}, tmp_path / "bare.pt")
    rest = [one for one in MINI if not one.startswith("sampling.")]
    start = {"init": tmp_path / "bare.pt", "recipe": "derain", "overrides": rest}
    options = set_up(request("fine", shard_folder, tmp_path / "run", **start))
    assert options.timesteps == [999, 666, 333, 0]


def test_shards_are_found_in_any_form_of_override(tmp_path, shard_folder, coarse_run):
    for name, written in enumerate(("data.shards={}", "data={{shards: {}}}", "data.shards ={}")):
        override = written.format(shard_folder)
        assert set_up(request("coarse", None, tmp_path / f"c{name}", override)).data == shard_folder
        wish = TrainOptions("fine", [override], coarse_run / "coarse.pt", device="cpu")
        assert set_up(wish).data == shard_folder


def test_what_is_to_be_known_of_the_device_comes_first(tmp_path, shard_folder):
    options = set_up(request("coarse", shard_folder, tmp_path / "r", "data.streaks=masks"))
    noted = replace(options, runtime=replace(options.runtime, device_note="of the device"))
    assert list(noted.remarks(has_lq=True)) == ["of the device", *options.notices]


def test_synthesis_is_no_news_where_the_shards_hold_clean_images_only(tmp_path, shard_folder):
    options = set_up(request("coarse", shard_folder, tmp_path / "r", "data.synthesize=noise"))
    assert any("synthetic noise" in one for one in options.remarks(has_lq=True))
    assert not any("synthetic noise" in one for one in options.remarks(has_lq=False))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("data.synthesize=rain", "data.synthesis={heavvy: 7}"), "did you mean heavy?"),
        (("data.synthesize=noise", "data.streaks=/tmp"), "streak masks can be used only for rain"),
        (("data.synthesize=rain", "data.streaks=/missing"), "no such folder of streak masks"),
    ],
)
def test_an_invalid_degradation_leaves_no_run_folder(tmp_path, shard_folder, more, words):
    """Resuming keeps the recipe, so the mistake could not be corrected in the folder."""
    with pytest.raises((UsageError, DataError)) as caught:
        train(set_up(request("coarse", shard_folder, tmp_path / "run", *more)))
    assert words in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_clean_images_without_a_degradation_leave_no_run_folder(tmp_path, pair_folder):
    asked = Synthesis("rain", {}, store=False)
    source = pair_folder / "train" / "clean"
    prepare(PrepareOptions(source, tmp_path / "clean", val=0, synthesize=asked)).run()
    with pytest.raises(DataError, match="these shards hold clean images only"):
        train(set_up(request("coarse", tmp_path / "clean", tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_a_validation_image_too_small_to_score_is_refused_before_the_first_step(
    tmp_path, pair_folder
):
    """It would end the training at its first validation, and each attempt to resume it."""
    source = shutil.copytree(pair_folder, tmp_path / "pairs")
    for side in ("rainy", "clean"):
        save_rgb8(source / "val" / side / "0.png", np.zeros((10, 24, 3), np.uint8))
    data, out = tmp_path / "data", tmp_path / "run"
    prepare(PrepareOptions(source, data)).run()
    for start in (train, lambda options: estimate_training(options).run()):
        with pytest.raises(DataError, match="0: 24 x 10 px, but SSIM needs 11 x 11"):
            start(set_up(request("coarse", data, out)))
    assert not out.exists()
    with pytest.raises(DataError, match="inside a border of"):
        train(set_up(request("coarse", data, out, "train.protocol=levin")))
