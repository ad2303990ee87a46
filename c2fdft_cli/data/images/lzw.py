"""Decode a TIFF's LZW stream after checking that each code is defined before it is used.

imagecodecs 2026.3 does not check this: a code beyond its table makes it read out of bounds, which
crashes the program.
"""

from __future__ import annotations

import contextlib

import imagecodecs
import numpy as np

_CLEAR, _END, _FIRST, _FULL = 256, 257, 258, 4096
_BLOCK = 4096
_BLOCK_BYTES = _BLOCK * 12 // 8 + 4
_ENTRIES = np.minimum(_FIRST + np.maximum(np.arange(_BLOCK) - 1, 0), _FULL)
"""Length of the table before each code of a block that follows a clear code."""
# TIFF widens its codes one entry before the table requires it (511, not 512).
_WIDTHS = np.searchsorted([511, 1023, 2047], _ENTRIES, side="right") + 9
_STARTS = np.cumsum(_WIDTHS) - _WIDTHS
_LARGEST = np.minimum(_ENTRIES, _FULL - 1)
# The first code after a clear code cannot complete an entry, because no string precedes it. Later
# codes may refer to the very entry that they complete, so their limit is `_ENTRIES`, not one less.
_LARGEST[0] = _END


def decode(data: bytes, /, *, out: int) -> bytes:
    """Decode at most `out` bytes, as `imagecodecs.lzw_decode` does.

    Undefined codes after them are ignored, because some programs write a wrong end there.

    Raises:
        ValueError: a code of the first `out` bytes is undefined.
    """
    undefined = _first_undefined(data)
    if undefined is None:
        return bytes(imagecodecs.lzw_decode(data, out=out))
    at, width = undefined
    # The codes before the undefined one are safe to decode if an end code takes its place.
    begun = data[at >> 3] >> (8 - (at & 7))
    end = (begun << width | _END) << (32 - width - (at & 7))
    with contextlib.suppress(RuntimeError):  # no code precedes it
        made = imagecodecs.lzw_decode(data[: at >> 3] + end.to_bytes(4, "big"), out=out)
        if len(made) >= out:
            return bytes(made)
    raise ValueError("its LZW codes are damaged")


def _first_undefined(segment: bytes) -> tuple[int, int] | None:
    """Return the offset of the first undefined code before the end code, and its width, in bits.

    None if all are defined. Thousands of codes are checked at a time, because only a clear code
    changes the positions of those that follow.
    """
    data = np.frombuffer(segment + bytes(3), np.uint8)
    at, widths, starts, largest = 0, _WIDTHS, _STARTS, _LARGEST
    while at + widths[0] <= 8 * len(segment):
        count = int(np.searchsorted(at + starts + widths, 8 * len(segment), side="right"))
        part = data[at >> 3 : (at >> 3) + _BLOCK_BYTES].astype(np.uint32)
        # Three bytes contain a code of 12 bits that starts at any bit of the first byte.
        words = part[:-2] << 16 | part[1:-1] << 8 | part[2:]
        places, wide = (at & 7) + starts[:count], widths[:count]
        codes = words[places >> 3] >> (24 - wide - (places & 7)) & ((1 << wide) - 1)
        marks = np.flatnonzero((codes == _CLEAR) | (codes == _END))
        used = int(marks[0]) if marks.size else count
        wrong = np.flatnonzero(codes[:used] > largest[:used])
        if wrong.size:
            return at + int(starts[wrong[0]]), int(wide[wrong[0]])
        if marks.size and codes[used] == _END:
            return None
        if marks.size:
            at += int(starts[used] + widths[used])
            widths, starts, largest = _WIDTHS, _STARTS, _LARGEST
        else:  # the table is full
            at += int(starts[count - 1] + widths[count - 1])
            widths, starts = np.full(_BLOCK, 12), 12 * np.arange(_BLOCK)
            largest = np.full(_BLOCK, _FULL - 1)
    return None
