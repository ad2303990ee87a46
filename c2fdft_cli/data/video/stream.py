"""Video frames in and out through two ffmpeg processes, one frame in memory at a time.

Between the processes and this program goes a fragmented QuickTime stream of raw RGB, one fragment
for each frame. What is read is written again byte by byte with other pixels, so every time stamp
(of a variable frame rate too) arrives as it was without this program having to understand it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from c2fdft_cli.data.video.ffmpeg import Ffmpeg, input_options
from c2fdft_cli.data.video.probe import UNKNOWN, VideoInfo
from c2fdft_cli.errors import DataError

_MUXERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm",
           ".avi": "avi"}  # fmt: skip
_SUBTITLES = {
    "mp4": {"mov_text"},
    "mov": {"mov_text"},
    "matroska": {"subrip", "ass", "ssa", "webvtt", "hdmv_pgs_subtitle", "dvd_subtitle",
                 "dvb_subtitle"},
    "webm": {"webvtt"},
    "avi": set(),
}  # fmt: skip
# flags in the words of frames, and in those of the scale filter
_MATRICES = {"bt709": "bt709", "smpte170m": "smpte170m", "bt470bg": "bt470", "fcc": "fcc",
             "smpte240m": "smpte240m", "bt2020nc": "bt2020"}  # fmt: skip
_WEBM_AUDIO = {"opus", "vorbis"}
_MAX_BOX = 64 << 20
_SCALING = "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"


class Frame(NamedTuple):
    """A frame on its way through.

    before: the stream's bytes between the frame before and this one.
    pixels: RGB [h, w, 3], uint8, or uint16 for videos with more than 8 bits.
    """

    before: bytes
    pixels: npt.NDArray[Any]


class VideoReader:
    """The frames of a video in order, upright; leaving the `with` block ends ffmpeg.

    Args:
        info: of the video.
        deep: whether frames have 16 bits.
    """

    def __init__(self, info: VideoInfo, deep: bool) -> None:
        self._info, self._deep = info, deep
        width, height = info.width, info.height
        pixels = "rgb48be" if deep else "rgb24"
        # ffmpeg misreads raw QuickTime rows of an odd number of bytes: the stream's width is even
        even = f",pad={_even(width)}:{height}" if width % 2 else ""
        self._ffmpeg = Ffmpeg(
            [
                *input_options(info.path),
                "-map", "0:V:0",
                "-vf", f"scale={width}:{height}:{_SCALING}:out_range=pc,format={pixels}{even}",
                "-fps_mode", "vfr", "-enc_time_base", "demux",
                "-c:v", "rawvideo", "-f", "mov",
                "-movflags", "empty_moov+default_base_moof+frag_every_frame", "pipe:1",
            ],
            writes=True,
        )  # fmt: skip

    @property
    def complaint(self) -> str:
        """What ffmpeg said of damage that it could get over; "" for nothing."""
        return self._ffmpeg.last_words

    def __iter__(self) -> Iterator[Frame]:
        stream = self._ffmpeg.process.stdout
        if stream is None:
            raise RuntimeError("ffmpeg without a stdout")
        before, count = b"", 0
        while (box := self._next_box(stream)) is not None:
            head, size, is_frame = box
            body = stream.read(size)
            if len(body) < size:
                break
            if is_frame:
                yield Frame(before + head, self._pixels(body))
                before, count = b"", count + 1
            else:
                before += head + body
        self._ffmpeg.finish(self._info.path, "cannot decode the video")
        if not count:
            raise DataError("no frame in this video", where=self._info.path)

    def _next_box(self, stream: IO[bytes]) -> tuple[bytes, int, bool] | None:
        """Header, size of the body, and whether that is a frame; None at the end."""
        head = stream.read(8)
        if len(head) < 8:
            return None
        size, kind = struct.unpack(">I4s", head)
        if size == 1:  # the size is a long one
            head += stream.read(8)
            size = int.from_bytes(head[8:], "big")
        size -= len(head)
        is_frame = kind == b"mdat"
        if not 0 <= size <= (self._frame_bytes() if is_frame else _MAX_BOX):
            raise DataError("ffmpeg sent another size", where=self._info.path)
        return head, size, is_frame

    def _frame_bytes(self) -> int:
        return self._info.height * _even(self._info.width) * (6 if self._deep else 3)

    def _pixels(self, body: bytes) -> npt.NDArray[Any]:
        height, width = self._info.height, self._info.width
        if len(body) != self._frame_bytes():
            raise DataError("ffmpeg sent another size", where=self._info.path)
        rows = np.frombuffer(body, ">u2" if self._deep else np.uint8)
        pixels = rows.reshape(height, _even(width), 3)[:, :width]
        return np.ascontiguousarray(pixels, np.uint16 if self._deep else np.uint8)

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *error: Any) -> None:
        self._ffmpeg.__exit__(*error)


class VideoWriter:
    """Encodes frames, with sound, subtitles, chapters and texts of the video they came from.

    Args:
        path: where to write, with the suffix that decides the container; replaced if it is there.
        info: of the source.
        deep: whether frames have 16 bits.
        crf: constant rate factor: 0 (lossless at 8 bits) to 51.
        name: what errors call the output.
    """

    def __init__(self, path: Path, info: VideoInfo, deep: bool, crf: int, name: Path) -> None:
        self._deep, self._name = deep, name
        muxer = _MUXERS[path.suffix.lower()]
        self._ffmpeg = Ffmpeg(
            [
                "-itsoffset", f"{float(info.start):.6f}",
                "-protocol_whitelist", "pipe", "-f", "mov", "-i", "pipe:0",
                *input_options(info.path),
                "-map", "0:v:0", "-map", "1:a?", *_subtitle_maps(info, muxer),
                "-map_metadata", "1", "-map_metadata:s:v:0", "1:s:v:0", "-map_chapters", "1",
                "-c:a", "copy", "-c:s", "copy",
                *_codec_options(muxer, crf),
                "-vf", _colour_filters(info, muxer, deep),
                *_timing_options(info, muxer),
                "-y", "-f", muxer, f"file:{path.absolute()}",
            ],
            reads=True,
        )  # fmt: skip

    def write(self, frame: Frame) -> None:
        """Encode a frame; DataError or ResourceError with ffmpeg's words when it has given up."""
        stream = self._ffmpeg.process.stdin
        if stream is None:
            raise RuntimeError("ffmpeg without a stdin")
        try:
            stream.write(frame.before)
            stream.write(_body(frame.pixels, self._deep))
        except (BrokenPipeError, ConnectionError) as error:
            raise self._ffmpeg.failure(self._name, "cannot encode the video") from error

    def finish(self) -> None:
        """Write what is left; the file is complete afterwards."""
        stream = self._ffmpeg.process.stdin
        try:
            if stream is not None:
                stream.close()
        except (BrokenPipeError, ConnectionError) as error:
            raise self._ffmpeg.failure(self._name, "cannot encode the video") from error
        self._ffmpeg.finish(self._name, "cannot encode the video")

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *error: Any) -> None:
        self._ffmpeg.__exit__(*error)


