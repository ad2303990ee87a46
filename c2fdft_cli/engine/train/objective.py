"""A training's objective: the network, with the weights that it starts from, and the loss."""

from __future__ import annotations

import torch

from c2fdft_cli.core.network import DFT
from c2fdft_cli.engine.train.options import TrainOptions
from c2fdft_cli.engine.train.stepper import Objective
from c2fdft_cli.engine.weights.build import alpha_bar_of_recipe, make_network
from c2fdft_cli.recipe.schema import FineStage


def make_objective(options: TrainOptions) -> Objective:
    """The stage's objective with the weights that it starts from, on the device."""
    net = _start_network(options).to(options.runtime.device)
    if options.runtime.device.type == "cuda":
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    alpha_bar = alpha_bar_of_recipe(options.recipe.diffusion).to(options.runtime.device)
    section = options.section
    fine = (section, options.grid) if isinstance(section, FineStage) else None
    return Objective(net, alpha_bar, fine)


def _start_network(options: TrainOptions) -> DFT:
    """The weights that a stage starts from."""
    if options.init is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.recipe.train.seed)
            return make_network(options.recipe.network)
    start_from = options.recipe.fine.start_from if options.stage == "fine" else "ema"
    return options.init.network(start_from).train()
