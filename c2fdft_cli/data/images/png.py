"""PNG: imagecodecs decodes (libpng) and compresses (libdeflate) the pixels; chunks by hand.

OpenCV was tried: it refuses grey with alpha, and writes no file at all if it considers the colour
profile damaged.
"""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from typing import Any, BinaryIO, NamedTuple

import imagecodecs
import numpy as np
import numpy.typing as npt

from c2fdft_cli.data.images.formats import Unreadable
from c2fdft_cli.data.images.metadata import (
    MAX_BYTES,
    Metadata,
    iptc_of,
    sane_density,
    upright_exif,
    upright_xmp,
)
from c2fdft_cli.data.images.pillow import OpenFrames
from c2fdft_cli.data.images.samples import Array, Decoded, check_size, grey_if_equal

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PALETTE = 3
_TEXTS = {b"tEXt", b"zTXt", b"iTXt"}
_XMP = "XML:com.adobe.xmp"
_PROFILE = "Raw profile type "
_KEPT = {b"cICP": 4, b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"pHYs": 9}  # with their lengths
_METADATA = {b"IHDR", b"eXIf", b"iCCP", b"acTL", b"IEND", *_KEPT}
_TEXT_BYTES = 256  # approximate memory that a text takes besides its characters
_METRE = 0.0254
_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
"""The header's colour type for each number of channels."""
_SUB, _UP = 1, 2
"""PNG's numbers of these filters."""
_FILTERED_ROWS = 64
_COLUMN, _COLUMN_STEP = 6, 13
"""The first of the byte columns by which a filter is chosen, and their distance, which is not a
multiple of a pixel's size, so that all channels are examined."""
_IDAT_BYTES = 1 << 30
"""Size of a chunk of pixels; PNG allows less than 2^31."""


class Chunks(NamedTuple):
    """All that is not pixels: the first chunk of each kind that is used, and the texts."""

    first: dict[bytes, bytes]
    texts: list[tuple[str, str]]


def decode_png(data: bytes, frame: int, opened: OpenFrames | None = None) -> Decoded:
    """Decode a frame of a PNG as `codec.decode` does; `opened` if its frames are open already."""
    chunks = read_chunks(io.BytesIO(data))
    width, height, depth, colours = _header(chunks)
    check_size(width, height)
    orientation, exif = upright_exif(_exif(chunks))
    if frame and depth == 16:
        raise Unreadable("a 16-bit animation", "save the frame as a still PNG")
    if frame:
        opened = opened or OpenFrames(data, "PNG")
        samples = opened.decode(frame).samples
    else:
        samples = _samples(data)
        samples = grey_if_equal(samples, _icc(chunks)) if colours == _PALETTE else samples
    return Decoded(samples, orientation, _metadata(chunks, exif, turned=orientation >= 5))


def _metadata(chunks: Chunks, exif: bytes | None, *, turned: bool) -> Metadata:
    kept = {kind: data for kind, data in chunks.first.items() if len(data) == _KEPT.get(kind)}
    density = None
    if b"pHYs" in kept:
        across, along, unit = struct.unpack(">IIB", kept[b"pHYs"])
        density = sane_density(across * _METRE, along * _METRE) if unit == 1 else None
        if turned:
            kept[b"pHYs"] = struct.pack(">IIB", along, across, unit)
    xmp = next((text for keyword, text in chunks.texts if keyword == _XMP), None)
    texts = [one for one in chunks.texts if one[0] != _XMP and not one[0].startswith(_PROFILE)]
    return Metadata(
        icc=_icc(chunks),
        exif=exif,
        xmp=upright_xmp(xmp.encode() if xmp else _raw_profile(chunks, "xmp")),
        iptc=iptc_of(_raw_profile(chunks, "iptc") or _raw_profile(chunks, "8bim")),
        texts=tuple(texts),
        density=density,
        png_chunks=b"".join(png_chunk(kind, data) for kind, data in kept.items()),
    )


def stored_size(file: BinaryIO) -> tuple[int, int, int]:
    """See `codec.stored_size`."""
    chunks = read_chunks(file)
    width, height, _, _ = _header(chunks)
    return width, height, upright_exif(_exif(chunks))[0]


def is_animated(file: BinaryIO) -> bool:
    """Whether an open PNG file is animated."""
    return b"acTL" in read_chunks(file).first


