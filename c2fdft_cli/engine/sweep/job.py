"""The job that chooses the timesteps for given weights, from any set of schedules.

This is step 2 of the method in docs/paper.md, "Idea".
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any, NamedTuple

from c2fdft_cli.engine.sampling.pairs import ShardPairs, degradation
from c2fdft_cli.engine.sampling.scoring import (
    Scored,
    Scorer,
    notes_of,
    refuse_small_pairs,
    restore_and_score,
    spread_indices,
)
from c2fdft_cli.engine.sampling.subject import (
    Subject,
    open_subject,
    open_validation_of,
    trained_timesteps,
    weights_digest,
)
from c2fdft_cli.engine.sweep.log import SweepLog, Trial
from c2fdft_cli.engine.sweep.options import SweepOptions
from c2fdft_cli.engine.sweep.report import SweepResult, draw_sweep, stamp, summary, write_csv
from c2fdft_cli.engine.sweep.schedules import GIVEN, ONE_STEP, OWN, SINGLE, make_schedules
from c2fdft_cli.engine.sweep.table import make_table
from c2fdft_cli.engine.weights.catalogue import is_packaged
from c2fdft_cli.engine.weights.checkpoint import besides_weights
from c2fdft_cli.errors import CheckpointError, Interrupted, ResourceError, UsageError
from c2fdft_cli.files.folders import ensure_folder
from c2fdft_cli.files.locks import hold_folder
from c2fdft_cli.progress import Job
from c2fdft_cli.signals import StopRequest, graceful_stop


class Tried(NamedTuple):
    """An event: one image was restored by one schedule, now or in an earlier run."""

    trial: Trial
    scored: Scored


def sweep(checkpoint: Path, options: SweepOptions) -> Job[Tried, SweepResult]:
    """Restore the validation pairs by every schedule, image by image, and choose one schedule.

    Besides the requested schedules it tries the timesteps that the checkpoint holds, those that
    fine weights were trained on, and for coarse weights single steps in the middle of the
    diffusion. All scores are kept in sweep.json, so that the same command resumes after an
    interruption and computes no score twice.

    Args:
        checkpoint: the weights; the chosen timesteps are stored in it.
        options: what to try.

    Raises:
        UsageError, ResourceError, CheckpointError, DataError: the first problem that is found.
        Interrupted: while iterating; all scores so far are saved.
        ResourceError: while iterating: another sweep uses the same output folder.
        CheckpointError: while iterating: every schedule gives NaN or infinite values, or the file
            holds other weights at the end.
    """
    if is_packaged(checkpoint) and (options.stamp or options.out is None):
        raise UsageError(
            "packaged weights cannot be written to",
            where=checkpoint,
            hint="use --no-stamp, and --out for the report",
        )
    subject = open_subject(
        checkpoint,
        protocol=options.protocol,
        device=options.device,
        precision=options.precision,
    )
    run = Sweep(options, subject, open_validation_of(options.data, subject))
    total = len(run.schedules) * len(run.names) * len(run.seeds)
    return Job(run.work(), total=total, title="sweep-steps", unit="restoration")


class Sweep:
    """One sweep over one checkpoint.

    Args:
        options: what to try.
        subject: the weights.
        pairs: the validation pairs that they restore.
    """

    def __init__(self, options: SweepOptions, subject: Subject, pairs: ShardPairs) -> None:
        self.options = options
        self.subject = subject
        self.path = subject.checkpoint.path
        self.pairs = pairs
        self.indices = spread_indices(len(pairs), options.images)
        refuse_small_pairs(pairs, self.indices, subject.protocol)
        meta = subject.checkpoint.meta
        self.trained, self.current = trained_timesteps(subject.checkpoint), meta.grid
        total = meta.diffusion.timesteps
        own = [one for one in (self.trained, self.current) if one is not None]
        coarse = meta.stage == "coarse"
        single = [(round(share * total),) for share in ONE_STEP] if coarse else []
        self.schedules = make_schedules(
            options.steps,
            options.spacings,
            options.starts,
            {GIVEN: options.schedules, OWN: own, SINGLE: single},
            total,
        )
        self.names = [pairs.names[i] for i in self.indices]
        self.seeds = list(range(options.seed, options.seed + options.seeds))
        self.out = ensure_folder(options.out or self.path.parent)
        if options.stamp:
            _check_writable(self.path)
        self._settings = self._all_settings()
        self.log = self._read_log()
        self._calls = 0

    def _read_log(self) -> SweepLog:
        path = self.out / "sweep.json"
        return SweepLog(path, self._settings, overwrite=self.options.overwrite)

    def _all_settings(self) -> dict[str, Any]:
        """Return everything that a score depends on except image, seed and timesteps."""
        subject = self.subject
        return {
            # of the weights alone: storing timesteps changes the file, but scores remain valid
            "weights": weights_digest(subject.checkpoint),
            "data": self.pairs.shards.fingerprint,
            "degradation": self._degradation(),
            "protocol": subject.protocol.name,
            "precision": subject.runtime.precision,
            "device": subject.runtime.device.type,
            "eta": subject.checkpoint.eta(),
        }

    def _degradation(self) -> dict[str, Any] | None:
        """Return the settings that determine the degraded side of clean-only shards, else None."""
        if self.pairs.shards.has_lq or self.subject.checkpoint.meta.recipe is None:
            return None
        recipe = self.subject.recipe.to_dict()
        wanted = {key: recipe["data"].get(key) for key in ("synthesize", "synthesis")}
        degrade = degradation(self.subject.recipe.data)
        # their content: other masks may be at the same path
        streaks = None if degrade is None or degrade.streaks is None else degrade.streaks.digest()
        return {**wanted, "streaks": streaks, "seed": recipe["train"]["seed"]}

    def work(self) -> Generator[Tried, None, SweepResult]:
        """Try every schedule on each image, then choose a schedule and write the files."""
        with hold_folder(self.out, "another sweep is writing to this folder", ".sweep.lock"):
            self.log = self._read_log()  # another sweep may have written it in the meantime
            with graceful_stop() as stop:
                try:
                    for index, name in zip(self.indices, self.names, strict=True):
                        yield from self._try_image(index, name, stop)
                        self.log.save_if_due()
                finally:  # also after a signal or an error, such as a lack of memory
                    self.log.save_new()
            return self._finish()

    def _try_image(self, index: int, name: str, stop: StopRequest) -> Generator[Tried, None, None]:
        """Restore one image from every noise by every schedule, except trials that have a score."""
        trials = [
            Trial(name, seed, timesteps) for seed in self.seeds for timesteps in self.schedules
        ]
        new = [trial for trial in trials if trial not in self.log.scores]
        restorers = [self.subject.executor(trial.timesteps, trial.seed) for trial in new]
        # lazy, and in the order of `new`: each `next` below restores the image for its trial
        found = restore_and_score(self.pairs, [index], restorers, Scorer(self.subject.protocol))
        for trial in trials:
            if trial not in self.log.scores:
                if stop:
                    self._interrupt(stop)
                self.log.add(trial, next(found))
                self._calls += len(trial.timesteps)
            yield Tried(trial, self.log.scores[trial])

    def _interrupt(self, stop: StopRequest) -> None:
        number = stop.signal_number or 2
        hint = f"the same command resumes from {self.log.path}" if self.log.scores else None
        raise Interrupted("the sweep was stopped", signal_number=number, hint=hint)

    def _finish(self) -> SweepResult:
        """Choose a schedule, write the files and store the timesteps in the checkpoint."""
        options, subject = self.options, self.subject
        rows = make_table(
            self.schedules,
            self.log.scores,
            self.names,
            self.seeds,
            options.rule,
            self.trained,
            self.current,
        )
        chosen = next((row for row in rows if row.chosen), None)
        if chosen is None:
            self.log.save({"complete": True, "rows": [row.as_json() for row in rows]})
            what = "the network produced NaN or infinite values with every schedule"
            raise CheckpointError(what, where=self.path, hint="train again")
        result = SweepResult(
            checkpoint=self.path,
            stage=subject.checkpoint.meta.stage,
            protocol=subject.protocol.name,
            data=self.pairs.shards.paths[0].parent,
            images=len(self.names),
            seeds=len(self.seeds),
            rows=rows,
            chosen=chosen,
            rule=options.rule.describes,
            trained_grid=self.trained,
            calls_spent=self._calls,
            stamped=options.stamp,
            files=[self.log.path, self.out / "sweep.csv"],
            notes=(*subject.runtime.notes, *notes_of(self.log.scores.values())),
        )
        # Saved before the checkpoint is written: if the sweep is killed between the two, the same
        # command finds all scores and only stores the timesteps.
        self.log.save({"complete": True, **summary(result)})
        write_csv(self.out / "sweep.csv", rows)
        if draw_sweep(self.out / "sweep.png", rows, options.rule, subject.protocol.name):
            result.files.append(self.out / "sweep.png")
        if options.stamp:
            stamp(result, self.log.settings["weights"])
        return result


def _check_writable(path: Path) -> None:
    """Check, before hours of work, that the timesteps can be stored in this file.

    Raises:
        ResourceError: the file's folder is not writable.
        UsageError: the file has contents besides the weights, which would be lost.
    """
    # the folder's permission counts, because a rename changes the folder and not the file
    if not os.access(path.resolve().parent, os.W_OK | os.X_OK):
        hint = "use --no-stamp, and --out for the report"
        raise ResourceError("the checkpoint's folder is not writable", where=path, hint=hint)
    others = besides_weights(path)
    if others:
        shown = ", ".join(f"{name:.40}" for name in others[:4])
        more = ", ..." if len(others) > 4 else ""
        raise UsageError(
            "storing the timesteps would remove what the file holds besides the weights "
            f"({shown}{more})",
            where=path,
            hint="give the run's coarse.pt or checkpoints/last.pt, save only the weights with "
            "`c2fdft convert`, or use --no-stamp",
        )
