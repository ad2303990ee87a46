"""Estimates the memory of a training step, and chooses the micro-batch that fits."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from c2fdft_cli.core.block import Block
from c2fdft_cli.core.network import DFT
from c2fdft_cli.engine.weights.build import make_network
from c2fdft_cli.execution.block_gradients import install
from c2fdft_cli.execution.device import Runtime
from c2fdft_cli.execution.fused.training import Kernels, assume, chosen_for
from c2fdft_cli.execution.memory import free_bytes
from c2fdft_cli.execution.native.library import kernels_for
from c2fdft_cli.execution.surroundings import seeded
from c2fdft_cli.recipe.schema import FineStage, Network, Stage
from c2fdft_cli.vocabulary import Compile, RecomputeSetting

NO_KERNELS: Kernels = frozenset()
OF_CPU: Kernels = frozenset({("compiled for this CPU", 0)})
"""Stands for the compiled kernels of a CPU, which run the whole block."""

OUTSIDE, INPUTS = "outside", "inputs"
"""Keys for the bytes that are kept outside of the levels, and for the inputs of the levels."""

_SIDES = (32, 64)
"""Sides in px of the patches that are counted with the compiled kernels."""

MARGIN = 0.7
"""Share of the free memory that a step may use; the rest is for the optimiser's moments,
temporary tensors of the backward pass, and fragmentation."""


def saved_bytes(
    network: Network,
    patch: int,
    recompute_levels: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    kernels: Kernels = NO_KERNELS,
) -> int:
    """Return the bytes that a forward pass on one patch keeps for the backward pass.

    Weights are not included. The bytes are counted on fake tensors without data, so nothing is
    computed or allocated; only the compiled kernels of a CPU run, on small patches. If levels are
    recomputed, the activations of only one level at a time are held, together with the inputs of
    all levels.

    Args:
        network: the network that is trained.
        patch: side of the patch in px.
        recompute_levels: whether the backward pass recomputes levels.
        dtype: type that autocast computes in; float32 for no autocast.
        device: device type; under autocast, all but the CPU compute layer norms in float32.
        kernels: parts that run by kernels that keep less; see `kernels_in_use`.
    """
    kept = dict(_saved_bytes(json.dumps(asdict(network)), patch, dtype, device, kernels))
    outside, inputs = kept.pop(OUTSIDE), kept.pop(INPUTS)
    return outside + (inputs + max(kept.values()) if recompute_levels else sum(kept.values()))


@lru_cache(maxsize=64)
def _saved_bytes(
    network: str, patch: int, dtype: torch.dtype, device: str, kernels: Kernels
) -> tuple[tuple[str, int], ...]:
    """Return the bytes kept by each level, outside of the levels, and as their inputs.

    `network` is JSON text because the cache needs a hashable key.
    """
    if kernels == OF_CPU:
        return _of_compiled_kernels(network, patch)
    with ExitStack() as modes:
        modes.enter_context(FakeTensorMode())
        modes.enter_context(assume(kernels))
        net, depths = _one_block_each(network)
        if device == "cuda":  # torch's derivatives for a CPU keep no more than the core does
            install(net, torch.device(device))
        if dtype != torch.float32:
            # the fake tensors are on the CPU, whatever device is counted for
            modes.enter_context(torch.autocast("cpu", dtype))
            if device != "cpu":
                modes.enter_context(NormsInFloat32())
        return tuple(_kept(net, patch, depths).items())


def _one_block_each(network: str) -> tuple[DFT, dict[str, int]]:
    """Make the network without all but the first block of each level, and return their numbers.

    All blocks of a level keep equally many bytes, so one is counted and multiplied.
    """
    with torch.device("meta"):
        net = make_network(Network(**json.loads(network)))
    depths = {name: len(level) for name, level in net.levels().items()}
    for level in net.levels().values():
        del level[1:]
    weights = {name: torch.zeros(weight.shape) for name, weight in net.named_parameters()}
    net.load_state_dict(weights, assign=True)
    return net, depths


def _of_compiled_kernels(network: str, patch: int) -> tuple[tuple[str, int], ...]:
    """Count the same with the compiled kernels of a CPU.

    What is kept grows with the area, but for a part of fixed size, so two small patches suffice.
    """
    small, large = _SIDES
    share = (patch**2 - small**2) / (large**2 - small**2)
    first, second = _kept_on_cpu(network)
    return tuple(
        (place, kept + round(share * (second[place] - kept))) for place, kept in first.items()
    )


@lru_cache(maxsize=8)
def _kept_on_cpu(network: str) -> list[dict[str, int]]:
    """Count it for patches of `_SIDES`: the kernels need tensors with data, so they run."""
    net, depths = _one_block_each(network)
    install(net, torch.device("cpu"))
    return [_kept(net, side, depths) for side in _SIDES]


def _kept(net: DFT, patch: int, depths: dict[str, int]) -> dict[str, int]:
    """Count the bytes that a forward pass on one patch keeps, by place, times the blocks there."""
    x, t = torch.zeros(1, 6, patch, patch), torch.zeros(1)
    counter = _Counter([*net.parameters(), x, t])
    handles = [
        handle
        for name, module in net.named_modules()
        if isinstance(module, Block)
        for handle in (
            module.register_forward_pre_hook(partial(counter.enter, *name.split("."))),
            module.register_forward_hook(counter.leave),
        )
    ]
    with torch.autograd.graph.saved_tensors_hooks(counter.pack, lambda tensor: tensor):
        loss = net(x, t).sum()
    del loss
    for handle in handles:
        handle.remove()
    return {place: depths.get(place, 1) * kept for place, kept in counter.bytes().items()}


class NormsInFloat32(TorchFunctionMode):
    """Computes layer norms in float32, as autocast does on CUDA but not on a CPU."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if function is F.layer_norm:
            args = (args[0].float(), *args[1:])
        return function(*args, **(kwargs or {}))


