"""Safety of long trainings: precision, saved steps, an exclusive folder, other processes."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from c2fdft_cli.cli.views.train import describe, watch
from c2fdft_cli.data.images.picture import save_rgb8
from c2fdft_cli.engine.prepare.job import prepare
from c2fdft_cli.engine.prepare.options import PrepareOptions
from c2fdft_cli.engine.train import setup
from c2fdft_cli.engine.train import validator as train_validation
from c2fdft_cli.engine.train.events import StepDone, Validated
from c2fdft_cli.engine.train.folder import COLUMNS, RunFolder
from c2fdft_cli.engine.train.job import train
from c2fdft_cli.engine.train.options import TrainOptions
from c2fdft_cli.engine.train.setup import set_up
from c2fdft_cli.engine.train.state import load_state
from c2fdft_cli.engine.train.step.stepper import Stepper
from c2fdft_cli.engine.train.validator import Validator, sample_labels
from c2fdft_cli.engine.weights.tensors import load_tensors, save_tensors
from c2fdft_cli.errors import DataError, Interrupted, ResourceError, UsageError
from c2fdft_cli.execution.device import Runtime
from tests.kit.formula import picture
from tests.kit.processes import torchrun
from tests.kit.training import (
    MINI,
    losses,
    metrics,
    notices,
    request,
    resume,
    run,
    stop_after,
    weights_that_differ,
)


def test_precision_comes_from_the_recipe_of_the_checkpoint_too(shard_folder, coarse_run, tmp_path):
    wish = TrainOptions("fine", init=coarse_run / "coarse.pt", out=tmp_path / "run", device="cpu")
    stated = replace(wish, overrides=["train.precision=bf16"])
    assert set_up(stated).runtime.precision == "bf16"
    assert set_up(replace(stated, recipe="tiny", overrides=[*MINI])).recipe.network.dim == 8
    asked = set_up(replace(stated, precision="fp32"))
    assert asked.runtime.precision == "fp32"
    assert asked.precision == "fp32"


def test_a_resumed_run_keeps_the_requested_precision(tmp_path, shard_folder):
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        run(request("coarse", shard_folder, out, precision="bf16", max_seconds=0.0))
    again = TrainOptions("coarse", out=out, resume=True, device="cpu")
    options = set_up(again)
    assert (options.precision, options.runtime.precision) == ("bf16", "bf16")
    assert options.notices == ()
    other = set_up(replace(again, precision="fp32"))
    assert other.runtime.precision == "fp32"
    assert other.notices == ("the run resumes in fp32; it was in bf16",)


def test_a_precision_that_was_not_requested_is_not_stored_as_if_it_were(tmp_path, shard_folder):
    out = tmp_path / "run"
    wish = request("coarse", shard_folder, out, "train.precision=bf16", precision="auto")
    events = iter(train(set_up(wish)))
    next(events)
    events.close()
    state = load_state(out / "state.pt")
    assert (state.precision, state.computed_in) == ("auto", "bf16")


def test_earlier_states_without_a_precision_can_be_resumed(tmp_path, stopped_run, coarse_run):
    out = shutil.copytree(stopped_run, tmp_path / "run")
    state = load_tensors(out / "state.pt")
    for key in ("precision", "computed_in", "machine"):
        del state[key]
    save_tensors(out / "state.pt", state)
    resume("coarse", out)
    assert weights_that_differ(out / "coarse.pt", coarse_run / "coarse.pt") == []


def test_shards_may_be_named_in_the_recipe(tmp_path, shard_folder, coarse_run):
    named = f"data.shards={shard_folder}"
    assert set_up(request("coarse", None, tmp_path / "run", named)).data == shard_folder
    other = request("fine", None, tmp_path / "run", named, init=coarse_run / "coarse.pt")
    assert set_up(other).data == shard_folder
    given = request("coarse", shard_folder, tmp_path / "run", "data.shards=elsewhere")
    assert set_up(given).data == shard_folder


def test_shards_given_by_data_take_precedence_over_the_recipe(tmp_path, shard_folder, coarse_run):
    named = "data.shards=elsewhere"
    run(request("coarse", shard_folder, tmp_path / "run", named, "coarse.iterations=1"))
    wish = TrainOptions("fine", init=tmp_path / "run" / "coarse.pt", device="cpu")
    assert set_up(wish).data == shard_folder
    assert set_up(wish).recipe.data.shards == str(shard_folder)
    with pytest.raises(DataError, match="elsewhere: no such folder of shards"):
        set_up(replace(wish, overrides=[named]))


def test_missing_options_are_reported_before_the_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="--data is missing"):
        set_up(request("coarse", None, None, device="cuda"))


def test_a_run_in_fp16_can_be_resumed_on_a_cpu(tmp_path, shard_folder, coarse_run, monkeypatch):
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        run(request("coarse", shard_folder, out, max_seconds=0.0))
    state = load_tensors(out / "state.pt")
    save_tensors(out / "state.pt", {**state, "precision": "fp16", "computed_in": "fp16"})
    options = set_up(TrainOptions("coarse", out=out, resume=True, device="cpu"))
    assert options.notices[0].endswith("; it was in fp16")
    assert options.precision == "fp16"  # stored, so that it applies again on the other machine
    fine = TrainOptions("fine", init=coarse_run / "coarse.pt", device="cpu")
    with pytest.raises(UsageError, match=r"train\.precision fp16 needs a GPU") as caught:
        set_up(replace(fine, overrides=["train.precision=fp16"]))
    assert "--precision fp32" in caught.value.hint
    assert set_up(replace(fine, precision="fp32")).runtime.precision == "fp32"
    wanted, gpu = [], Runtime(torch.device("cuda"), torch.bfloat16)
    monkeypatch.setattr(setup, "make_runtime", lambda *_: gpu)
    monkeypatch.setattr(setup, "with_precision", lambda _, word, where: wanted.append(word) or gpu)
    set_up(TrainOptions("coarse", out=out, resume=True))
    assert wanted == ["fp16"]


def test_the_state_is_saved_before_each_score(tmp_path, shard_folder, monkeypatch):
    """Also if scores and saves are at different steps."""
    saved = []

    def look(self, step, *_):
        state = load_state(tmp_path / "run" / "state.pt")
        saved.append((step, state.step, state.unscored))
        raise KeyError("look")

    monkeypatch.setattr(Validator, "_score", look)
    wish = request("coarse", shard_folder, tmp_path / "run", "train.save_every=100")
    with pytest.raises(KeyError, match="look"):
        run(wish)
    assert saved == [(6, 6, True)]


def test_a_run_killed_between_a_score_and_the_next_save_logs_it_once(
    tmp_path, shard_folder, monkeypatch
):
    def kill(*_):
        raise KeyError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Validator, "_score", kill)
        with pytest.raises(KeyError, match="killed"):
            run(request("coarse", shard_folder, tmp_path / "run"))
    RunFolder(tmp_path / "run").append_metrics(dict.fromkeys(COLUMNS, 0) | {"iteration": 6})
    resume("coarse", tmp_path / "run")
    steps = [int(row["iteration"]) for row in RunFolder(tmp_path / "run").read_metrics()]
    assert steps == [2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize("step", [6, 12])
def test_a_signal_ends_scoring_without_losing_steps(
    tmp_path, shard_folder, coarse_run, monkeypatch, step
):
    out = tmp_path / "run"
    restore_and_score, seen = train_validation.restore_and_score, []

    def scored_then_stopped(*args):
        for scored in restore_and_score(*args):
            seen.append(scored.name)
            if trainer.step == step:
                os.kill(os.getpid(), signal.SIGTERM)
            yield scored

    trainer = train(set_up(request("coarse", shard_folder, out, "train.save_every=100")))
    trainer.step, told = 0, []

    def follow() -> None:
        for event in trainer:
            told.append(event)
            if isinstance(event, StepDone):
                trainer.step = event.iteration

    with monkeypatch.context() as patch:
        patch.setattr(train_validation, "restore_and_score", scored_then_stopped)
        with pytest.raises(Interrupted, match=f"stopped after step {step} of 12") as caught:
            follow()
    assert caught.value.exit_code == 143
    assert not any("not enough memory" in text for text in notices(told))
    assert len(seen) == 1 + 2 * (step // 6 - 1)  # the second image was not started
    state = load_state(out / "state.pt")
    assert (state.step, state.unscored) == (step, True)
    resume("coarse", out)
    assert weights_that_differ(out / "coarse.pt", coarse_run / "coarse.pt") == []
    scores = [(row["iteration"], row["loss"], row["val_psnr"]) for row in metrics(out)]
    assert scores == [
        (row["iteration"], row["loss"], row["val_psnr"]) for row in metrics(coarse_run)
    ]


def test_a_signal_in_scoring_after_a_bad_step_saves_the_state(tmp_path, shard_folder, monkeypatch):
    step, score = Stepper.step, Validator._score

    def bad(self, batch, share, lr, micro_batch):
        result = step(self, batch, share, lr, micro_batch)
        self.bad_steps = int(batch.iteration == 8)
        return result

    def signalled(self, k, *rest):
        if k == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        return score(self, k, *rest)

    monkeypatch.setattr(Stepper, "step", bad)
    monkeypatch.setattr(Validator, "_score", signalled)
    wish = request("coarse", shard_folder, tmp_path / "run", "train.validate_every=8")
    with pytest.raises(Interrupted, match="stopped after step 8 of 12, state saved"):
        run(wish)
    state = load_state(tmp_path / "run" / "state.pt")
    assert (state.step, state.unscored) == (8, True)


def test_a_save_due_at_a_bad_step_is_made_later(tmp_path, shard_folder, monkeypatch):
    step, states = Stepper.step, []

    def sometimes(self, batch, share, lr, micro_batch):
        result = step(self, batch, share, lr, micro_batch)
        bad = batch.iteration in (2, 3)
        self.bad_steps = self.bad_steps + 1 if bad else 0
        return replace(result, skipped=bad)

    monkeypatch.setattr(Stepper, "step", sometimes)
    short = ("coarse.iterations=8", "train.validate_every=100", "train.save_every=2")
    wish = request("coarse", shard_folder, tmp_path / "run", *short)
    for event in train(set_up(wish)):
        if isinstance(event, StepDone):  # the state on disk before the save of this step
            states.append(load_state(tmp_path / "run" / "state.pt").step)
    assert states[:8] == [0, 0, 0, 0, 4, 4, 6, 6]


def test_a_score_that_is_not_a_number_is_not_the_best(tmp_path, shard_folder, monkeypatch):
    scores = iter([math.nan, 20.0, 19.0])
    monkeypatch.setattr(
        train_validation, "mean_scores", lambda _: {"psnr": next(scores), "ssim": 0.5}
    )
    short = ("coarse.iterations=3", "train.validate_every=1")
    result, events = run(request("coarse", shard_folder, tmp_path / "run", *short))
    assert [event.is_best for event in events if isinstance(event, Validated)] == [
        False,
        True,
        False,
    ]
    assert result.best_psnr == 20.0


def test_a_resumed_run_remembers_its_best_score(tmp_path, shard_folder, monkeypatch):
    score = {"psnr": 20.0, "ssim": 0.5}
    monkeypatch.setattr(train_validation, "mean_scores", lambda _: dict(score))
    short = ("coarse.iterations=4", "train.validate_every=1")
    stop_after(request("coarse", shard_folder, tmp_path / "run", *short), 3)
    score["psnr"] = 19.0
    result, events = resume("coarse", tmp_path / "run")
    assert not any(event.is_best for event in events if isinstance(event, Validated))
    assert result.best_psnr == 20.0


def test_file_names_of_samples_are_unique_and_short(tmp_path):
    assert sample_labels(["val/0001", "val/0002"]) == {"val/0001": "0001", "val/0002": "0002"}
    assert sample_labels(["C:a/1", "d/1"]) == {"C:a/1": "C_a_1", "d/1": "d_1"}  # not a drive
    assert sample_labels(["a?", "a:"]) == {"a?": "0-a_", "a:": "1-a_"}
    # of the character at the limit of 240 bytes, only the first two bytes would fit
    long, scenes = "a" + "雨" * 81, ["a/1", "b/1"]
    for names, begin in (([long], ["a" + "雨" * 79]), (scenes, ["val_a_1", "val_b_1"])):
        root = tmp_path / str(len(names))
        for number, name in enumerate([*(f"val/{name}" for name in names), "train/7"]):
            folder, _, base = name.rpartition("/")
            for side in ("lq", "gt"):
                (root / folder / side).mkdir(parents=True, exist_ok=True)
                save_rgb8(root / folder / side / f"{base}.png", picture(24, 32, number))
        prepare(PrepareOptions(source=root, out=root / "shards")).run()
        short = ("coarse.iterations=1", "coarse.patches=[16]", "coarse.batches=[1]")
        run(request("coarse", root / "shards", root / "run", *short))
        samples = sorted(path.name for path in (root / "run" / "samples").iterdir())
        assert samples == [f"{label}-000000001.png" for label in begin]


def test_micro_batches_are_chosen_again_on_another_machine(tmp_path, shard_folder):
    out, short = tmp_path / "run", ("coarse.iterations=4", "train.micro_batch=auto")
    with pytest.raises(Interrupted):
        run(request("coarse", shard_folder, out, *short, max_seconds=0.0))
    state = load_tensors(out / "state.pt")
    assert state["machine"] == ["cpu", 1]
    save_tensors(out / "state.pt", {**state, "machine": ["cuda", 2], "micro": {16: 1, 24: 1}})
    resume("coarse", out)
    assert load_state(out / "state.pt").micro == {16: 4, 24: 2}


@pytest.mark.slow
def test_a_run_folder_is_used_by_one_process(tmp_path, shard_folder):
    out = tmp_path / "run"
    stop_after(request("coarse", shard_folder, out, "coarse.iterations=4"), 3)
    hold = "import sys; from pathlib import Path\n"
    hold += "from c2fdft_cli.engine.train.folder import RunFolder\n"
    hold += "with RunFolder(Path(sys.argv[1])).held(): print('held', flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", hold, str(out)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    before = sorted(path.name for path in out.iterdir())
    with pytest.raises(ResourceError, match="another process trains in this folder"):
        resume("coarse", out)
    assert sorted(path.name for path in out.iterdir()) == before
    other.communicate("\n")
    with RunFolder(out).held():
        pass
    resume("coarse", out)
    assert len(losses(out)) == 2


def test_trainings_started_at_the_same_moment_use_different_folders(
    tmp_path, shard_folder, monkeypatch
):
    """All found the same name unused; the later ones take the next names and are not refused."""
    monkeypatch.chdir(tmp_path)
    wish = request("coarse", shard_folder.absolute(), None, "coarse.iterations=2")
    chosen = [set_up(wish) for _ in range(3)]
    assert {one.run.path.name for one in chosen} == {"tiny-coarse"}
    first = iter(train(chosen[0]))
    next(first)
    for options, name in zip(chosen[1:], ("tiny-coarse-2", "tiny-coarse-3"), strict=True):
        done = watch(train(options), options)
        assert (done.run.name, done.checkpoint.parent) == (name, done.run)
        assert (done.run / "train.log").is_file()
        assert load_state(done.run / "state.pt").step == 2
    first.close()
    held = {path.name for path in (tmp_path / "runs" / "tiny-coarse").iterdir()}
    assert not held & {"train.log", "coarse.pt", "tensorboard"}
    # a name that was requested is not replaced by another
    with pytest.raises(UsageError, match="the run folder is not empty"):
        run(replace(wish, out=Path("runs/tiny-coarse-2")))


SAME_NAME = """
    import os, sys
    from pathlib import Path
    from c2fdft_cli.engine.train.job import train
    from c2fdft_cli.engine.train.options import TrainOptions
    from c2fdft_cli.engine.train.setup import set_up
    from c2fdft_cli.execution.distributed import barrier, destroy_process_group

    data, *overrides = sys.argv[1:]
    overrides.append("coarse.iterations=1")
    request = TrainOptions(recipe="tiny", overrides=overrides, data=Path(data), device="cpu")
    options = set_up(request)
    barrier()
    if os.environ["RANK"] == "0":
        Path("runs/tiny-coarse").mkdir(parents=True)
        Path("runs/tiny-coarse/somebody").touch()
    done = train(options).run()
    assert done.run == Path("runs/tiny-coarse-2"), done
    destroy_process_group()
