"""How much memory a training step needs, and how large a micro-batch fits."""

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
from c2fdft_cli.engine.weights.build import make_network
from c2fdft_cli.execution.block_gradients import install
from c2fdft_cli.execution.device import Runtime
from c2fdft_cli.execution.fused.training import Kernels, assume, chosen_for
from c2fdft_cli.execution.memory import free_bytes
from c2fdft_cli.recipe.schema import FineStage, Network, Stage
from c2fdft_cli.vocabulary import Compile, RecomputeSetting

NO_KERNELS: Kernels = frozenset()

OUTSIDE, INPUTS = "outside", "inputs"
"""What is kept outside of the levels, and what goes into them."""

_LEVELS = (
    "encoder_level1", "encoder_level2", "encoder_level3", "latent",
    "decoder_level3", "decoder_level2", "decoder_level1",
)  # fmt: skip

MARGIN = 0.7
"""Share of the free memory that a step may take; the rest is for the optimiser's moments, what the
backward pass makes, and fragments."""


def saved_bytes(
    network: Network,
    patch: int,
    recompute_levels: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    kernels: Kernels = NO_KERNELS,
) -> int:
    """Bytes that one network call on one patch keeps for the backward pass, weights left out.

    Counted on tensors without contents, so nothing is computed or allocated. When levels are
    computed again, one of them is held at a time beside the inputs of all.

    Args:
        network: what is trained.
        patch: its side.
        recompute_levels: whether levels are computed again.
        dtype: what autocast computes in; float32 for none.
        device: its type; all but a CPU keep the layer norms under autocast in float32.
        kernels: what runs by kernels that keep less, see `training_kernels`.
    """
    # the decoder mirrors the encoder: as many blocks a level, the latent level once
    depths = dict(zip(_LEVELS, (*network.blocks, *network.blocks[2::-1]), strict=True))
    # all blocks of a level keep the same, so one is counted and multiplied
    single = json.dumps(asdict(replace(network, blocks=[1, 1, 1, 1])))
    kept = dict(_saved_bytes(single, patch, dtype, device, kernels))
    outside, inputs = kept.pop(OUTSIDE), kept.pop(INPUTS)
    levels = [depths[level] * each for level, each in kept.items()]
    return outside + (inputs + max(levels) if recompute_levels else sum(levels))


@lru_cache(maxsize=64)
def _saved_bytes(
    network: str, patch: int, dtype: torch.dtype, device: str, kernels: Kernels
) -> tuple[tuple[str, int], ...]:
    """Bytes kept by a block of each level, outside of them, and of the levels' inputs.

    The network is JSON text, since the cache needs a key that cannot change.
    """
    with ExitStack() as modes:
        modes.enter_context(FakeTensorMode())
        modes.enter_context(assume(kernels))
        net = make_network(Network(**json.loads(network)))
        if device == "cuda":  # on a CPU its own kernels run, which keep no more than the core does
            install(net, torch.device(device))
        x, t = torch.zeros(1, 6, patch, patch), torch.zeros(1)
        counter = _Counter([*net.parameters(), x, t])
        for name, module in net.named_modules():
            if isinstance(module, Block):
                level, number = name.split(".")
                module.register_forward_pre_hook(partial(counter.enter, level, number == "0"))
                module.register_forward_hook(counter.leave)
        if dtype != torch.float32:
            # the tensors without contents are the CPU's, whatever device is counted for
            modes.enter_context(torch.autocast("cpu", dtype))
            if device != "cpu":
                modes.enter_context(NormsInFloat32())
        hooks = torch.autograd.graph.saved_tensors_hooks(counter.pack, lambda tensor: tensor)
        modes.enter_context(hooks)
        loss = net(x, t).sum()
        del loss
        return tuple(counter.bytes().items())


