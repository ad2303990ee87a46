"""Tensors on their way to the device and back, through pinned memory where it is a CUDA GPU.

A copy from or to memory that is not pinned would wait for all work that the GPU was given before.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def overlaps(device: torch.device) -> bool:
    """Whether work is given to the device and done while the caller goes on."""
    return device.type == "cuda"


def batches_in_flight(device: torch.device) -> int:
    """Batches that the device may have to do while their successor is made ready."""
    return 1 if overlaps(device) else 0


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on the device; the caller does not wait for the copy where it can."""
    if not overlaps(device):
        return tensor.to(device)
    # The pinned copy needs no name: torch's allocator hands its memory on only when the transfer
    # from it is done.
    return tensor.pin_memory().to(device, non_blocking=True)


class Download:
    """Copies of tensors of one device to the CPU, made behind the work that it was given so far."""

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
        # An event waits for these copies alone; `synchronize` of the device or stream would wait
        # for all work that was given since.
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._done.record(torch.cuda.current_stream(tensors[0].device))

    def wait(self) -> list[Tensor]:
        """The copies, once they are made."""
        if self._done is not None:
            self._done.synchronize()
        return self._copies
