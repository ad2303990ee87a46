"""Which weights does the user mean? A file, or the name of weights that come with the program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from c2fdft_cli.engine.weights.catalogue import Entry, checked_file, read_catalogue
from c2fdft_cli.errors import CheckpointError, UsageError
from c2fdft_cli.vocabulary import PACKAGED_TASKS, check_choice, did_you_mean

WEIGHTS_SUFFIXES = frozenset({".pt", ".pth", ".ckpt", ".safetensors"})
DEFAULT_TASK = "derain"


@dataclass(frozen=True)
class Found:
    """The weights that the user means.

    path: the checkpoint file; a packaged one has been checked, another is not opened.
    remarks: what the user should know of the choice.
    """

    path: Path
    remarks: list[str] = field(default_factory=list)


def packaged_weights() -> dict[str, Entry]:
    """Weights that are installed with the program, by name; CheckpointError if damaged."""
    return read_catalogue()


def find_weights(spec: str | None, task: str | None = None) -> Path:
    """The checkpoint file of `choose_weights`, without the remarks."""
    return choose_weights(spec, task).path


def choose_weights(spec: str | None, task: str | None = None) -> Found:
    """The checkpoint file that `--weights`, or else `--task`, stands for.

    A bare name of packaged weights means those, whatever lies in the current folder; `./name` is
    the file. A run is never picked by itself.

    Args:
        spec: a file, or a name out of `packaged_weights`; None for the packaged weights of `task`.
        task: one of `PACKAGED_TASKS`; None for deraining.

    Raises:
        UsageError: no such task, or a task beside weights.
        CheckpointError: nothing has this name, no weights of the task are packaged, or the
            installation is damaged.
    """
    if task is not None:
        check_choice("--task", task, PACKAGED_TASKS)
        if spec is not None:
            raise UsageError("--weights cannot be combined with --task")
    packaged = packaged_weights()
    if spec is None:
        return _of_task(packaged, task)
    if spec in packaged:
        shadow = f"weights: {spec} is packaged; for the file of this name, give ./{spec}"
        remarks = [shadow] if Path(spec).is_file() else []
        return Found(checked_file(packaged[spec]), remarks)
    path = Path(spec)
    if path.exists() or path.suffix.lower() in WEIGHTS_SUFFIXES:
        return Found(path)
    raise CheckpointError(
        f"there are no packaged weights {spec!r}",
        hint=f"{_nearest(spec, packaged)}; or give a file",
    )


def packaged_file(name: str) -> Path:
    """The checked file of packaged weights; CheckpointError when there are none of this name."""
    packaged = packaged_weights()
    if name not in packaged:
        hint = _nearest(name, packaged)
        raise CheckpointError(f"there are no packaged weights {name!r}", hint=hint)
    return checked_file(packaged[name])


def find_path(spec: str) -> Path:
    """The file of packaged weights if the word is a name of such, else the path that it is."""
    return packaged_file(spec) if spec in packaged_weights() else Path(spec)


def _of_task(packaged: Mapping[str, Entry], task: str | None) -> Found:
    """The packaged weights that bear the task's name, else the first that are for it."""
    wanted = task or DEFAULT_TASK
    names = sorted(
        (name for name, entry in packaged.items() if entry.task == wanted),
        key=lambda name: (name != wanted, name),
    )
    if not names:
        raise _nothing_for(packaged, task)
    chosen = names[0]
    others = ", ".join(name for name in packaged if name != chosen)
    remark = f"weights: {chosen} (the default)"
    remark += f"; others: {others} (--weights NAME, or --task)" if others else ""
    return Found(checked_file(packaged[chosen]), [remark] if task is None else [])


def _nothing_for(packaged: Mapping[str, Entry], task: str | None) -> CheckpointError:
    known = ", ".join(packaged) or "none"
    return CheckpointError(
        f"there are no packaged weights for the task {task or DEFAULT_TASK}",
        hint=f"give a checkpoint: --weights FILE (packaged: {known})",
        details=[
            f"train some: c2fdft train-coarse --recipe {task or DEFAULT_TASK} --data SHARDS",
            "or see every step on a small set: c2fdft demo",
        ],
    )


def _nearest(name: str, packaged: Mapping[str, Entry]) -> str:
    return did_you_mean(name, packaged) or f"packaged: {', '.join(packaged) or 'none'}"
