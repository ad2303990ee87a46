"""Strips give the whole network's numbers, whatever their height, and take the memory foretold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from c2fdft_cli.core.network import DFT
from c2fdft_cli.engine.tools.live_bytes import LiveBytes
from c2fdft_cli.execution import inference_memory
from c2fdft_cli.execution import strips as strips_module
from c2fdft_cli.execution.inference_memory import rows_that_fit, strip_bytes
from c2fdft_cli.execution.native.library import kernels_for
from c2fdft_cli.execution.strips import MAX_STRIP_VALUES, StripNetwork, default_rows
from tests.kit.formula import fill, relative, wave

KINDS: dict[str, dict[str, Any]] = {
    "with_bias": {},
    "bias_free": {"norm": "bias_free"},
    "conv_bias": {"bias": True},
    "dual_pixel": {"dual_pixel": True, "bias": True},
    "narrow": {"dim": 6, "heads": (1, 1, 3, 2), "ffn_factor": 1.5},
}


def make(**changes: Any) -> DFT:
    return fill(DFT(**{"dim": 8, "blocks": (1, 1, 1, 1), **changes}))


NETS = {kind: make(**changes) for kind, changes in KINDS.items()}


def image(n: int, h: int, w: int) -> Tensor:
    return wave([n, 6, h, w], 0.13)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@given(
    kind=st.sampled_from(sorted(KINDS)),
    n=st.integers(1, 3),
    h=st.integers(1, 5),
    w=st.integers(1, 5),
    rows=st.integers(1, 41),
    times=st.sampled_from(["one", "same", "different"]),
)
@settings(max_examples=50, deadline=None)
def test_every_size_and_strip_height_equals_the_whole(
    kind: str, n: int, h: int, w: int, rows: int, times: str
) -> None:
    t = {
        "one": torch.tensor([500.0]).expand(n),
        "same": torch.full((n,), 999.0),
        "different": 300.0 * torch.arange(n),
    }[times]
    with torch.inference_mode():
        x = image(n, 8 * h, 8 * w)
        out = StripNetwork(NETS[kind], rows)(x, t)
        whole = NETS[kind](x, t)
    assert out.shape == whole.shape
    assert out.dtype == torch.float32
    assert relative(out, whole) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_half_precision_is_close(kind: str, rows: int) -> None:
    x, t = image(2, 24, 40), torch.tensor([900.0, 10.0])
    out = StripNetwork(NETS[kind], rows, torch.bfloat16)(x, t)
    assert out.dtype == torch.float32
    assert 1e-6 < relative(out, NETS[kind](x, t)) < 3e-2


def test_half_precision_does_not_depend_on_the_strips() -> None:
    x, t = image(1, 40, 24), torch.tensor([500.0])
    one, several = (StripNetwork(NETS["with_bias"], rows, torch.bfloat16)(x, t) for rows in (40, 3))
    assert relative(several, one) < 1e-2


def test_an_image_does_not_depend_on_its_batch() -> None:
    x, t = image(3, 16, 24), torch.tensor([1.0, 500.0, 999.0])
    strips = StripNetwork(NETS["with_bias"])
    for i in range(3):
        assert relative(strips(x[i : i + 1], t[i : i + 1]), strips(x, t)[i : i + 1]) < 1e-5


def test_the_input_is_left_alone() -> None:
    x, t = image(1, 16, 16), torch.tensor([500.0])
    StripNetwork(NETS["dual_pixel"], 3)(x, t)
    assert torch.equal(x, image(1, 16, 16))


def test_autocast_around_it_changes_nothing() -> None:
    x, t = image(1, 16, 16), torch.tensor([500.0])
    strips = StripNetwork(NETS["with_bias"], 4)
    with torch.autocast("cpu", torch.bfloat16):
        inside = strips(x, t)
    assert torch.equal(inside, strips(x, t))


def test_offloading_skips_is_only_for_cuda() -> None:
    x, t = image(1, 16, 16), torch.tensor([500.0])
    net = NETS["with_bias"]
    assert torch.equal(StripNetwork(net, 8, offload_skips=True)(x, t), StripNetwork(net, 8)(x, t))


def test_the_weights_are_a_snapshot_until_refreshed() -> None:
    net = make()
    x, t = image(1, 16, 16), torch.tensor([500.0])
    strips, half = StripNetwork(net, 4), StripNetwork(net, 4, torch.bfloat16)
    before = strips(x, t)
    with torch.no_grad():
        for value in net.parameters():
            value.mul_(0.5)
    strips.refresh()
    half.refresh()
    after = net(x, t)
    assert relative(before, after) > 1e-2
    assert relative(strips(x, t), after) < 1e-5
    assert relative(half(x, t), after) < 3e-2


def test_gradients_are_refused() -> None:
    strips = StripNetwork(NETS["with_bias"])
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        pytest.raises(ValueError, match="inference_mode"),
    ):
        strips(image(1, 8, 8), torch.tensor([500.0]))
    with torch.inference_mode(False), torch.no_grad():
        assert not strips(image(1, 8, 8), torch.tensor([500.0])).requires_grad


@pytest.mark.parametrize("shape", [(1, 6, 12, 16), (1, 6, 16, 12), (1, 3, 16, 16), (6, 16, 16)])
def test_what_the_network_refuses_strips_refuse(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"want|multiples of 8"):
        StripNetwork(NETS["with_bias"])(torch.zeros(shape), torch.tensor([500.0]))


@pytest.mark.parametrize("rows", [0, -3])
def test_a_strip_has_rows(rows: int) -> None:
    with pytest.raises(ValueError, match="at least 1 row"):
        StripNetwork(NETS["with_bias"], rows)


def test_activations_are_floating() -> None:
    with pytest.raises(ValueError, match="floating"):
        StripNetwork(NETS["with_bias"], dtype=torch.int8)


@pytest.mark.parametrize(
    ("size", "device", "rows"),
    [
        ((256, 256), "cpu", 52),
        ((16, 256), "cpu", 16),
        ((4096, 4096), "cpu", 8),
        ((512, 512), "cuda", 512),
        ((720, 1280), "cuda", 720),
        ((2160, 3840), "cuda", 270),
        ((8, 1 << 22), "cuda", 1),
    ],
)
def test_default_rows(size: tuple[int, int], device: str, rows: int) -> None:
    assert default_rows(48, *size, device) == rows


@pytest.mark.parametrize("size", [(720, 1280), (2160, 3840), (4000, 6000), (8000, 8000)])
def test_no_strip_beside_a_cpu_is_beyond_32_bits(size: tuple[int, int]) -> None:
    """Whatever the memory: the hidden layer of 8 * 48 channels has the most values."""
    with torch.device("meta"):
        net = DFT()
    rows = rows_that_fit(net, *size, dtype=torch.bfloat16)
    assert rows == default_rows(48, *size, "cuda")
    assert 8 * 48 * (rows + 2) * size[1] < 1.1 * MAX_STRIP_VALUES < 2**31 - 1


def test_a_large_batch_runs_in_parts_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    net = NETS["with_bias"]
    x, t = image(5, 16, 24), torch.full((5,), 500.0)
    whole = StripNetwork(net, 16)(x, t)
    monkeypatch.setattr(strips_module, "MAX_STRIP_VALUES", 2 * 8 * 8 * 16 * 24)
    strips = StripNetwork(net, 16)
    together: list[int] = []
    run = strips._run
    monkeypatch.setattr(strips, "_run", lambda x, *rest: (together.append(len(x)), run(x, *rest)))
    assert relative(strips(x, t), whole) < 1e-5
    assert together == [2, 2, 1]


def peak_bytes(call: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> int:
    t = 100.0 * torch.arange(len(x), device=x.device)
    with torch.inference_mode(False), torch.no_grad(), LiveBytes() as live:
        call(x, t)
    return live.peak


@pytest.fixture(params=["compiled", "torch"])
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled kernels, and torch's operators where there are none."""
    if request.param == "torch":
        for module in (strips_module, inference_memory):
            monkeypatch.setattr(module, "kernels_for", lambda device, dtype: None)


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("rows", [3, 24, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_either_route_equals_the_whole(kind: str, rows: int) -> None:
    x, t = image(2, 40, 24), torch.tensor([100.0, 900.0])
    assert relative(StripNetwork(NETS[kind], rows)(x, t), NETS[kind](x, t)) < 5e-6


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 64, 48), (2, 40, 32)])
def test_the_plan_foretells_the_peak(kind: str, shape: tuple[int, int, int]) -> None:
    net, (n, h, w) = NETS[kind], shape
    x = image(*shape).clone()
    for dtype in (torch.float32, torch.bfloat16):
        for rows in (5, 100):
            peak = peak_bytes(StripNetwork(net, rows, dtype), x)
            assert strip_bytes(net, h, w, n, dtype, rows) == pytest.approx(peak, rel=0.15)


