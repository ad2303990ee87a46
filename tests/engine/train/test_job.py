"""Training: exact resume, micro-batches and processes, bad steps, and the files of a run."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from c2fdft_cli.data.images.picture import save_rgb8
from c2fdft_cli.data.shards.reader import ShardSet
from c2fdft_cli.engine.prepare.job import prepare
from c2fdft_cli.engine.prepare.options import PrepareOptions, Synthesis
from c2fdft_cli.engine.sampling.executor import Executor
from c2fdft_cli.engine.train import job as train_job
from c2fdft_cli.engine.train import validator
from c2fdft_cli.engine.train.batches import patch_cycle
from c2fdft_cli.engine.train.dry_run import _sizes, plan_training
from c2fdft_cli.engine.train.events import Notice, Saved, StepDone, Validated
from c2fdft_cli.engine.train.folder import RunFolder, draw_curves, find_run, new_run
from c2fdft_cli.engine.train.job import train
from c2fdft_cli.engine.train.request import TrainRequest, parse_minutes
from c2fdft_cli.engine.train.setup import set_up
from c2fdft_cli.engine.train.state import load_state
from c2fdft_cli.engine.weights.checkpoint import load_checkpoint, replace_meta
from c2fdft_cli.errors import (
    CheckpointError,
    DataError,
    Interrupted,
    RecipeError,
    ResourceError,
    UsageError,
)
from c2fdft_cli.recipe.schema import Stage
from tests.kit import command as command_line
from tests.kit.processes import torchrun
from tests.kit.training import (
    MINI,
    collect,
    losses,
    metrics,
    notices,
    request,
    resume,
    run,
    same_weights,
    stop_after,
)
from tests.kit.weights import write_random


def test_a_run_writes_the_documented_files(coarse_run):
    for name in ("recipe.yaml", "env.json", "metrics.csv", "state.pt", "coarse.pt"):
        assert (coarse_run / name).is_file(), name
    names = sorted(p.name for p in (coarse_run / "checkpoints").iterdir())
    assert names == [
        "best.pt", "last.pt", "step-000000008.pt", "step-000000010.pt", "step-000000012.pt"
    ]  # fmt: skip
    assert list((coarse_run / "samples").glob("*.png"))
    rows = metrics(coarse_run)
    assert [int(row["iteration"]) for row in rows] == [2, 4, 6, 8, 10, 12]
    assert [row["patch"] for row in rows] == ["16", "24", "24", "16", "24", "24"]
    assert [bool(row["val_psnr"]) for row in rows] == [False, True, False, True, False, True]


def test_best_holds_the_average_with_the_highest_score(tmp_path, shard_folder, monkeypatch):
    scores, scored = iter([20.0, 21.0, 19.0]), []

    def executor(network, *words, **more):
        scored.append({name: value.clone() for name, value in network.net.state_dict().items()})
        return Executor(network, *words, **more)

    monkeypatch.setattr(validator, "Executor", executor)
    monkeypatch.setattr(validator, "mean_scores", lambda _: {"psnr": next(scores), "ssim": 0.5})
    short = ("coarse.iterations=3", "train.validate_every=1", "train.validation_images=1")
    run(request("coarse", shard_folder, tmp_path / "run", *short))
    best, last = (
        load_checkpoint(tmp_path / "run" / "checkpoints" / f"{name}.pt")
        for name in ("best", "last")
    )
    assert (best.meta.step, best.meta.metrics["psnr"], last.meta.step) == (2, 21.0, 3)
    for checkpoint in (best, last):
        average = scored[checkpoint.meta.step - 1]
        assert all(torch.equal(value, average[name]) for name, value in checkpoint.ema.items())
        assert any(not torch.equal(value, average[n]) for n, value in checkpoint.params.items())


def test_drawing_curves_leaves_no_memory_behind(tmp_path, coarse_run):
    """Figures are reference cycles, which Python collects too rarely in a long training."""
    figure = pytest.importorskip("matplotlib.figure").Figure
    shutil.copy(coarse_run / "metrics.csv", tmp_path)
    gc.disable()
    try:
        assert draw_curves(RunFolder(tmp_path))
        assert (tmp_path / "curves.png").is_file()
        assert not [one for one in gc.get_objects() if type(one) is figure]
    finally:
        gc.enable()


NAMES = [r"a$\frac$b", "$", "\u96e8"]
if sys.platform == "linux":  # elsewhere all names are Unicode
    NAMES.append(os.fsdecode(b"\xff"))


@pytest.mark.parametrize("name", NAMES)
def test_curves_are_drawn_for_a_run_of_any_name(tmp_path, name):
    pytest.importorskip("matplotlib")
    run = RunFolder(tmp_path / name)
    run.create({})
    draw_curves(run)
    assert (run.path / "curves.png").stat().st_size > 1000


def test_a_checkpoint_describes_itself(coarse_run, fine_run, shard_folder):
    coarse, fine = (load_checkpoint(p) for p in (coarse_run / "coarse.pt", fine_run / "fine.pt"))
    assert (coarse.meta.stage, coarse.meta.step) == ("coarse", 12)
    assert (fine.meta.stage, fine.meta.step, fine.meta.grid) == ("fine", 8, [999, 500])
    assert fine.meta.data == str(shard_folder)
    of_both = [ShardSet.open(shard_folder, split).fingerprint for split in ("train", "val")]
    assert [fine.meta.data_train, fine.meta.data_val] == of_both
    assert fine.meta.recipe["fine"]["iterations"] == 8
    released = torch.load(fine_run / "fine.pt", weights_only=True)
    assert set(released) == {"params", "params_ema", "meta"}
    assert not any(name.startswith(("module.", "_orig_mod.")) for name in released["params"])


def test_synthesis_on_pairs_is_reported(tmp_path, shard_folder):
    short = ("coarse.iterations=1", "train.validate_every=100")

    def said_of(*more: str) -> list[str]:
        wish = request("coarse", shard_folder, tmp_path / f"run{len(more)}", *short, *more)
        return notices(run(wish)[1])

    assert not any("synthetic" in said for said in said_of())
    said = said_of("data.synthesize=noise")
    assert any(one.startswith("training on synthetic noise") for one in said)


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
    for start in (train, lambda options: plan_training(options).run()):
        with pytest.raises(DataError, match="0: 24 x 10 px, but SSIM needs 11 x 11"):
            start(set_up(request("coarse", data, out)))
    assert not out.exists()
    with pytest.raises(DataError, match="inside a border of"):
        train(set_up(request("coarse", data, out, "train.protocol=levin")))


def test_events_report_steps_scores_and_files(tmp_path, shard_folder):
    _, events = run(request("coarse", shard_folder, tmp_path / "run", "coarse.iterations=4"))
    steps = [event for event in events if isinstance(event, StepDone)]
    assert [step.iteration for step in steps] == [1, 2, 3, 4]
    assert [(s.patch, s.batch) for s in steps[2:4]] == [(16, 4), (24, 2)]
    assert sum(isinstance(event, Validated) for event in events) == 1
    assert events[-1] == Saved(4, tmp_path / "run" / "coarse.pt")


@pytest.mark.parametrize("stop_at", [1, pytest.param(4, marks=pytest.mark.acceptance), 11])
def test_stopped_and_resumed_equals_uninterrupted(tmp_path, shard_folder, coarse_run, stop_at):
    """The job is abandoned at any step, so that only the last saved state is on disk."""
    stop_after(request("coarse", shard_folder, tmp_path / "run"), stop_at)
    resume("coarse", tmp_path / "run")
    assert same_weights(tmp_path / "run" / "coarse.pt", coarse_run / "coarse.pt")
    assert losses(tmp_path / "run") == losses(coarse_run)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["coarse", pytest.param("fine", marks=pytest.mark.acceptance)])
def test_killed_and_resumed_equals_uninterrupted(
    tmp_path, shard_folder, coarse_run, fine_run, stage
):
    """The real command is killed by kill -9 and resumed until it is done."""
    whole = {"coarse": coarse_run, "fine": fine_run}[stage]
    weights = whole / f"{stage}.pt"
    words = ["--out", str(tmp_path / "run"), "--device", "cpu", "--precision", "fp32"]
    start = ["--recipe", "tiny", "--data", str(shard_folder), *MINI]
    if stage == "fine":
        start += ["--from", str(coarse_run / "coarse.pt")]
    command = [sys.executable, "-m", "c2fdft_cli", f"train-{stage}", *words]
    first = subprocess.Popen([*command, *start], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(metrics(tmp_path / "run")) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    first.kill()
    first.wait()
    assert 0 < load_state(tmp_path / "run" / "state.pt").step < load_checkpoint(weights).meta.step
    done = command_line.run(f"train-{stage}", *words, "--resume")
    assert done.exit_code == 0, done.stderr
    assert same_weights(tmp_path / "run" / weights.name, weights)
    assert losses(tmp_path / "run") == losses(whole)


def test_sigterm_saves_first(tmp_path, shard_folder, coarse_run):
    job = train(set_up(request("coarse", shard_folder, tmp_path / "run", "train.save_every=100")))

    def terminate_at(step: int) -> None:
        for event in job:
            if isinstance(event, StepDone) and event.iteration == step:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted) as caught:
        terminate_at(5)
    assert caught.value.exit_code == 143
    assert "--resume" in caught.value.hint
    resume("coarse", tmp_path / "run")
    assert same_weights(tmp_path / "run" / "coarse.pt", coarse_run / "coarse.pt")
    assert losses(tmp_path / "run") == losses(coarse_run)


@pytest.mark.acceptance
def test_sigterm_to_the_whole_group_saves_first(tmp_path, shard_folder):
    """torchrun and job queues send it to the data workers too."""
    words = ["--out", str(tmp_path / "run"), "--device", "cpu", "--precision", "fp32"]
    start = ["--recipe", "tiny", "--data", str(shard_folder), *MINI, "coarse.iterations=100000"]
    command = [sys.executable, "-m", "c2fdft_cli", "train-coarse", *words, *start]
    process = subprocess.Popen(
        [*command, "data.workers=2", "train.save_every=100000", "train.validate_every=100000"],
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while len(metrics(tmp_path / "run")) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert "state saved" in said
    assert load_state(tmp_path / "run" / "state.pt").step > 2


@pytest.mark.parametrize(("seconds", "last"), [(0.0, 1), (7.0, 4), (1e9, 12)])
def test_a_time_limit_saves_and_stops(tmp_path, shard_folder, monkeypatch, seconds, last):
    """Measured by a clock on which each step takes two seconds."""
    clock = SimpleNamespace(monotonic=lambda: now, perf_counter=time.perf_counter)
    monkeypatch.setattr(train_job, "time", clock)
    now, ended = 1000.0, None
    job = train(set_up(request("coarse", shard_folder, tmp_path / "run", max_seconds=seconds)))
    try:
        for event in job:
            now += 2 * isinstance(event, StepDone)
    except Interrupted as error:
        ended = error
    assert load_state(tmp_path / "run" / "state.pt").step == last
    if last == 12:
        assert ended is None
    else:
        assert f"stopped after step {last} of 12, state saved" in str(ended)
        assert ended.exit_code == 143


@pytest.mark.parametrize(("text", "seconds"), [("0", 0), ("1.5", 90), ("600", 36000)])
def test_the_time_limit_is_in_minutes(text, seconds):
    assert parse_minutes(text) == seconds


@pytest.mark.parametrize("stage", [pytest.param("coarse", marks=pytest.mark.acceptance), "fine"])
def test_micro_batches_change_only_rounding(tmp_path, shard_folder, coarse_run, fine_run, stage):
    init = coarse_run / "coarse.pt" if stage == "fine" else None
    run(request(stage, shard_folder, tmp_path / "run", "train.micro_batch=1", init=init))
    whole = {"coarse": coarse_run, "fine": fine_run}[stage]
    one, other = (load_checkpoint(f / f"{stage}.pt") for f in (tmp_path / "run", whole))
    for name, weights in other.params.items():
        assert torch.allclose(one.params[name], weights, atol=2e-3), name


def test_data_workers_change_nothing(tmp_path, shard_folder, coarse_run):
    run(request("coarse", shard_folder, tmp_path / "run", "data.workers=2"))
    assert same_weights(tmp_path / "run" / "coarse.pt", coarse_run / "coarse.pt")


@pytest.mark.acceptance
def test_two_processes_equal_one(tmp_path, shard_folder):
    """Two gloo processes of torchrun equal one with two micro-batches, in AdamW's first steps."""
    short = "coarse.iterations=6"
    run(request("coarse", shard_folder, tmp_path / "one", short, "train.micro_batch=2"))
    words = [
        *("-m", "c2fdft_cli", "train-coarse", "--recipe", "tiny", "--data", str(shard_folder)),
        *("--out", str(tmp_path / "two"), "--device", "cpu", "--precision", "fp32", *MINI, short),
    ]
    done = torchrun(*words)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr  # warnings that a user cannot act on
    one, two = (load_checkpoint(tmp_path / name / "coarse.pt") for name in ("one", "two"))
    for name, weights in one.params.items():
        assert torch.allclose(two.params[name], weights, atol=2e-3), name
    first, second = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert [float(a) for a in first] == pytest.approx([float(b) for b in second], rel=1e-3)
    again = torchrun(*words)  # refused by the first process, for which the other one waits
    assert again.returncode == 1
    assert "error [rank 0]: " in again.stderr
    assert "the run folder is not empty" in again.stderr
    assert "c2fdft_cli/engine" not in again.stderr  # no traceback


