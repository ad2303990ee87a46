"""MATLAB files of versions 5 to 7, as far as numeric arrays of uint8 need it.

Layout: "MAT-File Format", The MathWorks, 2019. scipy reads these files too, but its reader leaves
its memory where a tag is damaged, which ends the process.
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
"""Of a variable, in which its flags, its dimensions and its name must lie."""
_PIECE_BYTES = 1 << 20
_UINT8, _INT32, _UINT32, _INT8, _MATRIX, _COMPRESSED = 2, 5, 6, 1, 14, 15
_KINDS = {1: "cell", 2: "struct", 3: "object", 4: "char", 5: "sparse", 6: "double", 7: "single",
          8: "int8", 9: "uint8", 10: "int16", 11: "uint16", 12: "int32", 13: "uint32",
          14: "int64", 15: "uint64"}  # fmt: skip


@dataclass(frozen=True)
class Variable:
    """What is said of an array before its values.

    Args:
        name: of the variable.
        kind: "uint8", "double", "cell", ...
        shape: its dimensions.
        compressed: whether zlib holds it.
        start, size: of the element in the file, without its tag, in bytes.
        values: where the tag of its values begins in the element, once decompressed.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    compressed: bool
    start: int
    size: int
    values: int


def variables(file: BinaryIO) -> tuple[str, list[Variable]]:
    """The byte order, "<" or ">", and all arrays; ValueError for a damaged or other file."""
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
            # With a limit, as these are 4 kB that could unfold into 4 MB for each of many
            # variables.
            head, skipped = zlib.decompressobj().decompress(head, _HEAD_BYTES), 8
        found = _described(head[skipped:], order)
        if found is not None:
            name, kind_name, shape, values = found
            compressed = kind == _COMPRESSED
            yield Variable(name, kind_name, shape, compressed, start, size, skipped + values)
        file.seek(start + size)


def _described(head: bytes, order: str) -> tuple[str, str, tuple[int, ...], int] | None:
    """(name, kind, shape, bytes read) of an array; None for what has no dimensions."""
    flags, at = _element(head, 0, order, _UINT32)
    number, attributes = struct.unpack(f"{order}I", _whole(flags[:4], 4))[0] & 0xFF, flags
    if number not in _KINDS:  # functions, opaque objects
        return None
    dimensions, at = _element(head, at, order, _INT32)
    name, at = _element(head, at, order, _INT8)
    shape = struct.unpack(f"{order}{len(dimensions) // 4}i", dimensions)
    is_complex = attributes[1 if order == "<" else 2] & 0x08
    kind = f"complex {_KINDS[number]}" if is_complex else _KINDS[number]
    return name.decode("ascii", "replace"), kind, shape, at


def _element(data: bytes, at: int, order: str, kind: int) -> tuple[bytes, int]:
    """The bytes of an element of this type, and where the next one begins."""
    start, size = _tag(data, at, order, kind)
    end = at + 8 if start == at + 4 else start + -(-size // 8) * 8
    return _whole(data[start : start + size], size), end


def _tag(data: bytes, at: int, order: str, kind: int) -> tuple[int, int]:
    """Where the bytes of an element begin, and how many there are; up to four lie in the tag."""
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
    """The values of an array of uint8, in its shape; ValueError where they are not all there.

    Takes no more memory than the values and a piece of the file.
    """
    file.seek(variable.start)
    read = _reader(file, variable)
    head = read(variable.values + 8)
    start, size = _tag(head, variable.values, order, _UINT8)
    # Before room is made for them: the caller has held the shape to its limit, the tag's own size
    # is only a claim.
    if size != math.prod(variable.shape):
        raise ValueError(f"{size} values instead of {math.prod(variable.shape)}")
    within = head[start : start + size]  # of the tag, where there are four values or fewer
    values = np.empty(size, np.uint8)
    values[: len(within)] = np.frombuffer(within, np.uint8)
    for at in range(len(within), size, _PIECE_BYTES):
        room = min(_PIECE_BYTES, size - at)
        values[at : at + room] = np.frombuffer(_whole(read(room), room), np.uint8)
    return values.reshape(variable.shape, order="F")


def _reader(file: BinaryIO, variable: Variable) -> Callable[[int], bytes]:
    """Reads on within the element that the file stands at; fewer bytes come at its end alone."""
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
            # No bytes are no end yet: zlib may take a piece of its input in and give nothing for
            # it.
            piece = inflater.decompress(packed, size - len(pieces))
            if not piece and (inflater.eof or not packed):
                break
            pieces += piece
        return bytes(pieces)

    return inflate