class NormsInFloat32(TorchFunctionMode):
    """What autocast does to a layer norm on CUDA and not on a CPU."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if function is F.layer_norm:
            args = (args[0].float(), *args[1:])
        return function(*args, **(kwargs or {}))


class _Counter:
    """Counts storages once, at the place where they are first kept, but for those of `given`."""

    def __init__(self, given: Iterable[Tensor]) -> None:
        self.place = OUTSIDE
        self.given = {each.untyped_storage()._cdata for each in given}
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
        if not counted and key not in self.given and not _of_weight(tensor):
            # the tensor is held, not only counted: its address, once free, could be another's
            self.kept.setdefault(self.place, {})[key] = tensor
        return tensor

    def bytes(self) -> dict[str, int]:
        return {
            place: sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
            for place, kept in self.kept.items()
        }


def _of_weight(tensor: Tensor) -> bool:
    """Whether it is a parameter in another shape or dtype: autocast keeps one for all images."""
    made_by = tensor.grad_fn
    while made_by is not None and len(made_by.next_functions) == 1:
        made_by = made_by.next_functions[0][0]
    return hasattr(made_by, "variable")


def training_kernels(network: Network, compiling: Compile, runtime: Runtime) -> Kernels:
    """What of a network trains by the Triton kernels: tried at once, where it was not yet.

    Args:
        network: what is trained.
        compiling: `train.compile`; compiled blocks run without them, and `auto` compiles none that
            run by them.
        runtime: device and arithmetic.
    """
    if compiling == "on" or runtime.device.type != "cuda" or runtime.dtype != torch.bfloat16:
        return NO_KERNELS
    shape = (network.ffn_factor, network.bias, network.norm)
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they are
        torch.manual_seed(0)
        blocks = [Block(network.dim << level, 1, *shape).to(runtime.device) for level in range(4)]
    return chosen_for(blocks, runtime.device, runtime.dtype)


def step_bytes(
    network: Network, stage: Stage, calls: int, patch: int, runtime: Runtime, kernels: Kernels
) -> int:
    """Bytes for activations of a training step, for each image of the micro-batch.

    Args:
        network: what is trained.
        stage: the stage's section; a fine stage that re-computes holds one call at a time, or one
            level of it.
        calls: network calls of the sampler (fine stage).
        patch: side of the patches.
        runtime: device and arithmetic.
        kernels: see `training_kernels`.
    """
    recompute = stage.recompute if isinstance(stage, FineStage) else "call"
    held = calls if recompute == "none" else 1
    dtype, device = runtime.dtype, runtime.device.type
    return saved_bytes(network, patch, recompute == "level", dtype, device, kernels) * held


def choose_recompute(
    network: Network, stage: FineStage, calls: int, compiling: Compile, runtime: Runtime
) -> RecomputeSetting:
    """What the stage computes again: as asked, else on CUDA the least that fits its batches.

    Args:
        network: what is trained.
        stage: the fine stage.
        calls: network calls of the sampler.
        compiling: `train.compile`.
        runtime: device and arithmetic.
    """
    if stage.recompute != "auto":
        return stage.recompute
    if runtime.device.type != "cuda":
        return "call"
    kernels = training_kernels(network, compiling, runtime)
    usable = int(free_bytes(runtime) * MARGIN)

    def fits(way: RecomputeSetting, whole: bool) -> bool:
        asked = replace(stage, recompute=way)
        return all(
            step_bytes(network, asked, calls, patch, runtime, kernels)
            * (-(-batch // runtime.world) if whole else 1)
            <= usable
            for patch, batch in zip(stage.patches, stage.batches, strict=True)
        )

    # `call` takes 1.3 times as long as `none` (docs/numerics.md, What the fine stage holds). Of it
    # one image has to fit: micro-batches divide the others.
    if fits("none", whole=True):
        return "none"
    return "call" if fits("call", whole=False) else "level"


def weight_bytes(parameters: int, dtype: torch.dtype) -> int:
    """Bytes of a step that no image adds to: gradients, and the weights that autocast has cast."""
    cast = 0 if dtype == torch.float32 else dtype.itemsize
    return parameters * (torch.float32.itemsize + cast)


def choose_micro_batch(
    wanted: int | str, rows: int, bytes_per_image: int, fixed_bytes: int, runtime: Runtime
) -> int:
    """Rows that go through the network together: as asked, else what is estimated to fit.

    Args:
        wanted: "auto", or a number.
        rows: of the batch.
        bytes_per_image: of a step, see `step_bytes`.
        fixed_bytes: of a step, see `weight_bytes`.
        runtime: where it runs.
    """
    if not isinstance(wanted, str):
        return min(wanted, rows)
    usable = int(free_bytes(runtime) * MARGIN) - fixed_bytes
    # As few pieces as there must be, then as even as can be: 100 rows of which 48 fit run as 34, 34
    # and 32, not as 48, 48 and 4.
    pieces = -(-rows // max(usable // max(bytes_per_image, 1), 1))
    return -(-rows // min(pieces, rows))