def test_bad_gradients_are_skipped_and_too_many_end_the_run(tmp_path, shard_folder):
    wish = request(
        "coarse", shard_folder, tmp_path / "run", "coarse.lr=1e30", "train.max_bad_steps=3"
    )
    wish.overrides.append("coarse.periods=[{length: 12, floor: 1.0e30}]")
    events = []
    job = train(set_up(wish))
    with pytest.raises(ResourceError, match="3 steps in a row had no finite loss or gradient"):
        collect(job, events)
    skipped = [e.iteration for e in events if isinstance(e, StepDone) and e.skipped]
    assert len(skipped) == 2
    # a state is saved every 2 steps, but not once the weights are not finite
    state = load_state(tmp_path / "run" / "state.pt")
    assert state.step == 0
    assert all(torch.isfinite(x).all() for x in state.stepper["params"].values())


@pytest.mark.parametrize(
    ("lr", "what"),
    [
        # a step to infinite weights, and one to finite weights with infinite results
        ("1e300", "its weights are NaN or infinite"),
        ("1e30", "its network produces NaN or infinite values"),
    ],
)
def test_a_run_that_ends_with_diverged_weights_fails(tmp_path, shard_folder, lr, what):
    run = tmp_path / "run"
    wish = request("coarse", shard_folder, run, f"coarse.lr={lr}", "coarse.iterations=2")
    wish.overrides.append(f"coarse.periods=[{{length: 2, floor: {lr}}}]")
    with pytest.raises(ResourceError, match=what) as caught:
        collect(train(set_up(wish)), [])
    assert "lower learning rate" in str(caught.value.hint)
    assert not (run / "coarse.pt").exists()
    newest = load_state(run / ("state.pt" if lr == "1e300" else "state-previous.pt"))
    assert all(torch.isfinite(x).all() for x in newest.stepper["params"].values())


