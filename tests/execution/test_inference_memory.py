"""The network in strips takes the memory that was estimated."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from c2fdft_cli.core.network import DFT
from c2fdft_cli.execution import strips as strips_module
from c2fdft_cli.execution.inference_memory import rows_that_fit, strip_bytes
from c2fdft_cli.execution.native.library import kernels_for
from c2fdft_cli.execution.strips import MAX_STRIP_VALUES, StripNetwork, default_rows
from tests.kit.live_bytes import LiveBytes
from tests.kit.strips import NETS, image


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def peak_bytes(call: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> int:
    t = 100.0 * torch.arange(len(x), device=x.device)
    with torch.inference_mode(False), torch.no_grad(), LiveBytes() as live:
        call(x, t)
    return live.peak


@pytest.mark.parametrize("size", [(720, 1280), (2160, 3840), (4000, 6000), (8000, 8000)])
def test_no_strip_on_a_gpu_has_more_values_than_32_bits_can_index(size: tuple[int, int]) -> None:
    """Without a memory limit; the hidden layer of 8 * 48 channels has the most values."""
    with torch.device("meta"):
        net = DFT()
    rows = rows_that_fit(StripNetwork(net, dtype=torch.bfloat16), *size)
    assert rows == default_rows(48, *size, "cuda")
    assert 8 * 48 * (rows + 2) * size[1] < 1.1 * MAX_STRIP_VALUES < 2**31 - 1


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize(
    ("kind", "shape", "dtype"),
    [
        *((kind, (1, 32, 48), torch.float32) for kind in NETS),
        *((kind, (1, 32, 48), torch.bfloat16) for kind in ("with_bias", "narrow")),
        *(
            pytest.param(kind, (1, 32, 48), torch.bfloat16, marks=pytest.mark.acceptance)
            for kind in sorted({*NETS} - {"with_bias", "narrow"})
        ),
        ("with_bias", (2, 24, 32), torch.float32),
    ],
)
def test_the_estimate_is_near_the_peak(
    kind: str, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    net, (n, h, w) = NETS[kind], shape
    x = image(*shape).clone()
    for rows in (5, 100):
        strips = StripNetwork(net, rows, dtype)
        peak = peak_bytes(strips, x)
        assert strip_bytes(strips, h, w, n, rows) == pytest.approx(peak, rel=0.15)


@pytest.mark.acceptance
def test_the_estimate_is_right_for_a_gpu() -> None:
    """For the official network on 720p in bf16, 2,036 MiB were counted on fake CUDA tensors."""
    with torch.device("meta"):
        net, x = DFT(), torch.zeros(1, 6, 720, 1280)
    strips = StripNetwork(net, dtype=torch.bfloat16)
    planned = {rows: strip_bytes(strips, 720, 1280, 1, rows) for rows in (720, 90)}
    assert planned[720] / 2**20 == pytest.approx(2036, rel=0.01)
    for rows, size in planned.items():
        peak = peak_bytes(StripNetwork(net, rows, torch.bfloat16), x)
        assert size == pytest.approx(peak, rel=0.02)


def test_a_smaller_budget_means_narrower_strips() -> None:
    strips = StripNetwork(NETS["with_bias"])
    free = rows_that_fit(strips, 128, 128)
    native = kernels_for(torch.device("cpu"), torch.float32) is not None
    assert free == default_rows(strips.net.dim, 128, 128, native=native)
    least, most = (strip_bytes(strips, 128, 128, 1, rows) for rows in (1, free))
    assert rows_that_fit(strips, 128, 128, budget_bytes=most) == free
    for budget in range(most - 1, least, -100_000):
        rows = rows_that_fit(strips, 128, 128, budget_bytes=budget)
        assert rows < free
        assert strip_bytes(strips, 128, 128, 1, rows) <= budget


def test_images_that_run_one_after_another_need_only_further_results() -> None:
    strips = StripNetwork(NETS["with_bias"])
    one, four = (strip_bytes(strips, 64, 48, n, 16) for n in (1, 4))
    assert four - one == 3 * (64 * 48 * 3 * 4)


def test_skips_in_host_memory_are_not_counted() -> None:
    with torch.device("meta"):
        strips = StripNetwork(DFT(), dtype=torch.bfloat16)
    kept, offloaded = (strip_bytes(strips, 2160, 3840, 1, 90, skips) for skips in (False, True))
    assert offloaded < 0.97 * kept


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_compiled_passes_are_estimated_as_the_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch.compile the kernels for a CPU, which need less memory, do not run."""
    compiled = StripNetwork(NETS["with_bias"], compile=True)
    monkeypatch.setattr(strips_module, "kernels_for", lambda *_: None)
    plain = StripNetwork(NETS["with_bias"])
    assert strip_bytes(compiled, 128, 128, 1, 32) == strip_bytes(plain, 128, 128, 1, 32)
    assert rows_that_fit(compiled, 128, 128) == rows_that_fit(plain, 128, 128)


def test_a_budget_that_is_too_small_says_what_would_fit() -> None:
    strips = StripNetwork(NETS["with_bias"])
    budget = strip_bytes(strips, 128, 128, 1, 1) - 1
    with pytest.raises(ValueError, match=r"strips of 1 row.*megapixels fit"):
        rows_that_fit(strips, 128, 128, budget_bytes=budget)


def test_on_a_gpu_one_strip_is_the_whole_image_if_it_fits() -> None:
    with torch.device("meta"):
        elsewhere = StripNetwork(DFT(dim=8, blocks=(1, 1, 1, 1)))
    assert rows_that_fit(elsewhere, 128, 128) == 128
    whole = strip_bytes(elsewhere, 128, 128, 1, 128)
    assert rows_that_fit(elsewhere, 128, 128, budget_bytes=whole - 1) < 128


@pytest.mark.parametrize("size", [(12, 16), (16, 12), (0, 8)])
def test_sizes_must_be_multiples_of_8(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="multiples of 8"):
        rows_that_fit(StripNetwork(NETS["with_bias"]), *size)
