from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from c2fdft_cli.core.attention import pixel_sums
from c2fdft_cli.core.network import DFT
from c2fdft_cli.execution import prepared
from c2fdft_cli.execution.cuda import products
from c2fdft_cli.execution.cuda.products import add_product, convolve_to_few, sums_in_pieces
from c2fdft_cli.execution.prepared import Conv, TimeEmbedding


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("shape", "heads"), [((1, 40, 56, 24), 1), ((2, 32, 32, 48), 2), ((3, 1, 1, 16), 4)]
)
def test_pieces_add_up_to_the_sums(
    shape: tuple[int, ...], heads: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "PIECE_PIXELS", 32)
    qkv = (torch.randn(*shape[:3], 3 * shape[3]) + 0.3).to(dtype)
    q, k, _ = qkv.chunk(3, dim=-1)
    found = sums_in_pieces(q, k, heads)
    want = pixel_sums(q.flatten(1, 2), k.flatten(1, 2), heads)
    for a, b in zip(found, want, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("own", [False, True])
def test_add_product(own: bool, dtype: torch.dtype) -> None:
    """One weight for all images, or one for each."""
    z, x = torch.randn(3, 20, 8), torch.randn(3, 20, 16).to(dtype)
    weight = torch.randn(3 if own else 1, 8, 16).to(dtype)
    want = z + torch.einsum("npk,nck->npc", x.float(), weight.float().expand(3, -1, -1))
    add_product(z, x, weight)
    torch.testing.assert_close(z, want, rtol=0.02, atol=0.1 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 1, 4), (2, 5, 7, 24), (1, 3, 1, 6)])
def test_a_convolution_to_few_channels(shape: tuple[int, ...]) -> None:
    x, weight = torch.randn(shape), torch.randn(3, shape[3], 3, 3)
    want = F.conv2d(x.permute(0, 3, 1, 2), weight, padding=1)
    torch.testing.assert_close(convolve_to_few(x, weight), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [None, torch.tensor([1.0, -2.0, 0.5])])
@pytest.mark.parametrize(("top", "bottom"), [(0, 9), (0, 4), (3, 6), (8, 9)])
def test_rows_of_a_convolution_to_few_channels(
    top: int, bottom: int, bias: torch.Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU by a product, whose rows see their neighbours as those of a convolution do."""
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
        for found, want in zip(embed(t), net.times(t), strict=True):
            torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-6)
