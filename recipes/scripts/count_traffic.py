"""How many bytes a network call moves on a GPU, and in how many kernels, counted without a GPU.

    python recipes/scripts/count_traffic.py [--size 256 256] [--dtype bf16] [--network full]
    python recipes/scripts/count_traffic.py --step fine --network derain --batch 16 --size 192 192

The network runs in strips on fake CUDA tensors (`FakeTensorMode`: shapes, strides, dtypes and
devices are real, there are no contents), below a mode that sees each operator as it is dispatched.
An operator is taken for one kernel that reads each of its arguments once and writes each of its
results once; a dimension that is expanded (stride 0) counts once; what is updated in place is read
and written, what is only written (`out=`, `copy_`) is written. Views and allocations count nothing.
What a kernel reads twice, and what it finds in a cache, is not seen: a convolution or a product
counts as if each value came from memory once.

`bytes a value` are the bytes over the sum of channels x pixels over all blocks: what the residual
stream would take to be passed through all blocks once, were a value one byte.

A torch that is built without CUDA has no device guard for it: one that does nothing is compiled
(two seconds, needs g++) and loaded.

`--step` counts a training step by part instead: forward, loss, backward, and what moves the weights
(gradient norm, clipping, AdamW, average). The tensors are a CPU's there, because autograd wants a
real device for streams, with what autocast does on CUDA; the copies to the GPU are left out.
Operators on lists of tensors count as the launches that torch cuts them into.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.utils import clip_grad
from torch.utils._python_dispatch import TorchDispatchMode

from c2fdft_cli.core import ssim
from c2fdft_cli.core.network import DFT
from c2fdft_cli.engine.tools.bench import random_batch
from c2fdft_cli.engine.train.step import objective as objective_module
from c2fdft_cli.engine.train.step import stepper as stepper_module
from c2fdft_cli.engine.train.step.memory import NormsInFloat32
from c2fdft_cli.engine.train.step.objective import Objective
from c2fdft_cli.engine.train.step.stepper import Stepper, StepResult
from c2fdft_cli.engine.weights.build import make_network
from c2fdft_cli.execution import block_gradients
from c2fdft_cli.execution import strips as strips_module
from c2fdft_cli.execution.cuda import products
from c2fdft_cli.execution.device import Runtime
from c2fdft_cli.execution.fused import training
from c2fdft_cli.execution.fused.choose import PLAIN, Passes
from c2fdft_cli.execution.fused.training import Kernels
from c2fdft_cli.execution.strips import StripNetwork
from c2fdft_cli.recipe.schema import FineStage, Network, Stage, Train

DEVICE = torch.device("cuda:0")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
NETWORKS = {
    "full": Network(),
    "small": Network(dim=24, blocks=[2, 3, 3, 4]),
    "derain": Network(dim=24, blocks=[1, 2, 2, 3]),
}

KINDS = (
    ("products", ("mm", "addmm", "linear")),
    ("Gram and mixing", ("bmm", "baddbmm")),
    ("casts", ("_to_copy",)),
    ("add into the stream", ("add_",)),
    ("layer norm", ("native_layer_norm",)),
    ("GELU", ("gelu", "gelu_")),
    ("convolutions", ("convolution",)),
    ("squares and their sums", ("mul", "sum", "linalg_vector_norm")),
    ("copies", ("copy_", "clone", "cat")),
)
NO_KERNELS = ("device", "_unsafe_view", "empty", "empty_like", "new_empty", "empty_strided")
ONLY_WRITTEN = {"copy_": 0, "fill_": 0, "zero_": 0}
"""Operators whose first argument is written and not read."""

LIST_CHUNK, LIST_CHUNKS, LIST_TENSORS = 1 << 16, 320, (110, 64, 48, 36, 30)
"""Values of a chunk, chunks of a launch, and tensors of a launch by the lists that go in together:
ATen/native/cuda/MultiTensorApply.cuh."""

FORWARD, LOSS, BACKWARD, MOVE = "forward", "loss and its gradient", "backward", "moving the weights"

GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
namespace {
using Guard = c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>;
c10::impl::DeviceGuardImplRegistrar guard(c10::DeviceType::CUDA, new Guard());
}
"""


class Traffic(TorchDispatchMode):
    """Sums up what the operators below it move.

    Attributes:
        bytes: by name of the operator.
        launches: the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()
        self.parts: dict[str, tuple[Counter[str], Counter[str]]] = {}

    def enter(self, part: str) -> None:
        """Count what follows for a part."""
        self.launches, self.bytes = self.parts.setdefault(part, (Counter(), Counter()))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the operator, and count it."""
        kwargs = kwargs or {}
        broken = func is torch.ops.aten.baddbmm.dtype_out  # decomposed wrongly for fake tensors
        out = kwargs["out"] if broken else func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if not (_is_view(func) or name in NO_KERNELS):
            self.launches[name] += _launches_of(name, args)
            self.bytes[name] += _moved(func, name, args, kwargs, out)
        return out


