"""Resolves `--weights`, `--task` and `--steps` to a file: a checkpoint, or packaged weights."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from c2fdft_cli.engine.weights.catalogue import PackagedWeights, checked_file, read_catalogue
from c2fdft_cli.engine.weights.identify import WEIGHTS_SUFFIXES
from c2fdft_cli.errors import CheckpointError, UsageError
from c2fdft_cli.vocabulary import PACKAGED_TASKS, check_choice
from c2fdft_cli.words import did_you_mean, many

DEFAULT_TASK = "derain"
EQUAL = 0.1
"""Weights whose mean PSNR differs by at most this many dB count as equally good."""


@dataclass(frozen=True)
class ChosenWeights:
    """The weights that were chosen.

    path: the checkpoint file. A packaged file has been checked, another has not been opened.
    remarks: lines that tell the user about the choice.
    """

    path: Path
    remarks: list[str] = field(default_factory=list)


def choose_weights(
    spec: str | None, task: str | None = None, steps: int | None = None
) -> ChosenWeights:
    """Find the checkpoint file for `--weights` or, without it, for `--task` and `--steps`.

    A bare name of packaged weights means those, even if the current folder contains a file of this
    name; `./name` means the file. Checkpoints of the user's own runs are never chosen
    automatically.

    Args:
        spec: a file, or a name in `read_catalogue`; None for the packaged weights of `task`.
        task: one of `PACKAGED_TASKS`; None for deraining.
        steps: without `spec`, prefer weights that were trained for this number of sampling steps;
            None for those that score best.

    Raises:
        UsageError: there is no such task, or both `spec` and `task` are given.
        CheckpointError: nothing has this name, no weights are packaged for the task, or the
            installation is damaged.
    """
    if task is not None:
        check_choice("--task", task, PACKAGED_TASKS)
        if spec is not None:
            raise UsageError("--weights cannot be combined with --task")
    packaged = read_catalogue()
    if spec is None:
        return _of_task(packaged, task, steps)
    entry = _find_entry(spec, packaged)
    if entry is not None:
        return _named_by(spec, entry, "file" if os.path.isfile(spec) else None)
    path = Path(spec)
    if os.path.exists(spec) or path.suffix.lower() in WEIGHTS_SUFFIXES:
        return ChosenWeights(path)
    raise _no_such_weights(spec, f"{_nearest(spec, packaged)} (or give a file)")


def packaged_file(name: str) -> Path:
    """Return the checked file of packaged weights; CheckpointError if none have this name."""
    packaged = read_catalogue()
    entry = _named(name, packaged)
    if entry is None:
        raise _no_such_weights(name, _nearest(name, packaged))
    return checked_file(entry)


def find_path(spec: str) -> ChosenWeights:
    """Find the file of packaged weights if `spec` is their name, otherwise `spec` as a path.

    Raises:
        UsageError: `spec` is empty; `Path` would take it for the current folder.
        CheckpointError: nothing has this name, and it is nearly that of packaged weights.
    """
    if not spec:
        raise UsageError("the path is empty", hint="name a file, a folder, or packaged weights")
    packaged = read_catalogue()
    entry, there = _find_entry(spec, packaged), os.path.exists(spec)
    if entry is not None:
        kind = "folder" if os.path.isdir(spec) else "file"
        return _named_by(spec, entry, kind if there else None)
    near = did_you_mean(spec, packaged)
    if near is not None and not there and spec == Path(spec).stem:
        raise _no_such_weights(spec, f"{near} (or give a path)")
    return ChosenWeights(Path(spec))


def by_merit(entries: Sequence[PackagedWeights]) -> list[PackagedWeights]:
    """Sort the packaged weights of one task, the ones to prefer first.

    The order is that of the mean PSNR over the sets that all of them were scored on, except that
    those within `EQUAL` dB of the best come first, sorted by the number of sampling steps.
    """
    scores = [{one.set: one.psnr for one in entry.scores} for entry in entries]
    common = set.intersection(*map(set, scores)) if scores else set()
    means = {
        entry.name: statistics.fmean(of[name] for name in sorted(common)) if common else 0.0
        for entry, of in zip(entries, scores, strict=True)
    }
    best = max(means.values(), default=0.0)

    def rank(entry: PackagedWeights) -> tuple[bool, float, int, str]:
        worse = means[entry.name] < best - EQUAL
        return worse, -means[entry.name] if worse else 0.0, len(entry.grid), entry.name

    return sorted(entries, key=rank)


def _of_task(
    packaged: Mapping[str, PackagedWeights], task: str | None, steps: int | None
) -> ChosenWeights:
    """Choose the packaged weights of a task that were trained for `steps`, otherwise the best."""
    ranked = by_merit([one for one in packaged.values() if one.task == (task or DEFAULT_TASK)])
    if not ranked:
        raise _nothing_for(packaged, task)
    fitting = [entry for entry in ranked if len(entry.grid) == steps]
    chosen = (fitting or ranked)[0]
    why = f"for --steps {steps}" if fitting else "the default"
    remark = f"weights: {chosen.name}, {_steps(chosen)} ({why})"
    for other in ranked:
        if other is not chosen:
            times = f"{other.seconds_per_megapixel / chosen.seconds_per_megapixel:.2g}"
            how_long = "the same time" if times == "1" else f"{times} times the time"
            remark += f"; {other.name}: {_steps(other)}, {how_long}"
    tasks = [one for one in PACKAGED_TASKS if any(entry.task == one for entry in packaged.values())]
    if task is None and len(tasks) > 1:
        others = " or ".join(one for one in tasks if one != chosen.task)
        remark += f"; --task {others} for other degradations"
    return ChosenWeights(checked_file(chosen), [remark])


def _steps(entry: PackagedWeights) -> str:
    count = len(entry.grid)
    return many(count, "sampling step")


def _named(name: str, packaged: Mapping[str, PackagedWeights]) -> PackagedWeights | None:
    """Return the entry with this name, otherwise the one that formerly had it; None if none did."""
    once = (entry for entry in packaged.values() if name in entry.formerly)
    return packaged.get(name) or next(once, None)


def _find_entry(spec: str, packaged: Mapping[str, PackagedWeights]) -> PackagedWeights | None:
    """Return the entry that `spec` names; an existing file has priority over former names only."""
    entry = _named(spec, packaged)
    return None if entry and entry.name != spec and os.path.exists(spec) else entry


def _named_by(spec: str, entry: PackagedWeights, hidden: str | None) -> ChosenWeights:
    """Return the packaged weights that `spec` names.

    hidden: "file" or "folder" if one in the current folder has this name too.
    """
    remarks = []
    if entry.name != spec:
        remarks = [f"weights: {spec} is now named {entry.name}"]
    elif hidden is not None:
        remarks = [f"weights: {spec} is packaged; for the {hidden} of this name, give ./{spec}"]
    return ChosenWeights(checked_file(entry), remarks)


def _no_such_weights(name: str, hint: str) -> CheckpointError:
    return CheckpointError(f"there are no packaged weights {name!r}", hint=hint)


def _nothing_for(packaged: Mapping[str, PackagedWeights], task: str | None) -> CheckpointError:
    known = ", ".join(packaged) or "none"
    return CheckpointError(
        f"there are no packaged weights for the task {task or DEFAULT_TASK}",
        hint=f"give a checkpoint: --weights FILE (packaged: {known})",
        details=[
            f"train some: c2fdft train-coarse --recipe {task or DEFAULT_TASK} --data SHARDS",
            "or see every step on a small set: c2fdft demo",
        ],
    )


def _nearest(name: str, packaged: Mapping[str, PackagedWeights]) -> str:
    return did_you_mean(name, packaged) or f"packaged: {', '.join(packaged) or 'none'}"
