"""Schedules, timesteps and the sampler: literal lists, published numbers, known noise."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch

from c2fdft_cli.core.diffusion import (
    alpha_bar_of,
    beta_schedule,
    check_timesteps,
    conditioned,
    ddim_sample,
    gaussian,
    q_sample,
    spaced_timesteps,
    to_image,
)
from c2fdft_cli.core.network import DFT
from c2fdft_cli.vocabulary import Schedule
from tests.kit.formula import fill, relative, wave

ALPHA_BAR = alpha_bar_of(beta_schedule())


@pytest.mark.parametrize("name", ["linear", "quad", "const", "jsd", "sigmoid"])
def test_schedules_equal_the_released_ones(misc, name):
    expected = misc["arrays"][f"betas.{name}"]
    assert (beta_schedule(name) - expected).abs().max() < 1e-12
    # rounded only once: a product of float32 numbers has five to 300 times the error
    product = np.cumprod(1 - expected.double().numpy())
    np.testing.assert_allclose(alpha_bar_of(beta_schedule(name)), product, rtol=1e-7, atol=1e-40)


@pytest.mark.parametrize(
    "arguments",
    [
        ("cubic",),
        ("linear", 0),
        ("linear", 10, 0.5, 0.1),
        ("linear", 10, 0.0, 0.1),
        ("linear", 10, 0.1, 1.0),
    ],
)
def test_impossible_schedules_are_refused(arguments):
    with pytest.raises(ValueError):
        beta_schedule(*arguments)


def test_the_shortest_schedule_has_one_beta_and_equal_ends_are_a_constant():
    assert beta_schedule("linear", 1, 0.1, 0.2).tolist() == [0.1]
    assert beta_schedule("linear", 3, 0.1, 0.1).tolist() == [0.1] * 3


@pytest.mark.parametrize(
    ("steps", "spacing", "expected"),
    [
        (4, "linspace", [999, 666, 333, 0]),
        (1, "linspace", [999]),
        (2, "linspace", [999, 0]),
        (3, "linspace", [999, 500, 0]),  # 499.5 rounds half to even
        (5, "linspace", [999, 749, 500, 250, 0]),
        (4, "leading", [750, 500, 250, 0]),
        (3, "leading", [666, 333, 0]),
        (7, "leading", [852, 710, 568, 426, 284, 142, 0]),
        (4, "trailing", [999, 749, 499, 249]),
        (3, "trailing", [999, 666, 332]),
        (1, "trailing", [999]),
        (1, "leading", [0]),
    ],
)
def test_timesteps_equal_literal_lists(steps, spacing, expected):
    assert spaced_timesteps(steps, spacing) == expected


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
def test_timesteps_always_descend_within_range(spacing):
    for steps in (*range(1, 65), *range(65, 1000, 13), 999, 1000):
        timesteps = spaced_timesteps(steps, spacing)
        assert len(timesteps) == steps
        assert check_timesteps(timesteps) == timesteps


def test_grid_times_are_rounded_half_to_even():
    # 999 * 2 / 4 is 499.5 and 1000 * 3 / 16 is 187.5: one is rounded up, the other too; 62.5 down
    assert spaced_timesteps(5)[2] == 500
    assert spaced_timesteps(16, "trailing")[-3] == 188 - 1
    assert spaced_timesteps(16, "trailing")[-1] == 62 - 1


@pytest.mark.parametrize("call", [lambda: spaced_timesteps(0), lambda: spaced_timesteps(1001),
                                  lambda: spaced_timesteps(4, "cosine"),
                                  lambda: check_timesteps([]), lambda: check_timesteps([5, 5]),
                                  lambda: check_timesteps([1, 2]),
                                  lambda: check_timesteps([1000, 0]),
                                  lambda: check_timesteps([3, -1])])  # fmt: skip
def test_impossible_timesteps_are_refused(call):
    with pytest.raises(ValueError):
        call()


@pytest.mark.parametrize("case", ["tiny", "tiny_bias_free", "official_derain"])
def test_samples_equal_the_released_ones(ramp, case):
    numbers = ramp[case]
    net = fill(DFT(**numbers["network"]))
    n, _, h, w = numbers["shape"]
    lq = (wave([n, 3, h, w], 0.13) + 1) / 2
    start = wave([n, 3, h, w], 0.29, torch.cos)
    with torch.inference_mode():
        final = ddim_sample(conditioned(net, lq), start, [999, 666, 333, 0], ALPHA_BAR)
    assert relative(final, numbers["final"]) < 1e-3


def test_sampler_with_the_true_noise_returns_the_image():
    gt, noise = wave([2, 3, 8, 8], 0.11), wave([2, 3, 8, 8], 0.47)

    def truth(x_t, t):
        a = ALPHA_BAR[t.long()][:, None, None, None]
        return (x_t - a.sqrt() * gt) / (1 - a).sqrt()

    start = q_sample(gt, torch.tensor([999, 999]), noise, ALPHA_BAR)
    for timesteps in ([999], [999, 500], spaced_timesteps(4), spaced_timesteps(10, "leading")):
        assert relative(ddim_sample(truth, start, timesteps, ALPHA_BAR), gt) < 1e-3


def with_small_betas(name: str) -> torch.Tensor:
    return alpha_bar_of(beta_schedule(name, start=1e-9))


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("alpha_bar_of_name", [lambda name: alpha_bar_of(beta_schedule(name)),
                                               with_small_betas])  # fmt: skip
@pytest.mark.parametrize("name", get_args(Schedule))
def test_every_schedule_can_be_sampled(name, alpha_bar_of_name, eta):
    timesteps = spaced_timesteps(4, "leading" if name == "jsd" else "linspace")
    noise = wave([1, 3, 8, 8], 0.47)
    source = torch.Generator().manual_seed(0)
    alpha_bar = alpha_bar_of_name(name)
    assert (
        ddim_sample(lambda x, t: 0.1 * x, noise, timesteps, alpha_bar, eta, [source])
        .isfinite()
        .all()
    )


@pytest.mark.parametrize(
    "betas", [("jsd",), ("linear", 1000, 1e-4, 0.3), ("linear", 1000, 1e-4, 0.5)]
)
def test_sampling_cannot_start_where_nothing_of_the_image_is_left(betas):
    alpha_bar = alpha_bar_of(beta_schedule(*betas))
    noise = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ValueError, match="nothing of the image is left at timestep 999"):
        ddim_sample(lambda x, t: x, noise, spaced_timesteps(4), alpha_bar)


def test_there_is_one_network_call_per_timestep():
    seen = []

    def spy(x_t, t):
        assert t.shape == (2,)
        seen.append(t[0].item())
        return torch.zeros_like(x_t)

    ddim_sample(spy, torch.zeros(2, 3, 8, 8), [999, 500, 2], ALPHA_BAR)
    assert seen == [999, 500, 2]


def test_a_time_without_noise_gets_none_by_eta():
    alpha_bar = torch.tensor([1.0, 0.5])
    source = torch.Generator().manual_seed(0)
    image = ddim_sample(
        lambda x, t: torch.zeros_like(x), torch.ones(1, 3, 4, 4), [0], alpha_bar, 1.0, source
    )
    assert (image == 1).all()


def test_rounding_leaves_no_negative_variance():
    """At its first step the noise of an ancestral sampler replaces all of eps_hat here."""
    alpha_bar = alpha_bar_of(beta_schedule(end=0.08))
    source = torch.Generator().manual_seed(0)
    start = wave([1, 3, 8, 8], 0.47)
    assert ddim_sample(lambda x, t: x, start, [999, 20], alpha_bar, 1.0, [source]).isfinite().all()


def test_the_sampler_computes_in_float32_whatever_it_is_given():
    start = wave([1, 3, 8, 8], 0.29).bfloat16()
    half, full = (
        ddim_sample(lambda x, t, dtype=dtype: (0.3 * x).bfloat16().to(dtype), x_T, [999, 500],
                    ALPHA_BAR)
        for dtype, x_T in ((torch.bfloat16, start), (torch.float32, start.float()))
    )  # fmt: skip
    assert half.dtype == torch.float32
    assert torch.equal(half, full)


def test_eta_uses_only_the_given_generator():
    zero = torch.zeros(1, 3, 8, 8)

    def run(seed):
        source = torch.Generator().manual_seed(seed)
        return ddim_sample(lambda x, t: 0 * x, zero, spaced_timesteps(4), ALPHA_BAR, 1.0, [source])

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    with pytest.raises(ValueError, match="pass a generator"):
        ddim_sample(lambda x, t: x, zero, [999], ALPHA_BAR, 0.5)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_two_steps_with_eta_equal_the_formula(eta):
    """Compared with eqs. (13) to (15) of docs/paper.md in NumPy, for a known eps_hat."""
    timesteps, start, eps_hat = [700, 300], wave([1, 3, 8, 8], 0.29), wave([1, 3, 8, 8], 0.47)
    got = ddim_sample(
        lambda x, t: eps_hat, start, timesteps, ALPHA_BAR, eta, [torch.Generator().manual_seed(3)]
    )
    z = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(3)).double().numpy()
    x, eps_hat = start.double().numpy(), eps_hat.double().numpy()
    a, b = ALPHA_BAR[timesteps].double().tolist()
    x_0 = (x - np.sqrt(1 - a) * eps_hat) / np.sqrt(a)
    c = eta * np.sqrt((1 - a / b) * (1 - b) / (1 - a))
    x = np.sqrt(b) * x_0 + c * z + np.sqrt(1 - b - c**2) * eps_hat
    expected = (x - np.sqrt(1 - b) * eps_hat) / np.sqrt(b)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_noise_of_an_image_does_not_depend_on_its_batch():
    def sources(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    together = gaussian((2, 3, 8, 8), sources(1, 2))
    alone = gaussian((1, 3, 8, 8), sources(2))
    assert torch.equal(together[1:], alone)
    with pytest.raises(ValueError, match="2 generators for a batch of 3"):
        gaussian((3, 3, 8, 8), sources(1, 2))


def test_q_sample_keeps_variance():
    source = torch.Generator().manual_seed(0)
    gt, noise = torch.randn(2, 1, 3, 64, 64, generator=source)
    for t in (0, 500, 999):
        x_t = q_sample(gt, torch.tensor([t]), noise, ALPHA_BAR)
        assert x_t.var().item() == pytest.approx(1.0, abs=0.05)


def test_to_image_clamps():
    assert to_image(torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0])).tolist() == [0, 0, 0.5, 1, 1]


def test_gradients_flow_through_all_calls(tiny_net):
    net = tiny_net()
    start = wave([1, 3, 16, 16], 0.29)
    sample = ddim_sample(conditioned(net, torch.rand(1, 3, 16, 16)), start, [999, 500], ALPHA_BAR)
    sample.square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())
