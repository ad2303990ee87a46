"""Resuming: allowed changes, the choice of the run, damaged states, resubmitted jobs."""

from __future__ import annotations

import copy
import errno
import json
import os
import random
import re
import shutil
import signal
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from c2fdft_cli.data.images.picture import save_rgb8
from c2fdft_cli.engine.prepare.job import prepare
from c2fdft_cli.engine.prepare.options import PrepareOptions, Synthesis
from c2fdft_cli.engine.sweep.job import sweep
from c2fdft_cli.engine.sweep.options import Rule, SweepOptions
from c2fdft_cli.engine.tools.bench import random_batch
from c2fdft_cli.engine.train import saving, setup
from c2fdft_cli.engine.train import state as states
from c2fdft_cli.engine.train.dry_run import estimate_training
from c2fdft_cli.engine.train.events import Validated
from c2fdft_cli.engine.train.folder import RunFolder, find_run
from c2fdft_cli.engine.train.job import _Training, train
from c2fdft_cli.engine.train.options import TrainOptions
from c2fdft_cli.engine.train.setup import MAY_CHANGE, set_up
from c2fdft_cli.engine.train.state import DamagedStateError, LoadedState, load_newest, load_state
from c2fdft_cli.engine.train.step.stepper import Stepper
from c2fdft_cli.engine.train.tensorboard import TensorBoard
from c2fdft_cli.engine.train.validator import Validator
from c2fdft_cli.engine.weights import stored
from c2fdft_cli.engine.weights.checkpoint import load_checkpoint
from c2fdft_cli.engine.weights.identify import UnreadableError
from c2fdft_cli.engine.weights.tensors import load_tensors, save_tensors
from c2fdft_cli.errors import (
    C2fdftError,
    CheckpointError,
    DataError,
    Interrupted,
    ResourceError,
    UsageError,
)
from c2fdft_cli.files.writing import unfinished
from tests.kit.command import run as command
from tests.kit.formula import picture
from tests.kit.training import (
    MINI,
    losses,
    notices,
    request,
    resume,
    run,
    stop_after,
    weights_that_differ,
)


@pytest.fixture
def stopped(tmp_path, stopped_run):
    """A coarse run of 12 steps that was killed after step 7 and saved after step 6."""
    return shutil.copytree(stopped_run, tmp_path / "run")


@pytest.fixture
def scored(tmp_path, often_scored_run):
    """The same with scores, and therefore states, of step 4 too."""
    return shutil.copytree(often_scored_run, tmp_path / "run")


@pytest.fixture
def finished(tmp_path, coarse_run):
    return shutil.copytree(coarse_run, tmp_path / "finished")


@pytest.fixture(scope="session")
def state_of_stopped(stopped_run):
    """The content of its state.pt: reading it takes as long as most of the tests that edit it."""
    return load_tensors(stopped_run / "state.pt")


def asked(out, *overrides, **more):
    """A request to resume the run in a folder."""
    more = {"resume": True, **more}
    return TrainOptions(stage="coarse", out=out, overrides=[*overrides], device="cpu", **more)


# --- what may change -----------------------------------------------------------------------------


def test_a_refused_change_names_the_keys_that_differ(stopped):
    with pytest.raises(UsageError, match="--resume keeps the run's recipe") as caught:
        set_up(asked(stopped, "train.seed=7", "coarse.lr=0.5", "train.save_every=3"))
    assert caught.value.details == (
        "coarse.lr: 0.001 in the run, 0.5 requested",
        "train.seed: 100 in the run, 7 requested",
    )


def test_another_eta_is_refused(stopped):
    with pytest.raises(UsageError, match="--resume keeps the run's recipe") as caught:
        set_up(asked(stopped, "sampling.eta=0.5"))
    assert caught.value.details == ("sampling.eta: 0.0 in the run, 0.5 requested",)


def test_a_named_recipe_is_compared_not_ignored(stopped):
    equal = set_up(asked(stopped, *MINI, recipe="tiny"))
    assert equal.resume.path == stopped / "state.pt"
    assert not equal.files
    with pytest.raises(UsageError) as caught:
        set_up(asked(stopped, recipe="tiny"))
    assert "network.dim: 8 in the run, 16 requested" in caught.value.details
    hint = f"--resume --out {stopped} without --recipe keeps the run's own; or start a new run"
    assert caught.value.hint.startswith(hint)
    assert set_up(asked(stopped)).recipe == equal.recipe
    with pytest.raises(UsageError, match="there is no recipe 'nothing'"):
        set_up(asked(stopped, recipe="nothing"))


def test_changes_of_the_copy_in_the_run_folder_are_reported(stopped):
    assert set_up(asked(stopped)).notices == ()
    path = stopped / "recipe.yaml"
    text = path.read_text()
    path.write_text(text.replace("lr: 0.001", "lr: 0.5", 1))
    (told,) = set_up(asked(stopped)).notices
    assert "changes in it have no effect: coarse.lr 0.5 (in the run 0.001)" in told
    path.write_text(re.sub(r"shards: .+", "shards: elsewhere", text))
    assert set_up(asked(stopped)).notices == ()
    path.write_text("garbage")
    (told,) = set_up(asked(stopped)).notices
    assert "have no effect: " in told
    path.unlink()
    assert set_up(asked(stopped)).notices == ()


def test_the_section_of_the_other_stage_may_differ(stopped):
    options = set_up(asked(stopped, "fine.lr=0.25"))
    assert options.recipe.fine.lr == 0.25


