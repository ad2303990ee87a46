"""Losses: published values and gradients, and changes that must not affect them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from c2fdft_cli.core.diffusion import alpha_bar_of, beta_schedule, q_sample, spaced_timesteps
from c2fdft_cli.core.objectives import coarse_loss, fine_loss, fourier_l1, ms_ssim
from c2fdft_cli.execution.recompute import recompute_levels
from tests.kit.formula import wave

ALPHA_BAR = alpha_bar_of(beta_schedule())


@pytest.mark.parametrize("side", [32, 64])
def test_ms_ssim_of_patches_equals_golden_values(misc, side):
    numbers = misc["ms_ssim"][str(side)]
    gt = misc["arrays"][f"gt{side}"].float()
    pred = misc["arrays"][f"pred{side}"].float().requires_grad_()
    value = ms_ssim(pred, gt)
    value.sum().backward()
    assert value.tolist() == pytest.approx(numbers["per_image_max1"], rel=1e-5)
    norms = pred.grad.flatten(1).norm(dim=1).tolist()
    assert norms == pytest.approx(numbers["grad_norm_max1"], rel=1e-4)


@pytest.mark.parametrize("side", [32, 64])
def test_ms_ssim_equals_the_released_one(misc, side):
    numbers = misc["ms_ssim"][str(side)]
    gt = 2 * misc["arrays"][f"gt{side}"].float() - 1
    pred = (2 * misc["arrays"][f"pred{side}"].float() - 1).requires_grad_()
    value = ms_ssim(pred, gt, max_val=255.0, pooled=True)
    value.backward()
    assert value.item() == pytest.approx(numbers["released_pooled_max255_signed"], abs=1e-6)
    assert pred.grad.norm().item() == pytest.approx(numbers["released_grad_norm"], rel=1e-3)


def test_ms_ssim_is_one_for_equal_images_and_symmetric():
    a, b = wave([2, 3, 32, 32], 0.31).abs(), wave([2, 3, 32, 32], 0.17).abs()
    assert ms_ssim(a, a).tolist() == pytest.approx([1.0, 1.0])
    assert ms_ssim(a, b).tolist() == pytest.approx(ms_ssim(b, a).tolist())
    assert (ms_ssim(a, b) < 0.9).all()


def test_ms_ssim_of_opposites_has_a_finite_gradient():
    a = wave([1, 3, 32, 32], 0.31).requires_grad_()
    ms_ssim((a + 1) / 2, (1 - a.detach()) / 2).sum().backward()
    assert torch.isfinite(a.grad).all()


def test_terms_of_ms_ssim_are_kept_above_a_millionth():
    """Opposite contrasts make every term negative; the weights sum to 1.0001."""
    source = torch.Generator().manual_seed(0)
    grids = [
        torch.randint(2, (1, 1, 704 // k, 704 // k), generator=source) for k in (1, 2, 4, 8, 16)
    ]
    x = sum(F.interpolate(grid.float(), 704) for grid in grids) / 5  # texture at all five scales
    assert ms_ssim(x, 1 - x).item() == pytest.approx(1e-6**1.0001, rel=1e-4)


def test_ms_ssim_refuses_tiny_patches():
    with pytest.raises(ValueError, match="at least 16"):
        ms_ssim(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))


def test_the_released_range_hides_differences():
    """With max_val 255 on [-1, 1], as released, unrelated images have a high MS-SSIM."""
    a, b = (torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    assert ms_ssim(2 * a - 1, 2 * b - 1, 255.0, pooled=True).item() > 0.99
    assert ms_ssim(a, b).max().item() < 0.6


def test_the_coarse_loss_is_the_error_of_the_noise():
    lq, gt, noise = (wave([2, 3, 16, 16], rate) for rate in (0.1, 0.2, 0.3))
    times = torch.tensor([3, 900])
    x_t = q_sample(2 * gt - 1, times, noise, ALPHA_BAR)

    def truth(x, t):
        assert torch.equal(x[:, 3:], x_t)
        assert torch.equal(x[:, :3], 2 * lq - 1)
        assert torch.equal(t, times.float())
        return noise + off

    for off in (0.0, 0.3, -0.3):
        loss = coarse_loss(truth, ALPHA_BAR, lq, gt, noise, times).item()
        assert loss == pytest.approx(abs(off), abs=1e-6)


def fine(net, **changes):
    lq, gt, noise = (wave([2, 3, 16, 16], rate) for rate in (0.1, 0.2, 0.3))
    return fine_loss(
        net, ALPHA_BAR, spaced_timesteps(2), (lq + 1) / 2, (gt + 1) / 2, noise, **changes
    )


def test_recomputing_changes_nothing(tiny_net):
    gradients = []
    for recompute, levels in ((True, True), (True, False), (False, False)):
        net = tiny_net()
        recompute_levels(net, levels)
        loss = fine(net, recompute=recompute)
        loss.backward()
        gradients.append([loss.item()] + [p.grad.norm().item() for p in net.parameters()])
    assert gradients[0] == pytest.approx(gradients[2], rel=1e-5)
    assert gradients[1] == pytest.approx(gradients[2], rel=1e-5)


def test_every_term_of_the_fine_loss_equals_its_formula():
    x_0, target, noise = (wave([2, 3, 32, 32], rate) for rate in (0.11, 0.2, 0.3))
    gt, a = (target + 1) / 2, ALPHA_BAR[500]

    def net(x, t):
        """Predict the noise for which the sampler returns x_0."""
        return (x[:, 3:] - a.sqrt() * x_0) / (1 - a).sqrt()

    def loss(**terms):
        return fine_loss(net, ALPHA_BAR, [500], gt, gt, noise, **terms).item()

    difference = (x_0 - target).double().numpy()
    spectrum = np.fft.rfft2(difference, norm="ortho")
    l1 = np.abs(difference).mean()
    paper = 1 - ms_ssim((x_0 + 1) / 2, gt).mean().item()
    released = 1 - ms_ssim(x_0, target, max_val=255.0, pooled=True).item()
    fourier = (np.abs(spectrum.real).mean() + np.abs(spectrum.imag).mean()) / 2
    assert loss(ssim="none", l1_weight=1.0) == pytest.approx(l1, rel=1e-4)
    assert loss(l1_weight=0.0, ssim_weight=1.0) == pytest.approx(paper, rel=1e-4)
    only = {"l1_weight": 0.0, "ssim_weight": 1.0}
    assert loss(ssim="as_released", **only) == pytest.approx(released, rel=1e-3)
    only = {"l1_weight": 0.0, "fourier_weight": 1.0}
    assert loss(ssim="none", **only) == pytest.approx(fourier, rel=1e-4)
    assert loss() == pytest.approx(0.84 * paper + 0.16 * l1, rel=1e-4)
    together = loss(ssim_weight=2.0, l1_weight=0.3, fourier_weight=0.5)
    assert together == pytest.approx(2 * paper + 0.3 * l1 + 0.5 * fourier, rel=1e-4)


@pytest.mark.parametrize("size", [(8, 8), (7, 10), (1, 5)])
def test_the_fourier_term_equals_numpys(size):
    difference = wave([2, 3, *size], 0.37)
    spectrum = np.fft.rfft2(difference.double().numpy(), norm="ortho")
    expected = (np.abs(spectrum.real).mean() + np.abs(spectrum.imag).mean()) / 2
    assert fourier_l1(difference).item() == pytest.approx(expected, rel=1e-5)


def test_the_fourier_term_grows_linearly_with_the_difference():
    difference = wave([2, 3, 8, 8], 0.37)
    assert fourier_l1(torch.zeros(1, 3, 8, 8)).item() == 0
    assert fourier_l1(3 * difference).item() == pytest.approx(3 * fourier_l1(difference).item())
    halves = [fourier_l1(half).item() for half in difference.split(1)]
    assert fourier_l1(difference).item() == pytest.approx(sum(halves) / 2)  # micro-batches add up


def test_fine_loss_refuses_an_unknown_choice(tiny_net):
    with pytest.raises(ValueError, match="unknown ssim"):
        fine(tiny_net(), ssim="yes")


@pytest.mark.parametrize("fourier", [0.0, 1.0])
@pytest.mark.parametrize("ssim", ["paper", "as_released", "none"])
def test_the_fine_loss_is_float32_under_autocast(ssim, fourier):
    """All operations except the network, which is elementwise here and unaffected by autocast."""
    gt, eps = (wave([2, 3, 32, 32], step) / 2 + 0.5 for step in (0.05, 0.31))
    t = torch.tensor([500, 500])
    x_t = q_sample(2 * gt - 1, t, eps, ALPHA_BAR)
    error = torch.full((1,), 0.01, requires_grad=True)

    def loss_and_gradient(autocast):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            net = lambda x, _: eps + error * wave([2, 3, 32, 32], 0.7)  # noqa: E731
            terms = {"ssim": ssim, "fourier_weight": fourier}
            loss = fine_loss(net, ALPHA_BAR, [500], gt, gt, x_t, recompute=False, **terms)
        return loss, torch.autograd.grad(loss, error)[0]

    for half, full in zip(loss_and_gradient(True), loss_and_gradient(False), strict=True):
        assert half.dtype == torch.float32
        assert torch.equal(half, full)