"""


@pytest.mark.acceptance
def test_all_processes_of_a_training_take_the_next_name(tmp_path, shard_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "same.py"
    script.write_text(textwrap.dedent(SAME_NAME))
    done = torchrun(str(script), str(shard_folder.absolute()), *MINI)
    assert done.returncode == 0, done.stderr


OWN_FOLDERS = """
    import os, sys
    from pathlib import Path
    from c2fdft_cli.engine.train.job import train
    from c2fdft_cli.engine.train.options import TrainOptions
    from c2fdft_cli.engine.train.setup import set_up
    from c2fdft_cli.errors import UsageError
    from c2fdft_cli.execution.distributed import destroy_process_group

    data, machines, *overrides = sys.argv[1:]
    out = Path(machines, os.environ["RANK"], "run")
    request = TrainOptions(recipe="tiny", overrides=overrides, data=Path(data), device="cpu",
                           precision="fp32", out=out, resume_auto=True)
    try:
        train(set_up(request))
    except UsageError as error:
        assert "(process 0: step 1, sha256 " in str(error), error
        assert str(error).endswith(", process 1: a new run)"), error
    else:
        raise AssertionError("the processes started from different states")
    destroy_process_group()
"""


@pytest.mark.acceptance
def test_a_state_that_only_one_machine_has_is_not_resumed(tmp_path, shard_folder):
    """The processes of the others would train new weights; all processes report it."""
    with pytest.raises(Interrupted):
        run(request("coarse", shard_folder, tmp_path / "0" / "run", max_seconds=0.0))
    script = tmp_path / "own.py"
    script.write_text(textwrap.dedent(OWN_FOLDERS))
    done = torchrun(script, shard_folder, tmp_path, *MINI)
    assert done.returncode == 0, done.stderr


def test_a_state_that_another_process_advanced_is_noticed(tmp_path, shard_folder):
    """The state was read before the other process finished, whose metrics must not be truncated."""
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        run(request("coarse", shard_folder, out, "coarse.iterations=4", max_seconds=0.0))
    late = train(
        set_up(TrainOptions("coarse", out=out, resume=True, device="cpu", precision="fp32"))
    )
    resume("coarse", out)
    rows = losses(out)
    with pytest.raises(ResourceError, match="another process has trained in this folder"):
        late.run()
    assert losses(out) == rows
    assert load_state(out / "state.pt").step == 4


def test_a_folder_with_only_a_lock_file_counts_as_empty(tmp_path, shard_folder):
    out = tmp_path / "run"
    out.mkdir()
    (out / ".lock").touch()
    run(request("coarse", shard_folder, out, "coarse.iterations=1"))
    assert (out / "coarse.pt").is_file()


def test_a_skipped_step_is_described():
    done = StepDone(7, 16, 4, math.nan, math.inf, 1e-4, True, 1.0, 0.0, 0)
    assert describe(done).endswith("waited 0.0%: no finite gradient, step skipped")
    assert "step skipped" not in describe(replace(done, skipped=False))


ONE_RANK_FAILS = """
    import os, sys
    from pathlib import Path
    import torch
    from c2fdft_cli.engine.train import fallbacks
    from c2fdft_cli.engine.train.step import objective
    from c2fdft_cli.execution.distributed import destroy_process_group
    from c2fdft_cli.engine.train.options import TrainOptions
    from c2fdft_cli.engine.train.setup import set_up
    from c2fdft_cli.engine.train.job import train

    fallbacks.is_compiled = lambda net: True  # so that a micro-batch is tried, as on CUDA
    forward, calls = objective.Objective.forward, []

    def hungry(self, *args):
        calls.append(1)
        if os.environ["RANK"] == "1" and len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, *args)

    objective.Objective.forward = hungry
    data, out, *overrides = sys.argv[1:]
    request = TrainOptions(
        stage="coarse", recipe="tiny", overrides=[*overrides, "coarse.iterations=2"],
        data=Path(data), out=Path(out), device="cpu", precision="fp32",
    )
    train(set_up(request)).run()
    destroy_process_group()