def _samples(data: bytes) -> Array:
    try:
        samples = imagecodecs.png_decode(data)
    except (RuntimeError, ValueError) as error:
        # Without imagecodecs' own message, which it reads from memory that libpng has freed.
        raise Unreadable("the PNG data are damaged") from error
    return np.atleast_3d(samples)


def read_chunks(file: BinaryIO) -> Chunks:
    """Read all chunks of an open file except its pixels, by seeking.

    By hand, because imagecodecs returns only pixels, and Pillow only the chunks before them.
    """
    first: dict[bytes, bytes] = {}
    texts: list[tuple[str, str]] = []
    room = MAX_BYTES  # for all texts together: each may inflate to a thousand times its length
    file.seek(len(_SIGNATURE))
    while b"IEND" not in first:
        head = file.read(8)
        if len(head) < 8:
            raise ValueError("the file is truncated")
        length, kind = struct.unpack(">I4s", head)
        end = file.tell() + length + 4
        wanted = kind in _TEXTS or (kind in _METADATA and kind not in first)
        data = file.read(length) if wanted and length <= MAX_BYTES else b""
        # The very first chunk is kept whatever its kind: `_header` checks that it is the header.
        if kind in _METADATA or not first:
            first.setdefault(kind, data)
        text = _text(kind, data, room) if kind in _TEXTS else None
        if text is not None:
            texts.append(text)
            room -= len(text[0]) + len(text[1]) + _TEXT_BYTES
        file.seek(end)
    return Chunks(first, texts)


def _text(kind: bytes, data: bytes, room: int) -> tuple[str, str] | None:
    """Return a chunk's keyword and text; None if it is damaged, empty, or longer than `room`."""
    keyword, _, rest = data.partition(b"\0")
    encoding = "latin-1"
    if kind == b"zTXt":
        rest = _inflated(rest[1:], room) or b""
    elif kind == b"iTXt":
        encoding = "utf-8"
        packed, rest = rest[:1] == b"\1", b"".join(rest[2:].split(b"\0", 2)[2:])
        rest = (_inflated(rest, room) or b"") if packed else rest
    text = rest.decode(encoding, "replace")
    fits = len(keyword) + len(text) + _TEXT_BYTES <= room
    return (keyword.decode("latin-1"), text) if keyword and text and fits else None


def _raw_profile(chunks: Chunks, name: str) -> bytes | None:
    """Return a block that is stored as hexadecimal text, as ImageMagick writes it."""
    text = next((text for keyword, text in chunks.texts if keyword == _PROFILE + name), "")
    with contextlib.suppress(ValueError, IndexError):
        return bytes.fromhex(text.split(None, 2)[2])
    return None


def _header(chunks: Chunks) -> tuple[int, int, int, int]:
    """Return width, height, bit depth and colour type."""
    kind, header = next(iter(chunks.first.items()))
    if kind != b"IHDR" or len(header) != 13:
        raise ValueError("the PNG header is damaged")
    width, height, depth, colours = struct.unpack(">IIBB", header[:10])
    return width, height, depth, colours


def _icc(chunks: Chunks) -> bytes | None:
    """Return the colour profile, or None if there is none or it is damaged."""
    _, _, packed = chunks.first.get(b"iCCP", b"").partition(b"\0")
    return _inflated(packed[1:], MAX_BYTES)


def _exif(chunks: Chunks) -> bytes | None:
    return chunks.first.get(b"eXIf") or _raw_profile(chunks, "exif")


def _inflated(packed: bytes, most: int) -> bytes | None:
    """Decompress data; None if they are damaged, empty, or longer than `most` bytes."""
    unpacker = zlib.decompressobj()
    try:
        # With a limit, because a few kilobytes may inflate to gigabytes.
        data = unpacker.decompress(packed, max(most, 1))  # 0 would mean no limit
    except zlib.error:
        return None
    return data if unpacker.eof else None


