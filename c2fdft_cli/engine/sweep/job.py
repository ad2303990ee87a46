"""Which step grid suits these weights: stage two of the paper (section 1), for any set of grids."""

from __future__ import annotations

import math
import os
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from c2fdft_cli.data.images.tensors import as_tensor, to_unit
from c2fdft_cli.engine.sampling.restorer import Restorer
from c2fdft_cli.engine.sampling.scoring import score_restored
from c2fdft_cli.engine.sampling.subject import Bench, open_bench, trained_grid, weights_digest
from c2fdft_cli.engine.sweep.calls import SharedCalls, visiting_order
from c2fdft_cli.engine.sweep.log import SweepLog, Trial, TrialKey
from c2fdft_cli.engine.sweep.report import draw_sweep, write_csv
from c2fdft_cli.engine.sweep.result import SweepResult, stamp, summary
from c2fdft_cli.engine.sweep.schedules import DEFAULT_RULE, Rule, make_grids, parse_rule
from c2fdft_cli.engine.sweep.table import cannot_pay, make_table
from c2fdft_cli.engine.weights.catalogue import is_packaged
from c2fdft_cli.errors import CheckpointError, DataError, Interrupted, ResourceError, UsageError
from c2fdft_cli.execution.signals import StopRequest, graceful_stop
from c2fdft_cli.files import ensure_folder
from c2fdft_cli.progress import Job


