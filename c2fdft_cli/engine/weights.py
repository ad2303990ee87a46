"""Which weights does the user mean? A file, or the name of weights that come with the program."""

from __future__ import annotations

from pathlib import Path

from c2fdft_cli.errors import CheckpointError

WEIGHTS_SUFFIXES = frozenset({".pt", ".pth", ".ckpt"})


def packaged_weights() -> dict[str, Path]:
    """Weights that are installed with the program, by name; none so far."""
    return {}


def find_weights(spec: str | None, task: str | None = None) -> Path:
    """The checkpoint file that `--weights` (or the task) stands for; it is not opened.

    A run is never picked by itself: without a choice by the user there are no weights.

    Args:
        spec: a file, or a name out of `packaged_weights`.
        task: "derain", "deblur" or "denoise": take the packaged weights of that name.

    Raises:
        CheckpointError: nothing was chosen, or nothing has this name.
    """
    packaged = packaged_weights()
    if spec is None and task is None:
        raise CheckpointError(
            "no weights to restore with",
            where="--weights",
            hint="name a checkpoint: --weights FILE",
            details=[
                "train some: c2fdft train-coarse --recipe derain --data SHARDS",
                "or see all of it work on a small set: c2fdft demo",
                *(f"or take --weights {name}" for name in sorted(packaged)),
            ],
        )
    name = spec if spec is not None else str(task)
    if name in packaged:
        return packaged[name]
    path = Path(name)
    if spec is not None and (path.exists() or path.suffix.lower() in WEIGHTS_SUFFIXES):
        return path
    known = ", ".join(sorted(packaged)) or "none are packaged"
    raise CheckpointError(
        "no weights of this name", where=name, hint=f"give a .pt or .pth file (names: {known})"
    )