def test_overrides_that_change_nothing_are_allowed(stopped, shard_folder):
    options = set_up(asked(stopped, "train.seed=100", f"data.shards={shard_folder}"))
    assert not options.files


def test_what_the_documentation_lists_may_change(stopped):
    values = {
        "coarse.iterations": "14", "coarse.periods": "[{length: 9, floor: 0}]",
        "train.micro_batch": "1", "train.compile": "on", "train.precision": "bf16",
        "train.log_every": "5", "train.save_every": "5", "train.validate_every": "5",
        "train.keep": "7", "train.tensorboard": "false", "train.max_bad_steps": "9",
        "data.workers": "1",
    }  # fmt: skip
    options = set_up(asked(stopped, *(f"{key}={value}" for key, value in values.items())))
    assert sum(one.startswith("resuming with ") for one in options.notices) == len(values)
    # those that are left change nothing here, or need other files
    left = {"recompute", "data.shards", "data.streaks"}
    assert {key.removeprefix("coarse.") for key in values} | left == set(MAY_CHANGE)


def test_a_resumed_run_keeps_its_name_and_has_its_own_time_limit(stopped):
    options = set_up(asked(stopped, max_seconds=5.0))
    assert (options.recipe_name, options.max_seconds) == ("tiny", 5.0)
    assert len(train(options)) == 6


def test_other_timesteps_are_refused_for_the_coarse_stage_of_given_weights(stopped, coarse_run):
    rest = [one for one in MINI if not one.startswith("sampling.")]
    start = {"init": coarse_run / "coarse.pt", "recipe": "tiny"}
    with pytest.raises(UsageError, match="--resume keeps the run's recipe") as caught:
        set_up(asked(stopped, *rest, resume=False, resume_auto=True, **start))
    assert any(one.startswith("sampling.grid: ") for one in caught.value.details)


@pytest.mark.parametrize("key", ["recipe", "data", "grid"])
def test_a_state_without_what_a_run_needs_is_refused(stopped, key):
    state = load_tensors(stopped / "state.pt")
    state["meta"] = json.dumps({**json.loads(state["meta"]), key: None})
    save_tensors(stopped / "state.pt", state)
    with pytest.raises(
        CheckpointError, match="lacks the stage, the recipe, the data or the timesteps"
    ):
        set_up(asked(stopped))


def test_only_the_main_process_compares_the_validation_images(stopped):
    """The others do not open them."""
    options = set_up(asked(stopped))
    train(replace(options, runtime=replace(options.runtime, rank=1, world=2)))


@pytest.mark.parametrize(
    ("change", "micro"), [((), {16: 2, 24: 1}), (("train.micro_batch=1",), {16: 1})]
)
def test_micro_batches_are_kept_unless_the_recipe_changes_them(stopped, change, micro):
    state = load_tensors(stopped / "state.pt")
    save_tensors(stopped / "state.pt", {**state, "micro": {16: 2, 24: 1}})
    fallbacks = _Training(set_up(asked(stopped, *change))).fallbacks
    fallbacks.fit(random_batch(4, 16, 1000))
    assert fallbacks.micro == micro


def test_saves_keep_their_distance_after_resuming(stopped):
    stop_after(asked(stopped, precision="fp32"), 8)
    assert load_state(stopped / "state.pt").step == 6


