"""Keep apart what a calling program has set in torch and NumPy and what this package needs."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial

import numpy as np
import torch

from c2fdft_cli.core.precision import remember_rounding
from c2fdft_cli.pipeline import hold_while_forking

_AUTOCAST_DEVICES = ("cpu", "cuda", "mps")


class _ProcessSettings:
    """Settings that all threads share: the first call changes them, the last restores them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.calls = 0
        self._of_thread = threading.local()
        self._restore: list[Callable[[], object]] = []

    def change(self) -> None:
        """Set torch's usual values, unless another call has done so."""
        with self.lock:
            self.calls += 1
            self._of_thread.calls = self._calls_of_thread() + 1
            if self.calls > 1:
                return
            self._restore = [
                partial(torch.set_default_dtype, torch.get_default_dtype()),
                partial(setattr, torch.backends.cudnn, "enabled", torch.backends.cudnn.enabled),
                remember_rounding(),
            ]
            torch.set_default_dtype(torch.float32)
            torch.backends.cudnn.enabled = True
            torch.set_float32_matmul_precision("highest")

    def restore(self) -> None:
        """Set the program's values again if this was the last call."""
        with self.lock:
            self.calls -= 1
            self._of_thread.calls -= 1
            self._restore_after_last()

    def change_one(self, change: Callable[[], object], restore: Callable[[], object]) -> None:
        """Change a further setting, which `restore` sets to its present value."""
        with self.lock:
            if self.calls:
                self._restore.append(restore)
            change()

    def forget_other_threads(self) -> None:
        """In a forked process, end the calls of the other threads, which do not exist there."""
        self.calls = self._calls_of_thread()
        self._restore_after_last()

    def _calls_of_thread(self) -> int:
        return getattr(self._of_thread, "calls", 0)

    def _restore_after_last(self) -> None:
        if not self.calls:
            # In reverse, because a setting may have been changed several times.
            while self._restore:
                self._restore.pop()()


_process = _ProcessSettings()
_seeding = threading.Lock()
for _lock in (_process.lock, _seeding):
    hold_while_forking(_lock)

if sys.platform != "win32":
    os.register_at_fork(after_in_child=_process.forget_other_threads)


@contextmanager
def usual_settings() -> Iterator[None]:
    """Run a block with the usual settings of torch and NumPy, whatever the program has set.

    So results do not depend on the program, and it finds its own settings unchanged afterwards:
    default dtype, default device, current GPU, gradient and inference mode, autocast, cuDNN, how
    float32 products are rounded, and which floating-point errors NumPy raises.
    """
    _use_one_thread_after_a_fork()
    with ExitStack() as stack:
        _process.change()
        stack.callback(_process.restore)
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
    _process.change_one(change, restore)


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
