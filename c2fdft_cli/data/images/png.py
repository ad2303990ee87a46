"""PNG: imagecodecs decodes (libpng) and compresses (libdeflate) the pixels; chunks by hand.

OpenCV was tried: it refuses grey with alpha, and writes no file at all if it considers the colour
profile damaged. Pillow 13 reads animations, but mixes the alpha of frames that blend, and its
frames depend on which of the earlier ones were read.
"""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator
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
from c2fdft_cli.data.images.samples import Array, Decoded, check_size, grey_if_equal, no_frame

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
_GREYS = {0, 4}
_CLEARED, _REVERTED = 1, 2
"""What an animation does with a frame's region before the next frame; otherwise it stays."""
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


class Control(NamedTuple):
    """An animation's chunk fcTL: where a frame goes, how long it is shown, and how it is drawn."""

    number: int
    width: int
    height: int
    left: int
    top: int
    delay: int
    per: int
    disposal: int
    over: int


def decode_png(data: bytes, frame: int, animation: Animation | None = None) -> Decoded:
    """Decode a frame of a PNG as `codec.decode` does; `animation` if it is open already."""
    chunks = read_chunks(io.BytesIO(data))
    width, height, _, colours = _header(chunks)
    check_size(width, height)
    orientation, exif = upright_exif(_exif(chunks))
    samples = (animation or Animation(data)).decode(frame) if frame else _samples(data)
    samples = grey_if_equal(samples, _icc(chunks)) if colours == _PALETTE else samples
    return Decoded(samples, orientation, _metadata(chunks, exif, turned=orientation >= 5))


class Animation:
    """The frames of a PNG; in ascending order, each is decoded once.

    One object must not be used by two threads at once.

    Source: Portable Network Graphics (third edition), W3C, "fcTL: frame control chunk".

    Args:
        data: the whole file.

    Raises:
        ValueError: the file is truncated or its header damaged.
    """

    def __init__(self, data: bytes) -> None:
        self._frames: list[tuple[Control, list[memoryview]]] = []
        self._header, palette = b"", dict[bytes, bytes]()
        # A picture before the first frame, for programs that show no animations, counts as one.
        self._before = 0
        for kind, content in _all_chunks(data):
            if kind == b"IHDR":
                self._header = bytes(content)
            elif kind in (b"PLTE", b"tRNS"):
                palette.setdefault(kind, png_chunk(kind, content))
            elif kind == b"fcTL":
                self._frames.append((Control(*struct.unpack(">5I2H2B", content)), []))
            elif kind == b"IDAT" and not self._frames:
                self._before = 1
            elif kind in (b"IDAT", b"fdAT") and self._frames:
                self._frames[-1][1].append(content[4:] if kind == b"fdAT" else content)
        if len(self._header) != 13:
            raise ValueError("the PNG header is damaged")
        self._has_alpha = bool(self._header[9] & 4) or b"tRNS" in palette
        self._palette = b"".join(palette.values())
        self._restart()

    def decode(self, frame: int) -> Array:
        """Return a frame's samples as `Decoded` has them; palettes become RGB or RGBA.

        Args:
            frame: counted from 0. With a picture before the first frame, that picture is 0.

        Raises:
            Unreadable: there is no such frame, or its pixels are damaged.
        """
        wanted = frame - self._before
        if not 0 <= wanted < len(self._frames):
            raise no_frame(frame, len(self._frames) + self._before)
        if wanted < self._shown:
            self._restart()
        while self._shown < wanted:
            self._show(self._shown + 1)
        samples = self._canvas[..., ::3] if self._header[9] in _GREYS else self._canvas
        opaque = (samples[..., -1] == np.iinfo(samples.dtype).max).all()
        return samples[..., : -1 if opaque and not self._has_alpha else None].copy()

    def _restart(self) -> None:
        width, height, depth = struct.unpack(">IIB", self._header[:9])
        check_size(width, height)
        self._canvas = np.zeros((height, width, 4), np.uint16 if depth == 16 else np.uint8)
        self._shown = -1
        self._last: tuple[Array, Array] | None = None

    def _show(self, number: int) -> None:
        """Draw the next frame, after disposing of the last one."""
        if self._last:
            region, content = self._last
            region[:] = content
        control, pieces = self._frames[number]
        region = self._canvas[control.top :, control.left :][: control.height, : control.width]
        # Checked before decoding, which would allocate whatever size the frame claims to have.
        if region.shape[:2] != (control.height, control.width):
            raise Unreadable("a frame of the animation does not lie inside the picture")
        drawn = _rgba(self._decode(control, b"".join(pieces)))
        self._last = None
        if control.disposal == _CLEARED:
            self._last = region, np.zeros_like(region)
        elif control.disposal == _REVERTED:
            self._last = region, region.copy()
        if control.over:
            drawn = _over(region, drawn)
        region[:] = drawn
        self._shown = number

    def _decode(self, control: Control, pixels: bytes) -> Array:
        header = struct.pack(">II", control.width, control.height) + self._header[8:]
        chunks = [png_chunk(b"IHDR", header), self._palette, png_chunk(b"IDAT", pixels)]
        return _samples(b"".join([_SIGNATURE, *chunks, png_chunk(b"IEND", b"")]))