def test_a_signal_while_a_due_score_is_computed_ends_no_step(stopped, monkeypatch):
    """TensorBoard's row of that score, if there is one, is replaced."""
    state, opened = load_tensors(stopped / "state.pt"), []
    save_tensors(stopped / "state.pt", {**state, "unscored": True})

    def signalled(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        args[-1].check()

    monkeypatch.setattr(Validator, "_score", signalled)
    monkeypatch.setattr(TensorBoard, "open", lambda _, step: opened.append(step))
    options = set_up(asked(stopped, precision="fp32"))
    with pytest.raises(Interrupted, match="stopped after step 6 of 12"):
        train(options).run()
    left = load_state(stopped / "state.pt")
    assert (left.step, left.unscored, opened) == (6, True, [5])
    shortened = set_up(asked(stopped, "coarse.iterations=6"))
    assert not any("is finished" in one for one in shortened.notices)


def test_a_state_that_is_replaced_while_it_is_read_is_noticed(stopped, monkeypatch):
    def load(run):
        found = load_newest(run)
        os.utime(run.state, (1, 1))
        return found

    monkeypatch.setattr(setup, "load_newest", load)
    with pytest.raises(ResourceError, match="another process has trained in this folder"):
        train(set_up(asked(stopped))).run()


def test_a_save_that_fails_removes_no_checkpoint(stopped, monkeypatch):
    def full(*_):
        raise ResourceError("the disk is full")

    monkeypatch.setattr(saving, "save_tensors", full)
    before = set((stopped / "checkpoints").glob("step-*.pt"))
    with pytest.raises(ResourceError, match="the disk is full"):
        resume("coarse", stopped)
    assert before < set((stopped / "checkpoints").glob("step-*.pt"))


@pytest.mark.parametrize("written", ["data.shards={}", "data={{shards: {}}}"])
def test_an_override_names_the_new_folder_of_moved_shards(tmp_path, stopped, shard_folder, written):
    moved = shutil.copytree(shard_folder, tmp_path / "moved")
    state = load_tensors(stopped / "state.pt")
    state["meta"] = state["meta"].replace(str(shard_folder), str(tmp_path / "gone"))
    save_tensors(stopped / "state.pt", state)
    with pytest.raises(DataError, match="no such folder of shards"):
        set_up(asked(stopped))
    options = set_up(asked(stopped, written.format(moved), "coarse.iterations=7"))
    assert options.data == moved
    assert train(options).run().step == 7


@pytest.mark.parametrize(
    ("split", "refusal"),
    [
        ("train", "these shards are not the ones that this run was trained on"),
        ("val", "the validation images of these shards are not those of this run"),
    ],
)
def test_other_images_are_refused(tmp_path, stopped, pair_folder, split, refusal):
    source = shutil.copytree(pair_folder, tmp_path / "pairs")
    shutil.copy(source / split / "clean" / "0.png", source / split / "rainy" / "0.png")
    data = tmp_path / "data"
    prepare(PrepareOptions(source=source, out=data)).run()
    with pytest.raises(UsageError, match=refusal):
        train(set_up(asked(stopped, data=data)))


def test_streak_masks_may_move_but_not_change(tmp_path, pair_folder):
    """The rain of the training images depends on all of them."""
    masks = tmp_path / "masks"
    masks.mkdir()
    for i in range(2):
        save_rgb8(masks / f"{i}.png", np.repeat(picture(40, 40, i)[..., :1], 3, axis=2))
    data, out = tmp_path / "data", tmp_path / "run"
    rain = ("data.synthesize=rain", f"data.streaks={masks}")
    clean, plan = pair_folder / "train" / "clean", Synthesis("rain", store=False)
    prepare(PrepareOptions(source=clean, out=data, synthesize=plan)).run()
    stop_after(request("coarse", data, out, *rain), 7)
    moved = masks.rename(tmp_path / "moved")
    with pytest.raises(DataError, match="no such folder of streak masks") as caught:
        resume("coarse", out)
    assert "data.streaks=FOLDER" in caught.value.hint
    hidden = (moved / "1.png").rename(tmp_path / "1.png")
    with pytest.raises(UsageError, match="the streak masks are not those of this run"):
        resume("coarse", out, f"data.streaks={moved}")
    hidden.rename(moved / "1.png")
    assert resume("coarse", out, f"data.streaks={moved}", "coarse.iterations=7")[0].step == 7


def test_validation_shards_that_are_gone_are_noticed(tmp_path, stopped, shard_folder):
    """Scores, and the best checkpoint, would otherwise end silently."""
    data = shutil.copytree(shard_folder, tmp_path / "data")
    for shard in data.glob("val-*.h5"):
        shard.unlink()
    with pytest.raises(UsageError, match="validation images"):
        train(set_up(asked(stopped, data=data)))


def test_a_finished_run_is_extended(finished):
    longer = ("coarse.iterations=16", "coarse.periods=[{length: 16, floor: 1.0e-5}]")
    result, events = run(asked(finished, *longer, "train.save_every=3", precision="fp32"))
    assert result.step == 16
    assert "resuming with coarse.iterations 16, was 12" in notices(events)
    recipe = load_checkpoint(finished / "coarse.pt").meta.recipe
    assert (recipe["coarse"]["iterations"], recipe["train"]["save_every"]) == (16, 3)
    assert "iterations: 16" in (finished / "recipe.yaml").read_text()


def test_an_extension_at_a_learning_rate_of_zero_is_reported(finished):
    floor = "coarse.periods=[{length: 12, floor: 0}]"
    _, events = resume("coarse", finished, "coarse.iterations=13", floor)
    (told,) = [one for one in notices(events) if "learning rate" in one]
    assert told.startswith("the learning rate is 0 after iteration 12 of 13, where coarse.periods")
    longer = "coarse.periods=[{length: 14, floor: 0}]"
    _, events = resume("coarse", finished, "coarse.iterations=14", longer)
    assert not any("learning rate" in one for one in notices(events))


def test_a_finished_run_that_is_resumed_keeps_the_timesteps_of_its_sweep(finished):
    path = finished / "coarse.pt"
    before = sweep(path, SweepOptions(steps=(4,), rule=Rule("ssim"), device="cpu")).run()
    assert list(before.chosen.grid) != [999, 500]
    resume("coarse", finished)
    swept = load_checkpoint(path).meta
    assert (swept.grid, swept.grid_from) == (list(before.chosen.grid), "sweep")
    assert swept.metrics["sweep"]["rule"] == "the best SSIM"
    assert swept.metrics["step"] == 12
    resume("coarse", finished, "coarse.iterations=14")  # new weights were not swept
    longer = load_checkpoint(path).meta
    assert (longer.grid, longer.grid_from) == ([999, 500], "recipe")
    assert "sweep" not in longer.metrics


def test_without_validation_images_no_sweep_is_suggested(tmp_path, pair_folder):
    """It would have no images to choose the timesteps on."""
    data, out = tmp_path / "data", tmp_path / "run"
    prepare(PrepareOptions(source=pair_folder / "train", out=data, val=0)).run()
    short = (*MINI, "coarse.iterations=1", "coarse.patches=[16]", "coarse.batches=[1]")
    cpu = ("--recipe", "tiny", "--device", "cpu", "--precision", "fp32")
    done = command("train-coarse", *cpu, "--data", data, "--out", out, "--json", *short)
    assert load_checkpoint(out / "coarse.pt").meta.data_val is None
    assert json.loads(done.stdout)["next"] == f"c2fdft train-fine --from {out / 'coarse.pt'}"


def test_the_next_command_replaces_the_sweep_of_a_shorter_training(finished):
    path = finished / "coarse.pt"
    for words, asked_for in ((), f"sweep-steps {path}"), (
        ["coarse.iterations=14"], f"sweep-steps {path} --overwrite"
    ):  # fmt: skip
        longer = command("train-coarse", "--resume", "--out", finished, *words)
        assert longer.stdout.splitlines()[-1] == f"next: c2fdft {asked_for}"
        following = longer.stdout.split("next: c2fdft ")[1].split()
        swept = command(*following, "--steps", "1", "--images", "1")
        assert swept.exit_code == 0, swept.output


def test_the_next_command_suits_a_schedule_that_ends_without_the_image(tmp_path, shard_folder):
    short = (*MINI, "coarse.iterations=1", "coarse.patches=[16]", "coarse.batches=[1]")
    jsd = ("diffusion.schedule=jsd", "sampling.grid=[700]")
    cpu = ("--recipe", "tiny", "--device", "cpu", "--precision", "fp32")
    out = tmp_path / "run"
    done = command("train-coarse", *cpu, "--data", shard_folder, "--out", out, *short, *jsd)
    following = f"sweep-steps {out / 'coarse.pt'} --spacing leading"
    assert done.stdout.splitlines()[-1] == f"next: c2fdft {following}"
    swept = command(*following.split(), "--steps", "1-4", "--images", "1")
    assert swept.exit_code == 0, swept.output


def test_resuming_a_finished_run_rewrites_a_damaged_checkpoint(finished, coarse_run):
    (finished / "coarse.pt").write_bytes(b"damaged")
    for _ in range(2):
        resume("coarse", finished)
        assert "sweep" not in load_checkpoint(finished / "coarse.pt").meta.metrics
    assert weights_that_differ(finished / "coarse.pt", coarse_run / "coarse.pt") == []


@pytest.mark.acceptance
def test_an_extended_run_equals_one_that_was_as_long_from_the_start(
    tmp_path, shard_folder, stopped
):
    run(request("coarse", shard_folder, tmp_path / "whole", "coarse.iterations=14"))
    resume("coarse", stopped, "coarse.iterations=14")
    assert weights_that_differ(stopped / "coarse.pt", tmp_path / "whole" / "coarse.pt") == []
    assert losses(stopped) == losses(tmp_path / "whole")


def test_a_change_is_saved_immediately(stopped):
    """A run that is killed before the next save resumes with the change."""
    stop_after(asked(stopped, "coarse.iterations=20", "train.save_every=100"), 7)
    assert load_state(stopped / "state.pt").meta.recipe["coarse"]["iterations"] == 20


def test_another_folder_of_the_shards_is_saved_immediately(tmp_path, stopped, shard_folder):
    """In the state and in recipe.yaml, whichever way it is given."""
    named = tmp_path / "named.yaml"
    shutil.copy(stopped / "recipe.yaml", named)
    for name, more in {
        "a": {"data": tmp_path / "a"},
        "b": {"overrides": [f"data.shards={tmp_path / 'b'}"]},
        "c": {"recipe": str(named)},
    }.items():
        moved = shutil.copytree(shard_folder, tmp_path / name)
        text = named.read_text()
        named.write_text(text.replace(f"shards: {shard_folder}", f"shards: {tmp_path / 'c'}"))
        wish = TrainOptions("coarse", out=stopped, resume=True, device="cpu", **more)
        stop_after(wish, 7)
        meta = load_state(stopped / "state.pt").meta
        assert meta.data == meta.recipe["data"]["shards"] == str(moved)
        assert f"shards: {moved}\n" in (stopped / "recipe.yaml").read_text()
        again = set_up(asked(stopped))
        assert (again.data, again.files, again.notices) == (moved, {}, ())


def test_another_precision_is_saved_immediately(stopped):
    stop_after(asked(stopped, precision="bf16"), 7)
    assert load_state(stopped / "state.pt").precision == "bf16"
    assert set_up(asked(stopped)).runtime.precision == "bf16"


def test_a_run_cannot_be_shortened_below_the_steps_done(stopped):
    with pytest.raises(
        UsageError, match=r"coarse\.iterations=5 is less than the 6 iterations that"
    ):
        set_up(asked(stopped, "coarse.iterations=5"))


def test_a_run_shortened_to_the_steps_done_is_scored_and_finished(stopped):
    """Otherwise it would have no score, and count as interrupted forever."""
    state = load_tensors(stopped / "state.pt")
    save_tensors(stopped / "state.pt", {**state, "step": 5})  # a step that was not logged
    result, events = resume("coarse", stopped, "coarse.iterations=5")
    assert result.step == 5
    assert sum(isinstance(event, Validated) for event in events) == 1
    last = RunFolder(stopped).read_metrics()[-1]
    assert last["iteration"] == "5"
    assert float(last["val_psnr"]) > 0
    assert RunFolder(stopped).is_finished("coarse")
    assert not any(isinstance(event, Validated) for event in resume("coarse", stopped)[1])


# --- which run -----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["3", "null", '"stage"', "[" * 100_000, '["stage"]', "{}", "\0"])
def test_a_run_with_an_edited_environment_is_recognised_by_its_name(tmp_path, stopped, text):
    shutil.copytree(stopped, tmp_path / "runs" / "tiny-coarse")
    (tmp_path / "runs" / "tiny-coarse" / "env.json").write_text(text)
    assert find_run(None, "tiny", "coarse", tmp_path / "runs").path.name == "tiny-coarse"


def test_the_newest_interrupted_run_is_resumed(tmp_path, coarse_run, stopped):
    root = tmp_path / "runs"
    for name, source in (("tiny-coarse", stopped), ("tiny-coarse-2", coarse_run)):
        shutil.copytree(source, root / name)
    os.utime(root / "tiny-coarse" / "state.pt", (1, 1))
    assert find_run(None, "tiny", "coarse", root).path == root / "tiny-coarse"
    assert RunFolder(root / "tiny-coarse-2").is_finished("coarse")
    shutil.rmtree(root / "tiny-coarse")
    with pytest.raises(DataError, match="all runs of this stage are finished") as caught:
        find_run(None, "tiny", "coarse", root)
    assert "tiny-coarse-2" in caught.value.hint


def test_of_several_interrupted_runs_the_newest_is_resumed(tmp_path, stopped):
    """A run that was killed early has no previous state yet."""
    (stopped / "state-previous.pt").unlink(missing_ok=True)
    for name, saved_at in (("tiny-coarse", 1), ("tiny-coarse-2", 3), ("tiny-coarse-3", 2)):
        shutil.copytree(stopped, tmp_path / "runs" / name)
        os.utime(tmp_path / "runs" / name / "state.pt", (saved_at, saved_at))
    found = find_run(None, "tiny", "coarse", tmp_path / "runs")
    assert found.path.name == "tiny-coarse-2"


def test_a_run_is_found_by_its_content_not_by_its_folder(tmp_path, stopped, fine_run):
    """The tutorial, for example, uses --out runs/coarse."""
    root = tmp_path / "runs"
    shutil.copytree(stopped, root / "night")
    shutil.copytree(fine_run, root / "tiny-coarse")  # a folder that is named otherwise
    assert find_run(None, None, "coarse", root).path == root / "night"
    assert find_run(None, "tiny", "coarse", root).path == root / "night"
    with pytest.raises(DataError, match="no coarse run of the recipe derain to resume") as caught:
        find_run(None, "derain", "coarse", root)
    assert "--out" in caught.value.hint


# --- one line for a job that is submitted again ---------------------------------------------------


def test_one_line_begins_resumes_and_says_that_it_is_finished(tmp_path, shard_folder, coarse_run):
    line = request("coarse", shard_folder, tmp_path / "run", resume_auto=True)
    stop_after(line, 3)
    stop_after(line, 9)
    result, _ = run(line)
    assert weights_that_differ(result.checkpoint, coarse_run / "coarse.pt") == []
    assert losses(tmp_path / "run") == losses(coarse_run)
    result, events = run(line)
    assert result.step == 12
    assert "the run is finished: 12 of 12 iterations are done" in notices(events)


def test_the_same_command_starts_and_continues_a_run(tmp_path, shard_folder):
    words = ["train-coarse", "--recipe", "tiny", "--data", shard_folder, "--out", tmp_path / "run",
             "--device", "cpu", "--precision", "fp32", "--resume-auto", *MINI,
             "coarse.iterations=2"]  # fmt: skip
    for said in ("step 2: saved", "the run is finished"):
        done = command(*words)
        assert done.exit_code == 0, done.stderr
        assert said in done.stderr
    assert command(*words, "--resume").exit_code == 2


def test_resume_auto_always_uses_the_same_folder(tmp_path, shard_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = request("coarse", shard_folder, None, resume_auto=True)
    assert str(set_up(line).run.path) == "runs/tiny-coarse"
    stop_after(line, 1)
    assert set_up(line).resume is not None


@pytest.mark.parametrize("is_locked", [True, False])  # some versions of filelock remove the file
def test_a_run_killed_before_its_first_state_is_started_again(tmp_path, shard_folder, is_locked):
    options = set_up(request("coarse", shard_folder, tmp_path / "run"))
    with options.run.held():
        options.run.create(options.files)
    lock = tmp_path / "run" / ".lock"
    lock.touch() if is_locked else lock.unlink(missing_ok=True)
    run(request("coarse", shard_folder, tmp_path / "run", "coarse.iterations=1", resume_auto=True))
    assert (tmp_path / "run" / "coarse.pt").is_file()


@pytest.mark.parametrize("name", ["recipe.yaml", "env.json", "metrics.csv", "state.pt"])
def test_a_run_killed_while_it_writes_a_first_file_is_started_again(tmp_path, shard_folder, name):
    options = set_up(request("coarse", shard_folder, tmp_path / "run"))
    suffix = (tmp_path / name).suffix
    with options.run.held():
        (tmp_path / "run" / f".0123456789abcdef.tmp{suffix}").touch()
    run(request("coarse", shard_folder, tmp_path / "run", "coarse.iterations=1", resume_auto=True))
    assert (tmp_path / "run" / "coarse.pt").is_file()
    assert not unfinished(tmp_path / "run")


def test_a_folder_with_a_recipe_of_the_user_is_refused(tmp_path, shard_folder):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("task: derain\n")
    for auto in (False, True):
        with pytest.raises(UsageError, match="the run folder is not empty"):
            run(request("coarse", shard_folder, tmp_path / "run", resume_auto=auto))
    assert (tmp_path / "run" / "recipe.yaml").read_text() == "task: derain\n"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["recipe.yaml"]


def test_the_fine_stage_needs_its_checkpoint_only_to_start(tmp_path, shard_folder, coarse_run):
    start = tmp_path / "coarse.pt"
    shutil.copy(coarse_run / "coarse.pt", start)
    line = request("fine", shard_folder, tmp_path / "run", init=start, resume_auto=True)
    stop_after(line, 3)
    start.unlink()
    assert set_up(line).resume is not None


def test_a_resumed_fine_stage_keeps_the_timesteps_of_its_weights(
    tmp_path, shard_folder, coarse_run
):
    """Also if the command line names a recipe with others, or another network, as at the start."""
    rest = [one for one in MINI if not one.startswith(("sampling.", "network."))]
    line = request(
        "fine",
        shard_folder,
        tmp_path / "run",
        init=coarse_run / "coarse.pt",
        overrides=rest,
        resume_auto=True,
    )
    stop_after(line, 1)
    assert set_up(line).timesteps == [999, 500]


def test_other_weights_to_start_from_are_reported(tmp_path, shard_folder, coarse_run):
    """The coarse stage may have been trained again since, and the run would be of the old one."""
    start = tmp_path / "coarse.pt"
    shutil.copy(coarse_run / "coarse.pt", start)
    line = request("fine", shard_folder, tmp_path / "run", init=start, resume_auto=True)
    stop_after(line, 3)
    assert not set_up(line).notices
    shutil.copy(coarse_run / "checkpoints" / "step-000000006.pt", start)
    expected = (
        f"the run did not start from {start}, so these weights are not used; "
        "another --out starts a run from them"
    )
    assert set_up(line).notices == (expected,)
    _, events = run(line)
    assert expected in notices(events)
    finished = set_up(line)
    assert finished.notices[0] == expected
    resumed = set_up(TrainOptions("fine", out=tmp_path / "run", resume=True, device="cpu"))
    assert resumed.started_from == finished.started_from


def test_tasks_of_srun_without_a_rank_are_refused(tmp_path, shard_folder, monkeypatch):
    wish = request("coarse", shard_folder, tmp_path / "run")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with pytest.raises(UsageError, match="srun started this training 2 times"):
        set_up(wish)
    monkeypatch.setenv("RANK", "0")
    set_up(wish)
    monkeypatch.delenv("RANK")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    set_up(wish)
    assert not (tmp_path / "run").exists()


def test_a_notice_says_whose_network_is_used(tmp_path, shard_folder, fine_run):
    wish = TrainOptions(
        stage="coarse", recipe="tiny", data=shard_folder, out=tmp_path / "run",
        init=fine_run / "fine.pt", device="cpu",
    )  # fmt: skip
    (notice,) = set_up(wish).notices
    assert "the network is that of fine.pt, not the recipe's" in notice
    assert "network.dim 8 (recipe: 16)" in notice


# --- a damaged state -----------------------------------------------------------------------------


def test_edited_metrics_do_not_prevent_resuming(stopped, coarse_run):
    path = stopped / "metrics.csv"
    first, *rows = path.read_text().splitlines()
    edited = ["\ufeff" + first + ",note", *(f"{row},mine" for row in rows)]
    path.write_bytes("\r\n".join(edited).encode() + b"\r\n\0\0\xff\xfe\n")
    resume("coarse", stopped)
    assert losses(stopped) == losses(coarse_run)


def test_text_among_the_metrics_does_not_end_a_run(stopped, plots):
    """The curves are drawn from the metrics at the end of a training."""
    (stopped / "curves.png").unlink(missing_ok=True)
    path = stopped / "metrics.csv"
    first, row, *rows = path.read_text().splitlines()
    cells = row.split(",")
    cells[first.split(",").index("loss")] = "restarted here"
    path.write_text("\n".join([first, ",".join(cells), *rows, "9" * 5000 + ",,,,,,,,,"]) + "\n")
    result, _ = resume("coarse", stopped, "coarse.iterations=7")
    assert result.step == 7
    assert (stopped / "curves.png").is_file()


@pytest.mark.parametrize("cut", [1, 2, 5])
def test_an_incomplete_last_line_is_ignored(stopped, cut):
    """Even if all columns are there, the last value may be cut short and wrong."""
    path = stopped / "metrics.csv"
    row = "8,24,2,0.0001,0.5,0,100.0,0.000,30.1234,0.98765\n"
    rows = RunFolder(stopped).read_metrics()
    path.write_text(path.read_text() + row)
    assert len(RunFolder(stopped).read_metrics()) == len(rows) + 1
    path.write_bytes(path.read_bytes()[:-cut])
    assert RunFolder(stopped).read_metrics() == rows
    path.write_bytes(path.read_bytes() + bytes(1 << 18))  # zeros as after a power failure
    assert RunFolder(stopped).read_metrics() == rows


def test_an_incomplete_row_before_others_is_dropped(stopped):
    path = stopped / "metrics.csv"
    rows = RunFolder(stopped).read_metrics()
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:-1], "5,16,4,0.0001\n", lines[-1]]))
    assert RunFolder(stopped).read_metrics() == rows


