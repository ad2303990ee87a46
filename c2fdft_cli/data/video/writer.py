"""Writes the frames of a video, one in memory at a time; all else is copied packet by packet."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from c2fdft_cli.data.video.conversion import (
    MATRICES,
    Converter,
    colour_filters,
    output_pixel_format,
    output_range,
)
from c2fdft_cli.data.video.probe import (
    MUXERS,
    ONE_TIME,
    UNKNOWN_RANGE,
    UNSPECIFIED,
    VideoInfo,
    is_damage,
    library_errors,
    open_video,
    text_options,
)
from c2fdft_cli.data.video.reader import Frame
from c2fdft_cli.data.video.remux import Copier, copy_texts
from c2fdft_cli.errors import DataError
from c2fdft_cli.files.failures import write_error

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.stream import VideoStream

_MOST_REPEATS = 250_000
"""Limit for one frame: over an hour at 60 frames per second."""


class VideoWriter:
    """Encodes frames, and copies all other streams, chapters and texts of the source video.

    One thread may write and another leave the `with` block: leaving waits for the frame in
    progress.

    Args:
        path: where to write; the suffix decides the container, an existing file is replaced.
        info: properties of the source.
        deep: whether frames have 16 bits.
        crf: constant rate factor: 0 (lossless at 8 bits) to 51.
        name: the output's path in error messages.

    Raises:
        DataError: the container cannot hold the sound, or all streams together, or the source
            cannot be read.
        ResourceError: the file cannot be written.
    """

    def __init__(self, path: Path, info: VideoInfo, deep: bool, crf: int, name: Path) -> None:
        self._path, self._info, self._name = path, info, name
        self._muxer = MUXERS[path.suffix.lower()]
        self._pixels = "rgb48le" if deep else "rgb24"
        filters = colour_filters(info, self._muxer, deep)
        self._convert = Converter(lambda _: filters)
        self._lock = threading.Lock()
        self._finished = False
        self._rates = _ConstantRate(info) if self._muxer == "avi" else None
        with contextlib.ExitStack() as stack, _writing(name):
            source = stack.enter_context(open_video(info.path))
            self._out = _open_output(path, self._muxer)
            # Registered before anything is written: the file is removed if anything below fails.
            stack.callback(self._abandon)
            self._stream = _add_encoder(self._out, info, self._muxer, deep, crf)
            self._copier = Copier(source, self._out, info, self._muxer, name)
            copy_texts(source, self._out, self._stream, info)
            self._write_header()
            self.notes = [*self._copier.notes, *_losses(info, self._muxer)]
            self._stack = stack.pop_all()

    def _write_header(self) -> None:
        import av

        try:
            self._out.start_encoding()
        except av.FFmpegError as error:
            if not is_damage(error):
                raise
            # Each stream was tried alone, but some containers refuse several of a kind.
            what = f"{self._muxer} cannot hold all streams of this video together"
            raise DataError(what, where=self._name, hint="use .mkv") from error

    def write(self, frame: Frame) -> None:
        """Encode a frame, and copy the other streams up to its time.

        Raises:
            DataError: FFmpeg cannot encode it, or the source cannot be read.
            ResourceError: the file cannot be written.
        """
        with self._lock, _writing(self._name):
            if self._finished:
                return
            for one in [frame] if self._rates is None else self._rates.add(frame):
                self._encode(one)
            # In step with the pictures, because the muxer orders packets by time and would keep
            # those that arrive long before their turn in memory.
            self._copier.copy_until(frame.pts * self._info.time_base)

    def finish(self) -> None:
        """Write everything that remains; afterwards the file is complete. Errors as in `write`."""
        with self._lock, _writing(self._name):
            for one in [] if self._rates is None else self._rates.rest():
                self._encode(one)
            self._out.mux(self._stream.encode(None))
            self._copier.copy_until(None)
            self.notes += self._copier.problems()
            self._finished = True
            self._out.close()

    def _encode(self, frame: Frame) -> None:
        from av.video.frame import VideoFrame

        picture = self._convert(VideoFrame.from_ndarray(frame.pixels, self._pixels))
        picture.pts, picture.duration = frame.pts, frame.duration
        picture.time_base = _time_base(self._info, self._muxer)
        self._out.mux(self._stream.encode(picture))

    def _abandon(self) -> None:
        """Delete the incomplete file, then close it, so that it is not rearranged for streaming."""
        import av

        if self._finished:
            return
        self._finished = True
        with contextlib.suppress(OSError):
            self._path.unlink()
        with contextlib.suppress(av.FFmpegError):
            self._out.close()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *error: Any) -> None:
        with self._lock:
            self._stack.close()


class _ConstantRate:
    """Repeats and skips frames so that they follow each other at a constant rate, as AVI requires.

    Raises:
        DataError: a frame would be repeated too often, because a timestamp is far after the others.
    """

    def __init__(self, info: VideoInfo) -> None:
        self._path = info.path
        self._rate = info.rate
        self._ticks = info.time_base * info.rate
        self._next = 0
        self._held: Frame | None = None
        self._end = 0

    def add(self, frame: Frame) -> Iterator[Frame]:
        """Add a frame; yield the output frames, one per tick, up to its start."""
        yield from self._until(round(frame.pts * self._ticks))
        self._held = frame
        self._end = round((frame.pts + frame.duration) * self._ticks)

    def rest(self) -> Iterator[Frame]:
        """Yield the last frame, as often as it is shown."""
        yield from self._until(max(self._end, self._next + 1))

    def _until(self, end: int) -> Iterator[Frame]:
        if end - self._next > _MOST_REPEATS:
            what = f"a frame is shown for {float((end - self._next) / self._rate):.0f} s"
            hint = "the timestamps may be damaged; .mkv keeps them, .avi has to repeat frames"
            raise DataError(what, where=self._path, hint=hint)
        while self._held is not None and self._next < end:
            yield Frame(self._next, 1, self._held.pixels)
            self._next += 1


def keeps_10_bits(path: Path) -> bool:
    """Whether the encoder for a file of this suffix has 10 bits; libvpx is often built without."""
    import av

    formats = av.Codec(_codec(MUXERS[path.suffix.lower()]), "w").video_formats or []
    return any(one.name == "yuv420p10le" for one in formats)


def _codec(muxer: str) -> str:
    return "libvpx-vp9" if muxer == "webm" else "libx264"


@contextlib.contextmanager
def _writing(name: Path) -> Iterator[None]:
    """Turn FFmpeg's exceptions while a video is written into errors that name the file.

    Raises:
        DataError: FFmpeg cannot encode the video.
        ResourceError: the file cannot be written.
    """
    with library_errors(name, "cannot encode the video"):
        try:
            yield
        except OSError as error:  # of PyAV's errors these are the system's
            raise write_error(error, name) from error


def _open_output(path: Path, muxer: str) -> OutputContainer:
    import av

    options = {"movflags": "+faststart"} if muxer in ("mp4", "mov", "3gp") else {}
    opened: OutputContainer = av.open(
        f"file:{path.absolute()}",
        "w",
        format=muxer,
        container_options=options,
        **text_options(),
    )
    return opened


def _add_encoder(
    out: OutputContainer, info: VideoInfo, muxer: str, deep: bool, crf: int
) -> VideoStream:
    """Add the stream of the restored pictures, with the colour flags of the source."""
    from av.codec.context import Flags

    if muxer == "webm":
        options = {"crf": str(crf), "deadline": "good", "cpu-used": "4", "row-mt": "1"}
    else:
        options = {"crf": str(crf), "preset": "medium"}
    stream = cast("VideoStream", out.add_stream(_codec(muxer), info.rate, options))
    stream.width, stream.height = info.width, info.height
    stream.pix_fmt = output_pixel_format(info, deep)
    stream.time_base = _time_base(info, muxer)
    context = stream.codec_context
    context.time_base = _time_base(info, muxer)
    context.sample_aspect_ratio = info.aspect
    context.thread_count = 0
    # Otherwise the encoder ignores how long each frame is shown, which differs if the rate varies.
    context.flags |= Flags.frame_duration
    if muxer in ONE_TIME:  # so no frame may be out of order
        context.max_b_frames = 0
    depth = output_range(info, muxer)
    context.color_range = UNKNOWN_RANGE if info.colours.range == UNKNOWN_RANGE else depth
    context.colorspace = info.colours.matrix or 1
    context.color_primaries = info.colours.primaries
    context.color_trc = info.colours.transfer
    return stream


def _losses(info: VideoInfo, muxer: str) -> list[str]:
    """Describe what of the pictures' properties is not kept."""
    notes = [f"{what} in the pictures skipped" for what in info.extras]
    if info.is_interlaced:
        notes.append(
            "interlaced pictures are marked progressive: both fields are restored together"
        )
    matrix = info.colours.matrix
    if matrix not in (*MATRICES, UNSPECIFIED):
        what = f"the colour matrix {matrix} of H.273 is not supported"
        notes.append(f"{what}: the network sees other colours")
    if muxer == "webm" and info.aspect != 1:
        notes.append(f"the pixels' aspect ratio {info.aspect} is not kept in webm")
    return notes


def _time_base(info: VideoInfo, muxer: str) -> Fraction:
    return 1 / info.rate if muxer == "avi" else info.time_base
