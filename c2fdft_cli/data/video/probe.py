"""Inspect a video file: its main picture stream, and the other streams."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from c2fdft_cli.data.images.samples import MAX_PIXELS
from c2fdft_cli.data.symmetries import SYMMETRIES, Symmetry
from c2fdft_cli.data.video.cropping import WHOLE, Crop, crop_of
from c2fdft_cli.errors import DataError

if TYPE_CHECKING:
    from av import FFmpegError
    from av.container import InputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

MUXERS = {
    ".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".3gp": "3gp", ".mkv": "matroska",
    ".webm": "webm", ".avi": "avi", ".flv": "flv", ".ts": "mpegts", ".wmv": "asf",
}  # fmt: skip
"""Suffixes that can be written, with FFmpeg's names of their containers."""
READ_ONLY_SUFFIXES = frozenset({
    ".mpg", ".mpeg", ".mpe", ".vob", ".mod", ".m2ts", ".mts", ".m2t", ".tod",
    ".asf", ".qt", ".f4v", ".3g2", ".divx", ".mk3d",
})  # fmt: skip
"""Containers for other codecs than H.264, or less common names; written as Matroska."""
VIDEO_SUFFIXES = frozenset(MUXERS) | READ_ONLY_SUFFIXES
ONE_TIME = ("avi", "asf")
"""Containers that store one time per packet, from which FFmpeg guesses presentation times."""
_EXTRAS = {
    "A53_CC": "closed captions",
    "MASTERING_DISPLAY_METADATA": "HDR10 metadata",
    "CONTENT_LIGHT_LEVEL": "HDR10 metadata",
    "DYNAMIC_HDR_PLUS": "HDR10+ metadata",
    "DOVI_METADATA": "Dolby Vision metadata",
}
ALPHA_TAG = "alpha_mode"
"""The tag of WebM, in any case, that is "1" for a stream with alpha."""
_DEMUXERS = "mov,matroska,avi,mpegts,mpeg,asf,flv"
RGB = 0
"""FFmpeg's code of the matrix of pictures that are RGB."""
UNSPECIFIED = 2
"""FFmpeg's code for an unknown matrix, unknown primaries, or an unknown transfer."""
UNKNOWN_RANGE, LIMITED_RANGE, FULL_RANGE = 0, 1, 2
GREY_FORMATS = ("gray", "mono", "ya")
"""How the names of grey pixel formats begin."""


@dataclass(frozen=True)
class Colours:
    """A video's colour flags, as the codes of H.273 that FFmpeg uses too.

    Args:
        range: UNKNOWN_RANGE, LIMITED_RANGE or FULL_RANGE.
        matrix, primaries, transfer: UNSPECIFIED if the file does not state them.
    """

    range: int = UNKNOWN_RANGE
    matrix: int = UNSPECIFIED
    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED


class Join(NamedTuple):
    """A place at which a file's timestamps restart, usually because another file was appended.

    position: the first byte of the part.
    later: seconds by which its timestamps are shifted so that it follows the part before.
    """

    position: int
    later: Fraction


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a video, from its first frame and its container.

    Args:
        path: the file.
        height, width: pixels of the upright picture: cropped and turned as the file says.
        rate: frames per second, exact; the nominal rate if it varies.
        stream: index of the main picture stream.
        time_base: seconds per tick of its timestamps.
        duration: seconds of the longest stream; None if the container does not state it.
        pixel_format: FFmpeg's name.
        crop: what the container cuts away from the pictures, before they are turned.
        aspect: aspect ratio of a pixel.
        colours: the colour flags.
        audio: codec of each audio stream.
        extras: what else the first picture contains, such as closed captions or alpha.
        is_interlaced: whether the first picture consists of two fields.
        frames: number of frames in the container; 0 until `read_through` has counted them.
        missing: number of pictures that the container announces but does not contain; 0 until then.
        joins: places at which its timestamps restart; empty until then.
    """

    path: Path
    height: int
    width: int
    rate: Fraction
    stream: int = 0
    time_base: Fraction = Fraction(1, 1000)
    duration: float | None = None
    pixel_format: str = "yuv420p"
    crop: Crop = WHOLE
    aspect: Fraction = Fraction(1)
    colours: Colours = Colours()
    audio: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    is_interlaced: bool = False
    frames: int = 0
    missing: int = 0
    joins: tuple[Join, ...] = ()

    @property
    def is_deep(self) -> bool:
        """Whether the video has more than 8 bits per sample."""
        from av.video.format import VideoFormat

        return max(part.bits for part in VideoFormat(self.pixel_format).components) > 8

    @property
    def is_grey(self) -> bool:
        """Whether the video is grey."""
        return self.pixel_format.startswith(GREY_FORMATS)


def is_video_path(path: str | Path) -> bool:
    """Whether the name ends like a video's, in any case; the file is not opened."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


