"""Measures how many bytes a forward and backward pass holds."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Held:
    """Bytes of tensors, without weights and their gradients.

    peak: most bytes alive at the same time, including recomputed tensors.
    after_forward: bytes that the forward pass keeps for the backward pass.
    """

    peak: int
    after_forward: int


def held_bytes(net: nn.Module, loss: Callable[[], Tensor], device: torch.device) -> Held:
    """Measure the bytes that `loss().backward()` holds: by the allocator on CUDA, else counted.

    Leaves gradients in the network's parameters.
    """
    for parameter in net.parameters():
        # allocated in advance, so that they are not counted
        parameter.grad = torch.zeros_like(parameter)
    return _held_on_cuda(loss, device) if device.type == "cuda" else _held_on_cpu(loss)


def _held_on_cpu(loss: Callable[[], Tensor]) -> Held:
    with LiveBytes() as live:
        value = loss()
        after_forward = live.now
        value.backward()  # type: ignore[no-untyped-call]
    return Held(live.peak, after_forward)


def _held_on_cuda(loss: Callable[[], Tensor], device: torch.device) -> Held:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    value = loss()
    after_forward = torch.cuda.memory_allocated(device)
    value.backward()  # type: ignore[no-untyped-call]
    torch.cuda.synchronize(device)
    return Held(torch.cuda.max_memory_allocated(device) - before, after_forward - before)


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is active, counts the storages that operators allocate, until they are freed.

    now: bytes that are alive.
    peak: the maximum so far, measured after each operator.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operator and count the new storages in its result."""
        kwargs = kwargs or {}
        # views and in-place results have the storage of an argument
        given = {s._cdata for s in _storages((args, kwargs))}
        out = func(*args, **kwargs)
        for storage in _storages(out):
            if storage._cdata not in given and storage._cdata not in self._alive:
                self._alive.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._drop, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out

    def _drop(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if _has_storage(leaf)]


def _has_storage(leaf: object) -> bool:
    # weights in a backend's packed layout have no storage
    return isinstance(leaf, Tensor) and leaf.layout == torch.strided