@pytest.mark.acceptance
def test_recomputing_gives_the_same_weights(tmp_path, shard_folder, coarse_run):
    """The weights of a whole fine stage are equal bit for bit on the CPU."""
    settings = ("fine.iterations=2", "train.save_every=100", "train.validate_every=100")
    for way in ("none", "call", "level"):
        run(request("fine", shard_folder, tmp_path / way, f"fine.recompute={way}", *settings,
                    init=coarse_run / "coarse.pt"))  # fmt: skip
    for way in ("call", "level"):
        assert same_weights(tmp_path / way / "fine.pt", tmp_path / "none" / "fine.pt")


def test_the_coarse_stage_fine_tunes_given_weights_on_other_pairs(tmp_path, pair_folder, fine_run):
    """Fine-tuning starts from averaged weights and the recipe of a checkpoint, on other shards."""
    from c2fdft_cli.engine.prepare.job import prepare
    from c2fdft_cli.engine.prepare.options import PrepareOptions
    from c2fdft_cli.engine.train.step.objective import make_objective

    prepare(PrepareOptions(source=pair_folder / "val", out=tmp_path / "own")).run()
    wish = TrainRequest("coarse", data=tmp_path / "own", out=tmp_path / "run",
                        init=fine_run / "fine.pt", overrides=["coarse.iterations=3"],
                        device="cpu", precision="fp32")  # fmt: skip
    given = load_checkpoint(fine_run / "fine.pt")
    start = make_objective(set_up(wish)).net.state_dict()
    assert all(torch.equal(start[name], value) for name, value in given.ema.items())
    result, _ = run(wish)
    tuned = load_checkpoint(result.checkpoint)
    assert (tuned.meta.stage, tuned.meta.step) == ("coarse", 3)
    assert tuned.meta.data == str(tmp_path / "own")
    assert any(not torch.equal(tuned.params[name], value) for name, value in given.ema.items())
    moved = torch.cat([(tuned.params[n] - v).flatten() for n, v in given.ema.items()]).norm()
    size = torch.cat([v.flatten() for v in given.ema.values()]).norm()
    assert moved < 0.1 * size