def probe_video(path: Path) -> VideoInfo:
    """Decode the first frame of a video and describe it.

    Raises:
        DataError: the file is missing, not a video, damaged or too large, or the extra is not
            installed.
    """
    with open_video(path) as container, library_errors(path, "cannot read the video"):
        stream = main_stream(container, path)
        frame = _first_frame(container, stream, path)
        crop = crop_of(stream, frame.height, frame.width)
        height = frame.height - crop.top - crop.bottom
        width = frame.width - crop.left - crop.right
        if orientation(frame).transpose:
            height, width = width, height
        return VideoInfo(
            path=path,
            height=height,
            width=width,
            rate=stream.guessed_rate or stream.average_rate or Fraction(25),
            stream=stream.index,
            time_base=stream.time_base or Fraction(1, 1000),
            duration=None if (seconds := length(container)) is None else float(seconds),
            pixel_format=frame.format.name,
            crop=crop,
            aspect=_aspect(stream, frame),
            colours=_colours(frame),
            audio=tuple(codec_name(one) for one in container.streams.audio),
            extras=_extras(stream, frame),
            is_interlaced=frame.interlaced_frame,
        )


@contextmanager
def open_video(path: Path) -> Iterator[InputContainer]:
    """Open a video for reading, and no other file.

    Its name is never taken for a URL, and playlists and other files that refer to further files are
    refused.

    Raises:
        DataError: the file cannot be opened, or the extra is not installed.
    """
    if not path.is_file():
        what = "not a regular file" if path.exists() else "no such file"
        raise DataError(what, where=path, hint="check the path")
    with library_errors(path, "cannot read the video"):
        import av

        container = av.open(
            f"file:{path.absolute()}",
            container_options={"protocol_whitelist": "file", "format_whitelist": _DEMUXERS},
            **text_options(),
        )
    with container:
        yield container


def text_options() -> dict[str, Any]:
    """Return options of `av.open` that let texts that are not UTF-8 pass through unchanged."""
    import av

    # From version 19 on they always do, and the option is gone.
    is_default = int(av.__version__.split(".")[0]) >= 19
    return {} if is_default else {"metadata_errors": "surrogateescape"}


@contextmanager
def library_errors(path: Path, what: str) -> Iterator[None]:
    """Turn FFmpeg's exceptions into errors that name the file, and its messages off.

    Raises:
        DataError: `what` failed, or PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        hint = "pip install 'c2fdft[video]'"
        raise DataError("videos need PyAV, which is not installed", hint=hint) from error
    # If FFmpeg's messages went to Python's logging, a decoding thread with a message would wait for
    # the interpreter lock, which PyAV holds while it waits for that thread when a file is closed.
    # Importing torchvision before 0.26 turns these messages on (PyAV-Org/PyAV#1861).
    av.logging.set_level(None)
    try:
        yield
    except av.FFmpegError as error:
        raise DataError(f"{what}: {error.strerror}", where=path) from error


def is_damage(error: FFmpegError) -> bool:
    """Whether an error is about the data: not about the memory, the disk or the system."""
    # Some decoders (MS MPEG-4, WMV 1, H.263) return -1 for any damage, the number of "operation not
    # permitted", which reading an open file never is.
    return error.errno == errno.EPERM or not isinstance(error, (MemoryError, OSError))


def main_stream(container: InputContainer, path: Path) -> VideoStream:
    """Return the picture stream to restore: the default one, or else the first; never a cover.

    Raises:
        DataError: there is no such stream, no decoder for it, or its pictures are too large.
    """
    from av.codec.context import Flags
    from av.stream import Disposition

    streams = [stream for stream in container.streams.video if not is_cover(stream)]
    if not streams:
        raise DataError("no pictures in this video", where=path)
    stream = min(streams, key=lambda one: not one.disposition & Disposition.default)
    if stream.codec_context is None:
        raise DataError("no decoder for the pictures of this video", where=path)
    if stream.width * stream.height > MAX_PIXELS:
        size = f"{stream.width} x {stream.height} px"
        raise DataError(f"{size} is over the limit of {MAX_PIXELS} px", where=path)
    # The size may change within the stream; with this option the decoder refuses frames that are
    # too large before it allocates memory for them.
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    # Otherwise some columns remain that H.264 cuts away at the left, to align data in memory.
    stream.codec_context.flags |= Flags.unaligned
    return stream


def demuxed(container: InputContainer, *streams: Stream) -> Iterator[Packet[Any]]:
    """Yield the packets of the given streams, or of all streams, as `container.demux` does.

    Empty packets follow at the end. If a container introduces another stream in the middle of the
    file, as MPEG-TS and damaged FLV may, PyAV (18.1) sometimes fails after the last packet; this
    error is ignored.
    """
    with suppress(IndexError):
        yield from container.demux(*streams)


def is_cover(stream: Stream) -> bool:
    """Whether a stream is a cover picture: a single picture that represents the file."""
    from av.stream import Disposition

    return bool(stream.disposition & Disposition.attached_pic)


def codec_name(stream: Stream) -> str:
    """Return the codec's name, not that of a decoder; "unknown" if there is no decoder."""
    context = stream.codec_context
    return "unknown" if context is None else context.codec.canonical_name