class _Counter:
    """Counts each storage once, at the place where it is first kept, except those of `given`."""

    def __init__(self, given: Iterable[Tensor]) -> None:
        self.place = OUTSIDE
        self.given = {each.untyped_storage()._cdata for each in given}
        self.kept: dict[str, dict[int, Tensor]] = {OUTSIDE: {}, INPUTS: {}}

    def enter(
        self, level: str, number: str, module: nn.Module, args: tuple[Tensor, Tensor]
    ) -> None:
        self.place = level
        if number == "0":
            self.kept[INPUTS][args[0].untyped_storage()._cdata] = args[0]

    def leave(self, module: nn.Module, args: tuple[Tensor, Tensor], out: Tensor) -> None:
        self.place = OUTSIDE

    def pack(self, tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        counted = any(key in kept for place, kept in self.kept.items() if place != INPUTS)
        if not counted and key not in self.given and not _of_weight(tensor):
            # the tensor is kept alive, because a new storage could reuse the address of a freed one
            self.kept.setdefault(self.place, {})[key] = tensor
        return tensor

    def bytes(self) -> dict[str, int]:
        return {
            place: sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
            for place, kept in self.kept.items()
        }


def _of_weight(tensor: Tensor) -> bool:
    """Whether a tensor is a parameter in another shape or dtype: kept once, not for each image."""
    made_by = tensor.grad_fn
    while made_by is not None and len(made_by.next_functions) == 1:
        made_by = made_by.next_functions[0][0]
    return hasattr(made_by, "variable")


def kernels_in_use(network: Network, compiling: Compile, runtime: Runtime) -> Kernels:
    """Return which parts of a network train with kernels that keep less than torch's operators.

    Shapes of blocks that have not been tested yet with the fused Triton kernels are tested now.
    Blocks that are compiled by torch (`train.compile`) do not use such kernels, and `auto` does not
    compile blocks that use them.
    """
    if compiling != "on" and runtime.device.type == "cpu" and runtime.dtype == torch.float32:
        compiled = kernels_for(runtime.device, runtime.dtype)
        return OF_CPU if compiled is not None and compiled.can_train else NO_KERNELS
    if compiling == "on" or runtime.device.type != "cuda" or runtime.dtype != torch.bfloat16:
        return NO_KERNELS
    shape = (network.ffn_factor, network.bias, network.norm)
    with seeded(0):
        blocks = [Block(network.dim << level, 1, *shape).to(runtime.device) for level in range(4)]
    return chosen_for(blocks, runtime.device, runtime.dtype)


def step_bytes(
    network: Network, stage: Stage, calls: int, patch: int, runtime: Runtime, kernels: Kernels
) -> int:
    """Estimate the bytes of activations in a training step, for each image of the micro-batch.

    A fine stage, with `calls` sampling steps, that recomputes holds the activations of one sampling
    step at a time, or of one level of it. `patch` is the side of the patches in px.
    """
    recompute = stage.recompute if isinstance(stage, FineStage) else "call"
    held = calls if recompute == "none" else 1
    dtype, device = runtime.dtype, runtime.device.type
    return saved_bytes(network, patch, recompute == "level", dtype, device, kernels) * held


def choose_recompute(
    network: Network, stage: FineStage, calls: int, compiling: Compile, runtime: Runtime
) -> RecomputeSetting:
    """Resolve `fine.recompute: auto`: "call" on a CPU, on CUDA the least that fits in memory.

    Another setting is returned as it is. `calls` is the number of sampling steps.
    """
    if stage.recompute != "auto":
        return stage.recompute
    if runtime.device.type != "cuda":
        return "call"
    kernels = kernels_in_use(network, compiling, runtime)
    usable = int(free_bytes(runtime.device) * MARGIN)

    def fits(way: RecomputeSetting, whole: bool) -> bool:
        candidate = replace(stage, recompute=way)
        return all(
            step_bytes(network, candidate, calls, patch, runtime, kernels)
            * (-(-batch // runtime.world) if whole else 1)
            <= usable
            for patch, batch in zip(stage.patches, stage.batches, strict=True)
        )

    # `call` takes 1.3 times as long as `none` (docs/numerics.md, What the fine stage holds), so
    # `none` is chosen if whole batches fit. For `call` a single image has to fit, because
    # micro-batches divide the batch.
    if fits("none", whole=True):
        return "none"
    return "call" if fits("call", whole=False) else "level"


def weight_bytes(parameters: int, dtype: torch.dtype) -> int:
    """Return the bytes of a step that do not depend on the batch: gradients and cast weights."""
    cast = 0 if dtype == torch.float32 else dtype.itemsize
    return parameters * (torch.float32.itemsize + cast)


def choose_micro_batch(
    wanted: int | str, rows: int, bytes_per_image: int, fixed_bytes: int, runtime: Runtime
) -> int:
    """Return the size of the micro-batches: as requested, or as many rows as should fit.

    Args:
        wanted: `train.micro_batch`: "auto" or a number.
        rows: number of rows in the batch.
        bytes_per_image: bytes of a step for each image, see `step_bytes`.
        fixed_bytes: bytes of a step that do not depend on the batch, see `weight_bytes`.
        runtime: device whose free memory counts.
    """
    if not isinstance(wanted, str):
        return min(wanted, rows)
    usable = int(free_bytes(runtime.device) * MARGIN) - fixed_bytes
    # As few pieces as possible, and of nearly equal size: if 48 of 100 rows fit, they run as 34, 34
    # and 32 instead of 48, 48 and 4.
    pieces = -(-rows // max(usable // max(bytes_per_image, 1), 1))
    return -(-rows // min(pieces, rows))
