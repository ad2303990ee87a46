"""Recovery from steps that fail, and from scoring that fails."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch

from c2fdft_cli.engine.sampling.executor import MIN_ROWS, Executor
from c2fdft_cli.engine.sampling.sampler import Sampler
from c2fdft_cli.engine.tools.bench import random_batch
from c2fdft_cli.engine.train import fallbacks as attempts
from c2fdft_cli.engine.train.job import train
from c2fdft_cli.engine.train.plan import TrainPlan
from c2fdft_cli.engine.train.setup import set_up
from c2fdft_cli.engine.train.state import load_state
from c2fdft_cli.engine.train.step.objective import make_objective
from c2fdft_cli.engine.train.step.stepper import Stepper
from c2fdft_cli.engine.train.validator import Validator
from c2fdft_cli.errors import ResourceError
from tests.kit.training import (
    collect,
    losses,
    metrics,
    notices,
    request,
    resume,
    run,
    weights_that_differ,
)


def fallbacks_of(options: TrainPlan) -> attempts.Fallbacks:
    stepper = Stepper(make_objective(options), options.recipe.train, options.runtime)
    return attempts.Fallbacks(options, stepper, notify=print)


@pytest.mark.parametrize(("wanted", "rank", "vote"), [(9, 0, 2), (9, 2, 2), (1, 0, 2), (1, 2, 1)])
def test_a_process_with_fewer_rows_does_not_divide_those_of_others(
    tmp_path, shard_folder, monkeypatch, wanted, rank, vote
):
    """Of the four rows the first process has one and the last two."""
    options = set_up(request("coarse", shard_folder, tmp_path / "run"))
    train = replace(options.recipe.train, micro_batch=wanted)
    options = replace(
        options,
        recipe=replace(options.recipe, train=train),
        runtime=replace(options.runtime, rank=rank, world=3),
    )
    votes = []
    monkeypatch.setattr(attempts, "all_reduce_min", lambda vote, _: votes.append(vote) or vote)
    rows = 2 if rank == 2 else 1
    fallbacks_of(options).fit(random_batch(rows, 16, 1000))
    assert votes == [vote]


@pytest.mark.acceptance
@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("[x] DefaultCPUAllocator: no")],
)
def test_out_of_memory_continues_in_smaller_micro_batches(
    tmp_path, shard_folder, monkeypatch, error
):
    step, sizes = Stepper.step, []

    def hungry(self, batch, share, lr, micro_batch):
        sizes.append((len(batch), micro_batch))
        if micro_batch > 1:
            raise error
        return step(self, batch, share, lr, micro_batch)

    monkeypatch.setattr(Stepper, "step", hungry)
    short = ("coarse.iterations=4", "coarse.batches=[9,2]", "train.micro_batch=9")
    _, events = run(request("coarse", shard_folder, tmp_path / "run", *short))
    assert sizes[:5] == [(9, 9), (9, 5), (9, 3), (9, 2), (9, 1)]
    said = [one for one in notices(events) if one.startswith("out of memory")]
    assert said[:2] == [
        f"out of memory: patches of 16 px now run in micro-batches of {micro}" for micro in (5, 3)
    ]
    assert load_state(tmp_path / "run" / "state.pt").micro == {16: 1, 24: 1}


@pytest.fixture
def compiled(tmp_path, shard_folder):
    """The fallbacks of a training whose network counts as compiled, with nine images a batch."""
    words = ("coarse.batches=[9,2]", "train.micro_batch=9")
    made = fallbacks_of(set_up(request("coarse", shard_folder, tmp_path / "run", *words)))
    made._stepper.net._compiled_call_impl = made._stepper.net.forward
    made.micro[16] = 9
    return made


def test_a_step_that_lacks_memory_is_tried_with_half_the_images_until_it_fits(compiled):
    """Nothing is left of the attempts that failed."""
    tried, weight = [], next(compiled._stepper.net.parameters())

    def attempt(micro):
        assert weight.grad is None
        tried.append(micro)
        weight.grad = weight.detach()
        if micro > 1:
            raise torch.OutOfMemoryError
        return "done"

    assert compiled._until_done(16, attempt, alone=True) == "done"
    assert tried == [9, 5, 3, 2, 1]
    assert compiled.is_compiled


@pytest.mark.parametrize(
    ("error", "alone"), [(ResourceError("too many bad steps"), True), (KeyError("a bug"), False)]
)
def test_what_uncompiled_code_cannot_mend_is_raised(compiled, error, alone):
    """Own errors, and those that a single process of several had: the others still wait."""
    tried = []

    def attempt(micro):
        tried.append(micro)
        raise error

    with pytest.raises(type(error)):
        compiled._until_done(16, attempt, alone)
    assert len(tried) == 1
    assert compiled.is_compiled


@pytest.mark.parametrize(
    ("dtype", "loss", "expected", "remains"),
    [
        (torch.float32, 1.0005, 1.0, True),
        (torch.float32, 1.005, 1.0, False),
        (torch.bfloat16, 0.985, 1.0, True),
        (torch.bfloat16, 0.975, 1.0, False),
        (torch.float32, math.nan, 1.0, False),
        (torch.float32, 1.0, math.nan, True),
    ],
)
def test_the_loss_of_compiled_code_may_differ_by_rounding(
    compiled, monkeypatch, dtype, loss, expected, remains
):
    compiled._runtime = replace(compiled._runtime, dtype=dtype)
    monkeypatch.setattr(Stepper, "loss", lambda *_: expected)
    compiled._check_compiled(random_batch(2, 16, 1000), loss)
    assert compiled.is_compiled == remains


def test_all_processes_run_uncompiled_if_one_has_to(compiled, monkeypatch):
    votes = []
    monkeypatch.setattr(Stepper, "try_out", lambda *_: 1.0)
    monkeypatch.setattr(Stepper, "loss", lambda *_: 1.0)

    def of_another_process(own, _):
        votes.append(own)
        return 0 if len(votes) == 1 else own

    monkeypatch.setattr(attempts, "all_reduce_min", of_another_process)
    compiled.fit(random_batch(9, 16, 1000))
    assert votes == [1, 9]
    assert not compiled.is_compiled


def test_the_memory_of_a_recorded_step_is_free_where_other_work_is_measured(
    tmp_path, shard_folder, monkeypatch
):
    """Before the micro-batch of another patch size is chosen, and before images are scored."""
    step, choose, recorders, held = Stepper.step, attempts.choose_micro_batch, [], []

    def recorded(self, *args):
        result = step(self, *args)
        self.recorder._recording = "a recording"
        recorders.append(self.recorder)
        return result

    def chosen(*args):
        held.extend(one._recording for one in recorders[-1:])
        return choose(*args)

    def scored(self, *_):
        held.append(recorders[-1]._recording)
        raise MemoryError

    monkeypatch.setattr(Stepper, "step", recorded)
    monkeypatch.setattr(attempts, "choose_micro_batch", chosen)
    monkeypatch.setattr(Validator, "_score", scored)
    short = ("coarse.iterations=2", "coarse.switch_every=1")
    run(request("coarse", shard_folder, tmp_path / "run", *short, "train.micro_batch=auto"))
    assert held == [None, None]


def test_out_of_memory_with_one_image_is_an_error(tmp_path, shard_folder, monkeypatch):
    def hungry(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Stepper, "step", hungry)
    events = []
    with pytest.raises(ResourceError, match="out of memory at patches of 16 px") as caught:
        collect(train(set_up(request("coarse", shard_folder, tmp_path / "run"))), events)
    assert "smaller network" in caught.value.hint
    assert [one.partition(" now ")[2] for one in notices(events)] == [
        "run in micro-batches of 2", "run in micro-batches of 1"
    ]  # fmt: skip


def test_a_failed_attempt_ends_in_all_processes(tmp_path, shard_folder, monkeypatch):
    """None is left waiting; the hint names a micro-batch to resume with, which then works."""
    options = set_up(request("coarse", shard_folder, tmp_path / "run"))
    with monkeypatch.context() as patch:

        def hungry(*_):
            raise torch.OutOfMemoryError

        patch.setattr(Stepper, "step", hungry)
        job = train(replace(options, runtime=replace(options.runtime, world=2)))
        with pytest.raises(ResourceError, match="in micro-batches of 2") as caught:
            job.run()
    assert "--resume train.micro_batch=1" in caught.value.hint
    _, events = resume("coarse", tmp_path / "run", "train.micro_batch=1")
    assert "patches of 16 px: a batch of 4 runs in micro-batches of 1" in notices(events)


def test_a_network_that_cannot_be_compiled_runs_uncompiled(
    tmp_path, shard_folder, coarse_run, monkeypatch
):
    def fails_backward(net, wish, runtime):
        def call(x, t):
            y = net.forward(x, t)
            y.register_hook(boom)
            return y

        def boom(gradient):
            raise RuntimeError("Triton: out of resource: shared memory\nand a page about it")

        net._compiled_call_impl = call

    monkeypatch.setattr(attempts, "compile_in_place", fails_backward)
    _, events = run(request("coarse", shard_folder, tmp_path / "run"))
    said = notices(events)
    assert said == [
        "compiling for patches of 16 px, which may take a minute",
        "torch.compile failed (RuntimeError: Triton: out of resource: shared memory): "
        "the network runs uncompiled",
    ]
    assert weights_that_differ(tmp_path / "run" / "coarse.pt", coarse_run / "coarse.pt") == []


@pytest.mark.parametrize(
    ("setting", "much", "asked"),
    [("auto", attempts.MUCH_WORK, "off"), ("auto", 3 * 1000 * 12, "auto"), ("on", 1 << 60, "on")],
)
def test_a_short_training_is_compiled_only_if_requested(
    tmp_path, shard_folder, monkeypatch, setting, much, asked
):
    """It has 12 iterations of 4 x 16^2 or 2 x 24^2 pixels."""
    wishes = []
    monkeypatch.setattr(attempts, "MUCH_WORK", much)
    monkeypatch.setattr(attempts, "compile_in_place", lambda net, wish, _: wishes.append(wish))
    options = set_up(request("coarse", shard_folder, tmp_path / "r", f"train.compile={setting}"))
    fallbacks_of(options).compile()
    assert wishes == [asked]


@pytest.mark.parametrize(("part", "asked"), [("feed-forward", "off"), ("norm", "auto")])
def test_a_network_that_trains_by_the_kernels_is_not_compiled(
    tmp_path, shard_folder, monkeypatch, part, asked
):
    """Kernels for the norms alone do not count: feed-forward networks move most of the bytes."""
    wishes = []
    monkeypatch.setattr(attempts, "MUCH_WORK", 1)
    monkeypatch.setattr(attempts, "compile_in_place", lambda net, wish, _: wishes.append(wish))
    monkeypatch.setattr(attempts, "kernels_in_use", lambda *_: frozenset({(part, 8)}))
    options = set_up(request("coarse", shard_folder, tmp_path / "r", "train.compile=auto"))
    fallbacks_of(options).compile()
    assert wishes == [asked]


def test_compiled_code_with_wrong_results_is_not_used(
    tmp_path, shard_folder, coarse_run, monkeypatch
):
    def miscompiled(net, wish, runtime):
        net._compiled_call_impl = lambda x, t: 1.1 * net.forward(x, t)

    monkeypatch.setattr(attempts, "compile_in_place", miscompiled)
    _, events = run(request("coarse", shard_folder, tmp_path / "run"))
    said = notices(events)
    assert len(said) == 2
    what = r"the compiled network's loss is \S+ instead of \S+: the network runs .*"
    assert re.fullmatch(what, said[1])
    assert weights_that_differ(tmp_path / "run" / "coarse.pt", coarse_run / "coarse.pt") == []


def test_an_error_without_a_remedy_is_raised(tmp_path, shard_folder, monkeypatch):
    def broken(*_):
        raise KeyError("a bug")

    monkeypatch.setattr(Stepper, "step", broken)
    with pytest.raises(KeyError, match="a bug"):
        run(request("coarse", shard_folder, tmp_path / "run"))


@pytest.mark.acceptance
def test_running_out_of_memory_in_scoring_skips_only_the_score(
    tmp_path, shard_folder, coarse_run, monkeypatch
):
    error = RuntimeError("[x] DefaultCPUAllocator: no")
    restore, init = Sampler.__call__, Executor.__init__
    rows, starts = [], []

    def called(self, network, *rest):
        rows.append(network.rows)
        if len(starts) == 1 or rows[-1] > MIN_ROWS:
            raise error
        return restore(self, network, *rest)

    def started(self, *args, **kwargs):
        starts.append(1)
        init(self, *args, **kwargs)

    monkeypatch.setattr(Sampler, "__call__", called)
    monkeypatch.setattr(Executor, "__init__", started)
    _, events = run(request("coarse", shard_folder, tmp_path / "run", "train.validate_every=4"))
    expected = "step 4: not enough memory to restore the validation images, so there is no score"
    assert expected in notices(events)
    scored = [bool(row["val_psnr"]) for row in metrics(tmp_path / "run")]
    assert scored == [False, False, False, True, False, True]
    assert rows[:2] == [40, 10]
    assert weights_that_differ(tmp_path / "run" / "coarse.pt", coarse_run / "coarse.pt") == []


def test_a_failure_in_scoring_loses_no_step(tmp_path, shard_folder, coarse_run, monkeypatch):
    """The state is saved before scoring, and a resumed training does the scoring that was due."""

    def broken(*_):
        raise OSError("the validation shard is gone")

    def failing(score, step):
        with monkeypatch.context() as patch:
            patch.setattr(Validator, "_score", score)
            with pytest.raises(OSError, match="is gone"):
                run(begin) if step == 6 else resume("coarse", tmp_path / "run")
        state = load_state(tmp_path / "run" / "state.pt")
        assert (state.step, state.unscored) == (step, True)

    begin = request("coarse", shard_folder, tmp_path / "run")
    failing(broken, 6)
    failing(_up_to(6, Validator._score), 12)
    resume("coarse", tmp_path / "run")
    resume("coarse", tmp_path / "run")  # resuming a finished run does nothing and loses nothing
    assert weights_that_differ(tmp_path / "run" / "coarse.pt", coarse_run / "coarse.pt") == []
    assert losses(tmp_path / "run") == losses(coarse_run)
    columns = ("iteration", "val_psnr")
    table = [[row[c] for c in columns] for row in metrics(tmp_path / "run")]
    assert table == [[row[c] for c in columns] for row in metrics(coarse_run)]


def _up_to(step, score):
    def scored_then_broken(self, k, *rest):
        if k > step:
            raise OSError("the validation shard is gone")
        return score(self, k, *rest)

    return scored_then_broken


def test_resuming_removes_temporary_files_of_a_killed_run(tmp_path, shard_folder):
    run(request("coarse", shard_folder, tmp_path / "run", "coarse.iterations=1"))
    left = tmp_path / "run" / "checkpoints" / ".0123456789abcdef.tmp.pt"
    mine = tmp_path / "run" / ".notes.tmp.txt"
    left.touch()
    mine.touch()
    resume("coarse", tmp_path / "run")
    assert not left.exists()
    assert mine.exists()


def test_a_step_has_the_learning_rate_of_its_iteration(tmp_path, shard_folder, monkeypatch):
    """The first step has the full rate, as docs/paper.md counts from 0."""
    rates = []
    step = Stepper.step

    def noted(self, batch, share, lr, micro_batch):
        rates.append(lr)
        return step(self, batch, share, lr, micro_batch)

    monkeypatch.setattr(Stepper, "step", noted)
    periods = '[{"length": 3, "floor": 0.0}]'
    wanted = ("coarse.iterations=3", "coarse.lr=1e-3", f"coarse.periods={periods}")
    run(request("coarse", shard_folder, tmp_path / "run", *wanted))
    assert rates == pytest.approx([1e-3 * (1 + math.cos(math.pi * k / 3)) / 2 for k in range(3)])


def test_the_estimated_work_grows_with_what_is_computed(tmp_path, shard_folder, coarse_run):
    def work(*changes, world=1):
        words = ("sampling.grid=[500]", "fine.patches=[16]", "fine.batches=[2]", *changes)
        init = coarse_run / "coarse.pt"
        options = set_up(request("fine", shard_folder, tmp_path / "run", *words, init=init))
        return fallbacks_of(
            replace(options, runtime=replace(options.runtime, world=world))
        )._pixels()

    least = work()
    assert least > 16**2 * 2
    assert work("sampling.grid=[900,600,300]") == 3 * least
    assert work("fine.batches=[6]") == 3 * least
    assert work("fine.patches=[32]") == 4 * least
    assert work("fine.iterations=16") == 2 * least == 4 * work(world=2)
    assert least < work("fine.patches=[16,32]", "fine.batches=[2,2]") < 4 * least
