"""What a restoration reports: a record of each image, and the result over all processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from c2fdft_cli.engine.restore.inputs import Source
from c2fdft_cli.errors import C2fdftError, PartialFailure
from c2fdft_cli.words import many

_HINTS_SHOWN = 3


@dataclass(frozen=True)
class ImageDone:
    """The record of one image.

    Args:
        source: the input.
        output: the restored file; None if the image failed or was written to standard output.
        height, width: pixels.
        calls: number of function evaluations (NFE) over all samples and transforms.
        grid: the sampler's timesteps.
        seconds: the network's time for this image.
        executor: how the network ran: "whole", "strips of N rows" or "tiles of N px".
        precision: the precision that the network computed in.
        peak_memory: highest use of memory so far in bytes, of the device or of the process.
        notes: unexpected events, and what the output's format could not keep.
        kept: files that already existed when they were to be written, and were not overwritten;
            `existed` is true if the output is one of them.
        error: why the image failed, with its name; None if it did not fail.
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
    kept: list[Path] = field(default_factory=list)
    error: C2fdftError | None = None

    @property
    def existed(self) -> bool:
        """Whether the output already existed when it was to be written, and was kept."""
        return self.output is not None and Path(self.output) in self.kept


@dataclass(frozen=True)
class VideoDone(ImageDone):
    """The record of one video; `seconds` is the network's time for all of its frames.

    Args:
        frames: number of restored frames.
        frame_rate: nominal frames per second as an exact fraction, such as "30000/1001".
        fps: the same as a float.
        duration: length in seconds, from the container's header; None if unknown.
        audio_streams: number of audio streams, which are copied unchanged.
    """

    frames: int = 0
    frame_rate: str = ""
    fps: float = 0.0
    duration: float | None = None
    audio_streams: int = 0


@dataclass(frozen=True)
class FrameDone:
    """A frame of a video has been restored; the event of the last frame is the `VideoDone`.

    Args:
        source: the video.
        frame: number of the frame, from 1.
        frames: number of frames in the video, as far as known.
        fps: frames restored per second since the start of the video.
        seconds_left: estimated time until the video is done, at this rate.
    """

    source: str
    frame: int
    frames: int
    fps: float
    seconds_left: float


@dataclass(frozen=True)
class Skipped:
    """An existing output that is not overwritten.

    doubt: why it may differ from what this run would make; None if it does not.
    """

    source: str
    output: str
    doubt: str | None


def failed(source: Source, error: C2fdftError) -> ImageDone:
    """Return the record of an image or video that could not be restored."""
    error = named(error, source)
    return ImageDone(source.label, None, source.height, source.width, error=error)


def named(error: C2fdftError, source: Source) -> C2fdftError:
    """Return the error with the source's name, unless it names a file already.

    A new error is made because it is kept until the job ends: the traceback and the cause of the
    original one keep the bytes of the unreadable file in memory.
    """
    where = error.where or source.label
    return type(error)(error.what, where=where, hint=error.hint, details=error.details)


@dataclass(frozen=True)
class RestoreResult:
    """The result of a restoration.

    Args:
        images: one record for each image or video that was restored or failed.
        skipped: outputs that already existed.
        seconds: wall-clock time.
        single: whether the input was exactly one named file.
        folder: the output folder; None for a single output file.
    """

    images: list[ImageDone]
    skipped: list[Skipped]
    seconds: float
    single: bool = False
    folder: Path | None = None

    @property
    def errors(self) -> list[C2fdftError]:
        """The errors of the images that failed."""
        return [image.error for image in self.images if image.error is not None]

    @property
    def failure(self) -> C2fdftError | None:
        """The error that the program ends with; None if all outputs are as requested."""
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
            reasons = dict.fromkeys(error.hint for error in errors if error.hint)
            hints += list(reasons)[:_HINTS_SHOWN]
        if stale:
            differ = "may differ from what this command makes"
            verb = "was" if len(stale) == 1 else "were"
            what.append(f"{many(len(stale), 'existing file')} {differ} and {verb} not overwritten")
            hints.append("use --overwrite to replace existing files")
        details = [*map(str, errors), *(f"{one.output}: {one.doubt}" for one in stale)]
        hint = "; ".join(hints) or None
        return PartialFailure(", ".join(what), where=self.folder, hint=hint, details=details)


def merge(results: list[RestoreResult]) -> RestoreResult:
    """Merge the results of several processes."""
    return RestoreResult(
        images=[image for one in results for image in one.images],
        skipped=[skipped for one in results for skipped in one.skipped],
        seconds=max(one.seconds for one in results),
        single=results[0].single,
        folder=results[0].folder,
    )
