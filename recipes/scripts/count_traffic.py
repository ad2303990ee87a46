"""Count the bytes that a network call moves on a GPU, and its kernels, without a GPU.

    python recipes/scripts/count_traffic.py [--size 256 256] [--dtype bf16] [--network full]
    python recipes/scripts/count_traffic.py --step fine --network derain --batch 16 --size 192 192

The network runs in strips on fake CUDA tensors (`FakeTensorMode`: shapes, strides, dtypes and
devices are real, but there are no contents), under a dispatch mode that sees each operator. Each
operator counts as one kernel that reads each of its arguments once and writes each of its results
once. An expanded dimension (stride 0) counts once. An argument that is updated in place is read and
written; one that is only overwritten (`out=`, `copy_`) is written. Views and allocations count
nothing. Repeated reads and cache hits are not modelled: a convolution or a product counts as if
each value came from memory once.

`bytes a value` is the number of bytes divided by the sum of channels x pixels over all blocks, the
number of values that the residual stream has when it passes through all blocks once.

A torch that is built without CUDA has no device guard for it, so one that does nothing is compiled
(which takes two seconds and needs g++) and loaded.

`--step` counts a training step instead, by part: forward, loss, backward, and the update of the
weights (gradient norm, clipping, AdamW, average). Its tensors are on the CPU, because autograd
needs a real device for its streams, but autocast does what it does on CUDA; the copies to the GPU
are not counted. An operator on lists of tensors counts as the launches into which torch splits it.
"""

from __future__ import annotations

import argparse
import copy
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
from c2fdft_cli.engine.train.step.memory import NormsInFloat32
from c2fdft_cli.engine.train.step.objective import Objective
from c2fdft_cli.engine.train.step.stepper import Stepper, StepResult
from c2fdft_cli.engine.weights.build import make_network
from c2fdft_cli.execution import block_gradients
from c2fdft_cli.execution import strips as strips_module
from c2fdft_cli.execution.cuda import products
from c2fdft_cli.execution.device import Runtime
from c2fdft_cli.execution.fused import training
from c2fdft_cli.execution.fused.choose import PLAIN, fused_passes
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
KERNELS_OF = {"depthwise": 3}
"""Kernels of an operator, if there are several: the sums of q and k, and their addition, have their
own. The traffic of the partial sums between them is not counted."""
ONLY_WRITTEN = ("copy_", "fill_", "zero_")
"""Operators that write their first argument without reading it."""

LIST_CHUNK, LIST_CHUNKS, LIST_TENSORS = 1 << 16, 320, (110, 64, 48, 36, 30)
"""Values of a chunk, chunks of a launch, and tensors of a launch by the number of lists that the
operator takes: ATen/native/cuda/MultiTensorApply.cuh."""

FORWARD, LOSS, BACKWARD, MOVE = "forward", "loss and its gradient", "backward", "moving the weights"

GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
namespace {
using Guard = c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>;
c10::impl::DeviceGuardImplRegistrar guard(c10::DeviceType::CUDA, new Guard());
}
"""


class Traffic(TorchDispatchMode):
    """Counts the bytes and launches of the operators that are dispatched under it.

    Attributes:
        bytes: bytes moved, by name of the operator.
        launches: kernels launched, by name of the operator.
        parts: launches and bytes of each part that was entered.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()
        self.parts: dict[str, tuple[Counter[str], Counter[str]]] = {}

    def enter(self, part: str) -> None:
        """Count the operators that follow towards a part."""
        self.launches, self.bytes = self.parts.setdefault(part, (Counter(), Counter()))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operator, and count it."""
        kwargs = kwargs or {}
        # torch decomposes this one wrongly for fake tensors.
        broken = func is torch.ops.aten.baddbmm.dtype_out
        out = kwargs["out"] if broken else func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if not (_is_view(func) or name in NO_KERNELS):
            self.launches[name] += _launches_of(name, args)
            self.bytes[name] += _moved(func, name, args, kwargs, out)
        return out


def _moved(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    written = {id(x): x for x in _tensors([out])}
    unread = {id(args[0])} if name in ONLY_WRITTEN else set()
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
    """Return the launches of an operator: 1, or what the tensors and chunks of its lists need."""
    if not name.startswith(("_foreach", "_fused")):
        return KERNELS_OF.get(name, 1)
    lists = [arg for arg in args if isinstance(arg, list | tuple) and arg]
    lists = [arg for arg in lists if isinstance(arg[0], Tensor)]
    chunks = sum(-(-x.numel() // LIST_CHUNK) for x in lists[0])
    tensors = LIST_TENSORS[min(len(lists), len(LIST_TENSORS)) - 1]
    return int(max(-(-chunks // LIST_CHUNKS), -(-len(lists[0]) // tensors)))


def _is_view(func: Any) -> bool:
    """Return whether an operator's results are views of its arguments."""
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
    """Let this process handle fake CUDA tensors even if torch is built without CUDA."""
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
    """Make the network with fake CUDA tensors as weights."""
    with torch.device("meta"):
        net = make_network(network)
    for module in net.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            fake = FakeTensor(mode, weight.detach(), DEVICE)
            setattr(module, name, torch.nn.Parameter(fake, requires_grad=False))
    return net.eval()