def test_a_line_of_another_program_is_no_run(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,loss")
    assert not RunFolder(tmp_path).has_metrics()


def test_metrics_that_are_not_a_table_are_refused(stopped):
    path = stopped / "metrics.csv"
    path.write_bytes(path.read_bytes() + bytes(1 << 18) + b"\n")
    with pytest.raises(DataError, match=r"metrics\.csv: it is not a table"):
        RunFolder(stopped).read_metrics()


def test_metrics_without_their_columns_are_refused_and_kept(stopped):
    path = stopped / "metrics.csv"
    path.write_text(path.read_text().replace(",", ";"))
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"metrics\.csv: its first line does not name the columns"):
        resume("coarse", stopped)
    assert path.read_bytes() == before


def test_a_row_of_metrics_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(ResourceError, match="cannot write the file") as caught:
        RunFolder(tmp_path / "gone").append_metrics({"iteration": 1})
    assert caught.value.where == str(tmp_path / "gone" / "metrics.csv")


def test_a_state_is_read_once_and_not_kept(stopped, monkeypatch):
    reads = []

    def load(path):
        reads.append(path)
        return load_tensors(path)

    monkeypatch.setattr(states, "load_tensors", load)
    options = set_up(asked(stopped, "coarse.iterations=7"))
    job = train(options)
    assert reads == [stopped / "state.pt"]
    assert options.resume.content is None
    estimate_training(again := set_up(asked(stopped)), seconds=0).run()
    assert again.resume.content is None
    assert again.resume.take().step == 6  # whoever takes it twice gets it from the file
    job.run()


