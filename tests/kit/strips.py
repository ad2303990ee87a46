"""Small networks of every variant, to be run in strips."""

from __future__ import annotations

from torch import Tensor

from c2fdft_cli.engine.weights.build import make_network
from tests.kit.formula import fill, wave
from tests.kit.networks import NETWORKS

NETS = {kind: fill(make_network(network)) for kind, network in NETWORKS.items()}


def image(n: int, h: int, w: int) -> Tensor:
    return wave([n, 6, h, w], 0.13)
