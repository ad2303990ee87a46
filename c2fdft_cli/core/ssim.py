"""Structural similarity, for the fine loss: docs/paper.md, eq. (22).

The scores have their own, in float64 and without gradients (`metrics.protocols`); they share the
window.

For two images a and b, only the local means and variances of `u = a + b` and `v = a - b` are
needed, because `2 s_ab = (s_u - s_v) / 2` and `s_a^2 + s_b^2 = (s_u + s_v) / 2`, where s_u and s_v
are these variances:

    (2 s_ab + C2) / (s_a^2 + s_b^2 + C2) = 1 - 2 s_v / (s_u + s_v + 2 C2)

and the same with squared means for the other factor. So four maps are blurred instead of five.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from c2fdft_cli.core.precision import exact_products, full_precision

WINDOW = 11
SIGMA = 1.5


def gaussian_window(size: int, sigma: float, like: Tensor) -> Tensor:
    """Return normalised Gaussian weights `[size]`, centred on `size // 2`.

    For an even size this is half a pixel off the middle, as in the official program.
    """
    i = torch.arange(size, dtype=like.dtype, device=like.device) - size // 2
    weights = torch.exp(-(i**2) / (2 * sigma**2))
    return weights / weights.sum()


def ssim_terms(
    sum_and_difference: Tensor, max_val: float, window: int, sigma: float, pad: int
) -> tuple[Tensor, Tensor]:
    """Return mean SSIM and mean contrast-structure term of each channel of each image.

    Args:
        sum_and_difference: a + b and a - b of images `[n, c, h, w]` in [0, max_val], as
            `[2, n, c, h, w]`; sides of at least `window - 2 * pad`.
        max_val: the data range L in C1 = (0.01 L)^2, C2 = (0.03 L)^2.
        window: side of the Gaussian window.
        sigma: its standard deviation, in pixels.
        pad: zero padding before the windowed sums; with 0 only the valid region is used.

    Returns:
        SSIM and contrast-structure, each `[n, c]`.
    """
    mean, variance = local_moments(sum_and_difference, window, sigma, pad)
    contrast = 1 - 2 * _dissimilarity(variance, (0.03 * max_val) ** 2)
    luminance = 1 - 2 * _dissimilarity(mean.square(), (0.01 * max_val) ** 2)
    return (luminance * contrast).mean((2, 3)), contrast.mean((2, 3))


def mean_contrast(
    sum_and_difference: Tensor, max_val: float, window: int, sigma: float, pad: int
) -> Tensor:
    """Return the second result of `ssim_terms` without computing the first."""
    _, variance = local_moments(sum_and_difference, window, sigma, pad)
    return 1 - 2 * _dissimilarity(variance, (0.03 * max_val) ** 2).mean((2, 3))


def local_moments(x: Tensor, window: int, sigma: float, pad: int) -> tuple[Tensor, Tensor]:
    """Return mean and variance of `x: [..., h, w]` in the Gaussian window around each pixel."""
    rows, columns = (
        _window_sums(side, window, sigma, pad, x.dtype, x.device) for side in x.shape[-2:]
    )
    return _Moments.apply(x, rows, columns)  # type: ignore[no-any-return, no-untyped-call]


def _dissimilarity(x: Tensor, constant: float) -> Tensor:
    """Return `x_v / (x_u + x_v + 2 C)`; a factor of SSIM is 1 minus twice this."""
    x_u, x_v = x.unbind()
    # For similar images x_v is small from the start, because a - b is small, and keeps its digits.
    # By way of their covariance it would be a small difference of large numbers.
    return x_v / (x_u + x_v + 2 * constant)


@cache
def _window_sums(
    side: int, window: int, sigma: float, pad: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return the weighted sums in a window sliding along a side as a matrix, `[sums, side]`.

    The matrix is made only once: a copy to a GPU could not be recorded in a CUDA graph.
    """
    # The cached matrix serves all callers: if validation made it in inference mode, autograd would
    # refuse it later.
    with torch.inference_mode(False):
        weights = gaussian_window(window, sigma, torch.empty(0, dtype=dtype))
        sums = torch.zeros(side + 2 * pad - window + 1, side + 2 * pad, dtype=dtype)
        for offset, weight in enumerate(weights.tolist()):
            sums.diagonal(offset).fill_(weight)
        return sums[:, pad : pad + side].to(device, copy=True)


def _blur_both(x: Tensor, y: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return `rows x columns^T` for each image of x and of y, `[..., h, w]`, stacked.

    In full float32: TF32 would leave nothing of a variance, which is a difference of such sums.
    """
    # Both horizontal blurs are written to one tensor, so that the vertical one is one product.
    along = x.new_empty(2, *x.shape[:-1], len(columns))
    with full_precision(x), exact_products():
        for image, out in zip((x, y), along, strict=True):
            torch.mm(image.flatten(0, -2), columns.T, out=out.flatten(0, -2))
        images = along.flatten(0, -3)
        across = torch.bmm(rows.expand(len(images), -1, -1), images)
    return across.view(*along.shape[:-2], *across.shape[-2:])


class _Moments(torch.autograd.Function):
    """`local_moments` by blurring x and x^2, with a derivative that needs two blurs.

    With m = B x and s = B x^2 - m^2: dx = B^T (dm - 2 m ds) + 2 x B^T ds.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        mean, variance = _blur_both(x, x * x, rows, columns).unbind()
        variance.addcmul_(mean, mean, value=-1)
        ctx.save_for_backward(x, mean, rows, columns)
        # `mean_contrast` drops the mean: its gradient is then None instead of a tensor of zeros.
        ctx.set_materialize_grads(False)
        return mean, variance

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_mean: Tensor | None, of_variance: Tensor | None
    ) -> tuple[Tensor, None, None]:
        x, mean, rows, columns = ctx.saved_tensors
        if of_variance is None:
            of_variance = torch.zeros_like(mean)
        through_mean = (mean * of_variance).mul_(-2)
        if of_mean is not None:
            through_mean += of_mean
        of_x, of_square = _blur_both(through_mean, of_variance, rows.T, columns.T).unbind()
        return of_x.addcmul_(x, of_square, value=2), None, None
