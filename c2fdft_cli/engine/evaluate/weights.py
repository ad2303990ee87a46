"""Score weights on the validation pairs of shards, or on other pairs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from c2fdft_cli.core.diffusion import check_timesteps
from c2fdft_cli.engine.evaluate.job import DEFAULT, EvalOptions, EvalResult, score_each
from c2fdft_cli.engine.evaluate.options import WeightsOptions
from c2fdft_cli.engine.evaluate.pairing import check_all_sizes
from c2fdft_cli.engine.evaluate.sidd import CHOSEN_BY, PROTOCOL, BlockPairs
from c2fdft_cli.engine.sampling.executor import Executor
from c2fdft_cli.engine.sampling.pairs import PairSource
from c2fdft_cli.engine.sampling.scoring import Scored, notes_of, restore_and_score, spread_indices
from c2fdft_cli.engine.sampling.subject import (
    Subject,
    open_subject,
    open_validation_of,
    trained_timesteps,
)
from c2fdft_cli.errors import CheckpointError, UsageError
from c2fdft_cli.progress import Job
from c2fdft_cli.words import many


def evaluate_weights(
    checkpoint: Path,
    runs: WeightsOptions,
    options: EvalOptions,
    *,
    data: Path | None = None,
    pairs: PairSource | None = None,
) -> Job[Scored, EvalResult]:
    """Restore pairs, and score the results and the inputs.

    The output is rounded first as `restore` rounds it, except with protocols for unrounded output.
    Pairs whose pixels cannot be read are skipped and listed in the result.

    Args:
        checkpoint: the weights.
        runs: how the weights restore.
        options: how the results are scored.
        data: folder of shards, whose validation pairs are used; None for the shards that the
            weights were trained on.
        pairs: pairs to use instead of shards.

    Raises:
        UsageError, ResourceError, CheckpointError, DataError: whichever occurs first.
    """
    subject = _open(checkpoint, runs, options, pairs)
    pairs = pairs or open_validation_of(data, subject)
    return _job(subject, pairs, _chosen(pairs, subject, runs, options), runs, options)


def compare_weights(
    a: Path,
    b: Path,
    runs: WeightsOptions,
    options: EvalOptions,
    *,
    data: Path | None = None,
    pairs: PairSource | None = None,
) -> tuple[Job[Scored, EvalResult], Job[Scored, EvalResult]]:
    """Evaluate two checkpoints so that their scores can be compared.

    B restores the same pairs as A and is scored with the protocol of A; a note says so if its own
    would be another. Only A's records contain pictures.

    Args:
        a, b: the two checkpoints.
        runs, options, data, pairs: as for `evaluate_weights`.

    Raises:
        UsageError, ResourceError, CheckpointError, DataError: whichever occurs first.
    """
    ours, theirs = (_open(path, runs, options, pairs) for path in (a, b))
    pairs = pairs or open_validation_of(data, ours)
    notes = []
    if theirs.protocol != ours.protocol:
        own, theirs = theirs.protocol.name, replace(theirs, protocol=ours.protocol)
        notes.append(f"note: scored with A's protocol, {ours.protocol.name}, not its own, {own}")
    alone = replace(options, pictures=False)
    chosen = _chosen(pairs, ours, runs, options)
    mine = _job(ours, pairs, chosen, runs, options)
    return mine, _job(theirs, pairs, chosen, runs, alone, notes)


def _open(
    checkpoint: Path, runs: WeightsOptions, options: EvalOptions, pairs: PairSource | None
) -> Subject:
    of_blocks = PROTOCOL if isinstance(pairs, BlockPairs) else None
    subject = open_subject(
        checkpoint,
        protocol=options.protocol or of_blocks,
        device=runs.device,
        precision=runs.precision,
    )
    _timesteps_in_use(subject, runs.grid)  # refuses others before the images are looked at
    return subject


def _chosen(
    pairs: PairSource, subject: Subject, runs: WeightsOptions, options: EvalOptions
) -> Sequence[int]:
    """Choose the pairs to score, and check their sizes."""
    chosen = spread_indices(len(pairs), runs.images)
    sizes = [(pairs.names[i], partial(pairs.size, i)) for i in chosen]
    border = options.border + subject.protocol.border
    check_all_sizes(sizes, border, options.looked, pairs.unit)
    return chosen


def _job(
    subject: Subject,
    pairs: PairSource,
    chosen: Sequence[int],
    runs: WeightsOptions,
    options: EvalOptions,
    remarks: Sequence[str] = (),
) -> Job[Scored, EvalResult]:
    timesteps = _timesteps_in_use(subject, runs.grid)
    restorers = [
        subject.executor(timesteps, seed, self_ensemble=runs.self_ensemble)
        for seed in range(runs.seed, runs.seed + runs.seeds)
    ]
    scorer = options.scorer(subject.protocol)

    def scored(i: int) -> Scored:
        return _mean(list(restore_and_score(pairs, [i], restorers, scorer)), subject)

    def notes(rows: list[Scored]) -> list[str]:
        events = [*subject.runtime.notes, *notes_of(rows)]
        return [
            *_sampling_notes(subject, restorers[0]),
            *remarks,
            *(f"note: {event}" for event in events),
            *([pairs.note] if pairs.note else []),
        ]

    recipe = subject.checkpoint.meta.recipe
    default = "the weights' recipe" if recipe is not None else DEFAULT
    if isinstance(pairs, BlockPairs):
        default = CHOSEN_BY
    depth = "unrounded" if subject.protocol.unrounded else "8 bit"
    known = EvalResult(
        protocol=subject.protocol,
        rows=[],
        scored_on=f"network output, {depth}",
        border=options.border,
        without_target=list(pairs.without_target),
        without_restored=list(pairs.without_input),
        found_by=pairs.found_by,
        recipe=recipe,
        chosen_by=options.chosen_by(default),
    )
    tasks = [(pairs.names[i], partial(scored, i)) for i in chosen]
    return score_each(tasks, known, options, unit=pairs.unit, ahead=False, notes=notes)


def _timesteps_in_use(subject: Subject, requested: tuple[int, ...] | None) -> list[int]:
    """Return the requested timesteps, otherwise the checkpoint's; UsageError if impossible."""
    if requested is None:
        return subject.checkpoint.timesteps()
    try:
        return check_timesteps(requested, subject.checkpoint.meta.diffusion.timesteps)
    except ValueError as error:
        raise UsageError(f"--grid: {error}") from error