def test_the_previous_state_is_kept(scored):
    assert load_state(scored / "state.pt").step == 6
    assert load_state(scored / "state-previous.pt").step == 4


DAMAGES = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "bit": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4])
    + data[len(data) // 2 + 1 :],
    "zeros": lambda data: bytes(len(data)),
}  # fmt: skip


@pytest.mark.parametrize(
    "damage",
    [
        "cut",
        "bit",
        *(pytest.param(kind, marks=pytest.mark.acceptance) for kind in ("empty", "zeros")),
    ],
)
def test_a_damaged_state_is_noticed_and_the_one_before_it_taken(scored, coarse_run, damage):
    state = scored / "state.pt"
    bad = DAMAGES[damage](state.read_bytes())
    state.write_bytes(bad)
    with pytest.raises(DamagedStateError, match=r"state.pt: the training state is damaged"):
        load_state(state)
    _, events = resume("coarse", scored)
    said = notices(events)[0]
    assert "is damaged" in said
    assert "resuming from the previous state, of step 4" in said
    assert (scored / "state-damaged.pt").read_bytes() == bad
    assert weights_that_differ(scored / "coarse.pt", coarse_run / "coarse.pt") == []
    assert losses(scored) == losses(coarse_run)


def refuse_reading(monkeypatch, path, call, code):
    """Let a method of `Path` fail for one file."""
    original = getattr(Path, call)

    def read(self, *args, **more):
        if self == path:
            raise OSError(code, os.strerror(code), str(self))
        return original(self, *args, **more)

    monkeypatch.setattr(Path, call, read)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.EMFILE, errno.ESTALE])
