"""What is in a video file: its main picture stream, and the streams beside it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from c2fdft_cli.data.images.samples import MAX_PIXELS
from c2fdft_cli.errors import DataError, ResourceError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

MUXERS = {
    ".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".3gp": "3gp", ".mkv": "matroska",
    ".webm": "webm", ".avi": "avi", ".flv": "flv", ".ts": "mpegts", ".wmv": "asf",
}  # fmt: skip
"""Suffixes that are written, with FFmpeg's names of their containers."""
READ_ONLY_SUFFIXES = frozenset({".mpg", ".mpeg", ".m2ts", ".mts"})
"""Containers made for other codecs than H.264: their videos are written as Matroska."""
VIDEO_SUFFIXES = frozenset(MUXERS) | READ_ONLY_SUFFIXES
_DEMUXERS = "mov,matroska,avi,mpegts,mpeg,asf,flv"
UNSPECIFIED = 2
"""FFmpeg's code of an unknown matrix, of unknown primaries, of an unknown transfer."""
UNKNOWN_RANGE, LIMITED_RANGE, FULL_RANGE = 0, 1, 2


@dataclass(frozen=True)
class Colours:
    """A video's colour flags as the codes of H.273, by which FFmpeg numbers them too.

    Args:
        range: UNKNOWN_RANGE, LIMITED_RANGE or FULL_RANGE.
        matrix, primaries, transfer: UNSPECIFIED where the file does not say.
    """

    range: int = UNKNOWN_RANGE
    matrix: int = UNSPECIFIED
    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED


class Join(NamedTuple):
    """Where a file's times begin anew, as where another was appended to it.

    position: the first byte of the part.
    later: seconds by which its times are moved so that it follows the part before.
    """

    position: int
    later: Fraction


@dataclass(frozen=True)
class VideoInfo:
    """What a video's first frame and its container say.

    Args:
        path: the file.
        height, width: pixels of the upright picture: a rotation in the file is applied.
        rate: frames per second, exactly; the nominal one where the rate varies.
        stream: index of the main picture stream.
        time_base: seconds of one tick of its time stamps.
        duration: seconds of the longest stream; None where the container does not say.
        pixel_format: FFmpeg's name.
        aspect: of a pixel.
        colours: the flags.
        audio: codec of each audio stream.
        frames: how many the container holds; 0 until the file has been read through.
        missing: pictures that the container announces and does not hold, known from then on too.
        joins: where its times begin anew, known from then on too.
    """

    path: Path
    height: int
    width: int
    rate: Fraction
    stream: int = 0
    time_base: Fraction = Fraction(1, 1000)
    duration: float | None = None
    pixel_format: str = "yuv420p"
    aspect: Fraction = Fraction(1)
    colours: Colours = Colours()
    audio: tuple[str, ...] = ()
    frames: int = 0
    missing: int = 0
    joins: tuple[Join, ...] = ()

    @property
    def is_deep(self) -> bool:
        """Whether it has more than 8 bits a sample."""
        from av.video.format import VideoFormat

        return max(part.bits for part in VideoFormat(self.pixel_format).components) > 8

    @property
    def is_grey(self) -> bool:
        """Whether it has no colours."""
        return self.pixel_format.startswith(("gray", "mono", "ya"))


