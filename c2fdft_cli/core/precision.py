"""Contexts in which arithmetic stays float32, whatever the caller's autocast and TF32 settings."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress

import torch
from torch import Tensor

from c2fdft_cli.process_settings import ProcessSettings


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Return a context without autocast on the device of x; the meta device has no autocast."""
    if x.device.type == "meta":
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def remember_rounding() -> Callable[[], None]:
    """Return a function that sets again how float32 products are rounded now.

    Since torch 2.9 there are two interfaces for this. The older one sets all backends, but raises
    RuntimeError when it is read after a program has used the newer one.
    """
    older: str | None = None
    tf32: bool | None = None
    with suppress(RuntimeError):
        older = torch.get_float32_matmul_precision()
    with suppress(RuntimeError):
        tf32 = torch.backends.cudnn.allow_tf32
    cuda, cudnn, mkldnn = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    kinds = [cuda.matmul] + [
        getattr(backend, name)
        for backend in (cudnn, mkldnn)
        for name in ("conv", "rnn", "matmul")
        if hasattr(backend, name)
    ]
    newer = [(kind, kind.fp32_precision) for kind in kinds if hasattr(kind, "fp32_precision")]

    def restore() -> None:
        if older is not None:
            torch.set_float32_matmul_precision(older)
        if tf32 is not None:
            torch.backends.cudnn.allow_tf32 = tf32
        for kind, value in newer:
            kind.fp32_precision = value

    return restore


def _round_nothing(undo: list[Callable[[], object]]) -> None:
    undo.append(remember_rounding())
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


_exact = ProcessSettings(_round_nothing)


def exact_products() -> AbstractContextManager[None]:
    """Return a context in which float32 products and convolutions are exact, without TF32.

    The setting is the whole process's: meanwhile the products of other threads are exact, too.
    """
    return _exact.changed()
