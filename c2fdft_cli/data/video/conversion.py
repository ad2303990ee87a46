"""Conversion between the pixels of a video and RGB, by FFmpeg's filters."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from c2fdft_cli.data.video.probe import (
    FULL_RANGE,
    GREY_FORMATS,
    LIMITED_RANGE,
    UNSPECIFIED,
    VideoInfo,
)

if TYPE_CHECKING:
    from av.filter import Graph
    from av.video.frame import VideoFrame

SCALING = "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"
MATRICES = {0: "bt709", 1: "bt709", 4: "fcc", 5: "bt470", 6: "smpte170m", 7: "smpte240m",
             9: "bt2020"}  # fmt: skip
"""The scale filter's names of the matrices to which it converts; RGB itself becomes BT.709."""


class Converter:
    """Runs frames through filters, which are built again if the kind of frame changes.

    Args:
        filters: returns the filters for frames like the given one: "name=arguments,name".
    """

    def __init__(self, filters: Callable[[VideoFrame], str]) -> None:
        self._filters = filters
        self._kind: tuple[Any, ...] = ()
        self._graph: Graph | None = None

    def __call__(self, frame: VideoFrame) -> VideoFrame:
        """Return the frame that the filters make of one, without its times."""
        if frame.colorspace not in MATRICES:
            frame.colorspace = UNSPECIFIED
        kind = (frame.format.name, frame.width, frame.height, frame.colorspace, frame.color_range)
        if self._graph is None or kind != self._kind:
            self._graph, self._kind = self._build(frame), kind
        self._graph.vpush(frame)
        return self._graph.vpull()

    def _build(self, frame: VideoFrame) -> Graph:
        from av.filter import Graph

        graph = Graph()
        # Any time base will do: timestamps bypass the filters, both callers get them elsewhere.
        source = (
            f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/1000"
            f":pixel_aspect=1/1:colorspace={frame.colorspace}:range={frame.color_range}"
        )
        nodes = [graph.add("buffer", source)]
        for one in self._filters(frame).split(","):
            name, _, arguments = one.partition("=")
            nodes.append(graph.add(name, arguments))
        graph.link_nodes(*nodes, graph.add("buffersink")).configure()
        return graph


def output_pixel_format(info: VideoInfo, deep: bool) -> str:
    """Return the output's pixel format: the source's chroma if the encoders support it.

    4:1:1 becomes 4:2:2, which keeps the chroma of each row. If a side is odd and 4:2:0 or 4:2:2
    therefore impossible, the chroma is 4:4:4.
    """
    from av.video.format import VideoFormat

    own = VideoFormat(info.pixel_format)
    across, down = 8 // own.chroma_width(8), 8 // own.chroma_height(8)
    is_full = across == 1 and not info.is_grey
    is_tall = across > 1 and down == 1
    if is_full or info.width % 2 or (info.height % 2 and not is_tall):
        chroma = "yuv444p"
    else:
        chroma = "yuv422p" if is_tall else "yuv420p"
    return f"{chroma}10le" if deep else chroma


def whole_chroma(width: int, height: int, pixel_format: str) -> tuple[int, int]:
    """Round sides up to whole samples of chroma, which several pixels share."""
    from av.video.format import VideoFormat

    kind = VideoFormat(pixel_format)
    across, down = 8 // kind.chroma_width(8), 8 // kind.chroma_height(8)
    return -(-width // across) * across, -(-height // down) * down


def with_whole_chroma(frame: VideoFrame) -> VideoFrame:
    """Pad a frame whose sides end within a sample of chroma; the caller crops the result.

    Without padding the scaler would stretch the chroma, which is visible in small pictures.
    """
    from av.video.frame import VideoFrame

    width, height = whole_chroma(frame.width, frame.height, frame.format.name)
    if (width, height) == (frame.width, frame.height):
        return frame
    whole = VideoFrame(width, height, frame.format.name)
    whole.colorspace, whole.color_range = frame.colorspace, frame.color_range
    for old, new in zip(frame.planes, whole.planes, strict=True):
        rows = np.frombuffer(old, np.uint8).reshape(-1, old.line_size)[: old.height]
        target = np.frombuffer(new, np.uint8).reshape(-1, new.line_size)
        count = min(old.line_size, new.line_size)
        target[: len(rows), :count] = rows[:, :count]
    return whole


def to_rgb(frame: VideoFrame, deep: bool) -> str:
    """Return the filters after the scale filter: to RGB with black and white at its ends.

    Frames of more than 8 bits become 16 bits, even if not `deep`: FFmpeg's step to 8 bits does not
    round to the nearest.
    """
    kind = frame.format
    bits = max(part.bits for part in kind.components)
    unit, top, rgb = (256, 65535, "rgb48le") if deep or bits > 8 else (1, 255, "rgb24")
    if kind.is_rgb:
        return f",format={rgb}"
    # The scale filter shifts samples of more than 8 bits to 16 instead of multiplying them, so that
    # white is less than 65535, and takes all grey for full range.
    is_grey = kind.name.startswith(GREY_FORMATS)
    black, white = 0.0, 255.0  # in units of 8 bits
    if is_grey and frame.color_range == LIMITED_RANGE:
        black, white = 16.0, 235.0
    elif bits > 8 and (is_grey or frame.color_range == FULL_RANGE):
        white = 256 - 2.0 ** (8 - bits)
    if (black * unit, white * unit) == (0, top):
        return f",format={rgb}"
    value = f"round((val-{black * unit})*{top / ((white - black) * unit)})"
    return f",format={rgb},lutrgb={value}:{value}:{value}"


def output_range(info: VideoInfo, muxer: str) -> int:
    """Return the range of the output's samples: the source's, but never the full one in AVI."""
    return FULL_RANGE if info.colours.range == FULL_RANGE and muxer != "avi" else LIMITED_RANGE


def colour_filters(info: VideoInfo, muxer: str, deep: bool) -> str:
    """Return the filters that convert RGB to the source's matrix and range.

    If the source states no matrix, or one that is not supported, both conversions use FFmpeg's
    default, so they cancel.
    """
    matrix = MATRICES.get(info.colours.matrix)
    conversion = "" if matrix is None else f":out_color_matrix={matrix}"
    kind = output_pixel_format(info, deep)
    limited = f"setparams=range=pc:colorspace=gbr,scale={SCALING}:out_range=tv{conversion}"
    is_full = output_range(info, muxer) == FULL_RANGE
    if not is_full and not deep:
        return f"{limited},format={kind}"
    # The scale filter's own full range puts the neutral chroma half a level too low, and it takes
    # 65280 for the white of 16 bits. So it converts to limited range, with 16 bits, and a table
    # does the rest. Without dithering, the step to the output's bits rounds.
    bits = 10 if deep else 8
    gain = 65280 / 65535 if deep else 1.0
    whole = (1 << 16) - (1 << 16 - bits)  # the range of `bits` bits, shifted to 16
    luma, chroma = (whole / (219 << 8), whole / (224 << 8)) if is_full else (1.0, 1.0)
    y = f"round((val-{16 << 8})*{luma * gain}+{0 if is_full else 16 << 8})"
    c = f"round((val-{128 << 8})*{chroma * gain}+{128 << 8})"
    wide = f"{kind.removesuffix('10le')}16le"
    return (
        f"{limited},format={wide},lutyuv={y}:{c}:{c},scale={SCALING}:sws_dither=none,format={kind}"
    )
