"""The restoration as a `torch.nn.Module`, for pipelines of modules."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from c2fdft_cli.core.diffusion import conditioned, ddim_sample, gaussian, to_image
from c2fdft_cli.core.network import DFT, pad_to_multiple
from c2fdft_cli.engine.sampling.sampler import noise_generator
from c2fdft_cli.errors import UsageError


class RestorationModule(nn.Module):
    """Maps `lq` to the restored image, differentiable in `lq` and in the weights.

    `Restorer.module` creates it. `.to(device)` moves it. The caller decides gradient mode and
    autocast; the weights stay float32. The whole image goes through the network at once: `Restorer`
    needs less memory, is faster, and gives the same result except for rounding, if it was loaded
    without `self_ensemble` and `tile`, and its `eta` is 0: this module adds no noise between the
    sampling steps.

    Its `state_dict()` holds only the weights, not the timesteps. `load` accepts a file of it, and
    restores the same with `grid=module.grid`.

    Args:
        net: the network, which is copied.
        alpha_bar: `[T]`.
        grid: descending timesteps, one per sampling step.
        seed, name: decide the start noise, which is the same for each image.
    """

    def __init__(
        self, net: DFT, alpha_bar: Tensor, grid: Sequence[int], *, seed: int, name: str
    ) -> None:
        super().__init__()
        self.net = copy.deepcopy(net).requires_grad_(True)
        self.grid, self.seed, self.name = list(grid), seed, name
        self._alpha_bar = alpha_bar

    def forward(self, lq: Tensor) -> Tensor:
        """Restore a batch.

        Args:
            lq: `[n, 3, h, w]` in [0, 1], any size from 1x1 up. The values are not checked: in a
                training, those from another network may leave this range.

        Returns:
            `[n, 3, h, w]` in [0, 1], of the same type and on the same device.

        Raises:
            UsageError: `lq` is not a batch of floating images, or the weights are not float32.
        """
        _check_batch(lq)
        dtype = self.net.output.weight.dtype
        if dtype != torch.float32:
            raise UsageError(
                f"the module's weights must be float32, got {dtype}",
                hint="call float() on it; torch.autocast computes in half precision",
            )
        height, width = lq.shape[-2:]
        padded = pad_to_multiple(lq.float())
        sources = [noise_generator(self.seed, self.name) for _ in lq]
        x_T = gaussian(padded.shape, sources, lq.device)
        x_0 = ddim_sample(conditioned(self.net, padded), x_T, self.grid, self._alpha_bar)
        return to_image(x_0)[..., :height, :width].to(lq.dtype)


def _check_batch(lq: Tensor) -> None:
    """Raise UsageError unless `lq` is a batch of floating images."""
    what = "the module takes floating tensors [n, 3, h, w], got"
    if not isinstance(lq, Tensor):
        raise UsageError(f"{what} {type(lq)}", hint="images of other types are for Restorer")
    if lq.layout != torch.strided:
        raise UsageError(f"{what} one of the layout {lq.layout}", hint="pass lq.to_dense()")
    if lq.dim() != 4 or lq.shape[1] != 3 or not lq.numel() or not lq.is_floating_point():
        raise UsageError(f"{what} {lq.dtype} {list(lq.shape)}", hint="divide uint8 by 255")
