"""Training: exact resume, micro-batches and processes, bad steps, and the files of a run."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from c2fdft_cli.data.shards.reader import ShardSet
from c2fdft_cli.engine.prepare.job import prepare
from c2fdft_cli.engine.prepare.options import PrepareOptions
from c2fdft_cli.engine.sampling.executor import Executor
from c2fdft_cli.engine.train import job as train_job
from c2fdft_cli.engine.train import validator
from c2fdft_cli.engine.train.events import Saved, StepDone, Validated
from c2fdft_cli.engine.train.job import train
from c2fdft_cli.engine.train.options import TrainOptions, parse_minutes
from c2fdft_cli.engine.train.setup import set_up
from c2fdft_cli.engine.train.state import load_state
from c2fdft_cli.engine.train.step.stepper import Stepper, StepResult
from c2fdft_cli.engine.weights.checkpoint import load_checkpoint
from c2fdft_cli.errors import Interrupted, ResourceError, UsageError
from tests.kit import command as command_line
from tests.kit.processes import torchrun
from tests.kit.training import (
    MINI,
    OFTEN,
    collect,
    losses,
    metrics,
    notices,
    request,
    resume,
    run,
    stop_after,
    weights_that_differ,
)


def test_a_run_writes_the_documented_files(coarse_run):
    for name in ("recipe.yaml", "env.json", "metrics.csv", "state.pt", "coarse.pt"):
        assert (coarse_run / name).is_file(), name
    names = sorted(p.name for p in (coarse_run / "checkpoints").iterdir())
    assert names == ["best.pt", "last.pt", "step-000000006.pt", "step-000000012.pt"]
    checkpoints = coarse_run / "checkpoints"
    assert (checkpoints / "last.pt").samefile(checkpoints / "step-000000012.pt")
    assert list((coarse_run / "samples").glob("*.png"))
    rows = metrics(coarse_run)
    assert [int(row["iteration"]) for row in rows] == [2, 4, 6, 8, 10, 12]
    assert [row["patch"] for row in rows] == ["16", "24", "24", "16", "24", "24"]
    assert [bool(row["val_psnr"]) for row in rows] == [False, False, True, False, False, True]
    # a cosine from 1e-3 to 1e-5 in 12 steps, of which the first has the full rate
    rates = [1e-5 + 4.95e-4 * (1 + math.cos(math.pi * (k - 1) / 12)) for k in (2, 4, 6, 8, 10, 12)]
    assert [float(row["lr"]) for row in rows] == pytest.approx(rates, rel=1e-5)


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


def test_a_checkpoint_describes_itself(coarse_run, fine_run, shard_folder):
    coarse, fine = (load_checkpoint(p) for p in (coarse_run / "coarse.pt", fine_run / "fine.pt"))
    assert (coarse.meta.stage, coarse.meta.step) == ("coarse", 12)
    assert (fine.meta.stage, fine.meta.step, fine.meta.grid) == ("fine", 8, [999, 500])
    assert (coarse.meta.grid_from, fine.meta.grid_from) == ("recipe", "training")
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


def test_events_report_steps_scores_and_files(tmp_path, shard_folder):
    _, events = run(request("coarse", shard_folder, tmp_path / "run", "coarse.iterations=4"))
    steps = [event for event in events if isinstance(event, StepDone)]
    assert [step.iteration for step in steps] == [1, 2, 3, 4]
    assert [(s.patch, s.batch) for s in steps[2:4]] == [(16, 4), (24, 2)]
    assert sum(isinstance(event, Validated) for event in events) == 1
    assert events[-1] == Saved(4, tmp_path / "run" / "coarse.pt")


@pytest.mark.parametrize("stop_at", [1, pytest.param(4, marks=pytest.mark.acceptance), 11])
def test_stopped_and_resumed_equals_uninterrupted(tmp_path, shard_folder, coarse_run, stop_at):
    """The job is abandoned at any step, so that only the last saved state is on disk.

    Some states are saved with a row of metrics.csv, and some with a score.
    """
    stop_after(request("coarse", shard_folder, tmp_path / "run", "train.save_every=4"), stop_at)
    resume("coarse", tmp_path / "run")
    assert weights_that_differ(tmp_path / "run" / "coarse.pt", coarse_run / "coarse.pt") == []
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
    start = ["--recipe", "tiny", "--data", str(shard_folder), *MINI, OFTEN]
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
    assert weights_that_differ(tmp_path / "run" / weights.name, weights) == []
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
    assert weights_that_differ(tmp_path / "run" / "coarse.pt", coarse_run / "coarse.pt") == []
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


@pytest.mark.parametrize(("seconds", "last"), [(0.0, 1), (7.0, 4), (1e9, 5)])
def test_a_time_limit_saves_and_stops(tmp_path, shard_folder, monkeypatch, seconds, last):
    """Measured by a clock on which each step takes two seconds."""
    clock = SimpleNamespace(monotonic=lambda: now, perf_counter=time.perf_counter)
    monkeypatch.setattr(train_job, "time", clock)
    now, ended = 1000.0, None
    wish = request(
        "coarse", shard_folder, tmp_path / "run", "coarse.iterations=5", max_seconds=seconds
    )
    job = train(set_up(wish))
    try:
        for event in job:
            now += 2 * isinstance(event, StepDone)
    except Interrupted as error:
        ended = error
    assert load_state(tmp_path / "run" / "state.pt").step == last
    if last == 5:
        assert ended is None
    else:
        assert f"stopped after step {last} of 5, state saved" in str(ended)
        assert ended.exit_code == 143


def test_a_time_limit_at_the_last_step_ends_nothing(tmp_path, shard_folder):
    few = ("coarse.iterations=1", "train.validation_images=1")
    result, events = run(request("coarse", shard_folder, tmp_path / "run", *few, max_seconds=0.0))
    assert result.step == 1
    assert sum(isinstance(event, Validated) for event in events) == 1
    assert load_checkpoint(result.checkpoint).meta.step == 1


class Clock:
    """A clock that only the test advances."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic


