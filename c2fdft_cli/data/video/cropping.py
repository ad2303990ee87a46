"""The edges that a container cuts away from the pictures of a video (clean aperture of MP4)."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from av.video.stream import VideoStream

_PATH = (0x18538067, 0x1654AE6B, 0xAE, 0xE0)
"""Segment, Tracks, TrackEntry, Video: the elements of Matroska that contain the crop."""
_SIDES = (0x54BB, 0x54AA, 0x54CC, 0x54DD)
"""PixelCropTop, PixelCropBottom, PixelCropLeft, PixelCropRight."""


class Crop(NamedTuple):
    """Rows and columns that are cut away, before pictures are turned upright."""

    top: int
    bottom: int
    left: int
    right: int


WHOLE = Crop(0, 0, 0, 0)


def crop_of(stream: VideoStream, height: int, width: int) -> Crop:
    """Return the crop that the container states for pictures of this size; `WHOLE` if it has none.

    PyAV (18.1) does not offer it, but FFmpeg's muxer of Matroska writes it. So the header of a file
    with this stream is written to memory, and read.
    """
    import av

    data = io.BytesIO()
    try:
        with av.open(data, "w", format="matroska") as out:
            out.add_stream_from_template(stream, opaque=True)
            out.start_encoding()
    except (av.FFmpegError, ValueError):  # a codec that Matroska cannot hold
        return WHOLE
    inside = data.getvalue()
    for name in _PATH:
        inside = dict(_elements(inside)).get(name, b"")
    sides = dict(_elements(inside))
    crop = Crop(*(int.from_bytes(sides.get(name, b""), "big") for name in _SIDES))
    is_inside = crop.top + crop.bottom < height and crop.left + crop.right < width
    return crop if is_inside else WHOLE


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the elements of Matroska within one of them: its name and content."""
    place = 0
    while place < len(data):
        name, place = _number(data, place)
        size, place = _number(data, place)
        size &= (1 << size.bit_length() - 1) - 1  # without the mark of its length
        yield name, data[place : place + size]
        place += size


def _number(data: bytes, place: int) -> tuple[int, int]:
    """Return a number that begins with a mark of its length, with the mark, and the next place."""
    end = place + 9 - data[place].bit_length()
    return int.from_bytes(data[place:end], "big"), end
