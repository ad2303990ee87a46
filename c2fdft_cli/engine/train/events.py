"""The events that a training yields while it runs, and its result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias


@dataclass(frozen=True)
class Begun:
    """A summary of the training, before the first step.

    data: the folder of shards.
    pairs, validation: number of training images and of validation images.
    parameters: number of the network's parameters.
    step, iterations: iterations that are done, and those of the whole training.
    device, precision: where and how it computes.
    best_psnr: best validation PSNR so far of a resumed run, dB.
    """

    data: Path
    pairs: int
    validation: int
    parameters: int
    step: int
    iterations: int
    device: str
    precision: str
    best_psnr: float | None = None


@dataclass(frozen=True)
class StepDone:
    """One iteration.

    iteration: its number, from 1.
    patch, batch: patch size in px, and images in the global batch.
    loss, grad_norm: the loss, and the norm of the gradient.
    lr: the learning rate.
    skipped: whether the weights stayed as they were, because the loss or the gradient was not
        finite.
    seconds: time of this iteration.
    waited: share of this time spent waiting for data, 0 to 1.
    memory: peak bytes so far.
    """

    iteration: int
    patch: int
    batch: int
    loss: float
    grad_norm: float
    lr: float
    skipped: bool
    seconds: float
    waited: float
    memory: int

    @property
    def images_per_second(self) -> float:
        """Images of the global batch per second, in this iteration alone."""
        return self.batch / max(self.seconds, 1e-9)


@dataclass(frozen=True)
class Validated:
    """Mean scores of the validation images, restored with the EMA weights.

    iteration: the number of iterations that are done.
    psnr, ssim: the means, PSNR in dB.
    protocol: the protocol of the scores.
    images: number of images.
    is_best: whether this is the best PSNR so far.
    """

    iteration: int
    psnr: float
    ssim: float
    protocol: str
    images: int
    is_best: bool


@dataclass(frozen=True)
class Saved:
    """The state, or the final checkpoint, has been written.

    iteration: the number of iterations that are done.
    path: the file.
    """

    iteration: int
    path: Path


@dataclass(frozen=True)
class Notice:
    """Something that the user may want to know.

    text: a sentence.
    """

    text: str


TrainEvent: TypeAlias = Begun | StepDone | Validated | Saved | Notice


@dataclass(frozen=True)
class TrainResult:
    """The finished training.

    run: the run folder.
    checkpoint: the final checkpoint, for `--from`, `sweep-steps` and `restore`.
    step: the last iteration.
    best_psnr: the best validation PSNR, dB; None if nothing was validated.
    seconds: how long this process trained.
    """

    run: Path
    checkpoint: Path
    step: int
    best_psnr: float | None
    seconds: float