def test_rows_and_steps_state_means_and_times_since_the_last(tmp_path, shard_folder, monkeypatch):
    """A step takes four seconds, one of which it waits for its batch; each save takes 15."""
    clock, drawn = Clock(), []
    monkeypatch.setattr(train_job, "time", clock)
    monkeypatch.setattr(train_job, "draw_curves", lambda _: drawn.append(clock.now - 1000))
    few = ("train.save_every=2", "train.validate_every=100", "train.validation_images=1")
    wish = request("coarse", shard_folder, tmp_path / "run", *few)
    training = train_job._Training(set_up(wish))
    loader = training.loader

    class SlowLoader:
        waited = 0.0

        def __iter__(self):
            for batch in loader:
                self.waited += 1
                clock.now += 4
                yield batch

    def take(self, batch, share, lr, micro_batch):
        bad = batch.iteration == 3
        return StepResult(math.nan if bad else 2.0 * batch.iteration, 1.0, skipped=bad)

    training.loader = SlowLoader()
    monkeypatch.setattr(Stepper, "step", take)
    steps = []
    for event in training.events():
        if isinstance(event, StepDone):
            steps.append((event.seconds, event.waited, event.images_per_second))
        if isinstance(event, Saved):
            clock.now += 15
    assert steps == 2 * ([(4.0, 0.25, 1.0)] * 3 + [(4.0, 0.25, 0.5)] * 3)
    rows = metrics(tmp_path / "run")
    assert [row["loss"] for row in rows] == ["3.0", "8.0", "11.0", "15.0", "19.0", "23.0"]
    assert [row["skipped"] for row in rows] == ["0", "1", "0", "0", "0", "0"]
    assert [row["images_per_second"] for row in rows] == ["1.0", "0.8", "0.5", "1.0", "0.8", "0.5"]
    assert {row["waited"] for row in rows} == {"0.250"}
    # with every second save, as they are 23 seconds apart, and at the end
    assert drawn == [31.0, 77.0, 123.0, 138.0]


@pytest.mark.parametrize("text", ["-1", "inf", "nan", "soon"])
def test_a_time_limit_that_is_no_number_of_minutes_is_refused(text):
    with pytest.raises(UsageError, match="--max-time must be a number of minutes"):
        parse_minutes(text)


@pytest.mark.parametrize("seconds", [-1.0, math.nan])
def test_a_time_limit_of_a_python_program_is_checked_too(seconds):
    with pytest.raises(UsageError, match="--max-time must be at least 0"):
        TrainOptions(max_seconds=seconds)


@pytest.mark.parametrize(("text", "seconds"), [("0", 0), ("1.5", 90), ("600", 36000)])
def test_the_time_limit_is_in_minutes(text, seconds):
    assert parse_minutes(text) == seconds


@pytest.mark.parametrize("stage", [pytest.param("coarse", marks=pytest.mark.acceptance), "fine"])
def test_micro_batches_change_only_rounding(tmp_path, shard_folder, coarse_run, fine_run, stage):
    init = coarse_run / "coarse.pt" if stage == "fine" else None
    first = {"coarse": 12, "fine": 4}[stage]  # steps to compare; the finest are slow
    small = ("train.micro_batch=1", f"{stage}.iterations={first}")
    run(request(stage, shard_folder, tmp_path / "run", *small, init=init))
    whole = {"coarse": coarse_run, "fine": fine_run}[stage]
    name = f"checkpoints/step-{first:09}.pt"
    one, other = (load_checkpoint(folder / name) for folder in (tmp_path / "run", whole))
    for name, weights in other.params.items():
        assert torch.allclose(one.params[name], weights, atol=2e-3), name


def test_data_workers_change_nothing(tmp_path, shard_folder, coarse_run):
    run(request("coarse", shard_folder, tmp_path / "run", "data.workers=2"))
    assert weights_that_differ(tmp_path / "run" / "coarse.pt", coarse_run / "coarse.pt") == []


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
    wish.overrides.extend(("coarse.periods=[{length: 12, floor: 1.0e30}]", "train.save_every=2"))
    events = []
    job = train(set_up(wish))
    with pytest.raises(
        ResourceError, match="3 steps in a row had no finite loss or gradient"
    ) as caught:
        collect(job, events)
    assert str(caught.value.hint).startswith("resume with --resume --precision fp32, or start ")
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
        assert weights_that_differ(tmp_path / way / "fine.pt", tmp_path / "none" / "fine.pt") == []


def test_the_coarse_stage_fine_tunes_given_weights_on_other_pairs(tmp_path, pair_folder, fine_run):
    """Fine-tuning starts from averaged weights and the recipe of a checkpoint, on other shards."""
    from c2fdft_cli.engine.prepare.job import prepare
    from c2fdft_cli.engine.prepare.options import PrepareOptions
    from c2fdft_cli.engine.train.step.objective import make_objective

    prepare(PrepareOptions(source=pair_folder / "val", out=tmp_path / "own")).run()
    wish = TrainOptions("coarse", data=tmp_path / "own", out=tmp_path / "run",
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


def test_a_run_cannot_be_resumed_with_other_data(tmp_path, pair_folder, coarse_run):
    prepare(PrepareOptions(source=pair_folder / "train", out=tmp_path / "other")).run()
    with pytest.raises(UsageError, match="not the ones"):
        run(
            TrainOptions(
                "coarse", out=coarse_run, resume=True, data=tmp_path / "other", device="cpu"
            )
        )
