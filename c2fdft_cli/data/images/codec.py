"""Decode image files to samples and encode samples to image files.

Libraries convert the pixels; the modules used here add what the libraries would lose. Samples are
[h, w, c] as stored; c: 1 grey, 2 grey + alpha, 3 RGB, 4 RGBA.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import BinaryIO

from c2fdft_cli.data.images import boxes, netpbm, pillow, png, tiff
from c2fdft_cli.data.images.formats import HEAD_BYTES, file_format
from c2fdft_cli.data.images.metadata import Metadata
from c2fdft_cli.data.images.samples import Array, Decoded, no_frame

_WITH_FRAMES: dict[str, Callable[[bytes, int], Decoded]] = {
    "PNG": png.decode_png,
    "TIFF": tiff.decode_tiff,
    "AVIF": boxes.decode_avif,
}
_STILL: dict[str, Callable[[bytes], Decoded]] = {
    "HEIC": boxes.decode_heic,
    "JPEG2000": boxes.decode_jpeg2000,
    "JPEGXL": boxes.decode_jpegxl,
    "PPM": netpbm.decode_netpbm,
}
_SIZES: dict[str, Callable[[BinaryIO], tuple[int, int, int]]] = {
    "PNG": png.stored_size,
    "TIFF": tiff.stored_size,
    "HEIC": boxes.heic_size,
    "JPEG2000": boxes.jpeg2000_size,
    "JPEGXL": boxes.jpegxl_size,
}
_ANIMATED = {"WEBP", "GIF", "PNG", "AVIF"}
_WITH_PROFILES = {"JPEG", "PNG", "TIFF", "WEBP", "AVIF"}
IN_ORDER = {"WEBP", "GIF", "PNG"}
"""Formats whose frames are decoded one after another. Not AVIF: its bit depth and its colours come
from its boxes, and its library starts at the key frame before the requested frame."""
# These libraries use logging, which prints to standard error if it is not configured.
for _name in ("tifffile", "imagecodecs", "PIL"):
    logging.getLogger(_name).addHandler(logging.NullHandler())


def decode(data: bytes, kind: str, *, frame: int) -> Decoded:
    """Decode one frame of an image file.

    Args:
        data: the whole file.
        kind: its format, as `file_format` returns it.
        frame: counted from 0; a JPEG with several views has one frame for each.

    Raises:
        Unreadable: the picture has over `MAX_PIXELS` (this is checked before decoding), is of an
            unsupported kind, or has no such frame.
        Exception: whatever the libraries raise on damaged files.
    """
    if kind in _WITH_FRAMES:
        return _WITH_FRAMES[kind](data, frame)
    if kind not in _STILL:
        framed = "MPO" if kind == "JPEG" and frame else kind
        return pillow.OpenFrames(data, framed).decode(frame)
    if frame:
        raise no_frame(frame, 1)
    return _STILL[kind](data)


def frame_decoder(data: bytes, kind: str) -> Callable[[int], Decoded]:
    """Return a function that decodes frames as `decode` does.

    Frames of a format of `IN_ORDER` are each decoded once if they are requested in ascending order.
    Those of other formats may be decoded in several threads at a time.
    """
    if kind == "PNG":
        return partial(png.decode_png, data, animation=png.Animation(data))
    if kind in IN_ORDER:
        return pillow.OpenFrames(data, kind).decode
    if kind == "TIFF":
        return tiff.Pages(data).decode
    return lambda frame: decode(data, kind, frame=frame)


def stored_size(file: BinaryIO, suffix: str = "") -> tuple[int, int, int]:
    """Read (width, height, orientation) from the headers of an open file; errors as `decode`."""
    kind = file_format(file.read(HEAD_BYTES), suffix)
    return _SIZES[kind](file) if kind in _SIZES else pillow.stored_size(file, kind)


def count_frames(file: BinaryIO, suffix: str = "") -> int:
    """Count the frames or pages of an open file.

    A camera's JPEG with previews has one frame; a stereo camera's `.mpo` has one for each view.
    """
    kind = file_format(file.read(HEAD_BYTES), suffix)
    if kind == "TIFF":
        return tiff.count_pages(file)
    if kind == "JPEG" and suffix == ".mpo":
        return pillow.count_frames(file, kind)
    if kind not in _ANIMATED or (kind == "PNG" and not png.is_animated(file)):
        return 1
    return pillow.count_frames(file, kind)


def stored_profile(file: BinaryIO, suffix: str = "") -> bytes | None:
    """Read the colour profile from the headers of an open file; None for most formats."""
    kind = file_format(file.read(HEAD_BYTES), suffix)
    return pillow.stored_profile(file, kind) if kind in _WITH_PROFILES else None


def encode(suffix: str, samples: Array, metadata: Metadata, quality: int) -> bytes:
    """Encode samples as an image file, with as much of the metadata as its format can hold.

    Args:
        suffix: one of `WRITE_SUFFIXES`.
        samples: uint8 [h, w, c]; for formats of 16 bits also uint16.
        metadata: what to store besides the pixels.
        quality: JPEG quality, 1 to 100.
    """
    if suffix == ".png":
        return png.encode_png(samples, metadata)
    if suffix in {".tif", ".tiff"}:
        return tiff.encode_tiff(samples, metadata)
    return pillow.encode_pillow(suffix, samples, metadata, quality)
