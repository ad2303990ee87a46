"""Exponential moving average of the weights: docs/paper.md, eq. (11)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def ema_decay(step: int, decay: float, warm_up: bool = True) -> float:
    """Return the decay of update `step`, counted from 1: `min(decay, (1 + step) / (10 + step))`.

    The warm-up keeps the random initial weights out of the average of a short run; after some
    thousand updates the result is `decay` itself.
    """
    return min(decay, (1 + step) / (10 + step)) if warm_up else decay


@torch.no_grad()
def ema_update(average: nn.Module, net: nn.Module, decay: float) -> None:
    """Set average = decay * average + (1 - decay) * net for all parameters; shapes are equal."""
    ours: list[Tensor] = list(average.parameters())
    theirs: list[Tensor] = list(net.parameters())
    torch._foreach_lerp_(ours, theirs, 1 - decay)
