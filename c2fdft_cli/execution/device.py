"""Where the work runs: device, precision, and this process's rank in its job."""

from __future__ import annotations

import functools
import math
import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch

from c2fdft_cli.errors import ResourceError, UsageError
from c2fdft_cli.execution.cuda.cards import (
    AMPERE,
    HalfPrecision,
    set_tf32,
    try_half_precision,
    unusable_gpu,
)
from c2fdft_cli.execution.cuda.crashes import crash_note
from c2fdft_cli.settings import number_in_environment
from c2fdft_cli.vocabulary import DEVICES, check_choice
from c2fdft_cli.words import one_of

PRECISIONS = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
"""The dtype of tensors and matrix products by precision; "tf32" is float32 whose products a GPU
computes with operands rounded to 10 bits of mantissa."""

_GPU_NAMES = {"gpu", "nvidia", "amd", "rocm", "apple", "metal"}
_NUMBERED = re.compile(r"cuda:(\d{1,3})", re.ASCII)

_REPAYS_CASTS = 1.5
"""How many times as fast a CPU's products must be in bf16 for the network to be faster in bf16."""

GPU_ONLY = ("tf32", "fp16")
"""Precisions that are not available on a CPU."""


@dataclass(frozen=True)
class Runtime:
    """Device and arithmetic of one process.

    device: where tensors live.
    dtype: dtype of matrix products; parameters stay float32.
    rank, world: rank of this process, and number of processes in its job.
    tf32: whether float32 products are computed in TF32.
    device_note, precision_note, kernels_note: what the user may want to know about these choices,
        and about the program's own kernels, in a sentence each.
    """

    device: torch.device
    dtype: torch.dtype = torch.float32
    rank: int = 0
    world: int = 1
    tf32: bool = False
    device_note: str | None = None
    precision_note: str | None = None
    kernels_note: str | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user may want to know about these choices, in sentences."""
        notes = (self.device_note, self.precision_note, self.kernels_note)
        return tuple(note for note in notes if note is not None)

    @property
    def precision(self) -> str:
        """One of `PRECISIONS`."""
        if self.tf32:
            return "tf32"
        return next(name for name, dtype in PRECISIONS.items() if dtype == self.dtype)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[object]:
        """Return a context with autocast to `dtype`; for float32 it has no effect."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Make this the thread's current GPU, which Triton and graphs use, with its precision."""
        if self.device.type != "cuda":
            yield
            return
        with torch.cuda.device(self.device):
            _prepare_cuda(self.device, self.precision)
            yield


def make_runtime(device: str = "auto", precision: str = "auto") -> Runtime:
    """Resolve device and precision of this process, which torchrun may have started with others.

    Args:
        device: "auto" (CUDA if the installed torch has kernels for the card, otherwise MPS or
            CPU), one of `DEVICES`, or "cuda:N", the GPU with number N. If several processes run on
            "cuda", each uses the GPU of its own number.
        precision: "auto" (bf16 if it is faster, otherwise fp16 on CUDA and fp32 elsewhere) or one
            of `PRECISIONS`.

    Raises:
        UsageError: an unknown name, a precision that the device does not have, or an invalid RANK
            or WORLD_SIZE in the environment.
        ResourceError: a device that does not exist, or that the installed torch cannot use.
    """
    rank, world = _place()
    chosen, note = _resolve_device(device)
    crashed = crash_note(chosen) if chosen.type == "cuda" else None
    runtime = Runtime(chosen, rank=rank, world=world, device_note=note, kernels_note=crashed)
    return with_precision(runtime, precision, "--precision")


def _place() -> tuple[int, int]:
    """Return this process's rank and the number of processes in its job, as torchrun sets them.

    Raises:
        UsageError: the rank is not below the number: this process would do nothing, or only a part
            of the work.
    """
    rank, world = number_in_environment("RANK", 0), number_in_environment("WORLD_SIZE", 1, low=1)
    if rank >= world:
        raise UsageError(
            f"RANK={rank} in the environment must be below WORLD_SIZE={world}",
            hint="start with torchrun, which sets both, or unset them",
        )
    return rank, world


def with_precision(runtime: Runtime, precision: str, stated_by: str) -> Runtime:
    """Return the runtime in another precision, which is resolved as by `make_runtime`.

    On CUDA this also sets how this process computes float32 products (in full for "fp32", in TF32
    for "tf32" and for the products that stay float32 in half precision), and whether convolutions
    use cuDNN. On cards before compute capability 8.0, half precision is tested first, and replaced
    by fp32 if it fails.

    Raises:
        UsageError: an unknown precision, or one that the device does not have; the message names
            the option or key `stated_by`.
    """
    name, note = _resolve_precision(precision, runtime.device, stated_by), None
    if runtime.device.type == "cuda":
        name, note = _prepare_cuda(runtime.device, name)
    elif runtime.device.type == "cpu" and precision == "bf16":
        note = _slow_bf16()
    return replace(runtime, dtype=PRECISIONS[name], tf32=name == "tf32", precision_note=note)


def _prepare_cuda(device: torch.device, precision: str) -> tuple[str, str | None]:
    """Make the settings of `with_precision`; return the precision in use, and a note about it."""
    note = None
    if torch.cuda.get_device_capability(device) < AMPERE:
        half = HalfPrecision()
        if PRECISIONS[precision] != torch.float32:
            half = try_half_precision(device, PRECISIONS[precision])
        torch.backends.cudnn.enabled = half.cudnn
        note = half.note
        if not half.usable:
            precision = "fp32"
        elif precision == "bf16" and note is None:
            note = "this GPU emulates bf16; --precision fp16 is faster"
    # TF32 in half precision too: there the Gram products stay exact, because their operands have no
    # more than TF32's 10 bits of mantissa. Of the float32 parts, only the output convolution is
    # rounded.
    set_tf32(precision != "fp32")
    return precision, note