@pytest.mark.parametrize("call", ["stat", "open"])
def test_a_state_that_the_system_does_not_read_is_not_given_up(stopped, monkeypatch, call, code):
    refuse_reading(monkeypatch, stopped / "state.pt", call, code)
    lack = code == errno.EMFILE
    reason = "too many files are open" if lack else f"cannot .*{os.strerror(code)}"
    with pytest.raises(C2fdftError, match=f"state.pt: .*{reason}") as caught:
        resume("coarse", stopped)
    kind = ResourceError if lack else DataError
    assert isinstance(caught.value, UnreadableError if call == "open" else kind)
    monkeypatch.undo()
    assert load_newest(RunFolder(stopped))[1].step == 6


@pytest.mark.parametrize("place", [(stored, "_flat"), (Stepper, "load")], ids=["file", "optimiser"])
@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")], ids=["Python", "CUDA"]
)
def test_a_state_is_not_given_up_for_a_lack_of_memory(stopped, monkeypatch, place, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(*place, fail)
    with pytest.raises(ResourceError, match=r"state\.pt: out of memory"):
        resume("coarse", stopped)


def test_a_swept_checkpoint_that_the_system_does_not_read_is_not_replaced(finished, monkeypatch):
    path = finished / "coarse.pt"
    before = path.read_bytes()
    refuse_reading(monkeypatch, path, "open", errno.EIO)
    with pytest.raises(UnreadableError, match=r"coarse\.pt: cannot read"):
        resume("coarse", finished)
    monkeypatch.undo()
    assert path.read_bytes() == before


def test_a_missing_state_is_noticed_and_the_one_before_it_taken(tmp_path, scored, coarse_run):
    (scored / "state.pt").unlink()
    assert find_run(None, None, "coarse", tmp_path).path == scored
    assert set_up(asked(scored, *MINI, recipe="tiny", resume=False, resume_auto=True)).done == 4
    _, events = resume("coarse", scored)
    assert notices(events)[0] == (
        f"{scored}/state.pt is missing: resuming from the previous state, of step 4"
    )
    assert not (scored / "state-damaged.pt").exists()
    assert weights_that_differ(scored / "coarse.pt", coarse_run / "coarse.pt") == []
    assert losses(scored) == losses(coarse_run)


def test_a_run_resumed_from_an_earlier_state_keeps_its_new_checkpoints(scored):
    """The old checkpoint of step 6 is later than the state of step 4, but is replaced."""
    (scored / "state.pt").write_bytes(b"")
    again = asked(scored, "train.keep=1", "train.save_every=1")
    stop_after(again, 6)
    names = sorted(path.name for path in (scored / "checkpoints").glob("step-*.pt"))
    assert names == ["step-000000005.pt", "step-000000006.pt"]
    resume("coarse", scored, "train.keep=1")
    names = sorted(path.name for path in (scored / "checkpoints").glob("step-*.pt"))
    assert names == ["step-000000012.pt"]


def test_a_state_exists_at_each_moment_of_setting_it_aside(stopped, monkeypatch):
    """A kill between any two of its steps must leave a run that can be resumed."""
    run_folder, seen = RunFolder(stopped), []
    replace = os.replace

    def look(source, target):
        seen.append(run_folder.state.is_file())
        replace(source, target)
        seen.append(run_folder.state.is_file())

    monkeypatch.setattr(os, "replace", look)
    run_folder.set_aside_state()
    assert seen
    assert all(seen)
    assert run_folder.state.samefile(run_folder.previous_state)


@pytest.mark.parametrize(
    "changes",
    [
        {"step": float("inf")}, {"step": True}, {"step": -1}, {"step": "x"}, {"micro": [1]},
        {"micro": {16: 0}}, {"micro_batch": [1]}, {"machine": 3}, {"unscored": "x"},
        {"best_psnr": "x"}, {"best_psnr": [1.0]}, {"best_psnr": float("nan")},
        {"window": 3}, {"window": {"loss": "x"}},
        {"stepper": []}, {"stepper": {}}, {"stepper": {"params": 3}},
        {"meta": 3}, {"fingerprint": [1]}, {"state_version": 99},
    ],
    ids=str,
)  # fmt: skip
def test_an_edited_state_is_refused_in_one_line(stopped, state_of_stopped, changes):
    save_tensors(stopped / "state.pt", {**state_of_stopped, **changes})
    with pytest.raises(CheckpointError, match=r"state\.pt: "):
        resume("coarse", stopped)


def test_a_state_of_a_later_version_is_refused_with_a_hint(stopped, state_of_stopped):
    save_tensors(stopped / "state.pt", {**state_of_stopped, "state_version": 2})
    (stopped / "state-previous.pt").unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match="has version 2, this program reads 1") as caught:
        resume("coarse", stopped)
    assert caught.value.hint == "upgrade c2fdft"


