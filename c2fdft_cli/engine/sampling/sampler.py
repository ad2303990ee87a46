"""Restore a batch of images; shared by validation, sweep, restore and eval."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from c2fdft_cli.core.diffusion import PredictNoise, ddim_sample, ddim_step, gaussian, to_image
from c2fdft_cli.core.network import pad_to_multiple, padded_side
from c2fdft_cli.engine.weights.build import refuse_lost_image
from c2fdft_cli.execution.cuda.transfer import upload
from c2fdft_cli.execution.device import Runtime

SLICE_VALUES = 1 << 22
"""Arithmetic outside the network works on about so many values of a large image at a time, so that
its temporary tensors are small (16 MiB each)."""


def noise_generator(seed: int, name: str, sample: int = 0) -> torch.Generator:
    """Return the random generator of an image: a function of only the seed and the base name.

    It is on the CPU, so the noise is the same on every device, in any order, batch or rank.

    Args:
        seed: the seed of the sampler.
        name: name of the file without folder and suffix. It is used unchanged, including any text
            after a dot. If it is not UTF-8, its bytes in the file system are used.
        sample: number of the sample; samples of the same image have separate generators.
    """
    key = f"{seed}/{name}{f'//{sample}' if sample else ''}"
    # Python's hash of a string would differ between processes.
    digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    number = int.from_bytes(digest, "little") >> 1
    return torch.Generator().manual_seed(number)


@dataclass(frozen=True, eq=False)  # tensors have no truth value
class Sampler:
    """The few-step sampler, for images of any size: docs/paper.md, "Sampling".

    Args:
        alpha_bar: `[T]`.
        timesteps: descending timesteps, one per sampling step.
        eta: noise added in each step; with 0 only the start noise is random.
        seed: the seed, which together with an image's name decides its noise.

    Raises:
        UsageError: sampling cannot begin at the first timestep.
    """

    alpha_bar: Tensor
    timesteps: list[int]
    eta: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        refuse_lost_image(self.timesteps, self.alpha_bar)

    @torch.inference_mode()
    def __call__(
        self,
        network: PredictNoise,
        runtime: Runtime,
        lq: Tensor,
        names: Sequence[str],
        sample: int = 0,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Restore a batch of images of equal size.

        Args:
            network: the network, or a wrapper of it: eps_hat of (x, t).
            runtime: device and precision.
            lq: `[n, 3, h, w]` in [0, 1], any size from 1x1 up.
            names: the images' base names, which decide their noise.
            sample: number of the sample; each sample has different noise.
            noise: the start noise from `start_noise`, if already sampled, on the CPU or on the
                runtime's device.

        Returns:
            `[n, 3, h, w]` float32 in [0, 1], on the runtime's device; NaN where the sampler's
            result is not finite.
        """
        height, width = lq.shape[-2:]
        padded = pad_to_multiple(lq.to(runtime.device, torch.float32))
        predict_noise = _conditioned(network, padded)
        if noise is None:
            x_T, sources = self._start(names, sample, padded.shape, runtime.device)
        else:
            # No sources are needed: `start_noise` returns noise only if eta is 0.
            is_uploaded = noise.device.type != "cpu"
            x_T, sources = noise if is_uploaded else upload(noise, runtime.device), []
        del padded  # `predict_noise` holds what it needs of it
        with runtime.autocast():
            x_0 = ddim_sample(
                predict_noise,
                x_T,
                self.timesteps,
                self.alpha_bar,
                self.eta,
                sources,
                _step_in_slices,
            )
        return _in_slices(_to_finite_image, x_0)[..., :height, :width]

    def start_noise(self, name: str, height: int, width: int) -> Tensor | None:
        """Sample the start noise of the first sample of an image; any thread may call this.

        Returns:
            `[3, padded height, padded width]` on the CPU; None if eta is above 0, as the generator
            is then needed for each step too.
        """
        if self.eta > 0:
            return None
        shape = (1, 3, padded_side(height), padded_side(width))
        return gaussian(shape, [noise_generator(self.seed, name)])[0]

    def _start(
        self, names: Sequence[str], sample: int, shape: torch.Size, device: torch.device
    ) -> tuple[Tensor, list[torch.Generator]]:
        """Return the start noise on the device, and the generators of noise for later steps.

        Noise that all images of a batch share is sampled once.
        """
        if self.eta > 0 or len(set(names)) > 1:
            sources = [noise_generator(self.seed, name, sample) for name in names]
            return upload(gaussian(shape, sources), device), sources
        source = noise_generator(self.seed, names[0], sample)
        drawn = upload(gaussian((1, *shape[1:]), [source]), device)
        return drawn.expand(shape), []


def _conditioned(net: PredictNoise, lq: Tensor) -> PredictNoise:
    """As `conditioned`, with one input of the network for all sampling steps.

    Two thirds of the memory; but no result may depend on an earlier input, as gradients do.
    """
    both = lq.new_empty((len(lq), 2 * lq.shape[1], *lq.shape[2:]))
    condition, x = both.chunk(2, dim=1)
    torch.mul(lq, 2, out=condition).sub_(1)

    def predict_noise(x_t: Tensor, t: Tensor) -> Tensor:
        x.copy_(x_t)
        return net(both, t)

    return predict_noise


def _step_in_slices(x: Tensor, eps_hat: Tensor, *coefficients: float) -> Tensor:
    return _in_slices(lambda x, eps_hat: ddim_step(x, eps_hat, *coefficients), x, eps_hat)


def _to_finite_image(x_0: Tensor) -> Tensor:
    # The clamp would turn infinite values into white or black, which would hide the overflow.
    return torch.where(x_0.isfinite(), to_image(x_0), torch.nan)


def _in_slices(function: Callable[..., Tensor], *images: Tensor) -> Tensor:
    """Compute a function of each pixel of the images, some rows at a time."""
    first = images[0]
    rows = max(1, SLICE_VALUES // max(1, first[..., 0, :].numel()))
    if rows >= first.shape[-2]:
        return function(*images)
    out = torch.empty_like(first)
    for top in range(0, first.shape[-2], rows):
        out[..., top : top + rows, :] = function(*(one[..., top : top + rows, :] for one in images))
    return out