"""


@pytest.mark.acceptance
def test_one_process_out_of_memory_in_its_first_attempt(tmp_path, shard_folder):
    """It retries with a smaller micro-batch while the other waits; neither may wait for ever."""
    script = tmp_path / "fails.py"
    script.write_text(textwrap.dedent(ONE_RANK_FAILS))
    done = torchrun(str(script), str(shard_folder), str(tmp_path / "run"), *MINI)
    assert done.returncode == 0, done.stderr
    # the second process, with two of the four rows, reduced them to one, and so did the first
    assert load_state(tmp_path / "run" / "state.pt").micro[16] == 1


@pytest.mark.acceptance
def test_an_error_of_one_process_is_reported_and_ends_all(tmp_path, shard_folder):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    words = ["--recipe", "tiny", "--data", str(shard_folder), "--out", str(tmp_path / "full")]
    done = torchrun("-m", "c2fdft_cli", "train-coarse", "--device", "cpu", *words, *MINI)
    assert done.returncode != 0
    assert done.stderr.count("error [rank 0]: ") == 1
    assert f"{tmp_path / 'full'}: the run folder is not empty" in done.stderr
    assert "Traceback" not in done.stderr.split("error [rank 0]")[0]
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["notes.txt"]


def test_validation_samples_with_the_recipe_s_eta(tmp_path, shard_folder):
    """Its noise changes the scores of the same weights."""
    scores = {}
    for eta in (0.0, 1.0):
        out = tmp_path / str(eta)
        run(request("coarse", shard_folder, out, "coarse.iterations=1", f"sampling.eta={eta}"))
        scores[eta] = metrics(out)[-1]["val_psnr"]
    assert scores[0.0]
    assert scores[0.0] != scores[1.0]