def origin(container: InputContainer) -> Fraction:
    """Return the timestamp, in seconds, at which the file starts.

    It is 0 for a file in which a stream starts before zero, such as the lead-in of an audio codec.
    """
    return max(Fraction(0), Fraction(container.start_time or 0, 1_000_000))


def length(container: InputContainer) -> Fraction | None:
    """Return the seconds from the start of the file to its end; None if it does not state it."""
    if container.duration is None:
        return None
    seconds, start = Fraction(container.duration, 1_000_000), origin(container)
    # These containers usually state the time of the end, which differs if they begin late.
    is_end = container.format.name.startswith(("matroska", "asf")) and start < seconds
    return seconds - start if is_end else seconds


def orientation(frame: VideoFrame) -> Symmetry:
    """Return how the file says that its pictures are to be turned, to the nearest quarter turn."""
    from av.sidedata.sidedata import Type

    sides: Any = frame.side_data  # its stub accepts only names
    data = sides.get(Type.DISPLAYMATRIX)
    if data is None:
        return SYMMETRIES[0]
    # (x, y) is shown at (a x + c y, b x + d y)
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].astype(float)
    swaps = abs(b) > abs(a)
    return Symmetry(swaps, bool((b if swaps else d) < 0), bool((c if swaps else a) < 0))


def _extras(stream: VideoStream, frame: VideoFrame) -> tuple[str, ...]:
    sides: Any = frame.side_data  # its stub is incomplete
    kinds = [_EXTRAS[one.type.name] for one in sides if one.type.name in _EXTRAS]
    # WebM stores alpha beside the pictures, where the decoder does not see it.
    tags = {key.lower(): text for key, text in stream.metadata.items()}
    if tags.get(ALPHA_TAG) == "1" or any(one.is_alpha for one in frame.format.components):
        kinds.append("alpha")
    return tuple(sorted(set(kinds)))


def _first_frame(container: InputContainer, stream: VideoStream, path: Path) -> VideoFrame:
    """Return the first frame of a stream; packets that cannot be decoded are skipped.

    Raises:
        DataError: there is none; the message has the decoder's first error.
    """
    import av

    why = ""
    for packet in demuxed(container, stream):
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            if not is_damage(error):
                raise
            why = why or f": {error.strerror}"
            continue
        if frames:
            return frames[0]
    raise DataError(f"no frame in this video{why}", where=path)


def _aspect(stream: VideoStream, frame: VideoFrame) -> Fraction:
    """Return the aspect ratio of a pixel of the upright picture."""
    aspect = stream.sample_aspect_ratio or Fraction(1)
    return 1 / aspect if orientation(frame).transpose else aspect


def _colours(frame: VideoFrame) -> Colours:
    kind = frame.format
    is_full = kind.name.startswith("yuvj")  # older formats that imply full range
    is_rgb = kind.is_rgb or kind.has_palette
    return Colours(
        FULL_RANGE if is_full else frame.color_range,
        RGB if is_rgb and frame.colorspace == UNSPECIFIED else frame.colorspace,
        frame.color_primaries,
        frame.color_trc,
    )
