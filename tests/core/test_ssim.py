"""Structural similarity equals the paper's formula, and has the right derivative."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from c2fdft_cli.core import ssim
from c2fdft_cli.core.ssim import gaussian_window, local_moments, ssim_terms
from tests.kit.formula import wave

aten = torch.ops.aten

WINDOWS = [(11, 1.5, 0), (11, 1.5, 5), (6, 0.8, 3), (1, 0.14, 0)]
"""Side, sigma and padding of the windows: for scores, and for the scales of a loss."""


def pair(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    a, b = (wave([2, 3, 12, 17], rate).to(dtype) / 2 + 0.5 for rate in (0.31, 0.17))
    return a, 0.7 * a + 0.3 * b


def terms(
    a: Tensor, b: Tensor, window: int = 11, sigma: float = 1.5, pad: int = 0
) -> tuple[Tensor, Tensor]:
    return ssim_terms(torch.stack([a + b, a - b]), 1.0, window, sigma, pad)


def blurred(x: Tensor, window: int, sigma: float, pad: int) -> Tensor:
    weights = gaussian_window(window, sigma, x)
    kernel = (weights[:, None] * weights).expand(x.shape[1], 1, -1, -1)
    return F.conv2d(x, kernel, padding=pad, groups=x.shape[1])


def by_the_formula(a: Tensor, b: Tensor, *window: float) -> tuple[Tensor, Tensor]:
    mu_a, mu_b, aa, bb, ab = (blurred(x, *window) for x in (a, b, a * a, b * b, a * b))
    c1, c2 = 0.01**2, 0.03**2
    contrast = (2 * (ab - mu_a * mu_b) + c2) / (aa - mu_a**2 + bb - mu_b**2 + c2)
    luminance = (2 * mu_a * mu_b + c1) / (mu_a**2 + mu_b**2 + c1)
    return (luminance * contrast).mean((2, 3)), contrast.mean((2, 3))


@pytest.mark.parametrize("window", WINDOWS)
def test_the_terms_equal_the_formula(window: tuple[int, float, int]) -> None:
    for found, expected in zip(
        terms(*pair(), *window), by_the_formula(*pair(), *window), strict=True
    ):
        assert torch.allclose(found, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("window", WINDOWS)
def test_moments_and_their_derivatives_are_right(window: tuple[int, float, int]) -> None:
    x = pair()[0][:1, :1]
    mean, variance = local_moments(x, *window)
    assert torch.allclose(mean, blurred(x, *window))
    assert torch.allclose(variance, blurred(x * x, *window) - mean**2)
    x.requires_grad_()
    for part in (slice(None), slice(1, None)):
        # fast: random products with the Jacobian matrix in place of each of its elements
        assert torch.autograd.gradcheck(
            lambda x, part=part: local_moments(x, *window)[part], x, fast_mode=True
        )


def test_float32_gradients_of_similar_images_are_accurate() -> None:
    """For such images, convolutions of squares one image at a time had errors of 1e-5."""
    gradients = []
    for dtype in (torch.float32, torch.float64):
        a, b = pair(dtype)
        near = (a + (b - a) / 50).requires_grad_()
        terms(near, a, pad=5)[1].sum().backward()
        gradients.append(near.grad.double())
    assert (gradients[0] - gradients[1]).norm() < 5e-6 * gradients[1].norm()


class Products(TorchDispatchMode):
    """Records the allowed precision and the dtype of every matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, torch.dtype]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        if function.overloadpacket in (aten.mm, aten.bmm, aten.addmm, aten.baddbmm):
            self.seen.append((torch.get_float32_matmul_precision(), made.dtype))
        return made


def test_the_blurs_are_float32_whatever_the_caller_allows() -> None:
    """Also under autocast and if products may round to TF32, forward and backward."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        a, b = pair(torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            with Products() as forward:
                value = terms(a.requires_grad_(), b)[0].sum()
            with Products() as backward:
                value.backward()
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    for products in (forward, backward):
        assert set(products.seen) == {("highest", torch.float32)}


def test_a_matrix_cached_in_inference_can_be_used_in_training() -> None:
    ssim._window_sums.cache_clear()
    a, b = pair()
    with torch.inference_mode():
        terms(a, b)
    terms(a.requires_grad_(), b)[0].sum().backward()
    assert a.grad is not None
