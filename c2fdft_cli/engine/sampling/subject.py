"""Weights that are scored: what sweep-steps and `eval --weights` share."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from c2fdft_cli.core.diffusion import PredictNoise
from c2fdft_cli.engine.sampling.pairs import ValidationPairs, open_validation
from c2fdft_cli.engine.sampling.restorer import Restorer
from c2fdft_cli.engine.weights.checkpoint import Checkpoint, load_checkpoint
from c2fdft_cli.errors import DataError, UsageError
from c2fdft_cli.execution.device import Runtime, make_runtime
from c2fdft_cli.execution.strips import StripNetwork
from c2fdft_cli.metrics.protocols import PROTOCOLS, Protocol
from c2fdft_cli.recipe.schema import Recipe


@dataclass(frozen=True)
class Subject:
    """Weights, ready to restore, and how their restorations are scored.

    Args:
        checkpoint: the weights.
        predict_noise: their network on the runtime's device.
        protocol: of the scores.
        runtime: device and arithmetic.
        eta: of the sampler.
        recipe: of the weights; the defaults where they carry none.
    """

    checkpoint: Checkpoint
    predict_noise: PredictNoise
    protocol: Protocol
    runtime: Runtime
    eta: float
    recipe: Recipe

    def restorer(self, grid: Sequence[int], seed: int) -> Restorer:
        """The sampler over these weights at other timesteps or from another noise."""
        alpha_bar = self.checkpoint.alpha_bar()
        return Restorer(self.predict_noise, alpha_bar, grid, self.runtime, eta=self.eta, seed=seed)


def find_protocol(name: str) -> Protocol:
    """A protocol by name; UsageError for one that does not exist."""
    if name not in PROTOCOLS:
        raise UsageError(f"--protocol must be one of {', '.join(PROTOCOLS)}, got {name}")
    return PROTOCOLS[name]


def open_subject(
    path: Path,
    *,
    protocol: str | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> Subject:
    """Load weights to score.

    Args:
        path: the checkpoint.
        protocol: of the scores; None for the recipe's, else "rgb".
        device, precision: as `make_runtime`.

    Raises:
        UsageError, ResourceError, CheckpointError: whichever is met first.
    """
    asked = None if protocol is None else find_protocol(protocol)
    runtime = make_runtime(device, precision)
    checkpoint = load_checkpoint(path)
    recipe = checkpoint.recipe([]) or Recipe()
    net = checkpoint.network().to(runtime.device).requires_grad_(False)
    default = recipe.train.protocol if checkpoint.meta.recipe is not None else "rgb"
    return Subject(
        checkpoint,
        StripNetwork(net, dtype=runtime.dtype),
        asked or PROTOCOLS[default],
        runtime,
        recipe.sampling.eta,
        recipe,
    )


def open_pairs(subject: Subject, data: Path | None) -> ValidationPairs:
    """The validation pairs of shards: those named, else those that the weights were trained on.

    Raises:
        DataError: there are none.
    """
    folder = data or _own_data(subject.checkpoint)
    if not folder.is_dir():
        hint = "give the shards that `c2fdft prepare` wrote with --data"
        raise DataError("no such folder of shards", where=folder, hint=hint)
    pairs = open_validation(folder, subject.recipe)
    if pairs is None or not len(pairs):
        hint = "prepare the set again with --val N"
        raise DataError("no validation shards in this folder", where=folder, hint=hint)
    return pairs


def _own_data(checkpoint: Checkpoint) -> Path:
    if checkpoint.meta.data is None:
        hint = "give the shards that `c2fdft prepare` wrote"
        raise DataError("--data is missing and the checkpoint names no shards", hint=hint)
    return Path(checkpoint.meta.data)


def trained_grid(checkpoint: Checkpoint) -> list[int] | None:
    """The grid that fine weights were trained on: an earlier sweep may have stamped another."""
    meta = checkpoint.meta
    if meta.stage != "fine":
        return None
    remembered = meta.metrics.get("sweep")
    if meta.grid_from == "sweep" and isinstance(remembered, dict):
        trained = remembered.get("trained_grid")
        return [int(t) for t in trained] if isinstance(trained, list) else None
    return meta.grid


def weights_digest(checkpoint: Checkpoint) -> str:
    """SHA-256 over the names and values of the EMA weights; metadata does not count."""
    digest = hashlib.sha256()
    for name, tensor in sorted(checkpoint.ema.items()):
        digest.update(name.encode() + b"\0")
        digest.update(tensor.float().numpy().tobytes())
    return digest.hexdigest()
