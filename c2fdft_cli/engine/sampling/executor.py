"""Run the sampler within the available memory: on whole images, in strips or in tiles."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from c2fdft_cli.core.diffusion import PredictNoise
from c2fdft_cli.core.network import padded_side
from c2fdft_cli.core.precision import exact_products
from c2fdft_cli.engine.sampling.ensemble import mean_and_deviation
from c2fdft_cli.engine.sampling.sampler import Sampler
from c2fdft_cli.errors import ResourceError
from c2fdft_cli.execution.compiling import allow_failures, functions_given_up
from c2fdft_cli.execution.device import Runtime
from c2fdft_cli.execution.inference_memory import rows_that_fit, strip_bytes
from c2fdft_cli.execution.memory import free_bytes, is_out_of_memory, release_cached_memory
from c2fdft_cli.execution.strips import StripNetwork
from c2fdft_cli.execution.tiled import Tiled, tiles

MARGIN = 0.8
"""Share of the free memory that a restoration may use unless a limit is set."""
MEASURED_SECONDS = 1.0
"""The free memory is not measured again within this time, because that takes milliseconds."""
SUGGESTED_TILE = 512
"""Size of tiles that messages suggest, in px."""
MIN_ROWS = 8
"""Strips of at most so many rows are not narrowed further when memory runs out."""
# Float32 values as counted by the tests; the other bytes are integers: this image, the next one,
# and results that wait to be written.
SAMPLER_BYTES = 4 * 21 + 24
"""Bytes per pixel outside the network: the image, the network's input, x_t, x_T, a result."""
MEAN_BYTES = 4 * 9
"""Bytes per pixel that a mean of several runs adds: the transformed image, mean and squares."""
SMALL_PIXELS = 1 << 16
"""Images with more pixels keep a CPU busy on their own, so they are not batched there."""
MAX_BATCH, BATCH_PIXELS = 16, 1 << 18
"""Largest number of images, and of all their pixels, in a batch on a CPU."""
GPU_MAX_BATCH, GPU_BATCH_PIXELS = 64, 3 << 20
"""The same on a GPU, which computes smaller batches faster than the CPU can launch their work."""


class Restored(NamedTuple):
    """Restored images, and how they were made.

    image: `[n, 3, h, w]` float32 in [0, 1], the mean over all samples and transforms.
    deviation: `[n, 1, h, w]` float32, the per-pixel standard deviation; None for a single run.
    executor: "whole", "strips of N rows" or "tiles of N px".
    notes: unexpected events, such as running out of memory.
    """

    image: Tensor
    deviation: Tensor | None
    executor: str
    notes: list[str]