@pytest.mark.parametrize("key", ["param_groups", "state"])
def test_an_optimiser_state_that_does_not_fit_is_refused_in_one_line(stopped, key):
    content = load_tensors(stopped / "state.pt")
    content["stepper"]["optimizer"][key] = []
    save_tensors(stopped / "state.pt", content)
    with pytest.raises(CheckpointError, match=r"state\.pt: a damaged training state"):
        resume("coarse", stopped)


@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq", "step"])
@pytest.mark.parametrize("change", ["short", "flat", "missing", "text"])
def test_moments_that_do_not_fit_are_refused_in_one_line(stopped, state_of_stopped, name, change):
    """The fused AdamW would read and write beyond their memory."""
    content = copy.deepcopy(state_of_stopped)
    moments = content["stepper"]["optimizer"]["state"][0]
    flat = moments["exp_avg"].flatten()
    changed = {"short": torch.zeros(2), "flat": flat, "missing": None, "text": "x"}[change]
    save = {**moments, name: changed}
    content["stepper"]["optimizer"]["state"][0] = {k: v for k, v in save.items() if v is not None}
    save_tensors(stopped / "state.pt", content)
    with pytest.raises(CheckpointError, match=r"state\.pt: a damaged training state"):
        resume("coarse", stopped)


def test_a_state_that_is_missing_or_damaged_without_a_previous_one_is_named(stopped):
    (stopped / "state-previous.pt").unlink()
    (stopped / "state.pt").write_bytes(b"")
    with pytest.raises(DamagedStateError) as caught:
        load_newest(RunFolder(stopped))
    assert caught.value.where == str(stopped / "state.pt")
    (stopped / "state.pt").unlink()
    with pytest.raises(CheckpointError) as caught:
        load_newest(RunFolder(stopped))
    assert (type(caught.value), caught.value.where) == (CheckpointError, str(stopped / "state.pt"))


