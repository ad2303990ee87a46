"""Small networks of every variant, to be run in strips."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from c2fdft_cli.core.network import DFT
from tests.kit.formula import fill, wave

KINDS: dict[str, dict[str, Any]] = {
    "with_bias": {},
    "bias_free": {"norm": "bias_free"},
    "conv_bias": {"bias": True},
    "dual_pixel": {"dual_pixel": True, "bias": True},
    "narrow": {"dim": 6, "heads": (1, 1, 3, 2), "ffn_factor": 1.5},
}


def make(**changes: Any) -> DFT:
    return fill(DFT(**{"dim": 8, "blocks": (1, 1, 1, 1), **changes}))


NETS = {kind: make(**changes) for kind, changes in KINDS.items()}


def image(n: int, h: int, w: int) -> Tensor:
    return wave([n, 6, h, w], 0.13)