def test_the_fine_stage_starts_from_raw_weights_if_requested(tmp_path, shard_folder, coarse_run):
    from c2fdft_cli.engine.train.step.objective import make_objective

    coarse = load_checkpoint(coarse_run / "coarse.pt")
    for choice, state in (("ema", coarse.ema), ("raw", coarse.params)):
        wish = request("fine", shard_folder, tmp_path / choice, f"fine.start_from={choice}",
                       init=coarse_run / "coarse.pt")  # fmt: skip
        net = make_objective(set_up(wish)).net
        assert all(torch.equal(net.state_dict()[name], state[name]) for name in state)


def test_recipe_data_and_timesteps_come_from_the_checkpoint(tmp_path, shard_folder, coarse_run):
    options = set_up(
        TrainRequest(stage="fine", init=coarse_run / "coarse.pt", device="cpu", out=tmp_path / "f")
    )
    assert options.grid == [999, 500]
    assert options.data == shard_folder
    assert options.recipe.network.dim == 8
    assert options.recipe_name == "tiny"


def test_another_set_in_the_folder_that_the_checkpoint_names_is_refused(tmp_path, shard_folder):
    weights = tmp_path / "coarse.pt"
    write_random(weights, stage="coarse", data=shard_folder, data_train="0" * 64)
    wish = TrainRequest(stage="fine", init=weights, device="cpu", out=tmp_path / "f")
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
        asked = TrainRequest(stage="fine", init=source, device="cpu", resume_auto=auto)
        assert set_up(asked).run.path == Path(folder)


