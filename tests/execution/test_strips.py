"""Strips of any height give the results of the whole network."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from c2fdft_cli.execution import strips as strips_module
from c2fdft_cli.execution.strips import StripNetwork, default_rows
from tests.kit.formula import relative
from tests.kit.strips import NETS, image


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@given(
    kind=st.sampled_from(sorted(NETS)),
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


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_half_precision_is_close_to_float32(kind: str, rows: int) -> None:
    x, t = image(2, 24, 40), torch.tensor([900.0, 10.0])
    out = StripNetwork(NETS[kind], rows, torch.bfloat16)(x, t)
    assert out.dtype == torch.float32
    assert 1e-6 < relative(out, NETS[kind](x, t)) < 3e-2
    assert not torch.equal(out, out.bfloat16().float())  # the last convolution is in float32


def test_half_precision_does_not_depend_on_the_strips() -> None:
    x, t = image(1, 40, 24), torch.tensor([500.0])
    one, several = (StripNetwork(NETS["with_bias"], rows, torch.bfloat16)(x, t) for rows in (40, 3))
    assert relative(several, one) < 1e-2


def test_an_image_does_not_depend_on_its_batch() -> None:
    x, t = image(3, 16, 24), torch.tensor([1.0, 500.0, 999.0])
    strips = StripNetwork(NETS["with_bias"])
    for i in range(3):
        assert relative(strips(x[i : i + 1], t[i : i + 1]), strips(x, t)[i : i + 1]) < 1e-5


def test_the_input_is_not_modified() -> None:
    x, t = image(1, 16, 16), torch.tensor([500.0])
    StripNetwork(NETS["dual_pixel"], 3)(x, t)
    assert torch.equal(x, image(1, 16, 16))


def test_autocast_around_it_changes_nothing() -> None:
    x, t = image(1, 16, 16), torch.tensor([500.0])
    strips = StripNetwork(NETS["with_bias"], 4)
    with torch.autocast("cpu", torch.bfloat16):
        inside = strips(x, t)
    assert torch.equal(inside, strips(x, t))


def test_offloading_skips_needs_cuda() -> None:
    x, t = image(1, 16, 16), torch.tensor([500.0])
    net = NETS["with_bias"]
    assert torch.equal(StripNetwork(net, 8, offload_skips=True)(x, t), StripNetwork(net, 8)(x, t))


def test_the_weights_are_a_snapshot_until_refreshed() -> None:
    net = copy.deepcopy(NETS["with_bias"])
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
def test_strips_refuse_the_inputs_that_the_network_refuses(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected|multiples of 8"):
        StripNetwork(NETS["with_bias"])(torch.zeros(shape), torch.tensor([500.0]))


@pytest.mark.parametrize("rows", [0, -3])
def test_a_strip_needs_at_least_one_row(rows: int) -> None:
    with pytest.raises(ValueError, match="at least 1 row"):
        StripNetwork(NETS["with_bias"], rows)


def test_activations_must_be_floating_point() -> None:
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
        ((4000, 6000), "cuda", 174),  # 23 strips, of which the last has two rows fewer
        ((8, 1 << 22), "cuda", 1),
    ],
)
def test_default_rows_are_bounded(size: tuple[int, int], device: str, rows: int) -> None:
    assert default_rows(48, *size, device) == rows


@pytest.mark.parametrize(("size", "rows"), [((8, 1 << 20), 8), ((256, 1 << 20), 64)])
def test_strips_for_the_compiled_kernels_are_never_thin(size: tuple[int, int], rows: int) -> None:
    assert default_rows(48, *size, native=True) == rows


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


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("rows", [3, 24, 100])
@pytest.mark.parametrize("kind", NETS)
def test_either_route_equals_the_whole(kind: str, rows: int) -> None:
    x, t = image(2, 40, 24), torch.tensor([100.0, 900.0])
    assert relative(StripNetwork(NETS[kind], rows)(x, t), NETS[kind](x, t)) < 5e-6


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("rows", [1, 5, 64])
@pytest.mark.parametrize("kind", ["with_bias", "dual_pixel", "narrow"])
def test_the_reported_pieces_of_a_call_add_up_to_its_work(kind: str, rows: int, n: int) -> None:
    strips = StripNetwork(NETS[kind], rows)
    pieces: list[int] = []
    strips.watch = pieces.append
    strips(image(n, 24, 16), torch.full((n,), 500.0))
    assert sum(pieces) == strips.work(n, 24, 16)
    assert min(pieces) > 0


def test_the_watcher_may_end_the_call() -> None:
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
