"""The parts of a network prepared for strips equal the network's own."""

from __future__ import annotations

import pytest
import torch

from c2fdft_cli.core.network import DFT
from c2fdft_cli.execution import prepared
from c2fdft_cli.execution.cuda.products import convolve_to_few
from c2fdft_cli.execution.prepared import Conv, TimeEmbedding


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("bias", [None, torch.tensor([1.0, -2.0, 0.5])])
@pytest.mark.parametrize(("top", "bottom"), [(0, 9), (0, 4), (3, 6), (8, 9)])
def test_rows_of_a_convolution_to_few_channels_see_their_neighbours(
    top: int, bottom: int, bias: torch.Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU this convolution is a matrix product."""
    x, conv = torch.randn(2, 9, 8, 16), Conv(torch.randn(3, 16, 3, 3), bias)
    want, calls = conv(x, top, bottom), []
    monkeypatch.setattr(prepared, "runs_on_gpu", lambda _: True)
    monkeypatch.setattr(
        prepared, "convolve_to_few", lambda *args: calls.append(1) or convolve_to_few(*args)
    )
    torch.testing.assert_close(conv(x, top, bottom), want, rtol=1e-5, atol=1e-5)
    assert calls == [1]
    Conv(torch.randn(5, 16, 3, 3), None)(x, top, bottom)
    assert calls == [1]


@pytest.mark.parametrize("dim", [4, 16, 24, 48, 50])
def test_the_embedding_of_all_levels_is_the_network_s(dim: int) -> None:
    net = DFT(dim=dim, blocks=(1, 1, 1, 1), heads=(1, 1, 1, 1))
    embed = TimeEmbedding.of(dim, torch.device("cpu"))
    for t in (torch.tensor([0.0, 333.0, 999.0]), torch.tensor([666.0]).expand(2)):
        for found, want in zip(embed(t), net.time_embeddings(t), strict=True):
            torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-6)
