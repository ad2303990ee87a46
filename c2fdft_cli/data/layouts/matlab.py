"""Reads arrays of uint8 from MATLAB files of versions 5 to 7.

Format: "MAT-File Format", The MathWorks, 2019. scipy reads these files too, but a damaged tag makes
its reader access memory out of bounds, which ends the process.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

_HEADER_BYTES = 128
_HEAD_BYTES = 4096
"""The first bytes of a variable, which must contain its flags, its dimensions and its name."""
_PIECE_BYTES = 1 << 20
_UINT8, _INT32, _UINT32, _INT8, _MATRIX, _COMPRESSED = 2, 5, 6, 1, 14, 15
_KINDS = {1: "cell", 2: "struct", 3: "object", 4: "char", 5: "sparse", 6: "double", 7: "single",
          8: "int8", 9: "uint8", 10: "int16", 11: "uint16", 12: "int32", 13: "uint32",
          14: "int64", 15: "uint64"}  # fmt: skip


@dataclass(frozen=True)
class Variable:
    """The header of an array: everything that precedes its values.

    Args:
        name: the variable's name.
        kind: "uint8", "double", "cell", ...
        shape: its dimensions.
        compressed: whether its element is compressed by zlib.
        start, size: position and size of its element in the file, without the tag, in bytes.
        values: offset of the tag of its values within the decompressed element, in bytes.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    compressed: bool
    start: int
    size: int
    values: int


def variables(file: BinaryIO) -> tuple[str, list[Variable]]:
    """Return the byte order, "<" or ">", and all arrays.

    Raises:
        ValueError: the file is damaged or not a MATLAB file.
    """
    header = file.read(_HEADER_BYTES)
    order = {b"IM": "<", b"MI": ">"}.get(header[126:])
    if order is None:
        raise ValueError("no MATLAB header")
    return order, list(_variables(file, order))


def _variables(file: BinaryIO, order: str) -> Iterator[Variable]:
    while tag := file.read(8):
        kind, size = struct.unpack(f"{order}II", _whole(tag, 8))
        start = file.tell()
        if kind not in (_MATRIX, _COMPRESSED):
            raise ValueError(f"element of type {kind}")
        head, skipped = file.read(min(size, _HEAD_BYTES)), 0
        if kind == _COMPRESSED:
            # The limit is needed because 4 kB could decompress to 4 MB for each of many variables.
            head, skipped = zlib.decompressobj().decompress(head, _HEAD_BYTES), 8
        found = _described(head[skipped:], order)
        if found is not None:
            name, kind_name, shape, values = found
            compressed = kind == _COMPRESSED
            yield Variable(name, kind_name, shape, compressed, start, size, skipped + values)
        file.seek(start + size)


def _described(head: bytes, order: str) -> tuple[str, str, tuple[int, ...], int] | None:
    """Return (name, kind, shape, bytes read) of an array; None for a kind without dimensions."""
    flags, at = _element(head, 0, order, _UINT32)
    number = struct.unpack(f"{order}I", _whole(flags[:4], 4))[0] & 0xFF
    if number not in _KINDS:  # functions, opaque objects
        return None
    dimensions, at = _element(head, at, order, _INT32)
    name, at = _element(head, at, order, _INT8)
    shape = struct.unpack(f"{order}{len(dimensions) // 4}i", dimensions)
    is_complex = flags[1 if order == "<" else 2] & 0x08
    kind = f"complex {_KINDS[number]}" if is_complex else _KINDS[number]
    return name.decode("ascii", "replace"), kind, shape, at


def _element(data: bytes, at: int, order: str, kind: int) -> tuple[bytes, int]:
    """Return the bytes of the element of this type at `at`, and the offset of the next one."""
    start, size = _tag(data, at, order, kind)
    end = at + 8 if start == at + 4 else start + -(-size // 8) * 8
    return _whole(data[start : start + size], size), end


def _tag(data: bytes, at: int, order: str, kind: int) -> tuple[int, int]:
    """Return offset and number of an element's bytes; up to four are stored within the tag."""
    first, size = struct.unpack(f"{order}II", _whole(data[at : at + 8], 8))
    start = at + 8
    if first >> 16:
        first, size, start = first & 0xFFFF, first >> 16, at + 4
        if size > 4:
            raise ValueError("a small element of more than four bytes")
    if first != kind:
        raise ValueError(f"an element has type {first} instead of {kind}")
    return start, size


def _whole(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise ValueError("the file ends early")
    return data


def read_uint8(file: BinaryIO, order: str, variable: Variable) -> np.ndarray[Any, Any]:
    """Read the values of an array of uint8, in its shape.

    Needs no more memory than the values and a piece of the file.

    Raises:
        ValueError: the values are missing, truncated or of another number than the shape needs.
    """
    file.seek(variable.start)
    read = _reader(file, variable)
    head = read(variable.values + 8)
    start, size = _tag(head, variable.values, order, _UINT8)
    # Checked before memory is allocated: the caller has limited the shape, but the size in the tag
    # may be anything.
    if size != math.prod(variable.shape):
        raise ValueError(f"{size} values instead of {math.prod(variable.shape)}")
    within = head[start : start + size]  # the tag itself stores four values or fewer
    values = np.empty(size, np.uint8)
    values[: len(within)] = np.frombuffer(within, np.uint8)
    for at in range(len(within), size, _PIECE_BYTES):
        room = min(_PIECE_BYTES, size - at)
        values[at : at + room] = np.frombuffer(_whole(read(room), room), np.uint8)
    return values.reshape(variable.shape, order="F")


def _reader(file: BinaryIO, variable: Variable) -> Callable[[int], bytes]:
    """Return a function that reads the next bytes of a variable's element, decompressed.

    The file must be at the start of the element. The function returns fewer bytes than requested
    only at the end of the element.
    """
    left = variable.size

    def take(size: int) -> bytes:
        nonlocal left
        data = file.read(min(size, left))
        left -= len(data)
        return data

    if not variable.compressed:
        return take
    inflater = zlib.decompressobj()

    def inflate(size: int) -> bytes:
        pieces = bytearray()
        while len(pieces) < size:
            packed = inflater.unconsumed_tail or take(_PIECE_BYTES)
            # An empty result is not the end: zlib may consume a piece of its input without
            # returning any bytes.
            piece = inflater.decompress(packed, size - len(pieces))
            if not piece and (inflater.eof or not packed):
                break
            pieces += piece
        return bytes(pieces)

    return inflate