class Executor:
    """Runs the sampler on batches of any size within a memory budget.

    Args:
        network: the network in strips, in the runtime's precision and on its device; several
            executors may share it, but not run at the same time.
        sampler: the sampler.
        runtime: device and precision.
        samples, transforms: what each result is averaged over, see `mean_and_deviation`.
        max_memory: bytes that may be used besides the weights; None for the free memory with a
            margin.
        tile: side of the tiles in px; None for the exact result, without tiles.
        batch: largest number of images in a batch; 0 chooses: on a CPU small images with a quarter
            megapixel in all, on a GPU images of any size with three megapixels in all.
    """

    def __init__(
        self,
        network: StripNetwork,
        sampler: Sampler,
        runtime: Runtime,
        *,
        samples: int = 1,
        transforms: Sequence[int] = (0,),
        max_memory: int | None = None,
        tile: int | None = None,
        batch: int = 0,
    ) -> None:
        self._strips = network
        self.predict_noise: PredictNoise = network if tile is None else Tiled(network, tile)
        self.sampler = sampler
        self._runtime = runtime
        self._tile, self._batch = tile, batch
        self._samples, self._transforms = samples, tuple(transforms)
        self._max_memory = max_memory
        self.budget, self._measured_at = max_memory or 0, -math.inf
        self.measure_memory()
        self._in_float32: Executor | None = None

    def measure_memory(self) -> None:
        """Set the budget from the memory that is free now, unless the caller limits it."""
        now = time.monotonic()
        if self._max_memory is None and now - self._measured_at >= MEASURED_SECONDS:
            self.budget = int(free_bytes(self._runtime.device) * MARGIN)
            self._measured_at = now

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return self._runtime.device

    @property
    def runs(self) -> int:
        """The number of runs of the sampler for each image."""
        return self._samples * len(self._transforms)

    def check_fits(self, height: int, width: int) -> None:
        """Check that an image of this size, in pixels, can be restored in the available memory.

        Raises:
            ResourceError: not even the narrowest strips fit; it states the size that would fit.
        """
        self._plan(height, width, 1)

    def batch_size(self, height: int, width: int) -> int:
        """Return how many images of this size are restored in one batch."""
        pixels = height * width
        count = self._batch
        if not count and self._runtime.device.type == "cuda":
            count = min(GPU_MAX_BATCH, GPU_BATCH_PIXELS // pixels)
        elif not count and pixels <= SMALL_PIXELS:
            count = min(MAX_BATCH, BATCH_PIXELS // pixels)
        while count > 1 and not self._fits(height, width, count):
            count //= 2
        return max(1, count)

    def __call__(
        self,
        lq: Tensor,
        names: Sequence[str],
        progress: Callable[[float], None] = lambda _: None,
    ) -> Restored:
        """Restore a batch; an image that is not finite in half precision is redone in float32.

        Args:
            lq, names, progress: as for `start`.

        Returns:
            The images and deviations, on the CPU.

        Raises:
            ResourceError: as for `start`.
        """
        restored = self.start(lq, names, progress)
        failed = self.to_redo(finite(restored.image).tolist())
        if failed:
            restored = self.redo(restored, failed, lq, names, progress)
        deviation = None if restored.deviation is None else restored.deviation.cpu()
        return restored._replace(image=restored.image.cpu(), deviation=deviation)

    def start(
        self,
        lq: Tensor,
        names: Sequence[str],
        progress: Callable[[float], None] = lambda _: None,
        noise: Tensor | None = None,
    ) -> Restored:
        """Restore a batch, all samples under all transforms; on a GPU, only launch the work.

        Args:
            lq: `[n, 3, h, w]` in [0, 1].
            names: the images' base names, which decide their noise.
            progress: called many times with the share of the work that is done, 0 to 1; it may
                raise an exception, which ends the work.
            noise: `[n, 3, padded h, padded w]`, the images' `start_noise` if already sampled.

        Returns:
            The images on the runtime's device, without waiting for them and without a check that
            they are finite (see `to_redo`).

        Raises:
            ResourceError: out of memory, even in the narrowest strips.
        """
        count, _, height, width = lq.shape
        done, total = 0, self.runs * self._work(height, width, count)
        notes: dict[str, None] = {}
        executor = ""

        def watch(amount: int) -> None:
            nonlocal done
            done += amount
            progress(min(1.0, done / total))  # work repeated after running out of memory adds up

        def sample(lq: Tensor, number: int) -> Tensor:
            nonlocal executor
            image, executor = self._run(lq, names, number, notes.setdefault, noise)
            return image

        # Set for every batch, because executors may share the network.
        self._strips.watch = watch
        given_up = 0
        if self._strips.compiled:
            allow_failures()
            given_up = functions_given_up()
        image, deviation = mean_and_deviation(sample, lq, self._samples, self._transforms)
        if self._strips.compiled and functions_given_up() > given_up:
            notes.setdefault("torch.compile gave up on a part of the network: it runs uncompiled")
        return Restored(image, deviation, executor, list(notes))

    def start_noise(self, name: str, height: int, width: int) -> Tensor | None:
        """Sample the start noise of an image, so that any thread can do it ahead of `start`.

        Returns:
            `[3, padded height, padded width]` on the CPU; None if the image needs more than this
            noise: several runs, or noise in each step (eta above 0).
        """
        return self.sampler.start_noise(name, height, width) if self.runs == 1 else None

    def to_redo(self, are_finite: Sequence[bool]) -> list[int]:
        """Return the indices of images that are not finite, but may be if computed in float32."""
        if self._runtime.dtype == torch.float32:
            return []
        return [i for i, good in enumerate(are_finite) if not good]

    def redo(
        self,
        restored: Restored,
        failed: list[int],
        lq: Tensor,
        names: Sequence[str],
        progress: Callable[[float], None],
    ) -> Restored:
        """Restore the images with the indices `failed` again in float32 and replace them.

        Args:
            restored: the result of `start`.
            failed: the result of `to_redo`.
            lq, names: as for `start`.
            progress: called with 1.0 after each piece of work; it may raise an exception.
        """
        if self._in_float32 is None:
            self._in_float32 = Executor(
                StripNetwork(self._strips.net),
                self.sampler,
                replace(self._runtime, dtype=torch.float32),
                samples=self._samples,
                transforms=self._transforms,
                max_memory=self._max_memory,
                tile=self._tile,
            )
        else:
            self._in_float32.measure_memory()
        chosen = [names[i] for i in failed]
        with exact_products():  # half precision allows TF32 for what it computes in float32
            again = self._in_float32.start(lq[failed], chosen, lambda _: progress(1.0))
        # Cloned, because tensors made in inference mode must not be changed in place outside it.
        image, deviation = restored.image.clone(), restored.deviation
        image[failed] = again.image
        if deviation is not None and again.deviation is not None:
            deviation = deviation.clone()
            deviation[failed] = again.deviation
        which = ", ".join(chosen)
        note = f"{which}: not finite in {self._runtime.precision}, restored again in fp32"
        return Restored(image, deviation, restored.executor, [*restored.notes, note, *again.notes])

    def _run(
        self,
        lq: Tensor,
        names: Sequence[str],
        sample: int,
        note: Callable[[str], object],
        noise: Tensor | None = None,
    ) -> tuple[Tensor, str]:
        """Run the sampler once, in narrower strips if memory runs out; also return how it ran."""
        height, width = lq.shape[-2:]
        if len(lq) > 1 and not self._fits(height, width, len(lq)):
            return self._one_by_one(lq, names, sample, note, noise)
        rows, self._strips.offload_skips = self._plan(height, width, len(lq))
        while True:
            self._strips.rows = rows
            try:
                image = self.sampler(self.predict_noise, self._runtime, lq, names, sample, noise)
                return image, self._describe(rows, height, width)
            except Exception as error:  # torch reports it with several classes of errors
                if not is_out_of_memory(error):
                    raise
            # After the except block, in which the error's traceback would still hold the tensors of
            # the failed run.
            self._strips.forget()
            release_cached_memory(self._runtime.device)
            if len(lq) > 1:
                note("out of memory: continued one image at a time")
                return self._one_by_one(lq, names, sample, note, noise)
            if rows <= MIN_ROWS:
                raise ResourceError(
                    f"out of memory at {width}x{height} px in strips of {rows} rows",
                    hint="free some memory, use a smaller --tile, or another device",
                )
            rows = max(MIN_ROWS, rows // 4)
            note(f"out of memory: continued in strips of {rows} rows")

    def _one_by_one(
        self,
        lq: Tensor,
        names: Sequence[str],
        sample: int,
        note: Callable[[str], object],
        noise: Tensor | None,
    ) -> tuple[Tensor, str]:
        """Call `_run` for each image; noise depends on the name, so results are as in the batch."""
        drawn = [None] * len(lq) if noise is None else torch.split(noise, 1)
        ran = [
            self._run(one, [name], sample, note, its_noise)
            for one, name, its_noise in zip(torch.split(lq, 1), names, drawn, strict=True)
        ]
        return torch.cat([image for image, _ in ran]), ran[-1][1]

    def _plan(self, height: int, width: int, count: int) -> tuple[int, bool]:
        """Return the rows per strip, and whether skips are kept in host memory.

        They are kept there only if nothing fits otherwise.
        """
        offloads = (False, True) if self._runtime.device.type == "cuda" else (False,)
        for offload in offloads:
            try:
                return self._planned_rows(height, width, count, self.budget, offload), offload
            except ValueError:  # not even one row fits
                continue
        raise self._too_large(height, width, count)

    def _work(self, height: int, width: int, count: int) -> int:
        """Return the work of one run of the sampler, in the unit of the strips' `watch`."""
        tall, wide = _inner(height, width, self._tile)
        whole = padded_side(height), padded_side(width)
        number = 1 if self._tile is None else tiles(*whole, self._tile)
        return len(self.sampler.timesteps) * number * self._strips.work(count, tall, wide)

    def _fits(self, height: int, width: int, count: int) -> bool:
        """Whether a batch fits in strips as high as those that unlimited memory would allow."""
        try:
            rows = self._planned_rows(height, width, count, self.budget)
        except ValueError:
            return False
        return rows == self._planned_rows(height, width, count, None)

    def _planned_rows(
        self, height: int, width: int, count: int, budget: int | None, offload: bool = False
    ) -> int:
        """Return the planned rows per strip; ValueError if not even one row fits the budget."""
        if budget is not None:
            budget -= self._outside(height, width, count)
        inner = _inner(height, width, self._tile)
        return rows_that_fit(self._strips, *inner, count, budget, offload)

    def _too_large(self, height: int, width: int, count: int) -> ResourceError:
        needed = self._least_bytes(height, width, count, self._tile)
        fitting = height * width * self.budget / needed / 1e6
        want, have = (f"{size / 2**20:,.1f} MiB" for size in (needed, self.budget))
        more = "raise --max-memory" if self._max_memory else "free some memory"
        hint = f"about {fitting:,.2f} megapixels fit; {more}"
        in_tiles = self._least_bytes(height, width, count, SUGGESTED_TILE)
        if self._tile is None and in_tiles <= self.budget:
            hint += f", or use --tile {SUGGESTED_TILE}"
        return ResourceError(
            f"{width}x{height} px needs {want} of memory, {have} may be used", hint=hint
        )

    def _least_bytes(self, height: int, width: int, count: int, tile: int | None) -> int:
        """Return the bytes that a batch needs in the narrowest strips.

        tile: the side of the tiles in px; None for whole images.
        """
        offload = self._runtime.device.type == "cuda"
        inside = strip_bytes(self._strips, *_inner(height, width, tile), count, 1, offload)
        return inside + self._outside(height, width, count)

    def _outside(self, height: int, width: int, count: int) -> int:
        """Return the bytes that a batch needs outside the network."""
        each = SAMPLER_BYTES + (MEAN_BYTES if self.runs > 1 else 0)
        return each * padded_side(height) * padded_side(width) * count

    def _describe(self, rows: int, height: int, width: int) -> str:
        if self._tile is not None and max(padded_side(height), padded_side(width)) > self._tile:
            return f"tiles of {self._tile} px"
        return "whole" if rows >= padded_side(height) else f"strips of {rows} rows"


def finite(images: Tensor) -> Tensor:
    """Return `[n]`: whether all values of each image of `[n, 3, h, w]` are finite.

    The values must be in [0, 1] or not finite: then an image is finite if its sum is.
    """
    return images.flatten(1).sum(1).isfinite()


def _inner(height: int, width: int, tile: int | None) -> tuple[int, int]:
    """Return the size of the network's input: that of the padded image, or of a tile."""
    tall, wide = padded_side(height), padded_side(width)
    return (tall, wide) if tile is None else (min(tall, tile), min(wide, tile))
