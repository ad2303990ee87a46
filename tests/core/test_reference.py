"""The complete reference numbers, if available (C2FDFT_REFERENCE names their folder)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from c2fdft_cli.core.diffusion import (
    alpha_bar_of,
    beta_schedule,
    conditioned,
    ddim_sample,
    q_sample,
    spaced_timesteps,
)
from c2fdft_cli.core.objectives import coarse_loss, fine_loss
from c2fdft_cli.engine.weights.build import make_network
from c2fdft_cli.engine.weights.checkpoint import load_checkpoint
from c2fdft_cli.recipe.schema import Network
from tests.kit.formula import relative

ALPHA_BAR = alpha_bar_of(beta_schedule())
NETS = ("with_bias", "bias_free", "conv_bias", "dual_pixel")


@pytest.fixture(scope="module")
def nets(reference_folder: Path):
    return torch.load(reference_folder / "reference.pt", weights_only=True)["nets"]


def build(numbers):
    config = numbers["config"]
    network = Network(
        dim=config["dim"],
        blocks=config["num_blocks"],
        heads=config["heads"],
        ffn_factor=config["ffn_factor"],
        bias=config["bias"],
        norm="with_bias" if config["LayerNorm_type"] == "WithBias" else "bias_free",
        dual_pixel=config["dual_pixel_task"],
    )
    return make_network(network, numbers["state_dict"])


def worst(net, norms):
    """The largest relative error of the gradient norms above 1e-6."""
    return max(
        abs(p.grad.norm().item() - norms[name]) / norms[name]
        for name, p in net.named_parameters()
        if norms[name] > 1e-6
    )


@pytest.mark.parametrize("name", NETS)
def test_network_and_sampler_equal_the_reference(nets, name):
    numbers = nets[name]
    net, lq = build(numbers), (numbers["cond"] + 1) / 2
    with torch.inference_mode():
        assert relative(net(numbers["input"], numbers["t"]), numbers["output"]) < 1e-5
        for sample in numbers["sampler"].values():
            timesteps = sample["timesteps"]
            assert timesteps in (
                spaced_timesteps(len(timesteps)),
                spaced_timesteps(len(timesteps), "leading"),
            )
            final = ddim_sample(conditioned(net, lq), numbers["x_T"], timesteps, ALPHA_BAR)
            assert relative(final, sample["final"]) < 1e-3


@pytest.mark.parametrize("name", NETS)
def test_coarse_loss_and_gradients_equal_the_reference(nets, name):
    numbers = nets[name]
    net, coarse = build(numbers), numbers["coarse"]
    gt = (coarse["gt"] + 1) / 2
    x_t = q_sample(coarse["gt"], coarse["t"], coarse["noise"], ALPHA_BAR)
    assert relative(x_t, coarse["x_t"]) < 1e-6
    lq = (numbers["cond"] + 1) / 2
    loss = coarse_loss(net, ALPHA_BAR, lq, gt, coarse["noise"], coarse["t"])
    loss.backward()
    assert loss.item() == pytest.approx(coarse["loss"], rel=1e-5)
    assert worst(net, coarse["grad_norms"]) < 1e-3


@pytest.mark.parametrize("name", NETS)
def test_fine_gradients_through_the_sampler_equal_the_reference(nets, name):
    numbers = nets[name]
    net, fine = build(numbers), numbers["fine"]
    gt, lq = (numbers["coarse"]["gt"] + 1) / 2, (numbers["cond"] + 1) / 2
    loss = fine_loss(net, ALPHA_BAR, spaced_timesteps(4), lq, gt, numbers["x_T"], ssim="none")
    loss.backward()
    assert loss.item() == pytest.approx(fine["l1_weighted"], rel=1e-5)
    assert worst(net, fine["grad_norms_l1_only"]) < 1e-2


def test_an_official_checkpoint_can_be_loaded(reference_folder, nets):
    checkpoint = load_checkpoint(reference_folder / "released_format.pth")
    numbers = nets["with_bias"]
    assert checkpoint.meta.stage == "released"
    assert checkpoint.meta.network.dim == 8
    with torch.inference_mode():
        output = checkpoint.network()(numbers["input"], numbers["t"])
    assert relative(output, numbers["output"]) < 1e-5
