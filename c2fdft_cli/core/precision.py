"""Contexts in which arithmetic stays float32, whatever the caller's autocast and TF32 settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Return a context without autocast on the device of x; the meta device has no autocast."""
    if x.device.type == "meta":
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


@contextmanager
def exact_products() -> Iterator[None]:
    """Compute float32 matrix products in full float32, even if the caller allows TF32 on a GPU."""
    # The setting is the whole process's: meanwhile the products of other threads are exact, too.
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
