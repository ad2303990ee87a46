"""Copies of tensors to the device and back, through pinned memory if it is a CUDA GPU.

A copy from or to memory that is not pinned would wait for all work launched on the GPU before it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def overlaps(device: torch.device) -> bool:
    """Whether the device works asynchronously, while the caller continues."""
    return device.type == "cuda"


def batches_in_flight(device: torch.device) -> int:
    """Return how many batches may be queued on the device while the next one is prepared."""
    return 1 if overlaps(device) else 0


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from the CPU to the device, without waiting for the copy if possible."""
    if not overlaps(device):
        return tensor.to(device)
    # The pinned copy needs no reference: torch's allocator reuses its memory only when the transfer
    # from it is complete.
    return tensor.pin_memory().to(device, non_blocking=True)


class Download:
    """Copies of tensors from one device to the CPU, made after the work launched there so far."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._done: torch.cuda.Event | None = None
        if not any(overlaps(tensor.device) for tensor in tensors):
            self._copies = [tensor.cpu() for tensor in tensors]
            return
        self._copies = [
            torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(
                tensor, non_blocking=True
            )
            for tensor in tensors
        ]
        # An event waits for these copies only; `synchronize` of the device or the stream would wait
        # for all work launched since.
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._done.record(torch.cuda.current_stream(tensors[0].device))

    def wait(self) -> list[Tensor]:
        """Wait until the copies are complete, and return them."""
        if self._done is not None:
            self._done.synchronize()
        return self._copies
