"""How much memory a training step needs, and how large a micro-batch fits."""

from __future__ import annotations

from functools import lru_cache, partial

import torch
from torch import Tensor, nn

from c2fdft_cli.core.block import Block
from c2fdft_cli.engine.weights.build import make_network
from c2fdft_cli.execution.device import Runtime
from c2fdft_cli.execution.memory import free_bytes
from c2fdft_cli.recipe.schema import FineStage, Network, Stage
from c2fdft_cli.vocabulary import Norm

OUTSIDE, INPUTS = "outside", "inputs"
"""What is kept outside of the levels, and what goes into them."""

MARGIN = 0.7
"""Share of the free memory that a step may take; the rest is for gradients and fragments."""


def saved_bytes(network: Network, patch: int, recompute_levels: bool = False) -> int:
    """Bytes that one float32 network call on one patch keeps for the backward pass.

    Counted on the meta device, so nothing is computed or allocated. When levels are computed
    again, one of them is held at a time beside the inputs of all.
    """
    shape = (network.dim, tuple(network.blocks), tuple(network.heads), network.ffn_factor)
    kept = dict(_saved_bytes(*shape, network.bias, network.norm, network.dual_pixel, patch))
    outside, inputs = kept.pop(OUTSIDE), kept.pop(INPUTS)
    return outside + (inputs + max(kept.values()) if recompute_levels else sum(kept.values()))


@lru_cache(maxsize=64)
def _saved_bytes(
    dim: int,
    blocks: tuple[int, ...],
    heads: tuple[int, ...],
    ffn_factor: float,
    bias: bool,
    norm: Norm,
    dual_pixel: bool,
    patch: int,
) -> tuple[tuple[str, int], ...]:
    """Bytes kept by each level, outside of them, and of the levels' inputs."""
    network = Network(dim, list(blocks), list(heads), ffn_factor, bias, norm, dual_pixel)
    with torch.device("meta"):
        net = make_network(network)
        x, t = torch.zeros(1, 6, patch, patch), torch.zeros(1)
    counter = _Counter(net)
    for name, module in net.named_modules():
        if isinstance(module, Block):
            level, number = name.split(".")
            module.register_forward_pre_hook(partial(counter.enter, level, number == "0"))
            module.register_forward_hook(counter.leave)
    with torch.autograd.graph.saved_tensors_hooks(counter.pack, lambda tensor: tensor):
        loss = net(x, t).sum()
    del loss
    return tuple(counter.bytes().items())


class _Counter:
    """Counts storages once, at the place where they are first kept; weights are not counted."""

    def __init__(self, net: nn.Module) -> None:
        self.place = OUTSIDE
        self.weights = {p.untyped_storage()._cdata for p in net.parameters()}
        self.kept: dict[str, dict[int, Tensor]] = {OUTSIDE: {}, INPUTS: {}}

    def enter(
        self, level: str, first: bool, module: nn.Module, args: tuple[Tensor, Tensor]
    ) -> None:
        self.place = level
        if first:
            self.kept[INPUTS][args[0].untyped_storage()._cdata] = args[0]

    def leave(self, module: nn.Module, args: tuple[Tensor, Tensor], out: Tensor) -> None:
        self.place = OUTSIDE

    def pack(self, tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        counted = any(key in kept for place, kept in self.kept.items() if place != INPUTS)
        if not counted and key not in self.weights and not tensor.is_leaf:
            self.kept.setdefault(self.place, {})[key] = tensor
        return tensor

    def bytes(self) -> dict[str, int]:
        return {
            place: sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
            for place, kept in self.kept.items()
        }


def step_bytes(network: Network, stage: Stage, calls: int, patch: int, runtime: Runtime) -> int:
    """Bytes for activations of a training step, for each image of the micro-batch.

    Args:
        network: what is trained.
        stage: the stage's section; a fine stage that re-computes holds one call at a time, or one
            level of it.
        calls: network calls of the sampler (fine stage).
        patch: side of the patches.
        runtime: half precision keeps about 0.6 of float32's bytes.
    """
    recompute = stage.recompute if isinstance(stage, FineStage) else "call"
    held = calls if recompute == "none" else 1
    factor = 1.0 if runtime.dtype == torch.float32 else 0.6
    return int(saved_bytes(network, patch, recompute == "level") * held * factor)


def choose_micro_batch(wanted: int | str, rows: int, bytes_per_image: int, runtime: Runtime) -> int:
    """Rows that go through the network together: as asked, else what is estimated to fit."""
    if not isinstance(wanted, str):
        return min(wanted, rows)
    fitting = int(free_bytes(runtime) * MARGIN) // max(bytes_per_image, 1)
    pieces = -(-rows // max(fitting, 1))
    return -(-rows // min(pieces, rows))
