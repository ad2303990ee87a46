"""Choose the fused kernels for this GPU: those that agree with the plain passes and are faster.

They are compared and timed once per process for each shape of block, on GPUs that they support.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from c2fdft_cli.core.attention import PixelSums
from c2fdft_cli.execution import prepared
from c2fdft_cli.execution.cuda.cards import AMPERE
from c2fdft_cli.execution.cuda.crashes import crash_file, watched_trial
from c2fdft_cli.execution.prepared import PreparedBlock
from c2fdft_cli.vocabulary import check_choice

SWITCH = "C2FDFT_KERNELS"
"""Environment variable: `off` for the plain passes, `on` for kernels that agree, even if slower."""

ALLOWED = {torch.bfloat16: 2e-2, torch.float16: 4e-3}
"""Relative differences from the plain passes that count as rounding, by precision."""
TRIED_ROWS, TRIED_VALUES = 64, 1 << 22
"""Rows and values of the stream in a trial: a size that keeps a GPU busy."""
OLDEST_TRITON = (3, 3)
"""The version before, that of torch 2.6, ends the whole process when it fails: in the derivative of
the feed-forward network's weights for sm_90, in every product for sm_120. Later versions raise an
error instead."""
_ROUNDS, _HEAD_START = 7, 2_000_000
"""Timed runs, and GPU cycles (about a millisecond) before each, in which its work is launched."""

_log = logging.getLogger(__name__)
Way = TypeVar("Way")
"""One version of a part of the network's work."""


class Passes(NamedTuple):
    """The parts of a block's work on a strip: the functions of `prepared`, or replacements.

    Their first argument is the block: a `PreparedBlock`, or the kind that a replacement is for.
    """

    gather: Callable[[Any, Tensor, Tensor, int, int], tuple[PixelSums, Tensor]]
    mixing: Callable[[Any, PixelSums], Tensor]
    apply: Callable[[Any, Tensor, Tensor, Tensor, Tensor], None]


PLAIN = Passes(prepared.gather, PreparedBlock.mixing, prepared.apply)


def compiled_passes() -> Passes:
    """Return the plain passes compiled with torch.compile, once for all sizes."""
    return PLAIN._replace(
        gather=torch.compile(PLAIN.gather, dynamic=True),
        apply=torch.compile(PLAIN.apply, dynamic=True),
    )


def fused_passes() -> Passes:
    """Return the passes by the kernels, whether or not they are better; needs Triton."""
    from c2fdft_cli.execution.fused import passes

    return Passes(passes.gather, passes.mixing, passes.apply)


class KernelTrial(NamedTuple):
    """The result of comparing one part of the kernels with the plain version.

    error: relative difference from the plain result, or None if the kernel failed.
    seconds, plain_seconds: duration of one run of each.
    failure: the error that the kernel failed with.
    """

    part: str
    error: float | None
    seconds: float = 0.0
    plain_seconds: float = 0.0
    failure: str = ""

    def is_better(self, dtype: torch.dtype, even_slower: bool) -> bool:
        """Whether the kernels agree with the plain version, and are faster or may be slower."""
        agrees = self.error is not None and self.error <= ALLOWED[dtype]
        return agrees and (even_slower or self.seconds < self.plain_seconds)


_chosen: dict[tuple[object, ...], Any] = {}


def choose_once(
    key: tuple[object, ...],
    device: torch.device,
    dtype: torch.dtype,
    plain: Way,
    compare: Callable[[bool], Way],
) -> Way:
    """Return the version that a trial chooses, once per process; the plain one if there is none.

    Args:
        key: what the choice depends on besides device, precision and environment variable.
        device: where the kernels would run.
        dtype: their precision.
        plain: the version for which nothing is tried.
        compare: runs the trial, and returns one of the versions. Its argument is whether the
            kernels may be slower.

    Raises:
        UsageError: the environment variable has an unknown value.
        GpuError: a kernel failed so badly that this process cannot use the GPU any more.
    """
    switch = os.environ.get(SWITCH)
    key = (*key, device, dtype, switch)
    # Looked up first: every block does so in every step, and checking for Triton takes a while.
    if key not in _chosen and not are_tried(device, dtype):
        _chosen[key] = plain
    if key not in _chosen:
        with watched_trial(device):
            _chosen[key] = compare(switch == "on")
    way: Way = _chosen[key]
    return way


def passes_for(block: PreparedBlock) -> Passes:
    """Return the fastest passes for blocks like this one, on the device of its weights.

    Errors are those of `choose_once`.
    """
    device, width = block.norm1.weight.device, len(block.norm1.weight)
    key = (width, block.heads, len(block.widen.weight), block.qkv.bias is not None,
           block.norm1.bias is not None)  # fmt: skip
    return choose_once(
        key, device, block.norm1.dtype, PLAIN,
        lambda even_slower: try_out(block, device, width, even_slower=even_slower)[0],
    )  # fmt: skip


