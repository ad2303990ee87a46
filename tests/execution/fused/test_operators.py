"""Kernels are launched on the GPU of their tensors, with tiles that fit the channels."""

from __future__ import annotations

import importlib
import os
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from c2fdft_cli.core.layers import PixelNorm
from c2fdft_cli.execution.fused import choose, training
from c2fdft_cli.execution.fused.choose import KernelTrial
from tests.kit.formula import fill, wave
from tests.kit.gpu import require_triton

require_triton()


class CurrentGpu:
    """Stands for `torch.cuda.device_of` and records the tensor by which each thread entered it."""

    def __init__(self) -> None:
        self.within: dict[int, Tensor] = {}

    def __call__(self, tensor: Tensor) -> CurrentGpu:
        self.coming = tensor
        return self

    def __enter__(self) -> None:
        self.within[threading.get_ident()] = self.coming

    def __exit__(self, *_: object) -> None:
        del self.within[threading.get_ident()]

    def here(self) -> Tensor | None:
        """The tensor whose GPU is current in this thread."""
        return self.within.get(threading.get_ident())


@pytest.fixture
def current(monkeypatch: pytest.MonkeyPatch) -> CurrentGpu:
    made = CurrentGpu()
    monkeypatch.setattr(torch.cuda, "device_of", made)
    return made


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="there is a GPU")
def test_an_operator_runs_on_its_first_tensors_gpu(
    current: CurrentGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls the implementation registered for CUDA with CPU tensors."""
    from c2fdft_cli.execution.fused import kernels, operators  # noqa: F401 - defines them

    seen: list[Any] = []

    class Kernel:
        def __getitem__(self, grid: object) -> Any:
            return lambda *args, **options: seen.append(current.here())

    monkeypatch.setattr(kernels, "norm_kernel", Kernel())
    z, weight, time = wave([1, 2, 3, 16], 0.3), torch.ones(16), torch.zeros(1, 16)
    on_cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    operator = torch.ops.c2fdft.norm.default
    operator.redispatch(on_cuda, z, weight, None, time, torch.bfloat16)
    operator(z, weight, None, time, torch.bfloat16)
    assert seen[0].data_ptr() == z.data_ptr()
    assert seen[1:] == [None], "a CPU has no current GPU"


def test_the_norm_is_tried_on_the_streams_gpu(
    current: CurrentGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trial runs in a separate thread, whose current GPU would otherwise be that of rank 0."""
    z = wave([1, 4, 4, 16], 0.3)
    seen: list[Tensor | None] = []

    def tried(*_: object) -> KernelTrial:
        seen.append(current.here())
        return KernelTrial("norm", None)

    monkeypatch.setattr(choose, "_chosen", {})
    monkeypatch.setattr(choose, "kernels_run_on", lambda _: True)
    monkeypatch.setattr(training, "try_norm", tried)
    training.norm_for(fill(PixelNorm(16, "with_bias")), z, torch.bfloat16)
    assert len(seen) == 1
    assert seen[0] is z


@pytest.mark.parametrize("channels", [1, 8, 16, 17, 20, 24, 31, 32, 40, 48, 64, 96, 100, 192, 256])
def test_two_tiles_hold_all_channels(channels: int) -> None:
    """Their widths are powers of two that a product accepts, and add up to at most one tile's."""
    operators = importlib.import_module("c2fdft_cli.execution.fused.operators")
    one, (first, second) = operators._padded(channels), operators._parts(channels)
    assert channels <= first + second <= one
    for columns in (first, second) if second else (first,):
        assert columns >= 16
        assert columns & (columns - 1) == 0
    if channels in (48, 96, 192):
        assert first + second == channels


def test_gradients_of_a_stream_in_half_precision_are_summed_in_float32() -> None:
    operators = importlib.import_module("c2fdft_cli.execution.fused.operators")
    z = torch.zeros(1, 2, 3, 16, dtype=torch.bfloat16)
    _, of_layers = operators._stream_gradients(z, 2, 3)
    sums = [of_layers, *operators._weight_sums(z, 8, 2)]
    assert [one.dtype for one in sums] == [torch.float32] * 4


def test_each_width_has_the_next_wider_tile() -> None:
    operators = importlib.import_module("c2fdft_cli.execution.fused.operators")
    narrow, wide = operators.Tile(16, 16, 4), operators.Tile(32, 16, 4, registers=128)
    tiles = {32: narrow, 128: wide}
    found = [operators._tile(tiles, channels) for channels in (1, 32, 33, 128, 500)]
    assert found == [narrow, narrow, wide, wide, wide]
    assert narrow.options() == {"num_warps": 4, "num_stages": 1}
    assert wide.options() == {"num_warps": 4, "num_stages": 1, "maxnreg": 128}


@pytest.mark.parametrize(
    ("rows", "columns", "at_a_time", "share"),
    [
        (720, 92, 264, 90),  # 736 programs: 2.8 rounds
        (720, 92, 132, 103),  # 644 programs: 4.9 rounds
        (720, 10, 264, 28),  # one round, of 260 programs
        (64, 10, 264, 4),  # no program has fewer rows
        (3, 10, 264, 3),
        (1, 1, 264, 1),
    ],
)
def test_the_rows_of_a_program_fill_the_gpu(
    rows: int, columns: int, at_a_time: int, share: int
) -> None:
    from c2fdft_cli.execution.fused.operators import _rows_of_a_program

    assert _rows_of_a_program(rows, columns, at_a_time) == share