def test_two_damaged_states_are_an_error(stopped):
    for name in ("state.pt", "state-previous.pt"):
        (stopped / name).write_bytes(b"")
    with pytest.raises(CheckpointError) as caught:
        load_newest(RunFolder(stopped))
    assert "--init" in caught.value.hint


def test_a_bit_that_flips_anywhere_is_noticed_or_changes_nothing(stopped):
    state = stopped / "state.pt"
    good, original = state.read_bytes(), load_tensors(state)
    random.seed(20)
    # the directory of the archive is at its end; other places are random
    places = [*range(len(good) - 400, len(good), 32), *random.sample(range(len(good)), 12)]
    noticed = 0
    for place in places:
        bad = bytearray(good)
        bad[place] ^= 1 << random.randrange(8)
        state.write_bytes(bad)
        try:
            load_state(state)
        except CheckpointError:
            noticed += 1
        else:  # the bit is in padding or in a date
            assert _equal(load_tensors(state), original)
    assert noticed > 12


def _equal(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return one == other


def test_a_state_of_an_earlier_version_can_be_loaded(stopped):
    """Whatever was added since has a default; any images to score and to rain on are accepted."""
    state = load_tensors(stopped / "state.pt")
    first = ("step", "stepper", "micro", "window", "best_psnr", "fingerprint", "meta")
    window = {key: state["window"][key] for key in ("loss", "steps", "images", "seconds")}
    about = {key: state[key] for key in state.keys() - {f.name for f in fields(LoadedState)}}
    kept = {key: state[key] for key in first} | {"window": window} | about
    save_tensors(stopped / "state.pt", kept)
    (stopped / "state-previous.pt").unlink()
    assert load_state(stopped / "state.pt").step == 6
    train(set_up(asked(stopped, "coarse.iterations=7"))).run()
