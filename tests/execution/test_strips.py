"""Bands give the whole network's numbers, whatever their height, and take the memory foretold."""

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
from c2fdft_cli.execution.inference_memory import banded_bytes, plan, whole_bytes
from c2fdft_cli.execution.strips import Banded, default_rows
from tests.conftest import fill, relative, wave

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
def test_every_size_and_band_height_equals_the_whole(
    kind: str, n: int, h: int, w: int, rows: int, times: str
) -> None:
    t = {
        "one": torch.tensor([500.0]).expand(n),
        "same": torch.full((n,), 999.0),
        "different": 300.0 * torch.arange(n),
    }[times]
    with torch.inference_mode():
        x = image(n, 8 * h, 8 * w)
        out = Banded(NETS[kind], rows)(x, t)
        whole = NETS[kind](x, t)
    assert out.shape == whole.shape
    assert out.dtype == torch.float32
    assert relative(out, whole) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_half_precision_is_close(kind: str, rows: int) -> None:
    x, t = image(2, 24, 40), torch.tensor([900.0, 10.0])
    out = Banded(NETS[kind], rows, torch.bfloat16)(x, t)
    assert out.dtype == torch.float32
    assert 1e-6 < relative(out, NETS[kind](x, t)) < 3e-2


def test_half_precision_does_not_depend_on_the_bands() -> None:
    x, t = image(1, 40, 24), torch.tensor([500.0])
    one, several = (Banded(NETS["with_bias"], rows, torch.bfloat16)(x, t) for rows in (40, 3))
    assert relative(several, one) < 1e-2


def test_an_image_does_not_depend_on_its_batch() -> None:
    x, t = image(3, 16, 24), torch.tensor([1.0, 500.0, 999.0])
    banded = Banded(NETS["with_bias"])
    for i in range(3):
        assert relative(banded(x[i : i + 1], t[i : i + 1]), banded(x, t)[i : i + 1]) < 1e-5


def test_the_input_is_left_alone() -> None:
    x, t = image(1, 16, 16), torch.tensor([500.0])
    Banded(NETS["dual_pixel"], 3)(x, t)
    assert torch.equal(x, image(1, 16, 16))


def test_autocast_around_it_changes_nothing() -> None:
    x, t = image(1, 16, 16), torch.tensor([500.0])
    banded = Banded(NETS["with_bias"], 4)
    with torch.autocast("cpu", torch.bfloat16):
        inside = banded(x, t)
    assert torch.equal(inside, banded(x, t))


def test_offloading_skips_is_only_for_cuda() -> None:
    x, t = image(1, 16, 16), torch.tensor([500.0])
    net = NETS["with_bias"]
    assert torch.equal(Banded(net, 8, offload_skips=True)(x, t), Banded(net, 8)(x, t))


def test_the_weights_are_a_snapshot_until_refreshed() -> None:
    net = make()
    x, t = image(1, 16, 16), torch.tensor([500.0])
    banded, half = Banded(net, 4), Banded(net, 4, torch.bfloat16)
    before = banded(x, t)
    with torch.no_grad():
        for value in net.parameters():
            value.mul_(0.5)
    banded.refresh()
    half.refresh()
    after = net(x, t)
    assert relative(before, after) > 1e-2
    assert relative(banded(x, t), after) < 1e-5
    assert relative(half(x, t), after) < 3e-2


def test_gradients_are_refused() -> None:
    banded = Banded(NETS["with_bias"])
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        pytest.raises(ValueError, match="inference_mode"),
    ):
        banded(image(1, 8, 8), torch.tensor([500.0]))
    with torch.inference_mode(False), torch.no_grad():
        assert not banded(image(1, 8, 8), torch.tensor([500.0])).requires_grad


@pytest.mark.parametrize("shape", [(1, 6, 12, 16), (1, 6, 16, 12), (1, 3, 16, 16), (6, 16, 16)])
def test_what_the_network_refuses_bands_refuse(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"want|multiples of 8"):
        Banded(NETS["with_bias"])(torch.zeros(shape), torch.tensor([500.0]))


@pytest.mark.parametrize("rows", [0, -3])
def test_a_band_has_rows(rows: int) -> None:
    with pytest.raises(ValueError, match="at least 1 row"):
        Banded(NETS["with_bias"], rows)


def test_activations_are_floating() -> None:
    with pytest.raises(ValueError, match="floating"):
        Banded(NETS["with_bias"], dtype=torch.int8)


