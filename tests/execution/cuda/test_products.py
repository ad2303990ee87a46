from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from c2fdft_cli.core.attention import pixel_sums
from c2fdft_cli.execution.cuda import products
from c2fdft_cli.execution.cuda.products import add_product, convolve_to_few, sums_in_pieces


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
def test_add_product_takes_one_weight_or_one_per_image(own: bool, dtype: torch.dtype) -> None:
    z, x = torch.randn(3, 20, 8), torch.randn(3, 20, 16).to(dtype)
    weight = torch.randn(3 if own else 1, 8, 16).to(dtype)
    want = z + torch.einsum("npk,nck->npc", x.float(), weight.float().expand(3, -1, -1))
    add_product(z, x, weight)
    torch.testing.assert_close(z, want, rtol=0.02, atol=0.1 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 1, 4), (2, 5, 7, 24), (1, 3, 1, 6)])
def test_a_convolution_to_few_channels_equals_torchs(shape: tuple[int, ...]) -> None:
    x, weight = torch.randn(shape), torch.randn(3, shape[3], 3, 3)
    want = F.conv2d(x.permute(0, 3, 1, 2), weight, padding=1)
    torch.testing.assert_close(convolve_to_few(x, weight), want, rtol=1e-5, atol=1e-5)