def test_the_plan_of_a_begun_run_is_for_the_remaining_steps(tmp_path, shard_folder):
    with pytest.raises(Interrupted):
        run(request("coarse", shard_folder, tmp_path / "run", max_seconds=0.0))
    plan = plan_training(
        set_up(TrainRequest("coarse", out=tmp_path / "run", resume=True, device="cpu"))
    ).run()
    assert plan.iterations == 11
    assert [(s.patch, s.iterations) for s in plan.stages] == [(16, 5), (24, 6)]


def test_a_plan_estimates_hours_and_the_bytes_of_the_run(tmp_path, shard_folder, coarse_run):
    plan = plan_training(set_up(request("coarse", shard_folder, tmp_path / "run"))).run()
    seconds = sum(stage.iterations * stage.seconds_per_step for stage in plan.stages)
    assert plan.hours == pytest.approx(seconds / 3600)
    # last.pt is a link to the newest; a file exists twice while its new version is written
    sizes = {one.stat().st_ino: one.stat().st_size for one in coarse_run.rglob("*.pt")}
    written = sum((coarse_run / name).stat().st_size for name in ("state.pt", "coarse.pt"))
    assert plan.disk == pytest.approx(sum(sizes.values()) + written, rel=0.1)


def test_a_plan_has_the_notices_of_the_training(tmp_path, shard_folder):
    changed = ("data.synthesize=noise", "coarse.periods=[{length: 4, floor: 0}]")
    asked = request("coarse", shard_folder, tmp_path / "run", *changed)
    plan = plan_training(set_up(asked)).run()
    assert len(plan.notices) == 2
    assert plan.notices[0].startswith("training on synthetic noise: the shards' own degraded")
    assert plan.notices[1].startswith("the learning rate is 0 after iteration 4 of 12")
    _, events = run(asked)
    told = [event.text for event in events if isinstance(event, Notice)]
    assert told[:2] == plan.notices


def test_planning_writes_nothing(tmp_path, shard_folder):
    plan = plan_training(set_up(request("coarse", shard_folder, tmp_path / "run"))).run()
    assert [(s.patch, s.batch, s.iterations) for s in plan.stages] == [(16, 4, 6), (24, 2, 6)]
    assert all(stage.memory > 0 and stage.seconds_per_step > 0 for stage in plan.stages)
    assert not (tmp_path / "run").exists()


