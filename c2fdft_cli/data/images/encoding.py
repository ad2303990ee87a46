"""Pixels to bytes, one function a format; samples are [h, w, c] as in `decoding.Decoded`."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from c2fdft_cli.data.images import png, tiff
from c2fdft_cli.data.images.decoders import Array, quiet_pillow

_MAX_JPEG_EXIF = 65000
MAX_SIDE = {".jpg": 65500, ".jpeg": 65500, ".webp": 16383}


def encode(
    suffix: str, samples: Array, *, icc: bytes | None, exif: bytes | None, quality: int
) -> bytes:
    """The bytes of an image file; `suffix` is one of `ENCODERS`, in lower case."""
    return ENCODERS[suffix](samples, icc, exif, quality)


def to_8bit(values: Array) -> Array:
    """uint16 to uint8 by round(v / 257); uint8 as it is."""
    if values.dtype == np.uint8:
        return values
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _png(samples: Array, icc: bytes | None, exif: bytes | None, _quality: int) -> bytes:
    if samples.dtype == np.uint16:
        return png.encode_png16(samples, icc=icc, exif=exif)
    return _pillow(samples, "PNG", icc_profile=icc, **_given(exif=exif))


def _jpeg(samples: Array, icc: bytes | None, exif: bytes | None, quality: int) -> bytes:
    block = b"Exif\0\0" + exif if exif and len(exif) < _MAX_JPEG_EXIF else None
    options = {"quality": quality, "subsampling": 0, "icc_profile": icc}
    return _pillow(_opaque(samples), "JPEG", **options, **_given(exif=block))


def _webp(samples: Array, icc: bytes | None, exif: bytes | None, _quality: int) -> bytes:
    options = {"lossless": True, "exact": True, "quality": 60, "method": 4}
    return _pillow(samples, "WEBP", **options, **_given(icc_profile=icc, exif=exif))


def _bmp(samples: Array, _icc: bytes | None, _exif: bytes | None, _quality: int) -> bytes:
    return _pillow(_opaque(samples), "BMP")


def _tiff(samples: Array, icc: bytes | None, exif: bytes | None, _quality: int) -> bytes:
    try:
        return tiff.encode_tiff(samples, icc=icc, tags=_exif_tags(exif))
    except (struct.error, ValueError, TypeError, OverflowError, LookupError):
        # An EXIF block from a camera may hold values that no TIFF directory takes.
        return tiff.encode_tiff(samples, icc=icc, tags={})


ENCODERS: dict[str, Callable[[Array, bytes | None, bytes | None, int], bytes]] = {
    ".png": _png,
    ".jpg": _jpeg,
    ".jpeg": _jpeg,
    ".tif": _tiff,
    ".tiff": _tiff,
    ".bmp": _bmp,
    ".webp": _webp,
}


def _pillow(samples: Array, kind: str, **options: Any) -> bytes:
    values = to_8bit(samples)
    image = Image.fromarray(values[..., 0] if values.shape[2] == 1 else values)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _opaque(samples: Array) -> Array:
    """Without the alpha channel, for formats that have none."""
    channels = samples.shape[2]
    return np.ascontiguousarray(samples[..., : channels - (channels + 1) % 2])


def _given(**options: bytes | None) -> dict[str, bytes]:
    return {name: value for name, value in options.items() if value}


def _exif_tags(exif: bytes | None) -> dict[int, Any]:
    """An EXIF block's tags and sub-directories, as Pillow's TIFF writer takes them."""
    if not exif:
        return {}
    with quiet_pillow():
        block = Image.Exif()
        block.load(exif)
        tags: dict[int, Any] = {tag: block[tag] for tag in tiff.DESCRIPTIONS & set(block)}
        for tag in {tiff.EXIF_DIRECTORY, tiff.GPS_DIRECTORY} & set(block):
            tags[tag] = dict(block.get_ifd(tag))
    return tags