def dropped(info: VideoInfo, suffix: str) -> list[str]:
    """What a container cannot take over of a video, in words."""
    kept = _SUBTITLES[_MUXERS[suffix]]
    lost = [codec for codec in info.subtitles if codec not in kept]
    return [f"subtitles dropped: {suffix[1:]} does not hold {', '.join(lost)}"] if lost else []


def audio_problem(info: VideoInfo, suffix: str) -> str | None:
    """Why a container cannot hold the sound as it is; None where nothing speaks against it."""
    if suffix != ".webm":
        return None
    others = [codec for codec in info.audio if codec not in _WEBM_AUDIO]
    return (
        f"webm holds opus and vorbis sound, this video has {', '.join(others)}" if others else None
    )


def output_pixel_format(info: VideoInfo, deep: bool) -> str:
    """The source's chroma where the encoders have it; 4:4:4 where sides are odd."""
    own = info.pixel_format
    full = any(word in own for word in ("444", "440", "rgb", "bgr", "gbr", "pal"))
    if full or info.width % 2 or (info.height % 2 and "422" not in own):
        chroma = "yuv444p"
    else:
        chroma = "yuv422p" if any(word in own for word in ("422", "yuyv", "uyvy")) else "yuv420p"
    return f"{chroma}10le" if deep else chroma


def _even(width: int) -> int:
    return width + width % 2


def _body(pixels: npt.NDArray[Any], deep: bool) -> bytes:
    if pixels.shape[1] % 2:
        pixels = np.pad(pixels, ((0, 0), (0, 1), (0, 0)), mode="edge")
    return pixels.astype(">u2" if deep else np.uint8).tobytes()


def _subtitle_maps(info: VideoInfo, muxer: str) -> list[str]:
    kept = [i for i, codec in enumerate(info.subtitles) if codec in _SUBTITLES[muxer]]
    return [word for i in kept for word in ("-map", f"1:s:{i}")]


def _codec_options(muxer: str, crf: int) -> list[str]:
    if muxer == "webm":
        speed = ["-deadline", "good", "-cpu-used", "4", "-row-mt", "1"]
        return ["-c:v", "libvpx-vp9", "-crf", str(crf), "-b:v", "0", *speed]
    options = ["-c:v", "libx264", "-preset", "medium", "-crf", str(crf)]
    if muxer == "avi":  # its packets have no time stamps of their own: none may be out of order
        return [*options, "-bf", "0"]
    return [*options, "-movflags", "+faststart"] if muxer in ("mp4", "mov") else options


def _timing_options(info: VideoInfo, muxer: str) -> list[str]:
    if muxer == "avi":
        return ["-fps_mode", "cfr", "-r", str(info.rate)]
    return ["-fps_mode", "passthrough", "-enc_time_base", "demux"]


def _colour_filters(info: VideoInfo, muxer: str, deep: bool) -> str:
    """RGB to the source's matrix and range, and its flags on the result.

    Without a matrix in the source both ways take ffmpeg's default, so they cancel.
    """
    own = info.colours
    matrix = "bt709" if own.matrix in ("gbr", "rgb") else own.matrix
    conversion = f":out_color_matrix={_MATRICES[matrix]}" if matrix in _MATRICES else ""
    depth = "pc" if own.range in ("pc", "full") and muxer != "avi" else "tv"
    said = depth if own.range != UNKNOWN else UNKNOWN
    shared = f"color_primaries={own.primaries}:color_trc={own.transfer}"
    return ",".join(
        [
            f"crop={info.width}:{info.height}:0:0:exact=1",
            f"setparams=range=pc:colorspace=gbr:{shared}",
            f"scale={_SCALING}:out_range={depth}{conversion}",
            f"format={output_pixel_format(info, deep)}",
            f"setparams=range={said}:colorspace={matrix if conversion else UNKNOWN}:{shared}",
            f"setsar={info.aspect.numerator}/{info.aspect.denominator}",
        ]
    )