@given(
    st.lists(st.sampled_from([(8, 1), (8, 2), (16, 1)]), min_size=1, max_size=4),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(1, 60),
    st.integers(0, 60),
)
def test_a_plan_counts_the_iterations_of_each_size(sizes, switch_every, cycles, last, done):
    patches, batches = map(list, zip(*sizes, strict=True))
    section = Stage(last, patches, batches, switch_every, cycles)
    expected: dict[tuple[int, int], list[int]] = {}
    for k in range(done + 1, last + 1):
        expected.setdefault(patch_cycle(section).size_at(k), []).append(k)
    planned = _sizes(section, done)
    assert list(planned.items()) == [(key, (ks[0], len(ks))) for key, ks in expected.items()]


def test_planning_a_billion_iterations_is_fast():
    section = Stage(1_000_000_000, [8, 16], [2, 1], 1, 500_000_000)
    assert _sizes(section, 0) == {(8, 2): (1, 500_000_000), (16, 1): (2, 500_000_000)}


@pytest.mark.parametrize(("seconds", "timed"), [(0.0, [1, 0]), (3600.0, [4, 2])])
def test_planning_times_smaller_steps_if_time_is_short(tmp_path, shard_folder, seconds, timed):
    options = set_up(request("coarse", shard_folder, tmp_path / "run"))
    plan = plan_training(options, seconds).run()
    assert [stage.timed_images for stage in plan.stages] == timed
    first, second = (stage.seconds_per_step for stage in plan.stages)
    if not timed[1]:  # the time grows with the number of pixels
        assert second == pytest.approx(first * (2 * 24**2) / (4 * 16**2))


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
        (TrainRequest("coarse", out=empty, resume=True), DataError, "no run to resume"),
        (
            TrainRequest("fine", out=coarse_run, resume=True),
            UsageError,
            "train-fine cannot resume a coarse run",
        ),
        (
            TrainRequest("coarse", out=coarse_run, resume=True, overrides=["coarse.lr=1"]),
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
    assert kept.grid == kept.recipe.sampling.grid == [999, 500]
    assert kept.recipe.sampling.eta == 0.1
    assert any("sampling.grid=[999,666,333,0]" in one for one in kept.notices)
    chosen = asked("b", "sampling.steps=3")
    assert chosen.grid == chosen.recipe.sampling.grid == [999, 500, 0]
    assert chosen.notices == ()
    for name, written in enumerate(("sampling={steps: 3}", "sampling.steps =3")):
        other = asked(f"c{name}", written)
        assert (other.grid, other.notices) == ([999, 500, 0], ())
    assert asked("d", "sampling={grid: [700]}").grid == [700]


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
    assert kept.grid == kept.recipe.sampling.grid == [50]
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
    assert options.grid == [999, 666, 333, 0]


def test_shards_are_found_in_any_form_of_override(tmp_path, shard_folder, coarse_run):
    for name, written in enumerate(("data.shards={}", "data={{shards: {}}}", "data.shards ={}")):
        override = written.format(shard_folder)
        assert set_up(request("coarse", None, tmp_path / f"c{name}", override)).data == shard_folder
        wish = TrainRequest("fine", [override], coarse_run / "coarse.pt", device="cpu")
        assert set_up(wish).data == shard_folder


def test_a_run_folder_that_is_not_empty_is_refused(shard_folder, coarse_run):
    with pytest.raises(UsageError, match="not empty"):
        run(request("coarse", shard_folder, coarse_run))


def test_a_run_cannot_be_resumed_with_other_data(tmp_path, pair_folder, coarse_run):
    prepare(PrepareOptions(source=pair_folder / "train", out=tmp_path / "other")).run()
    with pytest.raises(UsageError, match="not the ones"):
        run(
            TrainRequest(
                "coarse", out=coarse_run, resume=True, data=tmp_path / "other", device="cpu"
            )
        )


def test_run_folders_get_unused_names(tmp_path):
    assert new_run(None, "tiny", "coarse", tmp_path).path.name == "tiny-coarse"
    (tmp_path / "tiny-coarse").mkdir()
    assert new_run(None, "tiny", "coarse", tmp_path).path.name == "tiny-coarse-2"
    for number, name in enumerate(("tiny-coarse", "tiny-coarse-2", "other-coarse")):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "state.pt").touch()
        os.utime(tmp_path / name / "state.pt", (number, number))
    assert find_run(None, "tiny", "coarse", tmp_path).path.name == "tiny-coarse-2"
    assert find_run(None, None, "coarse", tmp_path).path.name == "other-coarse"
