"""Levels whose activations are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from c2fdft_cli.core.block import Level


def recompute_levels(net: nn.Module, wanted: bool) -> None:
    """Keep each level's input alone for the backward pass: less memory for a third more time.

    Args:
        net: the network, changed in place; its numbers stay the same.
        wanted: False puts the plain forward back.
    """
    for level in net.modules():
        if not isinstance(level, Level):
            continue
        level.__dict__.pop("forward", None)
        if wanted:
            # the network draws no random numbers, so there is no random state to restore
            level.forward = partial(  # type: ignore[method-assign]
                checkpoint,
                partial(Level.forward, level),
                use_reentrant=False,
                preserve_rng_state=False,
            )
