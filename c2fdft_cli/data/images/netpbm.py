"""Netpbm (.pbm, .pgm, .ppm): binary samples by hand, because Pillow rounds 16-bit colours."""

from __future__ import annotations

import re

import numpy as np

from c2fdft_cli.data.images.formats import Unreadable
from c2fdft_cli.data.images.pillow import OpenFrames
from c2fdft_cli.data.images.samples import Decoded, check_size

_GAP = rb"(?:\s|#[^\n\r]*[\n\r])+"
_HEADER = re.compile(rb"P([356])" + (_GAP + rb"([0-9]{1,10})") * 3 + rb"\s")
_GREY, _COLOUR_TEXT = 5, 3


def decode_netpbm(data: bytes) -> Decoded:
    """Decode a Netpbm file; white becomes the largest value of uint8 or uint16."""
    found = _HEADER.match(data)
    kind, width, height, white = map(int, found.groups()) if found else (0, 0, 0, 0)
    if found is None or (kind == _COLOUR_TEXT and white < 256):
        return OpenFrames(data, "PPM").decode(0)
    if kind == _COLOUR_TEXT:
        raise Unreadable("a PPM of text with more than 8 bits", "save it as a binary PPM")
    check_size(width, height)
    if not 1 <= white <= 65535:
        raise ValueError("the maximum value in its header is damaged")
    shape = (height, width, 1 if kind == _GREY else 3)
    top, dtype = (255, np.dtype(np.uint8)) if white < 256 else (65535, np.dtype(">u2"))
    if len(data) - found.end() < int(np.prod(shape)) * dtype.itemsize:
        raise ValueError("the file is truncated")
    samples = np.frombuffer(data, dtype, int(np.prod(shape)), found.end()).reshape(shape)
    if white != top:
        # The file may contain larger values than the maximum that its header states.
        samples = np.rint(np.minimum(samples, white) * (top / white))
    return Decoded(samples.astype(dtype.newbyteorder("=")))
