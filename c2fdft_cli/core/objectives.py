"""The losses of the two stages, on noise and image: docs/paper.md, eqs. (12), (17) and (18).

All random values are passed in as tensors, so a loss is a function of only its arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from c2fdft_cli.core.diffusion import PredictNoise, conditioned, ddim_sample, q_sample
from c2fdft_cli.core.precision import full_precision
from c2fdft_cli.core.ssim import SIGMA, WINDOW, mean_contrast, ssim_terms

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def coarse_loss(
    net: PredictNoise, alpha_bar: Tensor, lq: Tensor, gt: Tensor, noise: Tensor, t: Tensor
) -> Tensor:
    """Loss of the coarse stage, mean |eps_hat - eps|: docs/paper.md, eq. (12).

    Args:
        net: called with `cat([2 * lq - 1, x_t])` and t.
        alpha_bar: `[T]`, on the device of lq.
        lq: `[n, 3, h, w]` in [0, 1].
        gt: as lq.
        noise: eps, standard normal, of the shape of lq.
        t: integer timesteps, `[n]`.
    """
    x_t = q_sample(2 * gt - 1, t, noise, alpha_bar)
    return F.l1_loss(conditioned(net, lq)(x_t, t.float()).float(), noise)


def fine_loss(
    net: PredictNoise,
    alpha_bar: Tensor,
    timesteps: Sequence[int],
    lq: Tensor,
    gt: Tensor,
    noise: Tensor,
    *,
    ssim: str = "paper",
    ssim_weight: float = 0.84,
    l1_weight: float = 0.16,
    fourier_weight: float = 0.0,
    recompute: bool = True,
) -> Tensor:
    """Loss of the fine stage, 0.84 (1 - MS_SSIM) + 0.16 L1 of x_0: docs/paper.md, eq. (17).

    Under autocast only the network computes in half precision.

    Args:
        net: called with `cat([2 * lq - 1, x_t])` and t.
        alpha_bar: `[T]`.
        timesteps: descending timesteps of the sampler, one network call each.
        lq: `[n, 3, h, w]` in [0, 1].
        gt: as lq.
        noise: x_T, standard normal, of the shape of lq.
        ssim: "paper" (true data range), "as_released" (max_val 255 on [-1, 1], pooled over the
            batch) or "none".
        ssim_weight: weight of the MS-SSIM term.
        l1_weight: weight of the L1 term, which is on [-1, 1].
        fourier_weight: weight of `fourier_l1`, on [-1, 1] as well; not in the paper.
        recompute: keep only the input of each network call for the backward pass and recompute
            the rest, so that memory does not grow with the number of calls.

    Raises:
        ValueError: an unknown `ssim`; sides under 16 unless `ssim` is "none"; timesteps that do
            not descend, or start where alpha_bar is 0.
    """
    predict_noise = conditioned(net, lq)
    if recompute:
        predict_noise = recomputed(predict_noise)
    x_0 = ddim_sample(predict_noise, noise, timesteps, alpha_bar)
    # The variances are differences of blurred squares, of which half precision leaves nothing.
    with full_precision(x_0):
        x_0, gt = x_0.float(), 2 * gt.float() - 1
        loss = l1_weight * F.l1_loss(x_0, gt)
        if fourier_weight:
            loss = loss + fourier_weight * fourier_l1(x_0 - gt)
        if ssim == "paper":
            # Not clamped, unlike the saved image: outside its range a clamp has no gradient.
            similarity = ms_ssim((x_0 + 1) / 2, (gt + 1) / 2, max_val=1.0).mean()
        elif ssim == "as_released":
            similarity = ms_ssim(x_0, gt, max_val=255.0, pooled=True).mean()
        elif ssim == "none":
            return loss
        else:
            raise ValueError(f"unknown ssim {ssim!r}")
        return loss + ssim_weight * (1 - similarity)


def fourier_l1(difference: Tensor) -> Tensor:
    """Mean of |real| and |imaginary part| of the orthonormal two-dimensional Fourier transform.

    L1 favours the median of the values that a pixel may have; this term favours the right
    strength of each frequency: Cho et al., ICCV 2021.

    Args:
        difference: difference of two images, `[n, c, h, w]` float32.
    """
    return torch.view_as_real(torch.fft.rfft2(difference, norm="ortho")).abs().mean()


def recomputed(predict_noise: PredictNoise) -> PredictNoise:
    """Return the same function with its activations recomputed in the backward pass."""
    # The network uses no random numbers, so there is no random state to restore.
    return partial(checkpoint, predict_noise, use_reentrant=False, preserve_rng_state=False)


def ms_ssim(pred: Tensor, gt: Tensor, max_val: float = 1.0, pooled: bool = False) -> Tensor:
    """Multi-scale SSIM that also fits small patches: docs/paper.md, eq. (18).

    5 scales with 2x2 average pooling; window `w = min(11, side)`, sigma `1.5 * w / 11`, zero
    padding `w // 2`; terms are clamped to at least 1e-6 before their fractional power.

    Args:
        pred: `[n, c, h, w]`, sides of at least 16.
        gt: as pred.
        max_val: the data range.
        pooled: average each scale over the whole batch before the product (`as_released`).

    Returns:
        `[n]`, or `[1]` when pooled.

    Raises:
        ValueError: sides under 16.
    """
    if min(pred.shape[-2:]) < 2 ** (len(MS_SSIM_WEIGHTS) - 1):
        raise ValueError(f"MS-SSIM needs sides of at least 16, got {list(pred.shape[-2:])}")
    # Pooling is linear: sum and difference of the halved images are the halved sum and difference.
    # So both are computed only once, for all scales.
    both = torch.stack([pred + gt, pred - gt])
    terms = []
    for scale in range(len(MS_SSIM_WEIGHTS)):
        if scale:
            halved = F.avg_pool2d(both.flatten(0, 1), 2)
            both = halved.view(2, -1, *halved.shape[1:])
        window = min(WINDOW, *both.shape[-2:])
        settings = max_val, window, SIGMA * window / WINDOW, window // 2
        last = scale == len(MS_SSIM_WEIGHTS) - 1
        term = ssim_terms(both, *settings)[0] if last else mean_contrast(both, *settings)
        terms.append(term.mean().view(1) if pooled else term.mean(1))
    value = torch.ones_like(terms[0])
    for term, weight in zip(terms, MS_SSIM_WEIGHTS, strict=True):
        # The slope of x^0.0448 is infinite at 0, and a negative term, which the contrast of very
        # different patches can be, has no fractional power.
        value = value * term.clamp_min(1e-6) ** weight
    return value
