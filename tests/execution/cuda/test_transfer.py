"""Copies to the device and back: direct on a CPU, asynchronous on a simulated GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from c2fdft_cli.execution.cuda import transfer
from c2fdft_cli.execution.cuda.transfer import Download, batches_in_flight, upload

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_a_cpu_keeps_its_tensors_and_has_nothing_in_flight() -> None:
    tensor = torch.arange(6)
    assert upload(tensor, CPU) is tensor
    assert torch.equal(Download([tensor]).wait()[0], tensor)
    assert (batches_in_flight(CPU), batches_in_flight(torch.device("mps"))) == (0, 0)
    assert batches_in_flight(GPU) == 1


def test_a_gpu_copies_through_pinned_memory_and_an_event_is_awaited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    empty, copy = torch.empty, Tensor.copy_

    def pinned(*shape: Any, pin_memory: bool, **options: Any) -> Tensor:
        assert pin_memory
        return empty(*shape, **options)

    def copied(to: Tensor, source: Tensor, non_blocking: bool) -> Tensor:
        assert non_blocking
        said.append("copy")
        return copy(to, source)

    class Event:
        def record(self, stream: str) -> None:
            said.append(f"record in {stream}")

        def synchronize(self) -> None:
            said.append("wait")

    monkeypatch.setattr(transfer, "overlaps", lambda device: True)
    monkeypatch.setattr(torch, "empty", pinned)
    monkeypatch.setattr(Tensor, "copy_", copied)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda of: f"the stream of {of}")
    parts = [torch.arange(6, dtype=torch.uint8), torch.ones(2, dtype=torch.bool)]
    download = Download(parts)
    assert said == ["copy", "copy", "record in the stream of cpu"]
    assert all(map(torch.equal, download.wait(), parts))
    assert said[-1] == "wait"
