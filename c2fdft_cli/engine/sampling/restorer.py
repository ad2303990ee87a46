"""Restoring a batch of images: what validation, sweep, restore and eval share."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from c2fdft_cli.core.diffusion import PredictNoise, conditioned, ddim_sample, gaussian, to_image
from c2fdft_cli.core.network import pad_to_multiple, padded_side
from c2fdft_cli.engine.weights.build import refuse_lost_image
from c2fdft_cli.execution.cuda.transfer import upload
from c2fdft_cli.execution.device import Runtime


def noise_generator(seed: int, name: str, sample: int = 0) -> torch.Generator:
    """The random source of one image: a function of the seed and its base name alone.

    name: of its file, without folder and suffix. It is taken as it is: what comes behind a dot in
    it belongs to it.

    It lives on the CPU, so the noise is the same on every device, in any order, batch or rank.
    Further samples of the same image have sources of their own. A name that is not UTF-8 counts
    with the bytes that the file system has for it.
    """
    key = f"{seed}/{name}{f'//{sample}' if sample else ''}"
    # not Python's hash of text, which differs from process to process
    digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    number = int.from_bytes(digest, "little") >> 1
    return torch.Generator().manual_seed(number)


class Restorer:
    """`lq` to restored image by the few-step sampler, for any size: docs/paper.md, "Sampling".

    Args:
        predict_noise: the network, or an executor of it: eps_hat of (x, t).
        alpha_bar: `[T]`.
        grid: descending timesteps, one a sampling step.
        runtime: device and arithmetic.
        eta: 0 is deterministic after the start noise.
        seed: of the noise, together with each image's name.

    Raises:
        UsageError: sampling cannot begin at the first of the timesteps.
    """

    def __init__(
        self,
        predict_noise: PredictNoise,
        alpha_bar: Tensor,
        grid: Sequence[int],
        runtime: Runtime,
        *,
        eta: float = 0.0,
        seed: int = 0,
    ) -> None:
        refuse_lost_image(grid, alpha_bar)
        self.predict_noise = predict_noise
        self.alpha_bar = alpha_bar
        self.grid = list(grid)
        self.runtime = runtime
        self.eta = eta
        self.seed = seed

    @torch.inference_mode()
    def __call__(
        self,
        lq: Tensor,
        names: Sequence[str],
        sample: int = 0,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Restore a batch of images of one size.

        Args:
            lq: `[n, 3, h, w]` in [0, 1], any size from 1x1 up.
            names: the images' base names, which decide their noise.
            sample: number of the sample: each has noise of its own.
            noise: the start noise by `start_noise`, where it was drawn already, on the CPU or on
                the runtime's device.

        Returns:
            `[n, 3, h, w]` float32 in [0, 1], on the runtime's device; NaN where the sampler's
            result is not finite.
        """
        height, width = lq.shape[-2:]
        lq = pad_to_multiple(lq.to(self.runtime.device, torch.float32))
        if noise is None:
            x_T, sources = self._start(names, sample, lq.shape)
        else:
            # nothing is drawn later: `start_noise` gives no noise where eta is above 0
            is_there = noise.device.type != "cpu"
            x_T, sources = noise if is_there else upload(noise, self.runtime.device), []
        with self.runtime.autocast():
            x_0 = ddim_sample(
                conditioned(self.predict_noise, lq),
                x_T,
                self.grid,
                self.alpha_bar,
                self.eta,
                sources,
            )
        # The clamp would make white and black of infinity, and nobody would notice the overflow.
        image = torch.where(x_0.isfinite(), to_image(x_0), torch.nan)
        return image[..., :height, :width]

    def start_noise(self, name: str, height: int, width: int) -> Tensor | None:
        """The start noise of the first sample of an image, drawn in whatever thread.

        Returns:
            `[3, padded height, padded width]` on the CPU; None where more is drawn from its source
            later.
        """
        if self.eta > 0:
            return None
        shape = (1, 3, padded_side(height), padded_side(width))
        return gaussian(shape, [noise_generator(self.seed, name)])[0]

    def _start(
        self, names: Sequence[str], sample: int, shape: torch.Size
    ) -> tuple[Tensor, list[torch.Generator]]:
        """The start noise on the device, and the sources of what is drawn later.

        What all images of a batch share is drawn once.
        """
        if self.eta > 0 or len(set(names)) > 1:
            sources = [noise_generator(self.seed, name, sample) for name in names]
            return upload(gaussian(shape, sources), self.runtime.device), sources
        source = noise_generator(self.seed, names[0], sample)
        drawn = upload(gaussian((1, *shape[1:]), [source]), self.runtime.device)
        return drawn.expand(shape), []
