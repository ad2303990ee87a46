"""What restoring reports: a record of each image, and the end of the job, over all processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from c2fdft_cli.engine.restore.inputs import Source
from c2fdft_cli.errors import C2fdftError, PartialFailure
from c2fdft_cli.execution.device import Runtime
from c2fdft_cli.execution.distributed import gather
from c2fdft_cli.vocabulary import many

_SHOWN = 10


@dataclass(frozen=True)
class ImageDone:
    """What became of one image.

    Args:
        source: the input.
        output: the restored file; None when it failed or went to standard output.
        height, width: pixels.
        calls: evaluations of the network, over all samples and transforms.
        grid: the sampler's timesteps.
        seconds: of the network's work on this image.
        executor: how the network ran.
        precision: what it computed in.
        peak_memory: bytes at most so far, of the device or the process.
        notes: what did not go as planned, and what the output's format could not keep.
        error: why it failed, with its name; None if it did not.
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
    error: C2fdftError | None = None


NOT_OVERWRITTEN = " already exists, not overwritten (use --overwrite)"


def not_overwritten(path: Path) -> str:
    """The note on a file that was there when this run came to write it."""
    return f"{path}{NOT_OVERWRITTEN}"


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


@dataclass(frozen=True)
class Skipped:
    """An output that exists and is not overwritten.

    doubt: why it may not be what this run would make; None if it is.
    """

    source: str
    output: str
    doubt: str | None


def failed(source: Source, error: C2fdftError) -> ImageDone:
    """The record of what could not be restored."""
    error = named(error, source)
    return ImageDone(source.label, None, source.height, source.width, error=error)


def named(error: C2fdftError, source: Source) -> C2fdftError:
    """The error with the source's name in front, where it does not name a file itself.

    Made anew, since it is kept until the job ends: its traceback and cause hold the bytes of the
    file that could not be read.
    """
    where = error.where or source.label
    return type(error)(error.what, where=where, hint=error.hint, details=error.details)


@dataclass(frozen=True)
class RestoreResult:
    """The end of a job.

    Args:
        images: one record for each image or video that was worked on.
        skipped: outputs that were there.
        seconds: wall-clock time.
        single: whether one file was named by itself.
        folder: the output folder.
    """

    images: list[ImageDone]
    skipped: list[Skipped]
    seconds: float
    single: bool = False
    folder: Path | None = None

    @property
    def errors(self) -> list[C2fdftError]:
        """Of the images that failed."""
        return [image.error for image in self.images if image.error is not None]

    @property
    def failure(self) -> C2fdftError | None:
        """What the program ends with: None when all outputs are what was asked for."""
        errors = self.errors
        stale = [one for one in self.skipped if one.doubt is not None]
        if self.single and len(self.images) == 1 and errors:
            return errors[0]
        if not errors and not stale:
            return None
        what, hints = [], []
        if errors:
            what.append(f"{len(errors)} of {many(len(self.images), 'image')} failed")
            hints += ["the others are restored"] if len(errors) < len(self.images) else []
        if stale:
            files = "file that exists was" if len(stale) == 1 else "files that exist were"
            what.append(f"{len(stale)} {files} made in another way and not overwritten")
            hints.append("use --overwrite to replace what exists")
        details = [*map(str, errors), *(f"{one.output}: {one.doubt}" for one in stale[:_SHOWN])]
        hint = "; ".join(hints) or None
        return PartialFailure(", ".join(what), where=self.folder, hint=hint, details=details)


def gather_ranks(result: RestoreResult, runtime: Runtime) -> RestoreResult:
    """The results of all processes as one in rank 0; each other rank gets its own back."""
    everyone = gather(result, runtime)
    return result if everyone is None else merge(everyone)


def merge(results: Sequence[RestoreResult]) -> RestoreResult:
    """Several processes' results as one."""
    return RestoreResult(
        images=[image for one in results for image in one.images],
        skipped=[skipped for one in results for skipped in one.skipped],
        seconds=max(one.seconds for one in results),
        single=results[0].single,
        folder=results[0].folder,
    )