def values_of(network: Network, height: int, width: int) -> int:
    """Return channels x pixels, summed over the blocks."""
    with torch.device("meta"):
        levels = make_network(network).levels().values()
    return sum(len(level) * level.values(height, width) for level in levels)


def count(
    network: Network, n: int, height: int, width: int, dtype: torch.dtype, fused: bool = False
) -> Traffic:
    """Count one call in one strip, with the plain passes or the fused kernels."""
    mode, traffic = FakeTensorMode(), Traffic()
    passes = fused_passes() if fused else PLAIN
    with mode, torch.no_grad():
        strips = StripNetwork(fake_network(network, mode), height, dtype)
        x = torch.empty(n, DFT.in_channels, height, width, device=DEVICE)
        t = torch.empty(1, device=DEVICE).expand(n)
        with mock.patch.object(strips_module, "passes_for", return_value=passes), traffic:
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
    """Count a training step by part; a fine step has one sampling step."""
    traffic = Traffic()
    with ExitStack() as modes:
        modes.enter_context(FakeTensorMode())
        modes.enter_context(NormsInFloat32())
        # Take the routes of a GPU, and give values to tensors that have no contents.
        modes.enter_context(mock.patch.object(objective_module, "install", _install_for_cuda))
        modes.enter_context(mock.patch.object(products, "sums_without_copies", return_value=True))
        modes.enter_context(mock.patch.object(FakeTensor, "tolist", lambda x: [0.5] * len(x)))
        modes.enter_context(training.assume(_by_kernels(network, fused)))
        # torch passes only lists of plain tensors to one operator, not of fake ones.
        modes.enter_context(mock.patch.object(clip_grad, "_has_foreach_support", return_value=True))
        modes.enter_context(mock.patch.object(ssim, "_window_sums", _window_sums))
        net = make_network(network)
        fine = (stage, [500]) if isinstance(stage, FineStage) else None
        objective = Objective(net, torch.zeros(1000), fine)
        runtime = Runtime(torch.device("cpu"), dtype)
        average = make_network(network)  # a deep copy of fake tensors would get another fake mode
        with mock.patch.object(copy, "deepcopy", return_value=average):
            stepper = Stepper(objective, Train(clip_norm=clip), runtime)
        batch = random_batch(rows, patch, 1000)
        stepper.step(batch, 1.0, 1e-3, rows)  # the first step allocates AdamW's moments
        _mark_parts(stepper, traffic)
        with traffic:
            stepper.step(batch, 1.0, 1e-3, rows)
    return traffic


def _by_kernels(network: Network, fused: bool) -> Kernels:
    """Return what a training step computes by the Triton kernels: everything or nothing."""
    parts = (training.NORM, training.FEED_FORWARD) if fused else ()
    return frozenset((part, network.dim << level) for part in parts for level in range(4))


def _install_for_cuda(net: nn.Module, device: torch.device) -> None:
    block_gradients.install(net, torch.device("cuda"))


def _window_sums(
    side: int, window: int, sigma: float, pad: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Stand in for a matrix that training makes only once, so that making it is not counted."""
    return torch.empty(side + 2 * pad - window + 1, side, dtype=dtype, device=device)


def _mark_parts(stepper: Stepper, traffic: Traffic) -> None:
    """Hook the stepper so that each part of a step is counted separately."""
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


def main() -> None:
    """Count what the options select, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=2, default=(256, 256))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--fused", action="store_true", help="run the Triton kernels")
    parser.add_argument("--network", choices=NETWORKS, default="full")
    parser.add_argument(
        "--step", choices=("coarse", "fine"), help="count a training step of this stage"
    )
    args = parser.parse_args()
    network, dtype = NETWORKS[args.network], DTYPES[args.dtype]
    if args.step:
        stage = FineStage(recompute="none") if args.step == "fine" else Stage()
        _print_step(count_step(network, args.batch, args.size[0], dtype, stage, 1.0, args.fused))
        return
    load_device_guard()
    height, width = args.size
    traffic = count(network, args.batch, height, width, dtype, args.fused)
    _print_call(traffic, args.batch * values_of(network, height, width))


def _print_step(traffic: Traffic) -> None:
    lines = ["| part | MB | launches |", "|---|---|---|"]
    all_launches, all_moved = Counter[str](), Counter[str]()
    for part, (launches, moved) in traffic.parts.items():
        lines.append(f"| {part} | {moved.total() / 1e6:.0f} | {launches.total()} |")
        all_launches += launches
        all_moved += moved
    lines.append(f"| **all** | {all_moved.total() / 1e6:.0f} | {all_launches.total()} |")
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
