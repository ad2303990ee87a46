"""The training loop of both stages, which differ in their objective and one recipe section."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from c2fdft_cli.data.shards.reader import ShardSet
from c2fdft_cli.engine.sampling.pairs import degradation
from c2fdft_cli.engine.train.batches import make_loader, patch_cycle
from c2fdft_cli.engine.train.curves import draw_curves
from c2fdft_cli.engine.train.events import (
    Begun,
    Notice,
    Saved,
    StepDone,
    TrainEvent,
    TrainResult,
    Validated,
)
from c2fdft_cli.engine.train.fallbacks import Fallbacks
from c2fdft_cli.engine.train.plan import TrainPlan
from c2fdft_cli.engine.train.saving import RunImages, RunState, machine
from c2fdft_cli.engine.train.state import LoadedState, StateToResume
from c2fdft_cli.engine.train.step.objective import make_objective
from c2fdft_cli.engine.train.step.stepper import CALMER, Stepper, StepResult
from c2fdft_cli.engine.train.tensorboard import TensorBoard
from c2fdft_cli.engine.train.validator import Validator, scorable_validation
from c2fdft_cli.engine.weights.stored import enough_memory
from c2fdft_cli.errors import CheckpointError, Interrupted, ResourceError, UsageError
from c2fdft_cli.execution.distributed import (
    all_reduce_min,
    any_rank,
    barrier,
    refuse_unlike_starts,
)
from c2fdft_cli.execution.memory import peak_bytes, trim_heap
from c2fdft_cli.files.reading import sha256_of
from c2fdft_cli.progress import Job
from c2fdft_cli.signals import StopRequest, graceful_stop, unwinding
from c2fdft_cli.validation import validate
from c2fdft_cli.words import for_shell

Out = TypeVar("Out")
CURVES_EVERY = 30.0
"""Minimum seconds between two drawings of curves.png; each takes about half a second."""


def train(plan: TrainPlan) -> Job[TrainEvent, TrainResult]:
    """Make the job that trains one stage; it yields an event for each step, score and saved file.

    Raises:
        UsageError: the run folder is not empty, the shards are not those of the run, the settings
            of the degradation are invalid, TensorBoard is required but not installed, or other
            processes of the training start from another state.
        DataError: there are no usable shards or streak masks, or a validation image is too small to
            be scored.
        CheckpointError: the state or the initial weights cannot be used.
        ResourceError: raised while iterating: out of memory, disk full, no finite gradient.
        Interrupted: raised while iterating: stopped by a signal or the time limit, after saving
            the state.
    """
    training = _Training(plan)
    return Job(
        training.events(),
        total=training.section.iterations - training.step,
        title=f"train-{plan.stage}",
        unit="step",
    )


def resume_command(plan: TrainPlan) -> str:
    """Return the command line that resumes this run."""
    out = str(plan.run.path)
    return for_shell("c2fdft", f"train-{plan.stage}", "--resume", "--out", out)


@dataclass
class _Window:
    """Sums since the last row of metrics.csv."""

    loss: float = 0.0
    steps: int = 0
    images: int = 0
    skipped: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    def add(self, result: StepResult, images: int, seconds: float, waited: float) -> None:
        if result.skipped:
            self.skipped += 1
        else:
            self.loss += result.loss
            self.steps += 1
        self.images += images
        self.seconds += seconds
        self.waited += waited


class _Training:
    """One run of a training process: checks and loads everything, then yields the events."""

    def __init__(self, plan: TrainPlan) -> None:
        self.plan = plan
        self.recipe, self.run, self.runtime = plan.recipe, plan.run, plan.runtime
        self.section = plan.section
        self.cycle = patch_cycle(self.section)
        # first, because this may raise a UsageError, and usage is checked before data
        self.board = TensorBoard(
            self.run.tensorboard, self.recipe.train.tensorboard, self.runtime.is_main
        )
        self.shards = ShardSet.open(plan.data, "train")
        pairs = scorable_validation(plan.data, self.recipe) if self.runtime.is_main else None
        self.stepper = Stepper(make_objective(plan), self.recipe.train, self.runtime)
        # here, before anything is written, because invalid settings of a degradation are an error
        degrade = degradation(self.recipe.data)
        images = RunImages(
            train=self.shards.fingerprint,
            validation="" if pairs is None else pairs.shards.fingerprint,
            streaks="" if degrade is None or degrade.streaks is None else degrade.streaks.digest(),
        )
        self.state = RunState(plan, images, self.stepper)
        self.step = self.saved = 0
        self.curves_at = time.monotonic()
        self.window = _Window()
        self.unscored = False
        self.notices: list[Notice] = []
        self.fallbacks = Fallbacks(
            plan, self.stepper, notify=lambda text: self.notices.append(Notice(text))
        )
        if plan.resume is not None:
            self._restore_state(plan.resume)
        if self.runtime.world > 1:
            refuse_unlike_starts(self._start(), self.runtime)
        self.loader = make_loader(
            self.recipe, self.section, self.shards, degrade, self.step + 1, self.runtime
        )
        self.validator = Validator(plan, pairs, self.state, self.board)

    def _restore_state(self, state: StateToResume) -> None:
        path, loaded = state.path, state.take()
        self._refuse_other_images(loaded)
        try:
            with enough_memory(path):
                self.stepper.load(loaded.stepper)
            self.window = validate(_Window, loaded.window)
        # Any of these is raised if the weights or the optimiser's state have other shapes or types,
        # or if it is not an optimiser's state at all.
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            what = f"a damaged training state: {str(error).splitlines()[0]}"
            raise CheckpointError(what, where=path) from error
        self.step = self.saved = loaded.step
        # The last step is scored and logged. The state does not say that this is due if its step
        # is the last one only now, because fewer iterations were requested.
        logged = {int(row["iteration"]) for row in self.run.read_metrics()}
        shortened = self.step == self.section.iterations and self.step not in logged
        self.unscored = loaded.unscored or shortened
        same = (loaded.micro_batch, loaded.machine)
        # Micro-batches of other sizes would round differently; with those of the state, the
        # resumed run equals an uninterrupted one bit for bit.
        if same == (self.recipe.train.micro_batch, machine(self.runtime)):
            self.fallbacks.micro = loaded.micro
        self.state.best_psnr = loaded.best_psnr
        self.state.metrics = dict(loaded.meta.metrics)

    def _start(self) -> str:
        """Describe the state that this process starts from, for a comparison with the others."""
        resume = self.plan.resume
        if resume is None:
            return "a new run"
        return f"step {self.step}, sha256 {sha256_of(resume.path)[:12]}"

    def _refuse_other_images(self, loaded: LoadedState) -> None:
        """Raise UsageError unless the images are those of the run, also those for validation.

        Scores on other images could not be compared with the best one so far.
        """
        images, hint = self.state.images, "as before, or start a new run with --init"
        if loaded.streaks not in (None, images.streaks):
            what = "the streak masks are not those of this run"
            raise UsageError(what, where=self.recipe.data.streaks, hint=f"give data.streaks {hint}")
        # Only the main process opens the validation images; older states do not describe them.
        compared = self.runtime.is_main and loaded.scored_on is not None
        if loaded.fingerprint != images.train:
            what = "these shards are not the ones that this run was trained on"
        elif compared and loaded.scored_on != images.validation:
            what = "the validation images of these shards are not those of this run"
        else:
            return
        raise UsageError(what, where=self.plan.data, hint=f"give --data {hint}")

    def events(self) -> Generator[TrainEvent, None, TrainResult]:
        with self._opened_run():
            self._agree_on_folder()
            # Only now is the name of the folder, which the hint contains, final in all processes.
            resume = f"resume from the last saved state with {resume_command(self.plan)}"
            with unwinding(resume):
                return (yield from self._events())

    @property
    def logged_step(self) -> int:
        """The last step that is logged: the one before, while this one's score is still due."""
        return self.step - 1 if self.unscored else self.step

    def _events(self) -> Generator[TrainEvent, None, TrainResult]:
        started = time.monotonic()
        yield self._begun()
        yield from map(Notice, self.plan.remarks(self.shards.has_lq))
        yield from self._reporting(self.fallbacks.compile)
        with graceful_stop() as request, closing(self.board):
            self.board.open(self.logged_step)
            if self.unscored:
                ended = yield from self._score_and_log(request)
                if ended:
                    barrier()
                    raise self._interrupted(request)
                self._save()
            yield from self._steps(request, started)
        # This runs even if there was no step left: a run that was killed exactly here has its last
        # state but no final checkpoint, and writes the checkpoint when it is resumed.
        self._refuse_diverged()
        checkpoint = self.run.path / f"{self.plan.stage}.pt"
        if self.runtime.is_main:
            self.state.save_final(checkpoint, self.step)
            draw_curves(self.run)
            yield Saved(self.step, checkpoint)
        barrier()
        seconds = time.monotonic() - started
        return TrainResult(self.run.path, checkpoint, self.step, self.state.best_psnr, seconds)

    def _refuse_diverged(self) -> None:
        """Raise ResourceError if the last scores are NaN; each save has checked the weights."""
        if math.isnan(self.state.metrics.get("psnr", 0.0)):
            what = "the training diverged: its network produces NaN or infinite values"
            raise ResourceError(what, where=self.run.path, hint=CALMER)

    def _begun(self) -> Begun:
        return Begun(
            data=self.plan.data,
            pairs=len(self.shards),
            validation=self.validator.images,
            parameters=sum(one.numel() for one in self.stepper.net.parameters()),
            step=self.step,
            iterations=self.section.iterations,
            device=str(self.runtime.device),
            precision=self.runtime.precision,
            best_psnr=self.state.best_psnr,
        )

    def _reporting(self, work: Callable[[], Out]) -> Generator[Notice, None, Out]:
        """Call `work`, yield the notices that it made (even if it raised), return its result."""
        try:
            return work()
        finally:
            notices, self.notices = self.notices, []
            yield from notices

    @contextmanager
    def _opened_run(self) -> Iterator[None]:
        """Lock the run folder, and create it or restore it to the state to resume from."""
        if not self.runtime.is_main:
            yield
            return
        resume = self.plan.resume
        # The folder may be changed only under the lock. What was checked before the lock was held
        # is checked again: that the state is still the one that was read, or (in `begun`) that the
        # folder is still free.
        with self.run.begun(self.plan.files) if resume is None else self.run.held():
            if resume is None:
                self._save()  # from now on the run can be resumed
            else:
                self._cut_back(resume)
            yield

    def _cut_back(self, resume: StateToResume) -> None:
        """Restore the folder to the state to resume from, unless another process trained in it."""
        if self.run.state_stamp() != resume.stamp:
            raise ResourceError(
                "another process has trained in this folder since its state was read",
                where=self.run.path,
                hint="repeat the command to resume from the state that the other process saved",
            )
        self.run.remove_unfinished()
        if resume.path != self.run.state:
            self.run.set_aside_state()
        # If the state's score is still due, its row is logged after the score. A run that was
        # killed between writing that row and the next save has the row already: it is dropped
        # here, because it will be logged again.
        self.run.cut_metrics(self.logged_step)
        if self.plan.files:  # the recipe or the precision has changed: save it in the state too
            self.run.write_files(self.plan.files)
            self._save()

    def _agree_on_folder(self) -> None:
        """Use the folder name that the main process has found free, in all processes."""
        if self.run.number:
            own = self.run.number if self.runtime.is_main else sys.maxsize
            self.run.to_number(all_reduce_min(own, self.runtime.device))
        self.board.folder = self.run.tensorboard

    def _steps(self, request: StopRequest, started: float) -> Generator[TrainEvent, None, None]:
        clock, waited = time.perf_counter(), 0.0
        for batch in self.loader:
            yield from self._reporting(partial(self.fallbacks.fit, batch))
            result = yield from self._reporting(partial(self.fallbacks.step, batch))
            self.step = batch.iteration
            now = time.perf_counter()
            yield self._count(result, now - clock, self.loader.waited - waited)
            limit = self.plan.max_seconds
            out_of_time = limit is not None and time.monotonic() - started >= limit
            # Signals and clocks differ between processes, but all must stop after the same step:
            # a process that continued would wait for the gradients of those that have stopped.
            stop = any_rank(bool(request) or out_of_time, self.runtime.device)
            ended = yield from self._log_score_save(stop, request)
            if ended or (stop and self.step < self.section.iterations):
                barrier()
                raise self._interrupted(request)
            clock, waited = time.perf_counter(), self.loader.waited

    def _count(self, result: StepResult, seconds: float, waited: float) -> StepDone:
        patch, images = self.cycle.size_at(self.step)
        self.window.add(result, images, seconds, waited)
        return StepDone(
            iteration=self.step,
            patch=patch,
            batch=images,
            loss=result.loss,
            grad_norm=result.grad_norm,
            lr=self.stepper.lr,
            skipped=result.skipped,
            seconds=seconds,
            waited=min(waited / max(seconds, 1e-9), 1.0),
            memory=peak_bytes(self.runtime.device),
        )

    def _log_score_save(
        self, stop: bool, request: StopRequest
    ) -> Generator[TrainEvent, None, bool]:
        """Do what is due after this step: save the state, validate, log a row of metrics.csv.

        The state is saved before the validation, so that a failure in the validation loses no step
        and a stop does not have to wait for it. If steps have just been skipped, the last good
        state is kept, and the state is saved after the next good step.

        Returns:
            Whether scoring was ended, in all processes; it is then still due.
        """
        train, last = self.recipe.train, self.step == self.section.iterations
        self.unscored = last or self.step % train.validate_every == 0
        # This compares multiples of save_every instead of testing `step % save_every`, so that a
        # save that was due at a skipped step is done at the next good one.
        overdue = self.step // train.save_every > self.saved // train.save_every
        due = last or stop or ((overdue or self.unscored) and not self.stepper.bad_steps)
        # A row is written before the state that includes its step: if the run is killed between
        # the two, resuming drops the row and logs it again. In the other order it would be lost.
        if not self.unscored and self.step % train.log_every == 0:
            self._log(None)
        if due:
            self._save()
        ended = False
        if self.unscored and (last or not stop):
            ended = yield from self._score_and_log(request)
            # `ended` without `due`: steps were skipped, so nothing was saved before the validation
            if due or ended:
                self._save()
        if due or ended:
            yield Saved(self.step, self.run.state)
        return ended

    def _score_and_log(self, request: StopRequest) -> Generator[TrainEvent, None, bool]:
        self.stepper.recorder.forget()  # the validation needs the memory of the recorded step
        scored, ended = yield from self.validator.validate(self.step, request)
        if not ended:
            self._log(scored)
            self.unscored = False
        return ended

    def _log(self, scored: Validated | None) -> None:
        if self.runtime.is_main:
            row = self._row(scored)
            self.run.append_metrics(row)
            self.board.row(row, peak_bytes(self.runtime.device))
        self.window = _Window()

    def _save(self) -> None:
        self.stepper.check_weights()  # raises before the last good state is replaced
        self.saved = self.step
        if not self.runtime.is_main:
            return
        self.board.flush()
        self.state.save(self.step, self.fallbacks.micro, vars(self.window), self.unscored)
        if time.monotonic() - self.curves_at >= CURVES_EVERY:
            draw_curves(self.run)
            self.curves_at = time.monotonic()
        if self.runtime.device.type == "cpu":
            trim_heap()

    def _row(self, scored: Validated | None) -> dict[str, Any]:
        patch, batch = self.cycle.size_at(self.step)
        window = self.window
        row: dict[str, Any] = {
            "iteration": self.step,
            "patch": patch,
            "batch": batch,
            "lr": f"{self.stepper.lr:.6g}",
            # All digits, because this column is used to check that a resumed run equals an
            # uninterrupted one.
            "loss": repr(window.loss / window.steps) if window.steps else "",
            "skipped": window.skipped,
            "images_per_second": f"{window.images / max(window.seconds, 1e-9):.1f}",
            "waited": f"{window.waited / max(window.seconds, 1e-9):.3f}",
        }
        if scored is not None:
            row |= {"val_psnr": f"{scored.psnr:.4f}", "val_ssim": f"{scored.ssim:.5f}"}
        return row

    def _interrupted(self, request: StopRequest) -> Interrupted:
        return Interrupted(
            f"stopped after step {self.step} of {self.section.iterations}, state saved",
            signal_number=request.signal_number or signal.SIGTERM,
            hint=f"resume with {resume_command(self.plan)}",
        )
