"""What restoring reports: a record of each image, and the end of the job, over all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import torch.distributed as dist

from c2fdft_cli.engine.restore.outputs import Item
from c2fdft_cli.engine.restore.plan import RestorePlan, Skipped
from c2fdft_cli.errors import C2fdftError, PartialFailure
from c2fdft_cli.execution.device import Runtime


@dataclass(frozen=True)
class ImageDone:
    """What became of one image.

    Args:
        source: the input.
        output: the restored file; None when it failed or went to standard output.
        height, width: pixels.
        calls: network calls, over all draws.
        grid: the sampler's times.
        seconds: of the network's work on this image.
        executor: how the network ran.
        precision: what it computed in.
        peak_memory: bytes at most so far, of the device or the process.
        notes: what did not go as planned, and what the output's format could not keep.
        error: why it failed; None if it did not.
    """

    source: str
    output: str | None
    height: int
    width: int
    calls: int = 0
    grid: list[int] = field(default_factory=list)
    seconds: float = 0.0
    executor: str = ""
    precision: str = ""
    peak_memory: int = 0
    notes: list[str] = field(default_factory=list)
    error: str | None = None


@dataclass(frozen=True)
class VideoDone(ImageDone):
    """What became of one video; `seconds` is the network's work on all of its frames.

    Args:
        frames: how many were restored.
        frame_rate: nominal frames per second, exactly, such as "30000/1001".
        fps: the same as a number.
        duration: seconds that it plays, as the container says.
        audio_streams: streams of sound, copied as they are.
    """

    frames: int = 0
    frame_rate: str = ""
    fps: float = 0.0
    duration: float | None = None
    audio_streams: int = 0


@dataclass(frozen=True)
class FrameDone:
    """A frame of a video has been restored; the last frame's event is the `VideoDone`.

    Args:
        source: the video.
        frame: its number, from 1.
        frames: how many there are, as far as known.
        fps: frames per second since the video was begun.
        seconds_left: until the video is done, at this rate.
    """

    source: str
    frame: int
    frames: int
    fps: float
    seconds_left: float


Outcome: TypeAlias = tuple[ImageDone, C2fdftError | None]
"""A record, and the error to end with where it failed."""


def failed(item: Item, error: C2fdftError) -> Outcome:
    """The outcome of what could not be restored."""
    source = item.source
    words = str(error) if error.where else f"{source.label}: {error}"
    return ImageDone(source.label, None, source.height, source.width, error=words), error


@dataclass(frozen=True)
class RestoreResult:
    """The end of a job.

    Args:
        images: one record for each image or video that was worked on.
        skipped: outputs that were there.
        seconds: wall-clock time.
        errors: of the images that failed.
        single: whether one file was named by itself.
        folder: the output folder.
    """

    images: list[ImageDone]
    skipped: list[Skipped]
    seconds: float
    errors: list[C2fdftError] = field(default_factory=list)
    single: bool = False
    folder: Path | None = None

    @property
    def failure(self) -> C2fdftError | None:
        """What the program ends with: None when all went well, else the details of each."""
        failed = len(self.errors)
        if not failed:
            return None
        if self.single and len(self.images) == 1:
            return self.errors[0]
        return PartialFailure(
            f"{failed} of {len(self.images)} images failed",
            where=self.folder,
            hint="the others are restored" if failed < len(self.images) else "see each below",
            details=[image.error for image in self.images if image.error],
        )


def result_of(
    plan: RestorePlan, images: list[ImageDone], errors: list[C2fdftError], seconds: float
) -> RestoreResult:
    """The result of this process."""
    return RestoreResult(images, plan.skipped, seconds, errors, plan.single, plan.folder)


def gather_ranks(result: RestoreResult, runtime: Runtime) -> RestoreResult:
    """The results of all processes as one in rank 0; each other rank gets its own back."""
    if not dist.is_initialized():
        return result
    everyone: list[RestoreResult | None] | None = [None] * runtime.world
    dist.gather_object(result, everyone if runtime.is_main else None)
    if not runtime.is_main:
        return result
    return merge([one for one in everyone or [] if one is not None])


def merge(results: Sequence[RestoreResult]) -> RestoreResult:
    """Several processes' results as one."""
    return RestoreResult(
        images=[image for one in results for image in one.images],
        skipped=[skipped for one in results for skipped in one.skipped],
        seconds=max(one.seconds for one in results),
        errors=[error for one in results for error in one.errors],
        single=results[0].single,
        folder=results[0].folder,
    )
