"""The PNG container: chunks in and out, so that nothing but pixels reaches a decoder."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY_TYPES = {0, 4}
_PIXEL_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
_COLOUR_TYPE = {1: 0, 2: 4, 3: 2, 4: 6}
_MAX_PROFILE = 16 << 20
_ROWS_PER_BLOCK = 64


class PngHeader(NamedTuple):
    """What the IHDR chunk says."""

    width: int
    height: int
    bit_depth: int
    colour_type: int


class Chunk(NamedTuple):
    """Where a chunk's data lie in the file."""

    kind: bytes
    offset: int
    length: int


def png_chunks(file: BinaryIO) -> Iterator[Chunk]:
    """The chunks up to IEND, by seeking; ValueError when the file ends before it."""
    file.seek(len(SIGNATURE))
    while True:
        head = file.read(8)
        if len(head) < 8:
            raise ValueError("the file is truncated")
        length, kind = struct.unpack(">I4s", head)
        offset = file.tell()
        yield Chunk(kind, offset, length)
        if kind == b"IEND":
            return
        file.seek(offset + length + 4)


def read_header(file: BinaryIO) -> PngHeader:
    """IHDR; ValueError when it is not the first chunk."""
    first = next(png_chunks(file))
    data = file.read(10)
    if first.kind != b"IHDR" or len(data) < 10:
        raise ValueError("the PNG header is damaged")
    return PngHeader(*struct.unpack(">IIBB", data))


def read_exif(file: BinaryIO) -> bytes | None:
    """The eXIf chunk's data, wherever in the file it stands."""
    return _first_data(file, b"eXIf", limit=_MAX_PROFILE)


def read_transparent(file: BinaryIO) -> tuple[int, ...] | None:
    """The grey or RGB value of the tRNS chunk that stands for transparent pixels."""
    data = _first_data(file, b"tRNS", limit=6)
    return struct.unpack(f">{len(data) // 2}H", data[: len(data) // 2 * 2]) if data else None


def read_icc(file: BinaryIO) -> bytes | None:
    """The embedded colour profile, or None when there is none or it is damaged."""
    data = _first_data(file, b"iCCP", limit=_MAX_PROFILE)
    if data is None:
        return None
    unpacker = zlib.decompressobj()
    try:
        profile = unpacker.decompress(data[data.index(b"\0") + 2 :], _MAX_PROFILE)
    except (ValueError, zlib.error):
        return None
    return profile if unpacker.eof else None


def pixel_chunks_only(data: bytes) -> bytes:
    """The same PNG with nothing but its pixels; ValueError when a chunk is cut off or damaged.

    Text, profiles and animation are left out: decoders warn about them and need none of them.
    """
    parts = [SIGNATURE]
    view = memoryview(data)
    for kind, offset, length in png_chunks(io.BytesIO(data)):
        if kind not in _PIXEL_CHUNKS:
            continue
        chunk = view[offset - 8 : offset + length + 4]
        if len(chunk) < length + 12:
            raise ValueError("the file is truncated")
        if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
            raise ValueError(f"its {kind.decode()} chunk is damaged (checksum)")
        parts.append(bytes(chunk))
    return b"".join(parts)


def encode_png16(
    samples: npt.NDArray[np.uint16], *, icc: bytes | None, exif: bytes | None
) -> bytes:
    """A 16-bit PNG from samples [h, w, c]; c: 1 grey, 2 grey + alpha, 3 RGB, 4 RGBA."""
    height, width, count = samples.shape
    header = struct.pack(">IIBBBBB", width, height, 16, _COLOUR_TYPE[count], 0, 0, 0)
    parts = [SIGNATURE, _chunk(b"IHDR", header)]
    if icc:
        parts.append(_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(icc)))
    if exif:
        parts.append(_chunk(b"eXIf", exif))
    parts += [_chunk(b"IDAT", data) for data in _deflated(samples)]
    return b"".join([*parts, _chunk(b"IEND", b"")])


def _first_data(file: BinaryIO, kind: bytes, *, limit: int) -> bytes | None:
    """The data of the first chunk of one kind, None when absent or over the limit."""
    for chunk in png_chunks(file):
        if chunk.kind == kind:
            return file.read(chunk.length) if chunk.length <= limit else None
    return None


def _chunk(kind: bytes, data: bytes) -> bytes:
    check = zlib.crc32(data, zlib.crc32(kind))
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)


def _deflated(samples: npt.NDArray[np.uint16]) -> Iterator[bytes]:
    """The filtered rows, compressed, block by block."""
    height, width, count = samples.shape
    # Run lengths alone: on photographs as small as a full search, and four times as fast.
    packer = zlib.compressobj(strategy=zlib.Z_RLE)
    above = np.zeros((1, width * count * 2), np.uint8)
    for top in range(0, height, _ROWS_PER_BLOCK):
        block = np.ascontiguousarray(samples[top : top + _ROWS_PER_BLOCK], dtype=">u2")
        rows = block.view(np.uint8).reshape(len(block), -1)
        data = packer.compress(_filtered(rows, above, count * 2))
        above = rows[-1:]
        if data:
            yield data
    yield packer.flush()


def _filtered(rows: npt.NDArray[np.uint8], above: npt.NDArray[np.uint8], step: int) -> bytes:
    """Each row with the filter (Sub, Up or Average) that leaves the smallest differences."""
    left = np.zeros_like(rows)
    left[:, step:] = rows[:, :-step]
    up = np.concatenate([above, rows[:-1]])
    average = ((left.astype(np.uint16) + up) >> 1).astype(np.uint8)
    tries = np.stack([rows - left, rows - up, rows - average])
    cost = np.abs(tries.view(np.int8).astype(np.int16)).sum(axis=2)
    best = cost.argmin(axis=0)
    chosen = tries[best, np.arange(len(rows))]
    return np.concatenate([(best + 1).astype(np.uint8)[:, None], chosen], axis=1).tobytes()