def is_video_path(path: str | Path) -> bool:
    """Whether the name ends like a video's, in any case; the file is not opened."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


def probe_video(path: Path) -> VideoInfo:
    """Decode the first frame of a video and describe it.

    Raises:
        DataError: missing, not a video, damaged, too large, or the extra is not installed.
    """
    with open_video(path) as container, library_errors(path, "cannot read the video"):
        stream = main_stream(container, path)
        frame = next(_decoded(container, stream), None)
        if frame is None:
            raise DataError("no frame in this video", where=path)
        height, width = frame.height, frame.width
        if frame.rotation % 180:
            height, width = width, height
        return VideoInfo(
            path=path,
            height=height,
            width=width,
            rate=stream.guessed_rate or stream.average_rate or Fraction(25),
            stream=stream.index,
            time_base=stream.time_base or Fraction(1, 1000),
            duration=None if container.duration is None else container.duration / 1e6,
            pixel_format=frame.format.name,
            aspect=_aspect(stream, frame),
            colours=_colours(frame),
            audio=tuple(codec_name(one) for one in container.streams.audio),
        )


@contextmanager
def open_video(path: Path) -> Iterator[InputContainer]:
    """Open a file, and nothing but this file, for reading.

    The name cannot be taken for an address; playlists and other kinds of file that name further
    files are no videos.

    Raises:
        DataError: it cannot be opened, or the extra is not installed.
    """
    if not path.is_file():
        what = "not a regular file" if path.exists() else "no such file"
        raise DataError(what, where=path, hint="check the path")
    with library_errors(path, "cannot read the video"):
        import av

        container = av.open(
            f"file:{path.absolute()}",
            container_options={"protocol_whitelist": "file", "format_whitelist": _DEMUXERS},
            metadata_errors="surrogateescape",
        )
    with container:
        yield container


@contextmanager
def library_errors(path: Path, what: str) -> Iterator[None]:
    """Turn what FFmpeg raises into errors that name the file.

    Raises:
        DataError: `what` failed, or PyAV is not installed.
        ResourceError: the disk is full.
    """
    try:
        import av
    except ImportError as error:
        hint = "pip install 'c2fdft[video]'"
        raise DataError("videos need PyAV, which is not installed", hint=hint) from error
    try:
        yield
    except av.FFmpegError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "free some space or choose another disk"
            raise ResourceError("disk full", where=path, hint=hint) from error
        raise DataError(f"{what}: {error.strerror}", where=path) from error


def main_stream(container: InputContainer, path: Path) -> VideoStream:
    """The picture stream that is restored: the default one, else the first; no cover picture.

    Raises:
        DataError: there is none, no decoder for it, or its pictures are too large.
    """
    from av.stream import Disposition

    streams = [stream for stream in container.streams.video if not is_cover(stream)]
    if not streams:
        raise DataError("no pictures in this video", where=path)
    stream = min(streams, key=lambda one: not one.disposition & Disposition.default)
    if stream.codec_context is None:
        raise DataError("no decoder for the pictures of this video", where=path)
    if stream.width * stream.height > MAX_PIXELS:
        size = f"{stream.width}x{stream.height}"
        raise DataError(f"over {MAX_PIXELS} pixels: {size}", where=path)
    # The size may change within the stream; the decoder itself refuses such frames before it makes
    # room for them.
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    return stream


def demuxed(container: InputContainer, *streams: Stream) -> Iterator[Packet[Any]]:
    """Packets of some streams, without any of all, as `container.demux`; then empty ones.

    PyAV (18.1) fails behind the last packet, or does not, where a container has named a further
    stream in the middle of the file, as MPEG-TS and damaged FLV may.
    """
    with suppress(IndexError):
        yield from container.demux(*streams)


def is_cover(stream: Stream) -> bool:
    """Whether it is a single picture that stands for the file."""
    from av.stream import Disposition

    return bool(stream.disposition & Disposition.attached_pic)


def codec_name(stream: Stream) -> str:
    """The codec's name, not that of one of its decoders; "unknown" for one without a decoder."""
    context = stream.codec_context
    return "unknown" if context is None else context.codec.canonical_name


def origin(container: InputContainer) -> Fraction:
    """Seconds from the zero of the time stamps to the begin of the file.

    Streams that begin before zero (the lead-in of a sound codec) leave zero where it is.
    """
    return max(Fraction(0), Fraction(container.start_time or 0, 1_000_000))


def _decoded(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Frames; packets that cannot be decoded are skipped."""
    import av

    for packet in demuxed(container, stream):
        try:
            yield from packet.decode()
        except av.error.InvalidDataError:
            continue


def _aspect(stream: VideoStream, frame: VideoFrame) -> Fraction:
    """Of an upright pixel."""
    aspect = stream.sample_aspect_ratio or Fraction(1)
    return 1 / aspect if frame.rotation % 180 else aspect


def _colours(frame: VideoFrame) -> Colours:
    is_full = frame.format.name.startswith("yuvj")  # the old name of full range
    return Colours(
        FULL_RANGE if is_full else frame.color_range,
        frame.colorspace,
        frame.color_primaries,
        frame.color_trc,
    )
