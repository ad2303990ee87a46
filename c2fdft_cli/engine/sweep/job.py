"""How many sampling steps, at which times: stage two of the method, for any set of schedules."""

from __future__ import annotations

import os
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from c2fdft_cli.engine.sampling.pairs import ValidationPairs
from c2fdft_cli.engine.sampling.scoring import restore_and_score, spread_indices
from c2fdft_cli.engine.sampling.subject import (
    Subject,
    open_pairs,
    open_subject,
    trained_grid,
    weights_digest,
)
from c2fdft_cli.engine.sweep.log import SweepLog, Trial, TrialKey
from c2fdft_cli.engine.sweep.report import SweepResult, draw_sweep, stamp, summary, write_csv
from c2fdft_cli.engine.sweep.schedules import DEFAULT_RULE, Rule, make_grids, parse_rule
from c2fdft_cli.engine.sweep.table import make_table
from c2fdft_cli.engine.weights.catalogue import is_packaged
from c2fdft_cli.errors import CheckpointError, Interrupted, ResourceError, UsageError
from c2fdft_cli.execution.signals import StopRequest, graceful_stop
from c2fdft_cli.files import ensure_folder
from c2fdft_cli.progress import Job

MIDDLE = (300, 500, 700)
"""Single timesteps that are tried on coarse weights besides what is asked for."""


@dataclass(frozen=True)
class SweepOptions:
    """What to try, on what, and what to do with the outcome.

    Args:
        checkpoint: the weights.
        data: folder of shards; None for those that the weights were trained on.
        steps, spacings, starts: counts x spacings x first times (`make_grids`).
        grids: further timesteps to try.
        images: how many validation pairs; 0 for all.
        seeds: how many noises for each image, from `seed` up.
        rule: how the timesteps are chosen.
        protocol: of the scores; None for the recipe's.
        stamp: write the chosen timesteps into the checkpoint.
        out: folder of sweep.json, sweep.csv and sweep.png; None for the checkpoint's.
        overwrite: replace a sweep with other settings in that folder.
        device, precision: as `make_runtime`.
    """

    checkpoint: Path
    data: Path | None = None
    steps: tuple[int, ...] = tuple(range(1, 11))
    spacings: tuple[str, ...] = ("linspace",)
    starts: tuple[int, ...] = ()
    grids: tuple[tuple[int, ...], ...] = ()
    images: int = 0
    seeds: int = 1
    seed: int = 0
    rule: Rule = field(default_factory=lambda: parse_rule(DEFAULT_RULE))
    protocol: str | None = None
    stamp: bool = True
    out: Path | None = None
    overwrite: bool = False
    device: str = "auto"
    precision: str = "auto"


@dataclass(frozen=True)
class Tried:
    """One image restored at one set of timesteps."""

    name: str
    seed: int
    steps: int
    trial: Trial


def sweep(options: SweepOptions) -> Job[Tried, SweepResult]:
    """Restore the validation pairs at every set of timesteps, image by image, and choose one.

    Every trial is kept in sweep.json, so that the same command resumes after an interruption and
    computes nothing twice.

    Raises:
        UsageError, ResourceError, CheckpointError, DataError: whichever is met first.
        Interrupted: from the iteration, with everything so far saved.
    """
    if is_packaged(options.checkpoint) and (options.stamp or options.out is None):
        raise UsageError(
            "packaged weights cannot be written to",
            where=options.checkpoint,
            hint="use --no-stamp, and --out for the report",
        )
    subject = open_subject(
        options.checkpoint,
        protocol=options.protocol,
        device=options.device,
        precision=options.precision,
    )
    run = _Sweep(options, subject, open_pairs(subject, options.data))
    total = len(run.grids) * len(run.indices) * len(run.seeds)
    return Job(run.work(), total=total, title="sweep-steps", unit="restoration")


