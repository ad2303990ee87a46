"""The weighted mean of the weights of several trainings that started from the same weights.

Trainings that continue one network with other data or settings stay in one basin of the loss, and
the mean of their weights often scores higher than each of them (Wortsman et al., 2022, "Model
soups"). It costs no training. For networks with different random initial weights the mean is
meaningless.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from c2fdft_cli.engine.weights.checkpoint import (
    Checkpoint,
    StateDict,
    load_checkpoint,
    save_checkpoint,
)
from c2fdft_cli.engine.weights.convert_options import ONNX, SUFFIXES
from c2fdft_cli.errors import CheckpointError, UsageError
from c2fdft_cli.files.folders import ensure_folder
from c2fdft_cli.files.paths import identity, same_files
from c2fdft_cli.files.writing import require_new
from c2fdft_cli.settings import split_words


def average(
    sources: Sequence[Path],
    out: Path,
    shares: Sequence[float] | None = None,
    *,
    overwrite: bool = False,
) -> dict[str, float]:
    """Write the weighted mean of the EMA weights as both the raw and the EMA set of a checkpoint.

    The metadata are those of the first source, without its scores: the mean has none yet.

    Args:
        sources: two or more checkpoints with the same stage, network, noise schedule, task,
            timesteps and `sampling.eta`.
        out: the file to write.
        shares: the share of each source, positive; divided by their sum. None for equal shares.
        overwrite: replace an existing file.

    Returns:
        The share of each source by its path, added up for one that is given twice; they sum to 1.

    Raises:
        UsageError: there are fewer than two different sources, the shares do not fit them, or `out`
            is a source, already exists, or does not have the suffix of a checkpoint.
        CheckpointError: a source cannot be read, or differs from the first.
        ResourceError: the file cannot be written.
    """
    parts = _parts(sources, shares)
    if same_files([out], sources):
        hint = "name another file with --out"
        raise UsageError("this output would replace an input", where=out, hint=hint)
    require_new(out, overwrite)
    _require_checkpoint(out)
    first = load_checkpoint(sources[0])
    total = {name: tensor.double() * parts[0] for name, tensor in first.ema.items()}
    for path, part in zip(sources[1:], parts[1:], strict=True):
        other = load_checkpoint(path)
        _require_alike(first, other)
        for name, tensor in other.ema.items():
            total[name].add_(tensor, alpha=part)
    mean: StateDict = {name: tensor.to(torch.float32) for name, tensor in total.items()}
    ensure_folder(out.parent)
    save_checkpoint(out, mean, mean, replace(first.meta, step=0, metrics=_kept_metrics(first)))
    shown: dict[str, float] = {}
    for path, part in zip(sources, parts, strict=True):  # one may be given twice
        shown[str(path)] = shown.get(str(path), 0) + part
    return shown


def parse_shares(text: str) -> list[float]:
    """Parse a list of numbers such as "0.7,0.3"; UsageError for anything that is not a number."""
    try:
        return [float(word) for word in split_words(text)]
    except ValueError as error:
        what = f"--shares must be numbers separated by commas, got {text}"
        raise UsageError(what, hint="for example --shares 0.7,0.3") from error


def _parts(sources: Sequence[Path], shares: Sequence[float] | None) -> list[float]:
    """Return the share of each source; the shares sum to 1."""
    count, different = len(sources), len(set(map(identity, sources)))
    if different < 2:
        named = f", named {count} times" if count > 1 else ""
        raise UsageError(f"a mean needs two checkpoints or more, got {different}{named}")
    given = [1.0] * count if shares is None else list(shares)
    if len(given) != count:
        what = f"--shares must be {count} numbers, one for each checkpoint, got {len(given)}"
        raise UsageError(what)
    if not all(math.isfinite(share) and share > 0 for share in given):
        numbers = ", ".join(f"{share:g}" for share in given)
        raise UsageError(f"--shares must be positive numbers, got {numbers}")
    # Divided by the largest first: the sum of two shares of 1e308 would be infinite.
    scaled = [share / max(given) for share in given]
    return [share / sum(scaled) for share in scaled]


def _require_checkpoint(out: Path) -> None:
    """Raise UsageError unless `convert` too would write a checkpoint to a file of this name."""
    form = SUFFIXES.get(out.suffix.lower())
    if form == ONNX:
        hint = "write a .pt, and convert that"
        raise UsageError("the mean is written as a checkpoint, not as ONNX", where=out, hint=hint)
    if form is None:
        hint = f"use {', '.join(suffix for suffix in SUFFIXES if SUFFIXES[suffix] != ONNX)}"
        raise UsageError("the suffix is not that of a checkpoint", where=out, hint=hint)


def _require_alike(first: Checkpoint, other: Checkpoint) -> None:
    """Raise CheckpointError if the two checkpoints cannot be averaged."""
    for what, ours, theirs in (
        ("stage", first.meta.stage, other.meta.stage),
        ("network", first.meta.network, other.meta.network),
        ("noise schedule", first.meta.diffusion, other.meta.diffusion),
        ("timesteps", first.timesteps(), other.timesteps()),
        ("sampling.eta", first.eta(), other.eta()),
        ("task", first.task(), other.task()),
        ("tensors", _shapes(first), _shapes(other)),
    ):
        if ours != theirs:
            raise CheckpointError(
                f"it differs in its {what} from {first.path}",
                where=other.path,
                hint="average trainings that continue the same weights",
            )


def _kept_metrics(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the metrics that stay true of the mean: the training's timesteps, noted by a sweep."""
    swept = checkpoint.meta.metrics.get("sweep")
    trained = swept.get("trained_grid") if isinstance(swept, dict) else None
    return {} if trained is None else {"sweep": {"trained_grid": trained}}


def _shapes(checkpoint: Checkpoint) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in checkpoint.ema.items()}
