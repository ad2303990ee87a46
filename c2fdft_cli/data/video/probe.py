"""What is in a video file? ffmpeg is asked for one decoded frame and says all of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from c2fdft_cli.data.images.picture import MAX_PIXELS
from c2fdft_cli.data.video.ffmpeg import Ffmpeg, input_options
from c2fdft_cli.errors import DataError

VIDEO_SUFFIXES = frozenset({".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v"})
_PROBE_SECONDS = 120.0
_STREAM = re.compile(r"^  Stream #0:(\d+)\S*: (Audio|Subtitle): (\w+)")
_DURATION = re.compile(r"^  Duration: (\d+):(\d\d):(\d\d(?:\.\d+)?)")
_CONFIG = re.compile(
    r"^\[Parsed_showinfo\S* @ \S+\] config in time_base: (\S+), frame_rate: (\S+)$"
)
_FRAME = re.compile(
    r"^\[Parsed_showinfo\S* @ \S+\] n: +0 pts: *(-?\d+|NOPTS) .*"
    r"fmt:(\w+) .*sar:(\d+)/(\d+) s:(\d+)x(\d+) "
)
_COLOUR = re.compile(
    r"color_range:([\w-]+) color_space:([\w-]+) color_primaries:([\w-]+) color_trc:([\w-]+)"
)
_DEEP = re.compile(r"(9|1[0-6])(le|be)$|48|64")
_FLAGS = re.compile(rb"F=0x([0-9A-Fa-f]+)")
_DISCARDED = 4
_NO_STREAM = "matches no streams"
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Colours:
    """A video's colour flags in ffmpeg's words, "unknown" where the file does not say."""

    range: str = UNKNOWN
    matrix: str = UNKNOWN
    primaries: str = UNKNOWN
    transfer: str = UNKNOWN


@dataclass(frozen=True)
class VideoInfo:
    """What a video's first frame and its container say.

    Args:
        path: the file.
        height, width: pixels of the upright picture: a rotation in the file is applied.
        rate: frames per second, exactly; the nominal one where the rate varies.
        start: seconds from the file's begin to the first frame.
        duration: seconds of the longest stream; None where the container does not say.
        pixel_format: ffmpeg's name.
        aspect: of a pixel.
        colours: the flags.
        audio: codec of each audio stream.
        subtitles: codec of each subtitle stream.
        frames: how many the container holds; 0 until they are counted.
    """

    path: Path
    height: int
    width: int
    rate: Fraction
    start: Fraction = Fraction(0)
    duration: float | None = None
    pixel_format: str = "yuv420p"
    aspect: Fraction = Fraction(1)
    colours: Colours = Colours()
    audio: tuple[str, ...] = ()
    subtitles: tuple[str, ...] = ()
    frames: int = 0

    @property
    def is_deep(self) -> bool:
        """Whether it has more than 8 bits a sample."""
        return _DEEP.search(self.pixel_format) is not None

    @property
    def is_grey(self) -> bool:
        """Whether it has no colours."""
        return self.pixel_format.startswith(("gray", "mono", "ya"))


def is_video_path(path: str | Path) -> bool:
    """Whether the name ends like a video's, in any case; the file is not opened."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


def probe_video(path: Path) -> VideoInfo:
    """Decode the first frame of a video and take down what it is.

    Raises:
        DataError: missing, not a video, damaged, too large, or the extra is not installed.
    """
    if not path.is_file():
        what = "not a regular file" if path.exists() else "no such file"
        raise DataError(what, where=path, hint="check the path")
    arguments = [
        *input_options(path),
        "-map", "0:V:0", "-frames:v", "1", "-vf", "showinfo=checksum=0", "-f", "null", "pipe:",
    ]  # fmt: skip
    with Ffmpeg(arguments, level="info") as ffmpeg:
        try:
            ffmpeg.finish(path, "cannot read the video", _PROBE_SECONDS)
        except DataError as error:
            if any(_NO_STREAM in line for line in ffmpeg.messages):
                raise DataError("no pictures in this video", where=path) from error
            raise
        info = parse_probe(path, ffmpeg.messages)
    if info.height * info.width > MAX_PIXELS:
        raise DataError(f"over {MAX_PIXELS} pixels: {info.width}x{info.height}", where=path)
    return info


def count_frames(path: Path) -> int:
    """How many frames a video holds by its packets; nothing is decoded, the file is read once.

    Raises:
        DataError: the file cannot be read.
    """
    arguments = [*input_options(path), "-map", "0:V:0", "-c", "copy", "-f", "framecrc", "pipe:1"]
    with Ffmpeg(arguments, writes=True) as ffmpeg:
        if ffmpeg.process.stdout is None:
            raise RuntimeError("ffmpeg without a stdout")
        count = sum(1 for line in ffmpeg.process.stdout if _is_shown(line))
        ffmpeg.finish(path, "cannot read the video")
    return count


def _is_shown(line: bytes) -> bool:
    """Whether a line of framecrc is a packet that plays; what lies before a cut does not."""
    if line.startswith(b"#"):
        return False
    flags = _FLAGS.search(line)
    return flags is None or not int(flags[1], 16) & _DISCARDED


def parse_probe(path: Path, lines: Sequence[str]) -> VideoInfo:
    """The facts in ffmpeg's messages; DataError where there was no frame.

    Only lines of showinfo count for the picture, and lines that stand two deep for the streams:
    the file's own texts stand deeper.
    """
    base, rate = Fraction(1), Fraction(0)
    frame: re.Match[str] | None = None
    colours = Colours()
    for line in lines:
        if found := _CONFIG.match(line):
            base, rate = _fraction(found[1]), _fraction(found[2])
        elif frame is None:
            frame = _FRAME.match(line)
        elif colours == Colours() and line.startswith("[Parsed_showinfo"):
            colours = _colours(line)
    if frame is None:
        raise DataError("no frame in this video", where=path)
    pts, pixel_format, sar_up, sar_down, width, height = frame.groups()
    if pixel_format.startswith("yuvj"):  # the old name of full range
        colours = replace(colours, range="pc")
    duration, streams = _container(lines)
    return VideoInfo(
        path=path,
        height=int(height),
        width=int(width),
        rate=rate or Fraction(25),
        start=Fraction(0) if pts == "NOPTS" else int(pts) * base,
        duration=duration,
        pixel_format=pixel_format,
        aspect=_fraction(f"{sar_up}/{sar_down}") or Fraction(1),
        colours=colours,
        audio=tuple(codec for kind, codec in streams if kind == "Audio"),
        subtitles=tuple(codec for kind, codec in streams if kind == "Subtitle"),
    )


def _container(lines: Sequence[str]) -> tuple[float | None, list[tuple[str, str]]]:
    """Seconds, and (kind, codec) of the streams of the input."""
    duration: float | None = None
    streams: list[tuple[str, str]] = []
    for line in lines:
        if line.startswith(("Stream mapping:", "Output #0")):
            break
        if found := _STREAM.match(line):
            streams.append((found[2], found[3]))
        elif duration is None and (found := _DURATION.match(line)):
            duration = 3600 * int(found[1]) + 60 * int(found[2]) + float(found[3])
    return duration, streams


def _colours(line: str) -> Colours:
    found = _COLOUR.search(line)
    return Colours(*found.groups()) if found else Colours()


def _fraction(text: str) -> Fraction:
    """A number such as "30000/1001"; 0 for "0/0"."""
    up, _, down = text.partition("/")
    return Fraction(int(up), int(down)) if int(down or 1) else Fraction(0)
