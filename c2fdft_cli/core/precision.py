"""Where the arithmetic must stay float32, whatever the caller's autocast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """No autocast on the device of x; the meta device has none to switch off."""
    if x.device.type == "meta":
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


@contextmanager
def exact_products() -> Iterator[None]:
    """Matrix products of float32 in float32, also where the caller lets a GPU round to TF32."""
    # A setting of the whole process: products of other threads are exact meanwhile, too.
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
