"""Restore a batch of pictures; integers are copied to the device and back from it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from c2fdft_cli.data.images.tensors import interleaved, planes_of, to_integers, to_unit
from c2fdft_cli.engine.sampling.executor import Executor, Restored, finite
from c2fdft_cli.errors import CheckpointError, ResourceError
from c2fdft_cli.execution.cuda.transfer import Download, overlaps, upload

IntegerPixels: TypeAlias = npt.NDArray[np.unsignedinteger]


class Wanted(NamedTuple):
    """The properties of one requested result.

    depth: bits per sample, 8 or 16.
    grey: whether the channels must be equal.
    unrounded: whether the result is also needed in float32.
    """

    depth: int
    grey: bool
    unrounded: bool = False


@dataclass(frozen=True)
class Outcome:
    """One restored image on the CPU.

    Args:
        planes: uint8 or uint16, `[3, h, w]`, for grey `[1, h, w]`.
        is_finite: False if the network produced NaN or infinity, which no file can hold.
        image: `[3, h, w]` float32 in [0, 1], if requested.
        deviation: `[1, h, w]` float32, if requested and there are several samples.
        executor, notes: as in `Restored`.
        seconds: the network's time, as far as the program waited for it.
    """

    planes: Tensor
    is_finite: bool
    image: Tensor | None
    deviation: Tensor | None
    executor: str
    notes: list[str]
    seconds: float

    def pixels(self) -> IntegerPixels:
        """Return the restored image as `[h, w, 3]`, uint8 or uint16."""
        return interleaved(self.planes)


class RunningBatch:
    """A batch of images whose restoration is started here; `outcomes` waits for it.

    If memory runs out, `outcomes` raises this; what `progress` raises is raised here.

    Args:
        executor: runs the network.
        pixels: `[h, w, 3]` of equal size and type, uint8 or uint16.
        names: base names of the images.
        wanted: the requested result of each image.
        progress: as for `Executor.start`.
        noise: the start noise of each image from `Executor.start_noise`; ignored if any of them is
            missing.
    """

    def __init__(
        self,
        executor: Executor,
        pixels: Sequence[IntegerPixels],
        names: Sequence[str],
        wanted: Sequence[Wanted],
        progress: Callable[[float], None],
        noise: Sequence[Tensor | None] = (),
    ) -> None:
        self._executor, self._names, self._wanted = executor, names, wanted
        self._progress = progress
        started = time.monotonic()
        # Integers take a quarter or half of the memory of floats. They are kept because a result
        # that is not finite is computed again.
        self._stored = torch.from_numpy(np.stack(pixels))
        drawn = [one for one in noise if one is not None]
        together = torch.stack(drawn) if len(drawn) == len(names) else None
        self._refused: ResourceError | None = None
        try:
            self._restored = executor.start(self._lq(), names, progress, together)
            self._download = self._sent(self._restored)
        except ResourceError as error:
            # Without the traceback, whose frames hold the images on the device.
            self._refused = error.with_traceback(None)
        self._seconds = time.monotonic() - started

    def outcomes(self) -> list[Outcome]:
        """Wait for the results; an image with non-finite values is restored again in float32.

        Returns:
            One outcome per image.

        Raises:
            ResourceError: as for `Executor.start`.
        """
        if self._refused is not None:
            raise self._refused
        started = time.monotonic()
        *copies, are_finite = self._download.wait()
        failed = self._executor.to_redo(are_finite.tolist())
        if failed:
            self._restored = self._executor.redo(
                self._restored, failed, self._lq(), self._names, self._progress
            )
            *copies, are_finite = self._sent(self._restored).wait()
        seconds = (self._seconds + time.monotonic() - started) / len(self._names)
        found = iter(copies)
        has_deviation = self._restored.deviation is not None
        return [
            Outcome(
                next(found),
                bool(is_finite),
                next(found) if one.unrounded else None,
                next(found) if one.unrounded and has_deviation else None,
                self._restored.executor,
                self._restored.notes,
                seconds,
            )
            for one, is_finite in zip(self._wanted, are_finite.tolist(), strict=True)
        ]

    def _lq(self) -> Tensor:
        """Return the inputs, `[n, 3, h, w]` in [0, 1].

        They are converted to floats after the upload on CUDA, before it on other devices, which do
        not support 16-bit integers.
        """
        device = self._executor.device
        stored = upload(self._stored, device) if overlaps(device) else self._stored
        return to_unit(planes_of(stored))

    def _sent(self, restored: Restored) -> Download:
        """Start to copy the requested results, and then which images are finite, to the CPU."""
        image, deviation = restored.image, restored.deviation
        if not overlaps(image.device):
            image = image.cpu()
        parts: list[Tensor] = []
        for i, one in enumerate(self._wanted):
            parts.append(to_integers(image[i], one.depth, grey=one.grey))
            if one.unrounded:
                parts.append(image[i])
                parts.extend([deviation[i]] if deviation is not None else [])
        return Download([*parts, finite(image)])


def refuse_not_finite(is_finite: bool, weights: Path, precision: str) -> None:
    """Raise CheckpointError for a result with NaN or infinite values, which no file can hold."""
    if not is_finite:
        raise CheckpointError(
            f"the network produced NaN or infinite values with the weights {weights}",
            # With bf16 and fp16 the image has already been restored again in fp32.
            hint="use --precision fp32, or other weights"
            if precision == "tf32"
            else "use other weights",
        )