def _sampling_notes(subject: Subject, executor: Executor) -> list[str]:
    """Return notes on the timesteps in use, and on others that fine weights were trained on."""
    timesteps = executor.sampler.timesteps
    steps = many(len(timesteps), "sampling step")
    notes = [f"timesteps: {', '.join(map(str, timesteps))} ({steps})"]
    if executor.runs > 1:
        notes.append(f"averaged over {executor.runs} flips and rotations")
    trained = trained_timesteps(subject.checkpoint)
    if trained is not None and trained != list(timesteps):
        listed = ", ".join(map(str, trained))
        notes.append(f"note: these fine weights were trained at other timesteps: {listed}")
    return notes


def _mean(of_seeds: Sequence[Scored], subject: Subject) -> Scored:
    """Merge the records of one image: mean scores over the seeds, pictures of the last seed.

    Raises:
        CheckpointError: a restored image has values that are not finite.
    """
    last = of_seeds[-1]
    if any(math.isnan(one.psnr) for one in of_seeds):
        what = f"the network produced NaN or infinite values for image {last.name}"
        raise CheckpointError(what, where=subject.checkpoint.path)
    return replace(
        last,
        psnr=statistics.fmean(one.psnr for one in of_seeds),
        ssim=statistics.fmean(one.ssim for one in of_seeds),
        more={key: statistics.fmean(one.more[key] for one in of_seeds) for key in last.more},
        by_seed=tuple(one.psnr for one in of_seeds) if len(of_seeds) > 1 else (),
        notes=tuple(notes_of(of_seeds)),
    )
