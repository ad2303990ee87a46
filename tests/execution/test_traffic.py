"""Memory traffic and peak memory of a network call on a GPU, counted on fake CUDA tensors."""

from __future__ import annotations

from types import ModuleType
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from c2fdft_cli.execution import strips as strips_module
from c2fdft_cli.execution.fused.choose import PLAIN, fused_passes
from c2fdft_cli.execution.inference_memory import strip_bytes
from c2fdft_cli.execution.strips import StripNetwork
from c2fdft_cli.recipe.schema import FineStage, Network, Stage
from tests.kit.gpu import require_triton
from tests.kit.live_bytes import LiveBytes
from tests.kit.traffic import load_count_traffic

SMALL = Network(dim=24, blocks=[1, 1, 1, 2])


@pytest.fixture(scope="module")
def counting() -> ModuleType:
    if torch.__version__.startswith("2.6."):
        pytest.skip("tensors without data of torch 2.6 cannot be counted")
    return load_count_traffic()


@pytest.mark.acceptance
def test_bytes_and_launches_of_a_call_by_plain_passes(counting: ModuleType) -> None:
    """Before: 172 bytes per value in 1,524 kernels, or 162 bytes if q * q reads q once."""
    traffic = counting.count(Network(), 1, 256, 256, torch.bfloat16)
    values = counting.values_of(Network(), 256, 256)
    assert sum(traffic.launches.values()) <= 1200
    assert sum(traffic.bytes.values()) / values < 120
    casts = traffic.bytes["_to_copy"] / values
    assert casts < 15, "the norm's result alone is cast"


def test_bytes_and_launches_of_a_call_by_the_kernels(counting: ModuleType) -> None:
    require_triton()
    traffic = counting.count(Network(), 1, 256, 256, torch.bfloat16, fused=True)
    assert sum(traffic.launches.values()) <= 365
    assert sum(traffic.bytes.values()) / counting.values_of(Network(), 256, 256) < 41


@pytest.mark.acceptance
def test_two_images_move_twice_what_one_does(counting: ModuleType) -> None:
    """Neither q and k nor weights are copied for lack of a view."""
    one, two = (
        sum(counting.count(SMALL, n, 128, 128, torch.bfloat16).bytes.values()) for n in (1, 2)
    )
    assert two / one == pytest.approx(2, rel=0.05)


WAYS = [
    (torch.float32, ()),
    (torch.bfloat16, ()),
    (torch.bfloat16, ("gather", "mixing", "apply")),
    (torch.bfloat16, ("gather",)),
    (torch.bfloat16, ("apply",)),
]
SIZES = [(48, 88), (48, 30), (136, 30)]
"""Channels of the network, and rows of a strip of 88."""
QUICK = [(*SIZES[0], *WAYS[1]), (*SIZES[1], *WAYS[2])]
"""One of each kind of passes; the others run with the acceptance tests."""


@pytest.mark.parametrize(
    ("dim", "rows", "dtype", "parts"),
    [
        *QUICK,
        *(
            pytest.param(*size, *way, marks=pytest.mark.acceptance)
            for size in SIZES
            for way in WAYS
            if (*size, *way) not in QUICK
        ),
    ],
)
def test_the_estimate_is_near_the_peak(
    counting: ModuleType, dim: int, rows: int, dtype: torch.dtype, parts: tuple[str, ...]
) -> None:
    """By plain passes, and with some parts replaced by the kernels, also above 256 channels."""
    passes = PLAIN
    if parts:
        require_triton()
        fused = fused_passes()
        passes = PLAIN._replace(**{part: getattr(fused, part) for part in parts})
    mode, patch = FakeTensorMode(), mock.patch.object(strips_module, "passes_for")
    with mode, torch.no_grad(), patch as passes_for:
        passes_for.return_value = passes
        net = counting.fake_network(Network(dim=dim, blocks=[2, 1, 1, 1]), mode)
        strips = StripNetwork(net, rows, dtype)
        x, t = (torch.empty(s, device=counting.DEVICE) for s in ((1, 6, 88, 192), (1,)))
        with LiveBytes() as live, counting.Traffic():
            strips(x, t)
        planned = strip_bytes(strips, 88, 192, 1, rows)
    assert planned == pytest.approx(live.peak, rel=0.04)


@pytest.mark.acceptance
def test_a_training_step_uses_the_kernels_where_supported(counting: ModuleType) -> None:
    """With six blocks of at most 128 channels and two wider ones, under autocast."""
    require_triton()
    step = counting.count_step(SMALL, 2, 32, torch.bfloat16, Stage(), clip=1.0, fused=True)
    (forward, _), (backward, _) = step.parts[counting.FORWARD], step.parts[counting.BACKWARD]
    assert (forward["norm"], forward["feed_forward"]) == (10, 6)
    names = ("norm_backward", "feed_forward_backward", "feed_forward_weights")
    assert [backward[name] for name in names] == [10, 6, 6]


@pytest.mark.acceptance
@pytest.mark.parametrize(("stage", "loss"), [(Stage(), 11), (FineStage(recompute="none"), 280)])
def test_launches_of_the_parts_of_a_training_step(
    counting: ModuleType, stage: Stage, loss: int
) -> None:
    """The fine loss took 896 launches when each shifted image was added separately."""
    network = Network(dim=24, blocks=[1, 1, 1, 1])
    parts = counting.count_step(network, 2, 32, torch.bfloat16, stage, clip=1.0).parts
    launches = {part: sum(each.values()) for part, (each, _) in parts.items()}
    assert list(parts) == [counting.FORWARD, counting.LOSS, counting.BACKWARD, counting.MOVE]
    assert launches[counting.LOSS] <= loss
    assert launches[counting.FORWARD] < launches[counting.BACKWARD]
    assert launches[counting.MOVE] <= 25, "all weights together"
