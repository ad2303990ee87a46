"""CUDA graphs without a GPU: operators that run while recording run again at each replay."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from c2fdft_cli.execution.cuda import recorded
from c2fdft_cli.execution.native import training


class Graph(TorchDispatchMode):
    """Stands for `torch.cuda.CUDAGraph`; a replay writes its results into the recorded tensors."""

    replays = 0

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Callable[..., Any], Any, dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.steps.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        Graph.replays += 1
        for func, args, kwargs, result in self.steps:
            again = func(*args, **kwargs)
            for held, made in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(held, Tensor) and held.data_ptr() != made.data_ptr():
                    held.copy_(made)

    def reset(self) -> None:
        self.steps.clear()


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> type[Graph]:
    """Replace CUDA graphs by `Graph`, which records on the CPU."""
    # These kernels are no operators, so the graph would not record them.
    monkeypatch.setattr(training, "kernels_for", lambda device, dtype: None)

    @contextmanager
    def recording(
        graph: Graph, pool: object, stream: SimpleNamespace, capture_error_mode: str
    ) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        # a stream of another GPU would record nothing
        assert stream.device_index == torch.cuda.current_stream().device_index
        with graph:
            yield

    Graph.replays = 0
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(device_index=0))
    monkeypatch.setattr(torch.cuda, "Stream", lambda index: SimpleNamespace(device_index=index))
    # an empty cache of streams, which no later test sees
    monkeypatch.setattr(recorded, "_stream_of", cache(recorded._stream_of.__wrapped__))
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: None)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    return Graph