def test_the_plan_is_of_what_runs_on_a_gpu() -> None:
    """The official network on 720p in bf16: 2,036 MiB were counted on fake CUDA tensors."""
    with torch.device("meta"):
        net, x = DFT(), torch.zeros(1, 6, 720, 1280)
    planned = {rows: strip_bytes(net, 720, 1280, 1, torch.bfloat16, rows) for rows in (720, 90)}
    assert planned[720] / 2**20 == pytest.approx(2036, rel=0.01)
    for rows, size in planned.items():
        peak = peak_bytes(StripNetwork(net, rows, torch.bfloat16), x)
        assert size == pytest.approx(peak, rel=0.02)


def test_a_smaller_budget_means_narrower_strips() -> None:
    net = NETS["with_bias"]
    free = rows_that_fit(net, 128, 128)
    native = kernels_for(torch.device("cpu"), torch.float32) is not None
    assert free == default_rows(net.dim, 128, 128, native=native)
    least, most = (strip_bytes(net, 128, 128, rows=rows) for rows in (1, free))
    for budget in range(most - 1, least, -100_000):
        rows = rows_that_fit(net, 128, 128, budget_bytes=budget)
        assert rows < free
        assert strip_bytes(net, 128, 128, rows=rows) <= budget


def test_compiled_passes_are_planned_as_the_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels for a CPU, which hold less, do not run then."""
    net = NETS["with_bias"]
    bytes_, rows = (
        strip_bytes(net, 128, 128, compiled=True),
        rows_that_fit(net, 128, 128, compiled=True),
    )
    monkeypatch.setattr(inference_memory, "kernels_for", lambda *_: None)
    assert strip_bytes(net, 128, 128) == bytes_
    assert rows_that_fit(net, 128, 128) == rows


def test_a_budget_that_nothing_fits_says_what_would() -> None:
    net = NETS["with_bias"]
    budget = strip_bytes(net, 128, 128, rows=1) - 1
    with pytest.raises(ValueError, match=r"strips of 1 row.*megapixels fit"):
        rows_that_fit(net, 128, 128, budget_bytes=budget)


def test_beside_a_cpu_one_strip_is_the_whole_image_where_it_fits() -> None:
    with torch.device("meta"):
        elsewhere = DFT(dim=8, blocks=(1, 1, 1, 1))
    assert rows_that_fit(elsewhere, 128, 128) == 128
    whole = strip_bytes(elsewhere, 128, 128, rows=128)
    assert rows_that_fit(elsewhere, 128, 128, budget_bytes=whole - 1) < 128


@pytest.mark.parametrize("size", [(12, 16), (16, 12), (0, 8)])
def test_a_plan_is_for_multiples_of_8(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="multiples of 8"):
        rows_that_fit(NETS["with_bias"], *size)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("rows", [1, 5, 64])
@pytest.mark.parametrize("kind", ["with_bias", "dual_pixel", "narrow"])
def test_the_pieces_of_a_call_sum_up_to_its_work(kind: str, rows: int, n: int) -> None:
    strips = StripNetwork(NETS[kind], rows)
    pieces: list[int] = []
    strips.watch = pieces.append
    strips(image(n, 24, 16), torch.full((n,), 500.0))
    assert sum(pieces) == strips.work(n, 24, 16)
    assert min(pieces) > 0


def test_what_watches_may_end_the_call() -> None:
    strips = StripNetwork(NETS["with_bias"], 4)
    x, t = image(1, 16, 16), torch.tensor([500.0])
    whole = strips(x, t)
    pieces = 0

    def watch(_: int) -> None:
        nonlocal pieces
        pieces += 1
        if pieces == 9:
            raise KeyError("enough")

    strips.watch = watch
    with pytest.raises(KeyError, match="enough"):
        strips(x, t)
    assert pieces == 9
    strips.watch = None
    assert torch.equal(strips(x, t), whole)