def _rgba(samples: Array) -> Array:
    """Return samples with four channels."""
    height, width, channels = samples.shape
    out = np.full((height, width, 4), np.iinfo(samples.dtype).max, samples.dtype)
    out[..., :3] = samples[..., : 1 if channels <= 2 else 3]
    if channels in (2, 4):
        out[..., 3] = samples[..., -1]
    return out


def _over(below: Array, drawn: Array) -> Array:
    """Composite a frame over what is there; both `[h, w, 4]` of the same type."""
    white = np.iinfo(drawn.dtype).max
    out = np.where(drawn[..., 3:] > 0, drawn, below)
    mixed = (drawn[..., 3] > 0) & (drawn[..., 3] < white) & (below[..., 3] > 0)
    front, back = drawn[mixed].astype(np.float64), below[mixed].astype(np.float64)
    share = front[:, 3:] / white
    rest = back[:, 3:] / white * (1 - share)
    front[:, :3] = (front[:, :3] * share + back[:, :3] * rest) / (share + rest)
    front[:, 3:] = (share + rest) * white
    out[mixed] = np.rint(front).astype(drawn.dtype)
    return out


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
    """Whether an open PNG file is animated, which it must say before its pixels."""
    return b"acTL" in read_chunks(file, end=b"IDAT").first


def _samples(data: bytes) -> Array:
    try:
        samples = imagecodecs.png_decode(data)
    except (RuntimeError, ValueError) as error:
        # Without imagecodecs' own message, which it reads from memory that libpng has freed.
        raise Unreadable("the PNG data are damaged") from error
    return np.atleast_3d(samples)


def read_chunks(file: BinaryIO, end: bytes = b"IEND") -> Chunks:
    """Read all chunks of an open file except its pixels, by seeking, up to one of the kind `end`.

    By hand, because imagecodecs returns only pixels, and Pillow only the chunks before them.
    """
    first: dict[bytes, bytes] = {}
    texts: list[tuple[str, str]] = []
    room = MAX_BYTES  # for all texts together: each may inflate to a thousand times its length
    file.seek(len(_SIGNATURE))
    kind = b""
    while kind not in (end, b"IEND"):
        head = file.read(8)
        if len(head) < 8:
            raise ValueError("the file is truncated")
        length, kind = struct.unpack(">I4s", head)
        after = file.tell() + length + 4
        wanted = kind in _TEXTS or (kind in _METADATA and kind not in first)
        data = file.read(length) if wanted and length <= MAX_BYTES else b""
        # The very first chunk is kept whatever its kind: `_header` checks that it is the header.
        if kind in _METADATA or not first:
            first.setdefault(kind, data)
        text = _text(kind, data, room) if kind in _TEXTS else None
        if text is not None:
            texts.append(text)
            room -= len(text[0]) + len(text[1]) + _TEXT_BYTES
        file.seek(after)
    return Chunks(first, texts)


def _all_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Yield every chunk's kind and content; ValueError if the file is truncated or damaged."""
    at, kind = len(_SIGNATURE), b""
    while kind != b"IEND":
        head, start = data[at : at + 8], at + 8
        length, kind = struct.unpack(">I4s", head) if len(head) == 8 else (0, b"")
        at = start + length + 4
        if len(data) < at:
            raise ValueError("the file is truncated")
        content = memoryview(data)[start : start + length]
        if data[at - 4 : at] != struct.pack(">I", zlib.crc32(content, zlib.crc32(kind))):
            raise ValueError("a chunk is damaged")
        yield kind, content


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
