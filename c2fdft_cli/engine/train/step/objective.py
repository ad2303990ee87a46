"""A stage's objective: the network, its initial weights, and the loss."""

from __future__ import annotations

from torch import Tensor, nn

from c2fdft_cli.core.network import DFT
from c2fdft_cli.core.objectives import coarse_loss, fine_loss
from c2fdft_cli.engine.train.plan import TrainPlan
from c2fdft_cli.engine.weights.build import alpha_bar_of_recipe, make_network
from c2fdft_cli.execution.block_gradients import install
from c2fdft_cli.execution.cuda.cards import lay_out_weights
from c2fdft_cli.execution.recompute import recompute_levels
from c2fdft_cli.execution.surroundings import seeded
from c2fdft_cli.recipe.schema import FineStage


class Objective(nn.Module):
    """A stage's whole objective as one module, which is what DDP needs to wrap.

    Args:
        net: on the device of `alpha_bar`.
        alpha_bar: `[T]`.
        fine: the fine stage's section and timesteps; None for the coarse stage.
    """

    def __init__(self, net: DFT, alpha_bar: Tensor, fine: tuple[FineStage, list[int]] | None):
        super().__init__()
        install(net, alpha_bar.device)
        self.net = net
        # Not a buffer: DDP would broadcast it in each forward pass, and then a forward pass that
        # only one process tries out would wait for the others.
        self.alpha_bar = alpha_bar
        self._sampler_alpha_bar = alpha_bar.cpu()  # read on the CPU, without waiting for the device
        self.fine = fine
        recompute_levels(self.net, fine is not None and fine[0].recompute == "level")

    def forward(self, lq: Tensor, gt: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Return the mean loss of a micro-batch.

        Args:
            lq: degraded patches, `[n, 3, p, p]` in [0, 1].
            gt: clean patches, of the same shape and range.
            noise: Gaussian noise, of the same shape.
            times: the diffusion times, `[n]`; the fine stage does not use them.
        """
        if self.fine is None:
            return coarse_loss(self.net, self.alpha_bar, lq, gt, noise, times)
        stage, timesteps = self.fine
        return fine_loss(
            self.net,
            self._sampler_alpha_bar,
            timesteps,
            lq,
            gt,
            noise,
            ssim=stage.ssim,
            ssim_weight=stage.ssim_weight,
            l1_weight=stage.l1_weight,
            fourier_weight=stage.fourier_weight,
            recompute=stage.recompute != "none",
        )


def make_objective(plan: TrainPlan) -> Objective:
    """Make the stage's objective with its initial weights, on the device."""
    net = _start_network(plan).to(plan.runtime.device)
    if plan.runtime.device.type == "cuda":
        lay_out_weights(net)
    alpha_bar = alpha_bar_of_recipe(plan.recipe.diffusion).to(plan.runtime.device)
    section = plan.section
    fine = (section, plan.timesteps) if isinstance(section, FineStage) else None
    return Objective(net, alpha_bar, fine)


def _start_network(plan: TrainPlan) -> DFT:
    """Make the network with the weights that the stage starts from."""
    if plan.init is None:
        # sampled on the CPU, so that a seed gives the same weights on every device
        with seeded(plan.recipe.train.seed):
            return make_network(plan.recipe.network)
    start_from = plan.recipe.fine.start_from if plan.stage == "fine" else "ema"
    return plan.init.network(start_from).train()
