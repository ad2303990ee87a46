"""Attention equals the paper's formula, and its sums hold at the limits of number formats."""

from __future__ import annotations

import pytest
import torch

from c2fdft_cli.core.attention import Attention, mixing_matrix, pixel_sums
from tests.kit import textbook
from tests.kit.formula import fill, relative, wave


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize(
    ("bias", "scale"),
    # the last: norms under the lower bound, by which q and k are divided then
    [(True, 1), (False, 1), (False, 1e-13)],
)
def test_attention_equals_the_papers_formula(heads, bias, scale):
    attention = fill(Attention(16, heads, bias))
    x = scale * wave([2, 16, 12, 8], 0.37)
    plain = textbook.Attention(16, heads, bias)
    plain.load_state_dict(attention.state_dict(), strict=True)
    expected = plain(x)
    pixels = x.permute(0, 2, 3, 1).contiguous()
    got = attention(pixels).permute(0, 3, 1, 2)
    assert relative(got, expected) < 1e-5


def test_sums_of_parts_add_up_to_the_whole():
    q, k = wave([1, 80, 16], 0.3), wave([1, 80, 16], 0.7)
    whole = pixel_sums(q, k, 4)
    pieces = pixel_sums(q[:, :24], k[:, :24], 4) + pixel_sums(q[:, 24:], k[:, 24:], 4)
    for a, b in zip(whole, pieces, strict=True):
        assert relative(b, a) < 1e-6


def test_the_gram_matrix_does_not_overflow_in_half_precision():
    large = torch.full((1, 64 * 64, 8), 30.0, dtype=torch.float16)
    gram = pixel_sums(large, large, 1).gram
    assert gram.dtype == torch.float32
    assert torch.isfinite(gram).all()
    assert gram.max() > 65504


def test_the_mixing_matrix_is_float32_under_autocast():
    q, k = wave([2, 80, 16], 0.3), wave([2, 80, 16], 0.7)
    temperature, project_out = wave([4, 1, 1], 0.9), wave([16, 16], 0.11)

    def matrix():
        return mixing_matrix(pixel_sums(q, k, 4), temperature, project_out)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = matrix()
    assert found.dtype == torch.float32
    assert torch.equal(found, matrix())


def test_gradient_at_zero_is_finite():
    attention = fill(Attention(8, 2, False))
    x = torch.zeros(1, 8, 8, 8, requires_grad=True)
    attention(x).sum().backward()
    assert torch.isfinite(x.grad).all()