class _Sweep:
    """One sweep over one checkpoint."""

    def __init__(self, options: SweepOptions, subject: Subject, pairs: ValidationPairs) -> None:
        self.options, self.subject, self.pairs = options, subject, pairs
        meta = subject.checkpoint.meta
        self.trained = trained_grid(subject.checkpoint)
        stamped = [meta.grid] if meta.grid is not None else []
        trained = [self.trained] if self.trained is not None else []
        # coarse weights often restore best by one step in the middle of the schedule
        middle = [[t] for t in MIDDLE if t < meta.diffusion.timesteps and meta.stage == "coarse"]
        self.grids = make_grids(
            options.steps,
            options.spacings,
            options.starts,
            {"given": options.grids, "trained": trained, "stamped": stamped, "one step": middle},
            meta.diffusion.timesteps,
        )
        self.indices = spread_indices(len(pairs), options.images)
        self.names = [pairs.names[i] for i in self.indices]
        self.seeds = list(range(options.seed, options.seed + options.seeds))
        self.out = ensure_folder(options.out or options.checkpoint.parent)
        if options.stamp:
            _check_writable(options.checkpoint)
        self.log = SweepLog(self.out / "sweep.json", self._settings(), overwrite=options.overwrite)
        self.spent = 0

    def _settings(self) -> dict[str, Any]:
        """Everything but image, seed and timesteps that a trial depends on."""
        subject = self.subject
        return {
            "weights": weights_digest(subject.checkpoint),
            "data": self.pairs.shards.fingerprint,
            "degradation": _degradation(subject, self.pairs),
            "protocol": subject.protocol.name,
            "precision": subject.runtime.precision,
            "device": subject.runtime.device.type,
            "eta": subject.eta,
        }

    def work(self) -> Generator[Tried, None, SweepResult]:
        """Image by image, all timesteps."""
        with graceful_stop() as stop:
            for index, name in zip(self.indices, self.names, strict=True):
                for seed in self.seeds:
                    yield from self._try_image(index, name, seed, stop)
        return self._finish()

    def _try_image(
        self, index: int, name: str, seed: int, stop: StopRequest
    ) -> Generator[Tried, None, None]:
        """One image from one noise at all timesteps that have not been tried on it."""
        trials, keys = self.log.trials, [TrialKey(name, seed, g.times) for g in self.grids]
        missing = [key for key in keys if key not in trials]
        restorers = (self.subject.restorer(key.grid, seed) for key in missing)
        scored = restore_and_score(self.pairs, index, restorers, self.subject.protocol)
        for key in keys:
            if key not in trials:
                if stop:
                    self._interrupt(stop)
                one = next(scored)
                trials[key] = Trial(one.score.psnr, one.score.ssim, one.seconds)
                self.spent += len(key.grid)
            yield Tried(name, seed, len(key.grid), trials[key])
        if missing:
            self.log.save({"complete": False})

    def _interrupt(self, stop: StopRequest) -> None:
        self.log.save({"complete": False})
        number = stop.signal_number or 2
        hint = f"the same command resumes from {self.log.path}"
        raise Interrupted("sweep stopped", signal_number=number, hint=hint)

    def _finish(self) -> SweepResult:
        """Choose, write the files, stamp."""
        options, subject = self.options, self.subject
        rows = make_table(self.grids, self.log, self.names, self.seeds, options.rule, self.trained)
        chosen = next((row for row in rows if row.chosen), None)
        if chosen is None:
            self.log.save({"complete": True, "rows": [row.as_json() for row in rows]})
            raise CheckpointError(
                "these weights give finite images at no timesteps",
                where=options.checkpoint,
                hint="train again",
            )
        result = SweepResult(
            checkpoint=options.checkpoint,
            stage=subject.checkpoint.meta.stage,
            protocol=subject.protocol.name,
            images=len(self.names),
            seeds=len(self.seeds),
            rows=rows,
            chosen=chosen,
            rule=options.rule.describes,
            trained_grid=self.trained,
            steps_spent=self.spent,
            stamped=options.stamp,
            files=[self.log.path, self.out / "sweep.csv"],
        )
        self.log.save({"complete": True, **summary(result)})
        write_csv(self.out / "sweep.csv", rows)
        if draw_sweep(self.out / "sweep.png", result.rows, options.rule, result.protocol):
            result.files.append(self.out / "sweep.png")
        if options.stamp:
            stamp(result)
        return result


def _degradation(subject: Subject, pairs: ValidationPairs) -> dict[str, Any] | None:
    """What makes the degraded side of clean-only shards."""
    recipe = subject.checkpoint.meta.recipe
    if pairs.shards.has_lq or recipe is None:
        return None
    wanted = {key: recipe["data"].get(key) for key in ("synthesize", "synthesis", "streaks")}
    return {**wanted, "seed": recipe["train"]["seed"]}


def _check_writable(path: Path) -> None:
    """Before hours of work: can the timesteps be written into this file?"""
    if not os.access(path.resolve().parent, os.W_OK | os.X_OK):
        hint = "use --no-stamp, and --out for the report"
        raise ResourceError("the timesteps cannot be written into it", where=path, hint=hint)
