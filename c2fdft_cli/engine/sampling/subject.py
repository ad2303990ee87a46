"""A checkpoint and the pairs that it is tried on: what sweep-steps and `eval --weights` share."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from c2fdft_cli.core.diffusion import PredictNoise
from c2fdft_cli.engine.sampling.pairs import ValidationPairs, open_validation
from c2fdft_cli.engine.sampling.scoring import spread_indices
from c2fdft_cli.engine.weights.checkpoint import Checkpoint, load_checkpoint
from c2fdft_cli.errors import DataError, UsageError
from c2fdft_cli.execution.device import Runtime, make_runtime
from c2fdft_cli.execution.strips import StripNetwork
from c2fdft_cli.metrics.protocols import PROTOCOLS, Protocol
from c2fdft_cli.recipe.schema import Recipe


@dataclass(frozen=True)
class Loaded:
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

    @property
    def alpha_bar(self) -> Tensor:
        """alpha_bar_t of the checkpoint, `[T]`."""
        return self.checkpoint.alpha_bar()


@dataclass(frozen=True)
class Bench(Loaded):
    """Weights and the validation pairs of shards to try them on.

    Args:
        data: folder of the shards.
        pairs: its validation split.
        indices: of the pairs to take.
    """

    data: Path
    pairs: ValidationPairs
    indices: list[int]


def find_protocol(name: str) -> Protocol:
    """A protocol by name; UsageError for one that does not exist."""
    if name not in PROTOCOLS:
        hint = ", ".join(PROTOCOLS)
        raise UsageError(f"no such protocol: {name}", where="--protocol", hint=hint)
    return PROTOCOLS[name]


def open_bench(
    path: Path,
    *,
    data: Path | None = None,
    images: int = 0,
    protocol: str | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> Bench:
    """Load the weights and open the pairs; what is not given comes from the checkpoint.

    Args:
        path: the checkpoint.
        data: folder of shards; None for those that the weights were trained on.
        images: how many pairs, spread over the set; 0 for all.
        protocol: of the scores; None for the recipe's, else "rgb".
        device, precision: as `make_runtime`.

    Raises:
        UsageError, ResourceError, CheckpointError, DataError: whichever is met first.
    """
    loaded = open_weights(path, protocol=protocol, device=device, precision=precision)
    folder = data or _own_data(loaded.checkpoint)
    pairs = _open_pairs(folder, loaded.recipe)
    return Bench(
        **vars(loaded), data=folder, pairs=pairs, indices=spread_indices(len(pairs), images)
    )


def open_weights(
    path: Path,
    *,
    protocol: str | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> Loaded:
    """Load weights to score; arguments and errors as `open_bench`."""
    asked = None if protocol is None else find_protocol(protocol)
    runtime = make_runtime(device, precision)
    checkpoint = load_checkpoint(path)
    recipe = checkpoint.recipe([]) or Recipe()
    net = checkpoint.network().to(runtime.device).requires_grad_(False)
    default = recipe.train.protocol if checkpoint.meta.recipe is not None else "rgb"
    return Loaded(
        checkpoint,
        StripNetwork(net, dtype=runtime.dtype),
        asked or PROTOCOLS[default],
        runtime,
        recipe.sampling.eta,
        recipe,
    )


def _own_data(checkpoint: Checkpoint) -> Path:
    if checkpoint.meta.data is None:
        hint = "name shards made by `c2fdft prepare`"
        raise DataError("this checkpoint names no data", where="--data", hint=hint)
    return Path(checkpoint.meta.data)


def _open_pairs(folder: Path, recipe: Recipe) -> ValidationPairs:
    if not folder.is_dir():
        hint = "name shards made by `c2fdft prepare` with --data"
        raise DataError("no such folder of shards", where=folder, hint=hint)
    pairs = open_validation(folder, recipe)
    if pairs is None or not len(pairs):
        hint = "prepare the set again with --val N"
        raise DataError("no validation shards", where=folder, hint=hint)
    return pairs


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