def encode_png(samples: Array, metadata: Metadata) -> bytes:
    """Encode 8- or 16-bit samples `[h, w, c]` as a PNG file; c as in `Decoded`."""
    height, width, channels = samples.shape
    header = struct.pack(">IIBB3x", width, height, 8 * samples.itemsize, _COLOUR_TYPES[channels])
    # libdeflate's level 1: files at most 9 % larger than with libpng's Paeth filter and run-length
    # encoding, in two thirds of the time
    rows: Any = _filtered(samples)  # its type hints name only bytes, but any buffer works
    packed = memoryview(imagecodecs.deflate_encode(rows, level=1))
    pixels = [
        png_chunk(b"IDAT", packed[at : at + _IDAT_BYTES])
        for at in range(0, len(packed), _IDAT_BYTES)
    ]
    chunks = [metadata.png_chunks, *_chunks_of(metadata), *pixels, png_chunk(b"IEND", b"")]
    return b"".join([_SIGNATURE, png_chunk(b"IHDR", header), *chunks])


def _filtered(samples: Array) -> npt.NDArray[np.uint8]:
    """Return the rows as PNG stores them, `[h, 1 + bytes]`: a filter's number, then differences.

    Each row uses the filter "up" or "sub" (the pixel to the left), whichever has the smaller sum of
    absolute differences in a few columns. More filters or all columns would cost more time than the
    bytes that they save are worth.
    """
    height, _, channels = samples.shape
    big_endian = samples.astype(samples.dtype.newbyteorder(">"), order="C", copy=False)
    rows = big_endian.reshape(height, -1).view(np.uint8)
    step = channels * samples.itemsize
    out = np.empty((height, 1 + rows.shape[1]), np.uint8)
    # "Up" leaves the first row as it is, because PNG defines the row above it as zeros.
    out[0, 1:] = rows[0]
    for top in range(0, height, _FILTERED_ROWS):  # few enough to stay in the cache
        here, filtered = (array[top : top + _FILTERED_ROWS] for array in (rows, out))
        first = max(top, 1)
        above = rows[first - 1 : top + len(here) - 1]
        np.subtract(here[first - top :], above, out=filtered[first - top :, 1:])
        some = here[:, _COLUMN + step :: _COLUMN_STEP] - here[:, _COLUMN:-step:_COLUMN_STEP]
        sub = _size(some) < _size(filtered[:, 1 + _COLUMN + step :: _COLUMN_STEP])
        filtered[:, 0] = np.where(sub, _SUB, _UP)
        filtered[sub, 1 : 1 + step] = here[sub, :step]
        filtered[sub, 1 + step :] = here[sub, step:] - here[sub, :-step]
    return out


def _size(differences: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Return the sum of each row's absolute values, with bytes taken as signed."""
    # Widened first, because -128 has no absolute value in int8 and would stay negative.
    sizes = np.abs(differences.view(np.int8).astype(np.int16))
    return np.asarray(sizes.sum(axis=1), np.int64)


def _chunks_of(metadata: Metadata) -> list[bytes]:
    """Return the chunks of the metadata that other formats store too."""
    chunks = []
    if metadata.icc:
        chunks.append(png_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(metadata.icc)))
    if metadata.exif:
        chunks.append(png_chunk(b"eXIf", metadata.exif))
    if metadata.density and b"pHYs" not in metadata.png_chunks:
        across, along = (round(value / _METRE) for value in metadata.density)
        chunks.append(png_chunk(b"pHYs", struct.pack(">IIB", across, along, 1)))
    if metadata.xmp:
        chunks.append(png_chunk(b"iTXt", _XMP.encode() + bytes(5) + metadata.xmp))
    if metadata.iptc:
        keyword = f"{_PROFILE}iptc".encode()
        profile = f"\niptc\n{len(metadata.iptc):8}\n{metadata.iptc.hex()}\n".encode()
        chunks.append(png_chunk(b"zTXt", keyword + bytes(2) + zlib.compress(profile)))
    return chunks + [_text_chunk(keyword, text) for keyword, text in metadata.texts]


def _text_chunk(keyword: str, text: str) -> bytes:
    name = keyword.encode("latin-1", "replace")[:79]
    try:
        return png_chunk(b"tEXt", name + b"\0" + text.replace("\0", "").encode("latin-1"))
    except UnicodeEncodeError:
        return png_chunk(b"iTXt", name + bytes(5) + text.encode("utf-8", "replace"))


def png_chunk(kind: bytes, data: bytes | memoryview) -> bytes:
    """Return a chunk with its length and checksum."""
    check = zlib.crc32(data, zlib.crc32(kind))
    return b"".join([struct.pack(">I", len(data)), kind, data, struct.pack(">I", check)])
