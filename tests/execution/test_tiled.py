"""Tiles cover the image, and their weights add up to one: a pointwise network has no seams."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from c2fdft_cli.execution.tiled import Tiled, spans

T0 = torch.zeros(1)


def pointwise(x: Tensor, t: Tensor) -> Tensor:
    return 2 * x[:, 3:] + x[:, :3]


@pytest.mark.parametrize("size", [8, 32, 40, 64, 72, 200, 1000])
@pytest.mark.parametrize("side", [16, 32, 40, 48, 56, 64, 120])
def test_spans_cover_the_axis_with_overlap(size: int, side: int) -> None:
    found = list(spans(size, side))
    assert found[0].start == 0
    assert found[-1].stop == size
    assert all(span.stop - span.start == min(size, side) for span in found)
    assert all(a.stop - b.start >= side // 4 for a, b in pairwise(found))
    assert all(span.start % 8 == 0 for span in found)


def test_the_smallest_tiles_do_not_overlap() -> None:
    assert list(spans(24, 8)) == [slice(0, 8), slice(8, 16), slice(16, 24)]


@pytest.mark.parametrize("shape", [(8, 8), (40, 96), (104, 72)])
def test_blending_adds_up_to_one(shape: tuple[int, int]) -> None:
    x = torch.randn(2, 6, *shape, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(Tiled(pointwise, 32)(x, T0), pointwise(x, T0), atol=1e-5)


def test_an_image_of_one_tile_is_run_whole() -> None:
    x = torch.randn(1, 6, 32, 24, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(Tiled(pointwise, 32)(x, T0), pointwise(x, T0))


@pytest.mark.parametrize("side", [0, -8, 20])
def test_a_side_that_is_no_multiple_of_8_is_refused(side: int) -> None:
    with pytest.raises(ValueError, match="multiple of 8"):
        Tiled(pointwise, side)


def test_one_tile_fades_into_the_next() -> None:
    """The first tile is 0 and the second 1; the ramp between them is a quarter of a tile wide."""
    said = iter((0.0, 1.0))

    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.full_like(x[:, :3], next(said))

    row = Tiled(network, 32)(torch.zeros(1, 6, 8, 56), T0)[0, 0, 0]
    rising = (torch.arange(8) + 0.5) / 8
    assert torch.allclose(row, torch.cat([torch.zeros(24), rising, torch.ones(24)]))


def test_a_tile_does_not_fade_towards_the_edge_of_the_image() -> None:
    """Two tiles of 64 px that overlap by 56: the second, of ones, has its full weight there."""
    said = iter((0.0, 1.0))

    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.full_like(x[:, :3], next(said))

    blended = Tiled(network, 64)(torch.zeros(1, 6, 72, 64), T0)[0, 0, :, 0]
    position = torch.arange(72) + 0.5
    first, second = ((64 - position) / 16).clamp(0, 1), ((position - 8) / 16).clamp(0, 1)
    assert torch.allclose(blended, second / (first + second))