def are_tried(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels are tried: not switched off, half precision, and a GPU they support.

    Raises:
        UsageError: the environment variable has an unknown value.
    """
    switch = check_choice(SWITCH, os.environ.get(SWITCH, "auto"), ("auto", "on", "off"))
    return switch != "off" and dtype in ALLOWED and kernels_run_on(device)


def kernels_run_on(device: torch.device) -> bool:
    """Whether there is a suitable Triton, and an NVIDIA GPU on which no trial has broken down."""
    # AMD's GPUs are also named "cuda", and report capabilities such as (9, 0). The kernels have
    # never run on one, and a failure there might end the process instead of raising an error.
    there = device.type == "cuda" and torch.cuda.is_available() and torch.version.hip is None
    if not there or not has_triton() or crash_file(device) is not None:
        return False
    return torch.cuda.get_device_capability(device) >= AMPERE


def has_triton() -> bool:
    """Whether a Triton is installed that raises errors instead of ending the process."""
    if not importlib.util.find_spec("triton"):
        return False
    import triton

    return tuple(map(int, triton.__version__.split(".")[:2])) >= OLDEST_TRITON


def try_out(
    block: PreparedBlock, device: torch.device, width: int, even_slower: bool = False
) -> tuple[Passes, list[KernelTrial]]:
    """Compare and time the kernels part by part on random pixels.

    Returns:
        The plain passes, with the parts replaced whose kernels are better, and the trials.
    """
    try:
        fused = fused_passes()
    except Exception as error:  # whatever Triton lacks here, the plain passes need none of it
        return PLAIN, [KernelTrial("all", None, failure=_first_line(error))]
    source = torch.Generator(device).manual_seed(0)
    shape = (1, TRIED_ROWS, max(1, TRIED_VALUES // TRIED_ROWS // width), width)
    z, time = (torch.randn(s, device=device, generator=source) for s in (shape, (1, width)))
    sums, v = PLAIN.gather(block, z, time, 0, len(z[0]))
    matrix = PLAIN.mixing(block, sums)

    def gathered(part: Callable[..., Any]) -> list[Tensor]:
        its_sums, its_v = part(block, z, time, 0, len(z[0]))
        return [*its_sums, its_v]

    def applied(part: Callable[..., Any]) -> list[Tensor]:
        changed = z.clone()
        part(block, changed, v, time, matrix)
        # Compare only what was added: relative to the whole stream its error would look like
        # rounding.
        return [changed - z]

    works: dict[str, Callable[[Callable[..., Any]], list[Tensor]]] = {
        "gather": gathered,
        "mixing": lambda part: [part(block, sums)],
        "apply": applied,
    }
    chosen, trials = PLAIN, []
    for part, work in works.items():
        trial = try_part(part, work, getattr(fused, part), getattr(PLAIN, part), v.dtype)
        trials.append(trial)
        if trial.is_better(v.dtype, even_slower):
            chosen = chosen._replace(**{part: getattr(fused, part)})
        _log.info("%d channels: %s", width, trial)
    return chosen, trials


def try_part(
    name: str,
    work: Callable[[Callable[..., Any]], list[Tensor]],
    fused: Callable[..., Any],
    plain: Callable[..., Any],
    dtype: torch.dtype,
) -> KernelTrial:
    """Compare and time one part.

    Args:
        name: name of the part.
        work: runs the version of the part that it is given, and returns the results.
        fused, plain: the two versions of the part.
        dtype: its precision, which determines the difference that rounding may cause.
    """
    try:
        found = work(fused)
        want = work(plain)
        error = max(_relative(a, b) for a, b in zip(found, want, strict=True))
        # Not `error > ...`, which is false for NaN.
        if not error <= ALLOWED[dtype]:
            return KernelTrial(name, error)
        return KernelTrial(
            name, error, _seconds(lambda: work(fused)), _seconds(lambda: work(plain))
        )
    except Exception as error:  # Triton and drivers raise many kinds
        # Usually the plain passes still work; if not, `watched_trial` reports it.
        return KernelTrial(name, None, failure=_first_line(error))


def _relative(found: Tensor, want: Tensor) -> float:
    found, want = found.float(), want.float()
    return float((found - want).norm() / want.norm().clamp_min(1e-30))


def _seconds(run: Callable[[], object]) -> float:
    """Return the median time that a run keeps the GPU busy, in seconds, measured by CUDA events.

    The time of the launches, which is longer at this size, does not count: larger images hide it,
    and the work on smaller ones is recorded.
    """
    run()
    return statistics.median(busy_seconds(run, _HEAD_START) for _ in range(_ROUNDS))


def busy_seconds(run: Callable[[], object], head_start: int = 0) -> float:
    """Return the seconds that one run takes on the current GPU.

    Args:
        run: launches the work.
        head_start: GPU cycles for which the GPU waits while the work is launched.
    """
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    if head_start:
        torch.cuda._sleep(head_start)  # type: ignore[no-untyped-call]
    begin.record()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end) / 1e3)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
