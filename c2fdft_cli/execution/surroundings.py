"""Keep apart what a calling program has set in torch and NumPy and what this package needs."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial

import numpy as np
import torch

from c2fdft_cli.core.precision import remember_rounding
from c2fdft_cli.process_settings import ProcessSettings, hold_while_forking

_AUTOCAST_DEVICES = ("cpu", "cuda", "mps")


def _round_nothing(undo: list[Callable[[], object]]) -> None:
    if _rounding() == "highest":
        return
    before = remember_rounding()

    def restore() -> None:
        if _rounding() in ("highest", None):  # not changed by the program meanwhile
            before()

    undo.append(restore)
    torch.set_float32_matmul_precision("highest")


def _rounding() -> str | None:
    """Return torch's setting; None if a program has used the newer interface (see there)."""
    with suppress(RuntimeError):
        return torch.get_float32_matmul_precision()
    return None


def _set_usual_values(undo: list[Callable[[], object]]) -> None:
    undo.append(remember_rounding())  # the runtime of a GPU changes it
    dtype = torch.get_default_dtype()
    if dtype != torch.float32:

        def restore() -> None:
            if torch.get_default_dtype() == torch.float32:  # not changed by the program meanwhile
                torch.set_default_dtype(dtype)

        undo.append(restore)
        torch.set_default_dtype(torch.float32)
    if not torch.serialization.get_crc32_options():  # files without checksums are not read
        undo.append(partial(torch.serialization.set_crc32_options, False))
        torch.serialization.set_crc32_options(True)
    if not torch.backends.cudnn.enabled:
        undo.append(partial(setattr, torch.backends.cudnn, "enabled", False))
        torch.backends.cudnn.enabled = True


# Changed last, and so restored first (in a forked process, in the order of these lines).
_beyond_cpu = ProcessSettings(_set_usual_values)
_always = ProcessSettings(_round_nothing)
_seeding = threading.Lock()
hold_while_forking(_seeding)


@contextmanager
def usual_settings(*, cpu_inference: bool = False) -> Iterator[None]:
    """Run a block with the usual settings of torch and NumPy, whatever the program has set.

    So results do not depend on the program, and it finds its own settings unchanged afterwards:
    default dtype, default device, current GPU, gradient and inference mode, autocast, cuDNN, how
    float32 products are rounded, checksums of saved files, and which floating-point errors NumPy
    raises. The default dtype, cuDNN, the rounding and the checksums belong to the whole process:
    other threads have the usual ones meanwhile.

    Args:
        cpu_inference: whether the block only restores on a CPU. It depends on neither the default
            dtype nor cuDNN, so these stay as they are.
    """
    _use_one_thread_after_a_fork()
    with ExitStack() as stack:
        for settings in (_always,) if cpu_inference else (_always, _beyond_cpu):
            stack.enter_context(settings.changed())
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            stack.enter_context(torch.cuda.device(torch.cuda.current_device()))
        else:
            stack.callback(_first_gpu_is_current)
        # Not torch.get_default_device(), which in torch 2.6 does not know `with torch.device(...)`.
        if torch.empty(0).device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for kind in filter(torch.is_autocast_enabled, _AUTOCAST_DEVICES):
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        yield


def _first_gpu_is_current() -> None:
    """Make the first GPU the current one, as it is before CUDA is used, if CUDA has been used."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.set_device(0)


def change_until_return(change: Callable[[], object], restore: Callable[[], object]) -> None:
    """Change a setting until the program's call returns (`usual_settings`); otherwise for good.

    Args:
        change: changes it.
        restore: sets it to its present value.
    """
    _always.change_one(change, restore)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let the modules made in the block take their start weights from a seed, on the CPU.

    The random state of the program is the same afterwards. `torch.manual_seed` is not used, because
    it also seeds the GPUs. One thread at a time, because all threads share torch's generator.
    """
    with _seeding, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@cache
def _use_one_thread_after_a_fork() -> None:
    """Let torch compute on one thread in processes that are forked from now on.

    GNU's OpenMP does not notice that its threads do not exist in a forked process, and waits for
    them forever. The data workers of torch do the same.
    """
    if sys.platform == "linux":
        os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))
