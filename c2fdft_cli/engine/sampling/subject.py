"""A checkpoint that is ready to restore, and the shards that it is scored on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from c2fdft_cli.core.diffusion import check_timesteps
from c2fdft_cli.engine.sampling.ensemble import transforms_for
from c2fdft_cli.engine.sampling.executor import Executor
from c2fdft_cli.engine.sampling.pairs import ShardPairs, open_validation
from c2fdft_cli.engine.sampling.sampler import Sampler
from c2fdft_cli.engine.weights.checkpoint import Checkpoint, load_checkpoint
from c2fdft_cli.engine.weights.identify import not_a_checkpoint
from c2fdft_cli.errors import DataError
from c2fdft_cli.execution.device import Runtime, make_runtime
from c2fdft_cli.execution.strips import StripNetwork
from c2fdft_cli.metrics.protocols import PROTOCOLS, Protocol
from c2fdft_cli.recipe.schema import Recipe
from c2fdft_cli.validation import NotBool, validate


@dataclass(frozen=True)
class Subject:
    """Weights that are ready to restore, and how the restored images are scored.

    Args:
        checkpoint: the weights.
        network: their network, on the runtime's device.
        protocol: the protocol of the scores.
        runtime: device and precision.
        recipe: the recipe of the weights; the default recipe if they have none.
    """

    checkpoint: Checkpoint
    network: StripNetwork
    protocol: Protocol
    runtime: Runtime
    recipe: Recipe

    def executor(
        self, timesteps: Sequence[int], seed: int, *, self_ensemble: bool = False
    ) -> Executor:
        """Return an executor that restores with these weights.

        Args:
            timesteps: descending timesteps, one per sampling step.
            seed: the seed of the noise.
            self_ensemble: whether to average over flips and rotations.
        """
        return Executor(
            self.network,
            Sampler(self.checkpoint.alpha_bar(), list(timesteps), self.checkpoint.eta(), seed),
            self.runtime,
            transforms=transforms_for(self.checkpoint.task(), self_ensemble),
        )


def open_subject(path: Path, *, protocol: str | None, device: str, precision: str) -> Subject:
    """Load weights to score.

    Args:
        path: the checkpoint.
        protocol: the protocol of the scores; None for the recipe's, or "rgb" without a recipe.
        device, precision: as for `make_runtime`.

    Raises:
        UsageError, ResourceError, CheckpointError: whichever occurs first.
    """
    runtime = make_runtime(device, precision)
    checkpoint = load_checkpoint(path)
    recipe = checkpoint.recipe([]) or Recipe()
    net = checkpoint.network().to(runtime.device).requires_grad_(False)
    return Subject(
        checkpoint,
        StripNetwork(net, dtype=runtime.dtype),
        PROTOCOLS[protocol or recipe.train.protocol],
        runtime,
        recipe,
    )


def open_validation_of(folder: Path | None, subject: Subject) -> ShardPairs:
    """Open the validation pairs of a shard folder.

    Args:
        folder: the folder; None for the one that the weights were trained on.
        subject: the weights.

    Raises:
        DataError: no such folder, no validation shards in it, or the weights name none or other
            images than are in it.
    """
    hint = "name shards made by `c2fdft prepare` with --data"
    is_named = folder is not None
    if folder is None:
        own, path = subject.checkpoint.meta.data, subject.checkpoint.path
        if own is None:
            raise DataError("the checkpoint does not name its data", where=path, hint=hint)
        folder = Path(own)
    if not folder.is_dir():
        raise DataError("no such folder of shards", where=folder, hint=hint)
    pairs = open_validation(folder, subject.recipe)
    if pairs is None or not len(pairs):
        hint = "prepare the set again with --val N"
        raise DataError("no validation shards in the folder", where=folder, hint=hint)
    if not is_named:
        subject.checkpoint.refuse_other_data(pairs.shards)
    return pairs


@dataclass(frozen=True)
class _Swept:
    """The part of a checkpoint's `metrics.sweep` that is read."""

    trained_grid: list[Annotated[int, NotBool]] | None


def trained_timesteps(checkpoint: Checkpoint) -> list[int] | None:
    """Return the timesteps that fine weights were trained on; None for others, or if not known.

    They may differ from the checkpoint's timesteps if a sweep has replaced these after training.

    Raises:
        CheckpointError: the sweep's record does not contain valid timesteps.
    """
    meta = checkpoint.meta
    if meta.stage != "fine":
        return None
    remembered = meta.metrics.get("sweep")
    if meta.grid_from == "sweep" and isinstance(remembered, dict):
        values = {"trained_grid": remembered.get("trained_grid")}
        try:
            trained = validate(_Swept, values).trained_grid
            return None if trained is None else check_timesteps(trained, meta.diffusion.timesteps)
        except ValueError as error:
            raise not_a_checkpoint(
                checkpoint.path, f"its metadata cannot be used: metrics.sweep: {error}"
            ) from error
    return meta.grid


def weights_digest(checkpoint: Checkpoint) -> str:
    """Return the SHA-256 of the names and values of the EMA weights, without the metadata."""
    digest = hashlib.sha256()
    for name, tensor in sorted(checkpoint.ema.items()):
        digest.update(name.encode() + b"\0")
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
