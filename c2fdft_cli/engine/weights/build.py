"""Builds what a recipe's sections describe: the network, the noise schedule, the timesteps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from c2fdft_cli.core.diffusion import (
    alpha_bar_of,
    beta_schedule,
    check_start,
    check_timesteps,
    spaced_timesteps,
)
from c2fdft_cli.core.network import DFT
from c2fdft_cli.engine.weights.contents import FIRST_WEIGHT
from c2fdft_cli.errors import CheckpointError, UsageError
from c2fdft_cli.recipe.schema import Diffusion, Network, Sampling

_MAX_DETAILS = 10


def alpha_bar_of_recipe(diffusion: Diffusion) -> Tensor:
    """Return alpha_bar_t of a recipe's noise schedule, `[T]` float32."""
    return alpha_bar_of(
        beta_schedule(
            diffusion.schedule, diffusion.timesteps, diffusion.beta_start, diffusion.beta_end
        )
    )


def timesteps_of_recipe(sampling: Sampling, diffusion: Diffusion) -> list[int]:
    """Return the timesteps to sample at: the explicit ones, or those from steps and spacing."""
    if sampling.grid is not None:
        return check_timesteps(sampling.grid, diffusion.timesteps)
    return spaced_timesteps(sampling.steps, sampling.spacing, diffusion.timesteps)


def refuse_lost_image(timesteps: Sequence[int], alpha_bar: Tensor) -> None:
    """Raise UsageError if the noise schedule leaves nothing of the image at the first timestep."""
    try:
        check_start(timesteps[0], float(alpha_bar[timesteps[0]]))
    except ValueError as error:
        raise UsageError(
            f"sampling cannot begin: {error}",
            hint="use spacing leading, or timesteps of which the first is smaller, or train with a "
            "smaller diffusion.beta_end",
        ) from error


def make_network(
    network: Network, state: Mapping[str, Tensor] | None = None, where: Path | None = None
) -> DFT:
    """Build a network with the weights `state`; None for random initial values.

    Raises:
        CheckpointError: names or shapes of the weights, which are those of the file `where`, do not
            match the network exactly; the message says whether they are another network's.
    """
    arguments = asdict(network)
    if state is None:
        return DFT(**arguments)
    # A file may describe a network of any size. On the meta device it takes no memory until its
    # weights are known to fit.
    with torch.device("meta"):
        net = DFT(**arguments)
    _refuse_misfits(net.state_dict(), state, where)
    net.load_state_dict({k: v.float() for k, v in state.items()}, assign=True)
    return net


def _refuse_misfits(
    want: Mapping[str, Tensor], have: Mapping[str, Tensor], where: Path | None
) -> None:
    """Raise CheckpointError unless the names and shapes of the weights are those of the network."""
    shapes = [
        f"{name}: the shape must be {list(want[name].shape)}, got {list(have[name].shape)}"
        for name in want
        if name in have and want[name].shape != have[name].shape
    ]
    missing = [f"missing: {name}" for name in want if name not in have]
    unexpected = [f"unexpected: {name}" for name in have if name not in want]
    details = shapes + missing + unexpected
    if not details:
        return
    if len(details) > _MAX_DETAILS:
        counts = f"{len(missing)} names missing, {len(unexpected)} unexpected"
        counts = f"in all: {counts}, {len(shapes)} tensors of another shape"
        details = [*details[:_MAX_DETAILS], counts]
    what, hint = "these are the weights of another network", "give weights of C2F-DFT"
    # Damage neither adds tensors nor changes the number of channels that the network reads.
    if not (shapes or missing):
        hint = "if it is C2F-DFT otherwise, save its weights without the unexpected tensors"
    elif FIRST_WEIGHT in have and have[FIRST_WEIGHT].shape[1:2] == want[FIRST_WEIGHT].shape[1:2]:
        what = "the weights do not fit the network that the file describes"
        hint = "the file may be damaged: get it again"
    raise CheckpointError(what, where=where, hint=hint, details=details)
