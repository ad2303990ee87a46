"""Read Netpbm pictures (.pbm, .pgm, .ppm) of any maximum value; Pillow rounds 16-bit colours."""

from __future__ import annotations

import re
from typing import BinaryIO

import numpy as np

from c2fdft_cli.data.images.formats import HEAD_BYTES
from c2fdft_cli.data.images.samples import Array, Decoded, check_size

_GAP = rb"(?:\s|#[^\n\r]*[\n\r])+"
_SIZE = re.compile(rb"P([1-6])" + _GAP + rb"([0-9]{1,9})" + _GAP + rb"([0-9]{1,9})(?=[\s#])")
_WHITE = re.compile(_GAP + rb"([0-9]{1,5})\s")
_MOST_DIGITS = 10
"""Of a number in a text file, including leading zeros."""
_MAX_HEADER_BYTES = 1 << 20
"""Including comments."""
_BIT_TEXT, _BITS = 1, 4
_TEXTS = (1, 2, 3)
_COLOURS = (3, 6)


def stored_size(file: BinaryIO) -> tuple[int, int, int]:
    """See `codec.stored_size`."""
    file.seek(0)
    head = file.read(HEAD_BYTES)
    head += b"" if _SIZE.match(head) else file.read(_MAX_HEADER_BYTES)
    width, height = _header(head)[1:3]
    return width, height, 1


def decode_netpbm(data: bytes) -> Decoded:
    """Decode a Netpbm file; white becomes the largest value of uint8 or uint16."""
    kind, width, height, at = _header(data)
    check_size(width, height)
    shape = (height, width, 3 if kind in _COLOURS else 1)
    if kind in (_BIT_TEXT, _BITS):
        return Decoded(255 - 255 * _bits(data, kind, at, shape))
    found = _WHITE.match(data, at)
    white = int(found[1]) if found else 0
    if not found or not 1 <= white <= 65535:
        raise ValueError("the maximum value in its header is damaged")
    dtype = np.dtype(np.uint8 if white < 256 else ">u2")
    if kind in _TEXTS:
        samples = _words(data[found.end() :], shape).astype(dtype.newbyteorder("="))
    else:
        samples = _raw(data, found.end(), shape, dtype)
    top = 255 if white < 256 else 65535
    if white != top:
        # The file may contain larger values than the maximum that its header states.
        samples = np.rint(np.minimum(samples, white) * (top / white))
    return Decoded(samples.astype(dtype.newbyteorder("=")))


def _header(data: bytes) -> tuple[int, int, int, int]:
    """Return the kind (1 to 6), width, height, and the offset at which these end."""
    found = _SIZE.match(data)
    if found is None:
        raise ValueError("its header is damaged")
    return int(found[1]), int(found[2]), int(found[3]), found.end()


def _bits(data: bytes, kind: int, at: int, shape: tuple[int, int, int]) -> Array:
    """Return the bits of a bitmap, [h, w, 1], 1 for black."""
    height, width, _ = shape
    if kind == _BITS:
        packed = _raw(data, at + 1, (height, -(-width // 8), 1), np.dtype(np.uint8))
        return np.unpackbits(packed[..., 0], axis=1)[:, :width, None]
    digits = re.sub(rb"#[^\n\r]*|\s", b"", data[at:])
    bits = _raw(digits, 0, shape, np.dtype(np.uint8)) - ord("0")
    if bits.max() > 1:
        raise ValueError("a pixel that is neither 0 nor 1")
    return bits


def _words(text: bytes, shape: tuple[int, int, int]) -> Array:
    """Parse decimal numbers to an array of the given shape; ValueError if there are too few."""
    count = int(np.prod(shape))
    words = re.sub(rb"#[^\n\r]*", b"", text).split(None, count)[:count]
    if len(words) < count:
        raise ValueError("the file is truncated")
    # NumPy stores each word with the length of the longest, so a huge word would take all memory.
    if max(map(len, words), default=0) > _MOST_DIGITS:
        raise ValueError(f"a number of more than {_MOST_DIGITS} digits")
    return np.array(words, np.bytes_).astype(np.int64).clip(0, 65535).reshape(shape)


def _raw(data: bytes, at: int, shape: tuple[int, int, int], dtype: np.dtype[np.generic]) -> Array:
    if len(data) - at < int(np.prod(shape)) * dtype.itemsize:
        raise ValueError("the file is truncated")
    return np.frombuffer(data, dtype, int(np.prod(shape)), at).reshape(shape)
