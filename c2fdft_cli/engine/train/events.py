"""What a training reports while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias


@dataclass(frozen=True)
class Begun:
    """What is trained on what, before the first step.

    pairs, validation: images that are trained on, and scored.
    parameters: of the network.
    step, iterations: that are done, and of the whole training.
    best_psnr: the best score so far, of a run that resumes.
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

    images_per_second: of the global batch, this iteration alone.
    waited: share of the iteration's time spent waiting for data, 0 to 1.
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
        """Images of the global batch per second."""
        return self.batch / max(self.seconds, 1e-9)


@dataclass(frozen=True)
class Validated:
    """Mean scores of the validation images, restored with the EMA weights."""

    iteration: int
    psnr: float
    ssim: float
    protocol: str
    images: int
    is_best: bool


@dataclass(frozen=True)
class Saved:
    """The state is on disk."""

    iteration: int
    path: Path


@dataclass(frozen=True)
class Notice:
    """Something that the user may want to know."""

    text: str


TrainEvent: TypeAlias = Begun | StepDone | Validated | Saved | Notice


@dataclass(frozen=True)
class TrainResult:
    """The finished training.

    run: its folder.
    checkpoint: what `--from`, `sweep-steps` and `restore` take.
    step: the last iteration.
    best_psnr: the best validation score, dB; None where nothing was validated.
    seconds: that this process trained.
    """

    run: Path
    checkpoint: Path
    step: int
    best_psnr: float | None
    seconds: float