def _resolve_device(name: str) -> tuple[torch.device, str | None]:
    """Return the device, and a note with the reason if "auto" does not use the GPU."""
    numbered = _NUMBERED.fullmatch(name)
    if str(name).lower() in _GPU_NAMES:  # the nearest word by its letters is "cpu"
        what = f"--device must be {one_of(DEVICES)}, got {name!r}"
        raise UsageError(what, hint="NVIDIA's and AMD's GPUs are cuda, Apple's mps")
    name = "cuda" if numbered else check_choice("--device", name, DEVICES)
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "cuda" and not has_cuda:
        raise ResourceError(
            "this machine has no CUDA device", hint="use --device cpu; see `c2fdft doctor`"
        )
    if name == "mps" and not has_mps:
        raise ResourceError("this machine has no MPS device", hint="use --device cpu")
    if name == "cuda" or (name == "auto" and has_cuda):
        index = _numbered_gpu(int(numbered[1])) if numbered else _own_gpu()
        reason = unusable_gpu(index)
        if reason is None:
            return torch.device("cuda", index), None
        if name == "cuda":
            hint = "install a torch that is built for this card, or use --device cpu"
            raise ResourceError(reason, hint=hint)
        return torch.device("cpu"), f"running on the CPU: {reason}"
    if name == "auto":
        name = "mps" if has_mps else "cpu"
    return torch.device(name), None


def _numbered_gpu(index: int) -> int:
    """Return the number of a GPU, after checking that this process may use it."""
    world = number_in_environment("WORLD_SIZE", 1, low=1)
    if world > 1:
        raise UsageError(
            f"--device cuda:{index} is for a single process, got WORLD_SIZE={world}",
            hint="use --device cuda: each process then uses the GPU of its own number",
        )
    there = torch.cuda.device_count()
    if index >= there:
        numbers = "cuda:0" if there == 1 else f"cuda:0 to cuda:{there - 1}"
        raise ResourceError(f"there is no GPU {index}", hint=f"this machine has {numbers}")
    return index


def _own_gpu() -> int:
    """Return the number of this process's GPU; ResourceError if there are too few GPUs."""
    index, there = number_in_environment("LOCAL_RANK", 0), torch.cuda.device_count()
    if index >= there:
        raise ResourceError(
            f"process {index + 1} on this machine has no GPU of its own: there are {there}",
            hint=f"start with --nproc-per-node {there}",
        )
    return index


def _resolve_precision(name: str, device: torch.device, stated_by: str) -> str:
    """Resolve a precision to one of `PRECISIONS` that the device has."""
    check_choice(stated_by, name, ("auto", *PRECISIONS))
    on_cuda = device.type == "cuda"
    ampere = on_cuda and torch.cuda.get_device_capability(device) >= AMPERE
    if name == "auto":
        if on_cuda:
            return "bf16" if ampere else "fp16"
        return "bf16" if device.type == "cpu" and cpu_has_fast_bf16() else "fp32"
    if name == "fp16" and device.type == "cpu":
        raise UsageError(f"{stated_by} fp16 needs a GPU", hint="use --precision fp32 or bf16")
    if name == "tf32" and not ampere:
        raise UsageError(
            f"{stated_by} tf32 needs an NVIDIA GPU of compute capability 8.0 or higher",
            hint="use --precision fp32",
        )
    return name


def cpu_has_fast_bf16() -> bool:
    """Whether the CPU multiplies bf16 so much faster than float32 that the casts pay off."""
    speed = cpu_bf16_speed()
    return speed is not None and speed >= _REPAYS_CASTS


def _slow_bf16() -> str | None:
    """Return a note if float32 is faster than bf16 on this CPU."""
    if cpu_has_fast_bf16():
        return None
    speed = cpu_bf16_speed()
    if speed is None:
        return "this CPU emulates bf16, which is many times slower; --precision fp32 is faster"
    rate = f"its products run at {speed:.1f} times the speed of fp32"
    return f"bf16 does not pay off on this CPU ({rate}); --precision fp32 is faster"


@functools.cache
def cpu_bf16_speed() -> float | None:
    """Measure once how many times as fast as in float32 the CPU multiplies matrices in bf16.

    Returns None for a CPU without bf16 instructions. Having them is not enough: an Intel Xeon with
    AVX-512 BF16 and without AMX is half as fast as in float32, an AMD EPYC four times as fast.
    """
    if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return None
    # The precision must not depend on what else the machine is doing: the same command has to give
    # the same pixels, and a resumed training the same weights. So this measures the time that the
    # CPU spends, without the time for which other programs interrupt it, and in one thread, because
    # several spend CPU time on waiting for one that is interrupted.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _bf16_speed_of_one_thread()
    finally:
        torch.set_num_threads(threads)


def _bf16_speed_of_one_thread() -> float:
    a = torch.ones(512, 512, dtype=torch.float32)
    pair = a, a.bfloat16()
    seconds = [math.inf, math.inf]
    # Alternating, and the smallest of several times: other programs also slow down caches.
    for _ in range(8):
        for i, matrix in enumerate(pair):
            begin = time.thread_time()
            torch.mm(matrix, matrix)
            seconds[i] = min(seconds[i], time.thread_time() - begin)
    return seconds[0] / seconds[1]