@pytest.mark.parametrize(
    ("size", "device", "rows"),
    [
        ((256, 256), "cpu", 52),
        ((16, 256), "cpu", 16),
        ((4096, 4096), "cpu", 8),
        ((4096, 4096), "cuda", 4096),
    ],
)
def test_default_rows(size: tuple[int, int], device: str, rows: int) -> None:
    assert default_rows(48, *size, device) == rows


def peak_bytes(call: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> int:
    t = 100.0 * torch.arange(len(x))
    with torch.inference_mode(False), torch.no_grad(), LiveBytes() as live:
        call(x, t)
    return live.peak


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 64, 48), (2, 40, 32)])
def test_the_plan_foretells_the_peak(kind: str, shape: tuple[int, int, int]) -> None:
    net, (n, h, w) = NETS[kind], shape
    x = image(*shape).clone()
    assert whole_bytes(net, h, w, n) == pytest.approx(peak_bytes(net, x), rel=0.15)
    for dtype in (torch.float32, torch.bfloat16):
        for rows in (5, 100):
            peak = peak_bytes(Banded(net, rows, dtype), x)
            assert banded_bytes(net, h, w, n, dtype, rows) == pytest.approx(peak, rel=0.15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("factor", [2.0, 4.0])
@pytest.mark.parametrize("blocks", [1, 2])
def test_the_plan_foretells_the_peak_of_the_whole_network(
    blocks: int, factor: float, dtype: torch.dtype
) -> None:
    net = DFT(dim=8, blocks=(blocks, 1, 1, 1), ffn_factor=factor).eval()
    x = image(1, 128, 128).clone()

    def call(x: Tensor, t: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
            return net(x, t)  # type: ignore[no-any-return]

    assert whole_bytes(net, 128, 128, 1, dtype) == pytest.approx(peak_bytes(call, x), rel=0.1)


def test_a_smaller_budget_means_narrower_bands() -> None:
    net = NETS["with_bias"]
    free = plan(net, 128, 128)
    assert free.executor == "banded"
    assert free.peak_bytes == banded_bytes(net, 128, 128, rows=free.rows)
    for budget in range(free.peak_bytes - 1, plan_least(net), -100_000):
        tight = plan(net, 128, 128, budget_bytes=budget)
        assert tight.rows < free.rows
        assert tight.peak_bytes <= budget


def plan_least(net: DFT) -> int:
    return banded_bytes(net, 128, 128, rows=1)


def test_a_budget_that_nothing_fits_says_what_would() -> None:
    with pytest.raises(ValueError, match=r"bands of 1 row.*megapixels fit"):
        plan(NETS["with_bias"], 128, 128, budget_bytes=plan_least(NETS["with_bias"]) - 1)


def test_beside_a_cpu_the_whole_network_is_preferred_where_it_fits() -> None:
    net = NETS["with_bias"]
    with torch.device("meta"):
        elsewhere = DFT(dim=8, blocks=(1, 1, 1, 1))
    whole = plan(elsewhere, 128, 128)
    assert (whole.executor, whole.rows) == ("whole", 128)
    assert plan(elsewhere, 128, 128, budget_bytes=whole.peak_bytes - 1).executor == "banded"
    assert plan(net, 128, 128).executor == "banded"


@pytest.mark.parametrize("size", [(12, 16), (16, 12), (0, 8)])
def test_a_plan_is_for_multiples_of_8(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="multiples of 8"):
        plan(NETS["with_bias"], *size)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("rows", [1, 5, 64])
@pytest.mark.parametrize("kind", ["with_bias", "dual_pixel", "narrow"])
def test_the_pieces_of_a_call_sum_up_to_its_work(kind: str, rows: int, n: int) -> None:
    banded = Banded(NETS[kind], rows)
    pieces: list[int] = []
    banded.watch = pieces.append
    banded(image(n, 24, 16), torch.full((n,), 500.0))
    assert sum(pieces) == banded.work(n, 24, 16)
    assert min(pieces) > 0


def test_what_watches_may_end_the_call() -> None:
    banded = Banded(NETS["with_bias"], 4)
    x, t = image(1, 16, 16), torch.tensor([500.0])
    whole = banded(x, t)
    pieces = 0

    def watch(_: int) -> None:
        nonlocal pieces
        pieces += 1
        if pieces == 9:
            raise KeyError("enough")

    banded.watch = watch
    with pytest.raises(KeyError, match="enough"):
        banded(x, t)
    assert pieces == 9
    banded.watch = None
    assert torch.equal(banded(x, t), whole)
