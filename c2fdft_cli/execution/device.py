"""Where the work runs: device, precision, and this process among those of its job."""

from __future__ import annotations

import functools
import math
import re
import time
from contextlib import AbstractContextManager, nullcontext
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
from c2fdft_cli.vocabulary import DEVICES, check_choice, number_in_environment

PRECISIONS = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
"""What tensors and matrix products are in; "tf32" is float32 whose products a GPU takes with
operands rounded to 10 bits of mantissa."""

_NUMBERED = re.compile(r"cuda:(\d{1,3})", re.ASCII)

_REPAYS_CASTS = 1.5
"""How many times as fast a CPU's products must be in bf16 for the network to be faster in it."""

GPU_ONLY = ("tf32", "fp16")
"""Precisions that a CPU does not compute in."""


@dataclass(frozen=True)
class Runtime:
    """Device and arithmetic of one process.

    device: where tensors live.
    dtype: what matrix products compute in; parameters stay float32.
    rank, world: this process among those of the same job.
    tf32: whether float32 products are taken in TF32.
    device_note, precision_note: what people may want to know of these choices, in a sentence.
    """

    device: torch.device
    dtype: torch.dtype = torch.float32
    rank: int = 0
    world: int = 1
    tf32: bool = False
    device_note: str | None = None
    precision_note: str | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What people may want to know of device and precision, in sentences."""
        return tuple(note for note in (self.device_note, self.precision_note) if note is not None)

    @property
    def precision(self) -> str:
        """One of `PRECISIONS`."""
        if self.tf32:
            return "tf32"
        return next(name for name, dtype in PRECISIONS.items() if dtype == self.dtype)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[object]:
        """Autocast to `dtype`; nothing for float32."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def on_device(self) -> AbstractContextManager[object]:
        """The device as the calling thread's current one: Triton and CUDA graphs launch there."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()


def make_runtime(device: str = "auto", precision: str = "auto") -> Runtime:
    """Resolve device and precision of this process, one of those that torchrun may have started.

    Args:
        device: "auto" (CUDA where the installed torch has kernels for the card, else MPS, else
            CPU), one of `DEVICES`, or "cuda:N", the GPU of number N. Of several processes on
            "cuda" each takes the GPU of its own number.
        precision: "auto" (bf16 where it is faster, else fp16 on CUDA, else fp32) or one of
            `PRECISIONS`.

    Raises:
        UsageError: an unknown name, a precision that the device does not have, or an environment
            that names no process of a job.
        ResourceError: a device that is not there, or that the installed torch cannot use.
    """
    rank, world = _place()
    chosen, note = _resolve_device(device)
    runtime = Runtime(chosen, rank=rank, world=world, device_note=note)
    return with_precision(runtime, precision, "--precision")


def _place() -> tuple[int, int]:
    """This process among those of its job, and their number, as torchrun states them.

    Raises:
        UsageError: no such place: this process would do nothing, or a part of the work alone.
    """
    rank, world = number_in_environment("RANK", 0), number_in_environment("WORLD_SIZE", 1, low=1)
    if rank >= world:
        raise UsageError(
            f"the environment names process RANK={rank} of WORLD_SIZE={world}, counted from 0",
            hint="start with torchrun, which sets both, or unset them",
        )
    return rank, world


def with_precision(runtime: Runtime, precision: str, stated_by: str) -> Runtime:
    """The same device and processes in another precision, resolved as by `make_runtime`.

    On CUDA it also sets how this process takes float32 products (as they are for "fp32"; in TF32
    for "tf32", and in half precisions for what stays float32 in them), and whether convolutions
    go to cuDNN. Half precision is tried first on cards before compute capability 8.0, and is fp32
    where it fails.

    Raises:
        UsageError: an unknown name, or none for the device, of the option or key `stated_by`.
    """
    name, note = _resolve_precision(precision, runtime.device, stated_by), None
    if runtime.device.type == "cuda":
        name, note = _prepare_cuda(runtime.device, name)
    return replace(runtime, dtype=PRECISIONS[name], tf32=name == "tf32", precision_note=note)


def _prepare_cuda(device: torch.device, precision: str) -> tuple[str, str | None]:
    """Set what `with_precision` says; the precision in use, and a note where it is another way."""
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
    # In half precision too: Gram products stay exact, as their factors have no more than TF32's 10
    # bits of mantissa there; of what is float32 the output convolution alone is rounded.
    set_tf32(precision != "fp32")
    return precision, note


def _resolve_device(name: str) -> tuple[torch.device, str | None]:
    """The device, and why it is not the GPU that there is."""
    numbered = _NUMBERED.fullmatch(name)
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
    """The number, where this process may take that GPU."""
    if number_in_environment("WORLD_SIZE", 1, low=1) > 1:
        raise UsageError(
            f"--device cuda:{index} is for one process",
            hint="use --device cuda: each process takes the GPU of its own number",
        )
    there = torch.cuda.device_count()
    if index >= there:
        numbers = "cuda:0" if there == 1 else f"cuda:0 to cuda:{there - 1}"
        raise ResourceError(f"there is no GPU {index}", hint=f"this machine has {numbers}")
    return index


def _own_gpu() -> int:
    """The number of this process's GPU; ResourceError where there are more processes than GPUs."""
    index, there = number_in_environment("LOCAL_RANK", 0), torch.cuda.device_count()
    if index >= there:
        raise ResourceError(
            f"process {index + 1} of this machine has no GPU of its own: there are {there}",
            hint=f"start with --nproc-per-node {there}",
        )
    return index


def _resolve_precision(name: str, device: torch.device, stated_by: str) -> str:
    """One of `PRECISIONS`, checked against the device."""
    on_cuda = device.type == "cuda"
    ampere = on_cuda and torch.cuda.get_device_capability(device) >= AMPERE
    if name == "auto":
        if on_cuda:
            return "bf16" if ampere else "fp16"
        return "bf16" if device.type == "cpu" and cpu_has_fast_bf16() else "fp32"
    if name not in PRECISIONS:
        known = ", ".join(["auto", *PRECISIONS])
        raise UsageError(f"{stated_by} must be one of {known}, got {name}")
    if name == "fp16" and device.type == "cpu":
        raise UsageError(f"{stated_by} fp16 needs a GPU", hint="use --precision fp32 or bf16")
    if name == "tf32" and not ampere:
        raise UsageError(
            f"{stated_by} tf32 needs an NVIDIA GPU of compute capability 8.0 or higher",
            hint="use --precision fp32",
        )
    return name


def cpu_has_fast_bf16() -> bool:
    """Whether the CPU multiplies bf16 so much faster than float32 that it repays the casts."""
    speed = cpu_bf16_speed()
    return speed is not None and speed >= _REPAYS_CASTS


@functools.cache
def cpu_bf16_speed() -> float | None:
    """How many times as fast as in float32 the CPU multiplies matrices in bf16, measured once.

    None for a CPU without instructions for it. Having them is not enough: an Intel Xeon with
    AVX-512 BF16 and without AMX multiplies at half its rate in float32, an AMD EPYC at four times.
    """
    if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return None
    a = torch.ones(512, 512)
    pair = a, a.bfloat16()
    seconds = [math.inf, math.inf]
    # In turns, and the least of several: other programs slow single ones.
    for _ in range(5):
        for i, matrix in enumerate(pair):
            begin = time.perf_counter()
            torch.mm(matrix, matrix)
            seconds[i] = min(seconds[i], time.perf_counter() - begin)
    return seconds[0] / seconds[1]