@dataclass(frozen=True)
class SweepOptions:
    """What to try, on what, and what to do with the outcome.

    Args:
        checkpoint: the weights.
        data: folder of shards; None for those that the weights were trained on.
        steps, spacings, starts: counts x spacings x first times (`make_grids`).
        grids: further grids, as times.
        images: how many validation pairs; 0 for all.
        seeds: how many noises for each image, from `seed` up.
        rule: how the grid is chosen.
        protocol: of the scores; None for the recipe's.
        early_stop: give up grids that surely lose against one with no more calls.
        stamp: write the chosen grid into the checkpoint.
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
    early_stop: bool = False
    stamp: bool = True
    out: Path | None = None
    overwrite: bool = False
    device: str = "auto"
    precision: str = "auto"


@dataclass(frozen=True)
class Tried:
    """One image restored by one grid; `trial` is None where the grid had been given up."""

    name: str
    seed: int
    calls: int
    trial: Trial | None


def sweep(options: SweepOptions) -> Job[Tried, SweepResult]:
    """Restore the validation pairs by every grid, image by image, and choose a grid.

    Every trial is kept in sweep.json, so that the same command goes on after an interruption and
    computes nothing twice.

    Raises:
        UsageError, ResourceError, CheckpointError, DataError: whichever is met first.
        Interrupted: from the iteration, with everything so far saved.
    """
    if is_packaged(options.checkpoint) and (options.stamp or options.out is None):
        raise UsageError(
            "packaged weights are not written to",
            where=options.checkpoint,
            hint="use --no-stamp, and --out for the report",
        )
    bench = open_bench(
        options.checkpoint,
        data=options.data,
        images=options.images,
        protocol=options.protocol,
        device=options.device,
        precision=options.precision,
    )
    run = Sweep(options, bench)
    total = len(run.grids) * len(run.names) * len(run.seeds)
    return Job(run.work(), total=total, title="sweep-steps", unit="restoration")


class Sweep:
    """One sweep over one checkpoint.

    Args:
        options: what to try.
        bench: weights and pairs.
    """

    def __init__(self, options: SweepOptions, bench: Bench) -> None:
        self.options = options
        self.bench = bench
        meta = bench.checkpoint.meta
        self.trained = trained_grid(bench.checkpoint)
        explicit = [*options.grids, *([] if self.trained is None else [self.trained])]
        self.grids = make_grids(
            options.steps,
            options.spacings,
            options.starts,
            explicit,
            meta.diffusion.timesteps,
        )
        self.names = [bench.pairs.names[i] for i in bench.indices]
        self.seeds = list(range(options.seed, options.seed + options.seeds))
        self.out = ensure_folder(options.out or options.checkpoint.parent)
        if options.stamp:
            _check_writable(options.checkpoint)
        self.log = SweepLog(self.out / "sweep.json", self._settings(), overwrite=options.overwrite)
        self._dropped: set[tuple[int, ...]] = set()
        self._calls = SharedCalls(bench.predict_noise)

    def _settings(self) -> dict[str, Any]:
        """Everything but image, seed and grid that a trial depends on."""
        bench = self.bench
        return {
            "weights": weights_digest(bench.checkpoint),
            "data": bench.pairs.shards.fingerprint,
            "degradation": _degradation(bench),
            "protocol": bench.protocol.name,
            "precision": bench.runtime.precision,
            "device": bench.runtime.device.type,
            "eta": bench.eta,
        }

    def work(self) -> Generator[Tried, None, SweepResult]:
        """Image by image, every grid."""
        with graceful_stop() as stop:
            for index, name in zip(self.bench.indices, self.names, strict=True):
                for seed in self.seeds:
                    yield from self._try_image(index, name, seed, stop)
                if self.options.early_stop:
                    self._drop_losers()
        return self._finish()

    def _try_image(
        self, index: int, name: str, seed: int, stop: StopRequest
    ) -> Generator[Tried, None, None]:
        """One image from one noise by all grids, the common beginnings once."""
        times = [grid.times for grid in self.grids]
        lq = gt = None
        self._calls.forget()
        for i in visiting_order(times):
            key = TrialKey(name, seed, times[i])
            if key not in self.log.trials and times[i] not in self._dropped:
                if stop:
                    self._interrupt(stop)
                if lq is None or gt is None:
                    lq, gt = (as_tensor(pixels) for pixels in self.bench.pairs.pair(index))
                self.log.trials[key] = self._restore(key, lq, gt)
            yield Tried(name, seed, len(times[i]), self.log.trials.get(key))
        if lq is not None:
            self.log.save({"complete": False})

    def _restore(self, key: TrialKey, lq: Any, gt: Any) -> Trial:
        bench = self.bench
        restorer = Restorer(
            self._calls, bench.alpha_bar, key.grid, bench.runtime, eta=bench.eta, seed=key.seed
        )
        self._calls.begin(key.grid)
        restored = restorer(to_unit(lq), [key.name]).cpu()
        if not restored.isfinite().all():
            return Trial(math.nan, math.nan, self._calls.seconds)
        try:
            score = score_restored(restored, gt, bench.protocol)
        except ValueError as error:
            raise DataError(str(error), where=key.name, hint="leave small images out") from error
        return Trial(score.psnr, score.ssim, self._calls.seconds)

    def _drop_losers(self) -> None:
        metric = "ssim" if self.options.rule.kind == "ssim" else "psnr"
        rivals = [grid for grid in self.grids if grid.times not in self._dropped]
        self._dropped |= {
            grid.times
            for grid in rivals
            if list(grid.times) != self.trained
            and cannot_pay(grid, rivals, self.log, metric, self.names)
        }

    def _interrupt(self, stop: StopRequest) -> None:
        self.log.save({"complete": False})
        number = stop.signal_number or 2
        hint = f"{self.log.path} has what is done: the same command goes on"
        raise Interrupted("sweep stopped", signal_number=number, hint=hint)

    def _finish(self) -> SweepResult:
        """Choose, write the files, stamp."""
        options, bench = self.options, self.bench
        rows = make_table(self.grids, self.log, self.names, self.seeds, options.rule, self.trained)
        chosen = next((row for row in rows if row.chosen), None)
        if chosen is None:
            self.log.save({"complete": True, "rows": [row.as_json() for row in rows]})
            what = "no grid gives finite images with these weights"
            raise CheckpointError(what, where=options.checkpoint, hint="train again")
        result = SweepResult(
            checkpoint=options.checkpoint,
            stage=bench.checkpoint.meta.stage,
            protocol=bench.protocol.name,
            images=len(self.names),
            seeds=len(self.seeds),
            rows=rows,
            chosen=chosen,
            rule=options.rule.describes,
            trained_grid=self.trained,
            calls_spent=self._calls.spent,
            calls_naive=sum(row.calls * row.trials for row in rows),
            stamped=options.stamp,
            files=[self.log.path, self.out / "sweep.csv"],
        )
        self.log.save({"complete": True, **summary(result)})
        write_csv(self.out / "sweep.csv", rows)
        if draw_sweep(self.out / "sweep.png", result.rows, options.rule, bench.protocol.name):
            result.files.append(self.out / "sweep.png")
        if options.stamp:
            stamp(result)
        return result


def _degradation(bench: Bench) -> dict[str, Any] | None:
    """What makes the degraded side of clean-only shards."""
    if bench.pairs.shards.has_lq or bench.checkpoint.meta.recipe is None:
        return None
    recipe = bench.checkpoint.meta.recipe
    wanted = {key: recipe["data"].get(key) for key in ("synthesize", "synthesis", "streaks")}
    return {**wanted, "seed": recipe["train"]["seed"]}


def _check_writable(path: Path) -> None:
    """Before hours of work: can the grid be written into this file?"""
    if not os.access(path.resolve().parent, os.W_OK | os.X_OK):
        hint = "use --no-stamp, and --out for the report"
        raise ResourceError("cannot write the grid into the checkpoint", where=path, hint=hint)
