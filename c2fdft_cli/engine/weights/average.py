"""The weighted mean of several trainings' weights, for networks that began from the same ones.

Trainings that continue one network with other data or settings stay in one basin of the loss,
where the mean of their weights often scores above each (Wortsman et al., 2022, "Model soups"). It
costs no training. Networks that began from different random numbers have no such mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from c2fdft_cli.engine.weights.checkpoint import (
    Checkpoint,
    StateDict,
    load_checkpoint,
    save_checkpoint,
)
from c2fdft_cli.errors import CheckpointError, UsageError
from c2fdft_cli.files import ensure_folder, require_new
from c2fdft_cli.vocabulary import split_words


@dataclass(frozen=True)
class Averaged:
    """What was written: the sources with their shares, which sum to 1, and the mean's size."""

    out: Path
    sources: dict[str, float]
    bytes: int


def average(
    sources: Sequence[Path],
    out: Path,
    shares: Sequence[float] | None = None,
    *,
    overwrite: bool = False,
) -> Averaged:
    """Write the weighted mean of the EMA weights, as both sets of a checkpoint.

    What else the file says is the first source's; scores are left out, since the mean has none yet.

    Args:
        sources: two checkpoints or more, of one stage, network, noise schedule, task and set of
            timesteps.
        out: the file to write.
        shares: of each source, positive; divided by their sum. None for equal ones.
        overwrite: replace a file.

    Raises:
        UsageError: fewer than two sources, shares that do not fit them, or `out` is an ONNX file or
            already exists.
        CheckpointError: a source that cannot be read, or that differs from the first.
        ResourceError: the file cannot be written.
    """
    parts = _parts(len(sources), shares)
    if out.suffix.lower() == ".onnx":
        hint = "write a .pt, and convert that"
        raise UsageError("the mean is written as a checkpoint, not as ONNX", where=out, hint=hint)
    require_new(out, overwrite)
    first = load_checkpoint(sources[0])
    total = {name: tensor.double() * parts[0] for name, tensor in first.ema.items()}
    for path, part in zip(sources[1:], parts[1:], strict=True):
        other = load_checkpoint(path)
        _require_alike(first, other)
        for name, tensor in other.ema.items():
            total[name].add_(tensor, alpha=part)
    mean: StateDict = {name: tensor.to(torch.float32) for name, tensor in total.items()}
    ensure_folder(out.parent)
    save_checkpoint(out, mean, mean, replace(first.meta, step=0, metrics=_lasting(first)))
    shown: dict[str, float] = {}
    for path, part in zip(sources, parts, strict=True):  # one may be given twice
        shown[str(path)] = shown.get(str(path), 0) + part
    return Averaged(out, shown, out.stat().st_size)


def parse_shares(text: str) -> list[float]:
    """The numbers of "0.7,0.3"; UsageError for what is none."""
    try:
        return [float(word) for word in split_words(text)]
    except ValueError as error:
        what = f"--shares must be numbers with commas between, got {text}"
        raise UsageError(what, hint="--shares 0.7,0.3") from error


def _parts(count: int, shares: Sequence[float] | None) -> list[float]:
    """The share of each source, summing to 1."""
    if count < 2:
        raise UsageError(f"a mean needs two checkpoints or more, got {count}")
    given = [1.0] * count if shares is None else list(shares)
    if len(given) != count:
        raise UsageError(f"--shares must name {count} numbers, one a checkpoint, got {len(given)}")
    if not all(math.isfinite(share) and share > 0 for share in given):
        numbers = ", ".join(f"{share:g}" for share in given)
        raise UsageError(f"--shares must be positive numbers, got {numbers}")
    # by the largest first: two of 1e308 have no finite sum
    scaled = [share / max(given) for share in given]
    return [share / sum(scaled) for share in scaled]


def _require_alike(first: Checkpoint, other: Checkpoint) -> None:
    """CheckpointError where two checkpoints have no mean."""
    for what, ours, theirs in (
        ("stage", first.meta.stage, other.meta.stage),
        ("network", first.meta.network, other.meta.network),
        ("noise schedule", first.meta.diffusion, other.meta.diffusion),
        ("timesteps", first.grid(), other.grid()),
        ("task", first.task(), other.task()),
        ("tensors", _shapes(first), _shapes(other)),
    ):
        if ours != theirs:
            raise CheckpointError(
                f"it differs in its {what} from {first.path}",
                where=other.path,
                hint="average trainings that continue the same weights",
            )


def _lasting(checkpoint: Checkpoint) -> dict[str, Any]:
    """Of the metrics what is no score: the timesteps of the training, which a sweep has noted."""
    swept = checkpoint.meta.metrics.get("sweep")
    trained = swept.get("trained_grid") if isinstance(swept, dict) else None
    return {} if trained is None else {"sweep": {"trained_grid": trained}}


def _shapes(checkpoint: Checkpoint) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in checkpoint.ema.items()}