def _moved(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    written = {id(x): x for x in _tensors([out])}
    unread = {id(args[ONLY_WRITTEN[name]])} if name in ONLY_WRITTEN else set()
    for argument in func._schema.arguments:
        place = argument.alias_info
        given = kwargs.get(argument.name)
        if place is not None and place.is_write and isinstance(given, Tensor) and argument.is_out:
            unread.add(id(given))
    read = {id(x): x for x in _tensors([args, kwargs])}
    if name in ("baddbmm", "addmm") and kwargs.get("out") is args[0]:
        unread.clear()
    for argument, given in zip(func._schema.arguments, args, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write:
            written |= {id(x): x for x in _tensors([given])}
    return sum(_size(x) for key, x in read.items() if key not in unread) + sum(
        map(_size, written.values())
    )


def _launches_of(name: str, args: tuple[Any, ...]) -> int:
    """One, or of an operator on lists as many as its tensors and their chunks need."""
    if not name.startswith(("_foreach", "_fused")):
        return 1
    lists = [arg for arg in args if isinstance(arg, list | tuple) and arg]
    lists = [arg for arg in lists if isinstance(arg[0], Tensor)]
    chunks = sum(-(-x.numel() // LIST_CHUNK) for x in lists[0])
    tensors = LIST_TENSORS[min(len(lists), len(LIST_TENSORS)) - 1]
    return max(-(-chunks // LIST_CHUNKS), -(-len(lists[0]) // tensors))


def _is_view(func: Any) -> bool:
    """Whether the result is a view of an argument."""
    returns = func._schema.returns
    return bool(returns) and all(r.alias_info and not r.alias_info.is_write for r in returns)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
        elif isinstance(value, dict):
            yield from _tensors(value.values())


def _size(x: Tensor) -> int:
    count = 1
    for size, stride in zip(x.shape, x.stride(), strict=True):
        count *= size if stride else 1
    return count * x.element_size()


def load_device_guard() -> None:
    """Let this process handle CUDA tensors without contents where torch is built without CUDA."""
    if torch.version.cuda is not None:
        return
    torch_folder = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "guard.cpp", Path(folder) / "guard.so"
        source.write_text(GUARD)
        words = ["g++", "-std=c++20", "-shared", "-fPIC", f"-I{torch_folder / 'include'}"]
        words += [str(source), "-o", str(library), f"-L{torch_folder / 'lib'}", "-lc10"]
        subprocess.run(words, check=True)  # noqa: S603
        torch.ops.load_library(str(library))


def fake_network(network: Network, mode: FakeTensorMode) -> DFT:
    """The network with fake CUDA tensors for weights."""
    with torch.device("meta"):
        net = make_network(network)
    for module in net.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            fake = FakeTensor(mode, weight.detach(), DEVICE)
            setattr(module, name, torch.nn.Parameter(fake, requires_grad=False))
    return net.eval()


def values_of(network: Network, height: int, width: int) -> int:
    """Channels x pixels, summed over the blocks."""
    blocks, dim = network.blocks, network.dim
    levels = [(blocks[i], dim << i, i) for i in (0, 1, 2, 3, 2, 1)] + [(blocks[0], 2 * dim, 0)]
    return sum(n * c * (height >> i) * (width >> i) for n, c, i in levels)


def count(
    network: Network, n: int, height: int, width: int, dtype: torch.dtype, fused: bool = False
) -> Traffic:
    """The traffic of one call in one strip, by the plain passes or the fused kernels."""
    mode = FakeTensorMode()
    strips_module.passes_for = lambda *_: fused_passes() if fused else PLAIN
    with mode, torch.no_grad():
        strips = StripNetwork(fake_network(network, mode), height, dtype)
        x = torch.empty(n, network_inputs(strips), height, width, device=DEVICE)
        t = torch.empty(1, device=DEVICE).expand(n)
        with Traffic() as traffic:
            strips(x, t)
    return traffic


def count_step(
    network: Network,
    rows: int,
    patch: int,
    dtype: torch.dtype,
    stage: Stage,
    clip: float | None,
    fused: bool = False,
) -> Traffic:
    """The traffic of a training step, by part; a fine one has one sampling step."""
    traffic = Traffic()
    with ExitStack() as modes:
        modes.enter_context(FakeTensorMode())
        modes.enter_context(NormsInFloat32())
        # what a GPU has of its own, and the values of tensors that have no contents
        modes.enter_context(mock.patch.object(objective_module, "install", _install_for_cuda))
        modes.enter_context(mock.patch.object(products, "sums_without_copies", return_value=True))
        modes.enter_context(mock.patch.object(FakeTensor, "tolist", lambda x: [0.5] * len(x)))
        modes.enter_context(training.assume(_by_kernels(network, fused)))
        # torch takes lists of plain tensors alone together
        modes.enter_context(mock.patch.object(clip_grad, "_has_foreach_support", return_value=True))
        modes.enter_context(mock.patch.object(ssim, "_window_sums", _window_sums))
        net = make_network(network)
        fine = (stage, [500]) if isinstance(stage, FineStage) else None
        objective = Objective(net, torch.zeros(1000), fine)
        runtime = Runtime(torch.device("cpu"), dtype)
        average = make_network(network)  # a copy of tensors without contents has a mode of its own
        with mock.patch.object(stepper_module.copy, "deepcopy", return_value=average):
            stepper = Stepper(objective, Train(clip_norm=clip), runtime)
        batch = random_batch(rows, patch, 1000)
        stepper.step(batch, 1.0, 1e-3, rows)  # the first makes the moments
        _mark_parts(stepper, traffic)
        with traffic:
            stepper.step(batch, 1.0, 1e-3, rows)
    return traffic


def _by_kernels(network: Network, fused: bool) -> Kernels:
    """What a step trains by the kernels: all or nothing."""
    parts = (training.NORM, training.FEED_FORWARD) if fused else ()
    return frozenset((part, network.dim << level) for part in parts for level in range(4))


def _install_for_cuda(net: nn.Module, device: torch.device) -> None:
    block_gradients.install(net, torch.device("cuda"))


def _window_sums(
    side: int, window: int, sigma: float, pad: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """A matrix that training makes once, and so is not counted."""
    return torch.empty(side + 2 * pad - window + 1, side, dtype=dtype, device=device)


def _mark_parts(stepper: Stepper, traffic: Traffic) -> None:
    """Let the traffic know where each part of a step begins."""
    traffic.enter(FORWARD)

    def leave_network(net: object, args: object, eps_hat: Tensor) -> None:
        traffic.enter(LOSS)
        eps_hat.register_hook(lambda gradient: traffic.enter(BACKWARD))

    stepper.net.register_forward_hook(leave_network)
    move = stepper._apply

    def apply(loss: Tensor, lr: float) -> StepResult:
        traffic.enter(MOVE)
        return move(loss, lr)

    stepper._apply = apply  # type: ignore[method-assign]


def fused_passes() -> Passes:
    """The passes by the fused kernels, wherever they are faster or not."""
    from c2fdft_cli.execution.fused import passes

    return Passes(passes.gather, passes.mixing, passes.apply)


def network_inputs(strips: StripNetwork) -> int:
    """Channels of the network's input."""
    return strips.net.in_channels


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=2, default=(256, 256))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--fused", action="store_true", help="by the Triton kernels")
    parser.add_argument("--network", choices=NETWORKS, default="full")
    parser.add_argument("--step", choices=("coarse", "fine"), help="a training step")
    args = parser.parse_args()
    network, dtype = NETWORKS[args.network], DTYPES[args.dtype]
    if args.step:
        stage = FineStage(recompute="none") if args.step == "fine" else Stage()
        _print_step(count_step(network, args.batch, args.size[0], dtype, stage, 1.0, args.fused))
        return
    load_device_guard()
    traffic = count(network, args.batch, *args.size, dtype, args.fused)
    _print_call(traffic, args.batch * values_of(network, *args.size))


def _print_step(traffic: Traffic) -> None:
    lines = ["| part | MB | launches |", "|---|---|---|"]
    sums = {
        part: (sum(launches.values()), sum(moved.values()))
        for part, (launches, moved) in traffic.parts.items()
    }
    sums["**all**"] = tuple(map(sum, zip(*sums.values(), strict=True)))
    lines += [f"| {part} | {moved / 1e6:.0f} | {n} |" for part, (n, moved) in sums.items()]
    sys.stdout.write("\n".join(lines) + "\n")


def _print_call(traffic: Traffic, values: int) -> None:
    kinds = {name: kind for kind, names in KINDS for name in names}
    moved: Counter[str] = Counter()
    launches: Counter[str] = Counter()
    for name, amount in traffic.bytes.items():
        kind = kinds.get(name, name if amount > values else "other")
        moved[kind] += amount
        launches[kind] += traffic.launches[name]
    lines = ["| what | bytes a value | launches |", "|---|---|---|"]
    lines += [f"| {k} | {v / values:.1f} | {launches[k]} |" for k, v in moved.most_common()]
    total = sum(moved.values()) / values, sum(launches.values())
    lines.append(f"| **all** | **{total[0]:.1f}** | **{total[1]}** |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
