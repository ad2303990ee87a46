"""Formats whose files consist of boxes: AVIF, HEIC, JPEG 2000 and JPEG XL.

imagecodecs decodes the pixels, because Pillow rounds more than 8 bits; pillow-heif decodes HEIC, if
it is installed. Both decode pictures of any size, so the size in the headers is checked first.
"""

from __future__ import annotations

import contextlib
import io
import math
import struct
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
from PIL import Image

from c2fdft_cli.data.images.formats import J2K_SIGNATURE, JXL_SIGNATURE, Unreadable
from c2fdft_cli.data.images.metadata import MAX_BYTES, Metadata, iptc_of, upright_exif, upright_xmp
from c2fdft_cli.data.images.pillow import OpenFrames, decode_opened, metadata_of, quiet_pillow
from c2fdft_cli.data.images.png import png_chunk
from c2fdft_cli.data.images.profiles import CMYK_SPACE, colour_space
from c2fdft_cli.data.images.samples import (
    Array,
    Decoded,
    check_size,
    full_range,
    rgb_from_cmyk,
    to_8bit,
)

_ENUMERATED, _ICC = 1, {2, 3}
"""How a JPEG 2000 file states its colours: by a code, or by a profile."""
_CMYK, _SYCC, _PLAIN = 12, 18, {0, 15, 16, 17}
"""The codes; the last are those of a file without a code, black and white, RGB, and grey."""
_XMP_UUID = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
_IPTC_UUID = bytes.fromhex("33c7a4d2b81d4723a0baf1a3e097ad38")
_EXIF_UUID = b"JpgTiffExif->JP2"
_RATIOS = ((0, 1), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
_DEEP, _12_BITS = 0x40, 0x20
_JXL_RGB, _JXL_GREY, _JXL_D65, _JXL_SRGB_PRIMARIES, _JXL_SRGB_TRANSFER = 0, 1, 1, 1, 13
_USUAL_PRIMARIES, _USUAL_TRANSFERS = {1, 2}, {1, 2, 6, 13}
"""Codes of H.273 that pictures use for sRGB or for unspecified colours."""
_PROPERTIES = {b"av1C": 4, b"clap": 32, b"nclx": 11}
"""What is read of an AVIF or HEIC: AV1 configuration, crop, colour codes; with the least sizes."""
_SAMPLE_DESCRIPTIONS = (b"mdia", b"minf", b"stbl", b"stsd")
_HEADS = {b"meta": 4, b"stsd": 8, b"av01": 78}
"""Bytes of fields at the start of a box, before the boxes inside it."""


def decode_avif(data: bytes, frame: int) -> Decoded:
    """Decode a frame of an AVIF; 10 and 12 bits become 16, or 8 in an animation."""
    # An animation by its brand, or, as its library counts, in a file with another brand.
    frames = OpenFrames(data, "AVIF")
    brands = next((data[at:end] for _, at, end in _boxes(io.BytesIO(data))), b"")
    is_animated = b"avis" in brands or frames.count > 1
    properties = _properties(data)
    # The third byte of the AV1 configuration has flags for more than 8 bits and for 12 bits.
    flags = properties.get(b"av1C", bytes(4))[2]
    with quiet_pillow():
        image = frames.seek(frame)
        # imagecodecs writes out of bounds for animations
        is_deep = bool(flags & _DEEP) and not is_animated
        decoded = None if is_deep else decode_opened(image)
        orientation, metadata = metadata_of(image.info) if decoded is None else decoded[1:]
    metadata = _with_colour_codes(metadata, properties)
    lost = []
    if b"clap" in properties:
        lost.append("the crop that an AVIF file states (clean aperture)")
    if flags & _DEEP and is_animated:
        lost.append("more than 8 bits of an animation")
    metadata = replace(metadata, lost=" and ".join(lost) or None)
    if decoded is not None:
        return decoded._replace(metadata=metadata)
    bits = 12 if flags & _12_BITS else 10
    return _decoded(imagecodecs.avif_decode(data), bits, orientation, metadata)


def decode_heic(data: bytes) -> Decoded:
    """Decode the main picture of a HEIC file; the decoder already turns it upright."""
    image = _open_heic(io.BytesIO(data))
    # So far only the headers have been read; `np.array` decodes the pixels.
    check_size(image.size[0], image.size[1])
    # A copy: up to pillow-heif 1.5 a view does not keep the image, whose memory would be reused.
    samples, bits = np.array(image), int(image.info.get("bit_depth", 8))
    if samples.dtype == np.uint16:
        samples = samples >> (16 - bits)  # the library shifts left and leaves the low bits zero
    orientation, metadata = metadata_of(dict(image.info))
    # The resolution is that of the stored picture, whose sides the decoder has swapped.
    if metadata.density and orientation >= 5:
        metadata = replace(metadata, density=metadata.density[::-1])
    return _decoded(samples, bits, 1, _with_colour_codes(metadata, _properties(data)))


def heic_size(file: BinaryIO) -> tuple[int, int, int]:
    """See `codec.stored_size`."""
    width, height = _open_heic(file).size
    return width, height, 1


def _open_heic(file: BinaryIO) -> Any:
    import pillow_heif

    file.seek(0)
    found = pillow_heif.open_heif(file, convert_hdr_to_8bit=False)
    return found[found.primary_index]


def decode_jpeg2000(data: bytes) -> Decoded:
    """Decode a JPEG 2000 file; 9 to 15 bits become 16."""
    width, height, bits = _jpeg2000_header(io.BytesIO(data))
    check_size(width, height)
    colours, orientation, metadata = _jpeg2000_metadata(data)
    if colours == _SYCC:
        found = OpenFrames(data, "JPEG2000").decode(0)
        return Decoded(found.samples, orientation, metadata)
    if colours not in {*_PLAIN, _CMYK}:
        what = f"a JPEG 2000 file in the colour space of code {colours}"
        raise Unreadable(what, "save it as sRGB")
    samples = imagecodecs.jpeg2k_decode(data)
    if samples.dtype not in (np.uint8, np.uint16):
        what = f"a JPEG 2000 file with {samples.dtype} samples"
        raise Unreadable(what, "save it with 8 or 16 bits")
    if any(kind == b"pclr" for kind, _, _ in _boxes_in(io.BytesIO(data), b"jp2h")):
        bits = 8 * samples.dtype.itemsize  # the header has the bits of the palette's indices
    if colours == _CMYK or colour_space(metadata.icc) == CMYK_SPACE:
        inks = to_8bit(_decoded(samples, bits, 1, metadata).samples)
        if inks.shape[2] != 4:
            raise ValueError(f"it has {inks.shape[2]} channels instead of the 4 of CMYK")
        rgb = rgb_from_cmyk(inks, metadata.icc)
        return Decoded(rgb, orientation, replace(metadata, icc=None))
    return _decoded(samples, bits, orientation, metadata)


def jpeg2000_size(file: BinaryIO) -> tuple[int, int, int]:
    """See `codec.stored_size`."""
    width, height, _ = _jpeg2000_header(file)
    return width, height, upright_exif(_jpeg2000_blocks(file).get(_EXIF_UUID))[0]


def _jpeg2000_header(file: BinaryIO) -> tuple[int, int, int]:
    """Return width, height and bits per sample."""
    # From the codestream, because the decoder allocates memory for its size. The header box before
    # it also contains a size, which may differ.
    file.seek(next((at for kind, at, _ in _boxes(file) if kind == b"jp2c"), 0))
    data = file.read(43)
    if not data.startswith(J2K_SIGNATURE):
        raise ValueError("its header is damaged")
    right, bottom, left, top = struct.unpack_from(">4I", data, 8)
    depth = data[42]
    if depth & 0x80:
        raise Unreadable("a JPEG 2000 file with signed samples", "save it with unsigned samples")
    return right - left, bottom - top, depth + 1


def _jpeg2000_blocks(file: BinaryIO) -> dict[bytes, bytes]:
    """Return the blocks of metadata by their UUID."""
    blocks = {}
    for kind, at, end in _boxes(file):
        if kind == b"uuid" and end - at <= MAX_BYTES:
            file.seek(at)
            block = file.read(end - at)
            blocks[block[:16]] = block[16:]
    return blocks


def _jpeg2000_metadata(data: bytes) -> tuple[int, int, Metadata]:
    """Return the code of the colour space (0 if there is none), EXIF orientation and metadata."""
    colours, icc, about = 0, None, {}
    for kind, at, end in _boxes_in(io.BytesIO(data), b"jp2h"):
        method = data[at] if kind == b"colr" and end - at >= 7 else None
        if method in _ICC:
            icc = data[at + 3 : end]
        elif method == _ENUMERATED:
            (colours,) = struct.unpack_from(">I", data, at + 3)
        if icc or colours:  # the first one counts
            break
    blocks = _jpeg2000_blocks(io.BytesIO(data))
    orientation, exif = upright_exif(blocks.get(_EXIF_UUID))
    with quiet_pillow(), contextlib.suppress(Exception):  # only the density is read here
        about = dict(Image.open(io.BytesIO(data), formats=["JPEG2000"]).info)
    metadata = Metadata(
        icc=icc,
        exif=exif,
        xmp=upright_xmp(blocks.get(_XMP_UUID)),
        iptc=iptc_of(blocks.get(_IPTC_UUID)),
        density=metadata_of({"dpi": about.get("dpi")})[1].density,
    )
    return colours, orientation, metadata


def decode_jpegxl(data: bytes) -> Decoded:
    """Decode a JPEG XL file, or the first frame of an animation; the decoder turns it upright."""
    file = io.BytesIO(data)
    header = _JxlHeader(_jpegxl_codestream(file))
    check_size(header.width, header.height)
    samples = imagecodecs.jpegxl_decode(data, index=0 if header.is_animated else None)
    blocks = {kind: data[at:end] for kind, at, end in _boxes(file) if end - at <= MAX_BYTES}
    lost = ["the frames after the first"] if header.is_animated else []
    lost += [] if header.is_srgb else ["the colour profile of a JPEG XL file"]
    metadata = Metadata(
        exif=upright_exif(blocks.get(b"Exif", b"")[4:])[1],
        xmp=upright_xmp(blocks.get(b"xml ")),
        lost=" and ".join(lost) or None,
    )
    return _decoded(samples, header.bits, 1, metadata)


def jpegxl_size(file: BinaryIO) -> tuple[int, int, int]:
    """See `codec.stored_size`."""
    header = _JxlHeader(_jpegxl_codestream(file))
    return header.width, header.height, header.orientation


def _jpegxl_codestream(file: BinaryIO) -> bytes:
    """Return the first bytes of the codestream, which may be inside boxes or not."""
    found = ((kind, at) for kind, at, _ in _boxes(file) if kind in (b"jxlc", b"jxlp"))
    kind, at = next(found, (b"", 0))
    file.seek(at + (4 if kind == b"jxlp" else 0))
    data = file.read(256)
    if not data.startswith(JXL_SIGNATURE):
        raise ValueError("its header is damaged")
    return data


class _JxlHeader:
    """The header of a JPEG XL codestream (ISO 18181-1, annex D).

    Width and height are those before the orientation is applied.
    """

    def __init__(self, codestream: bytes) -> None:
        self._bits = int.from_bytes(codestream[2:], "little")
        self.width, self.height = self._size()
        self.bits, self.orientation = 8, 1
        self.is_animated, self.is_srgb = False, True
        if not self._take(1):
            if self._take(1):
                self._extra_fields()
            self.bits = self._depth()
            self.is_srgb = self._colours()

    def _take(self, count: int) -> int:
        value = self._bits & ((1 << count) - 1)
        self._bits >>= count
        return value

    def _number(self, *choices: tuple[int, int]) -> int:
        """Read a number: two bits choose one of four pairs (offset, number of bits to add)."""
        offset, count = choices[self._take(2)]
        return offset + self._take(count)

    def _size(self) -> tuple[int, int]:
        by_8 = self._take(1)

        def side() -> int:
            return (
                8 * (1 + self._take(5)) if by_8 else self._number((1, 9), (1, 13), (1, 18), (1, 30))
            )

        height, (over, under) = side(), _RATIOS[self._take(3)]
        return (height * over // under if over else side()), height

    def _extra_fields(self) -> None:
        self.orientation = 1 + self._take(3)
        if self._take(1):
            self._size()  # the size in which the picture is meant to be shown
        if self._take(1):
            raise Unreadable("a JPEG XL file with a preview", "save it without a preview")
        if self._take(1):
            self.is_animated = True
            self._number((100, 0), (1000, 0), (1, 10), (1, 30))
            self._number((1, 0), (1001, 0), (1, 8), (1, 10))
            self._number((0, 0), (0, 3), (0, 16), (0, 32))
            self._take(1)

    def _depth(self) -> int:
        if not self._take(1):
            return self._number((8, 0), (10, 0), (12, 0), (1, 6))
        bits = self._number((32, 0), (16, 0), (24, 0), (1, 6))
        self._take(4)
        return bits

    def _code(self) -> int:
        return self._number((0, 0), (1, 0), (2, 4), (18, 6))

    def _colours(self) -> bool:
        """Whether the colours are sRGB, or grey with sRGB's white and transfer curve.

        Reads the fields in order, and stops at the first one that differs from sRGB.
        """
        self._take(1)
        extra = self._number((0, 0), (1, 0), (2, 4), (1, 12))
        if not all(self._is_alpha() for _ in range(extra)):
            return False
        self._take(1)
        if self._take(1):  # all fields have their defaults, which are sRGB
            return True
        has_profile, space = self._take(1), self._code()
        return (
            not has_profile
            and space in (_JXL_RGB, _JXL_GREY)
            and self._code() == _JXL_D65
            and (space == _JXL_GREY or self._code() == _JXL_SRGB_PRIMARIES)
            and not self._take(1)  # a gamma
            and self._code() == _JXL_SRGB_TRANSFER
        )

    def _is_alpha(self) -> bool:
        """Read an extra channel, not to its end unless it is alpha; return whether it is alpha."""
        if self._take(1):
            return True
        kind = self._code()
        self._depth()
        self._number((0, 0), (3, 0), (4, 0), (1, 3))
        self._take(8 * self._number((0, 0), (0, 4), (16, 5), (48, 10)))  # its name
        self._take(1)
        return kind == 0


def _decoded(samples: Array, bits: int, orientation: int, metadata: Metadata) -> Decoded:
    samples = np.atleast_3d(samples)
    if samples.ndim != 3 or not 1 <= samples.shape[2] <= 4:
        raise Unreadable(f"a picture of shape {list(samples.shape)}", "save it as grey or RGB")
    return Decoded(full_range(samples, bits), orientation, metadata)


def _properties(data: bytes) -> dict[bytes, bytes]:
    """Return the first of each of `_PROPERTIES` in an AVIF or HEIC: of single pictures, of frames.

    The first one is that of the main picture: encoders write it before those of its alpha, which
    has equally many bits, and of thumbnails.
    """
    places = (b"meta", b"iprp", b"ipco"), (b"moov", b"trak", *_SAMPLE_DESCRIPTIONS, b"av01")
    first: dict[bytes, bytes] = {}
    for kind, at, end in chain.from_iterable(_boxes_in(io.BytesIO(data), *one) for one in places):
        name = data[at : at + 4] if kind == b"colr" else kind
        if end - at >= _PROPERTIES.get(name, math.inf):
            first.setdefault(name, data[at:end])
    return first


def _with_colour_codes(metadata: Metadata, properties: dict[bytes, bytes]) -> Metadata:
    """Add the H.273 colour codes as a cICP chunk, unless they mean sRGB or there is a profile."""
    if metadata.icc or b"nclx" not in properties:
        return metadata
    primaries, transfer = struct.unpack_from(">HH", properties[b"nclx"], 4)
    usual = primaries in _USUAL_PRIMARIES and transfer in _USUAL_TRANSFERS
    if usual or max(primaries, transfer) > 255:
        return metadata
    return replace(metadata, png_chunks=png_chunk(b"cICP", bytes([primaries, transfer, 0, 1])))


def _boxes(file: BinaryIO, at: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and end of the content of each box, by seeking from box to box."""
    whole = file.seek(0, io.SEEK_END)
    end = whole if end is None else min(end, whole)
    while at + 8 <= end:
        file.seek(at)
        start = file.read(16)
        size, kind = struct.unpack_from(">I4s", start)
        head = 8
        if size == 1 and at + 16 <= end:
            (size,), head = struct.unpack_from(">Q", start, 8), 16
        size = size or end - at
        # With a size smaller than the box's own head the loop would never advance, or continue
        # inside the head.
        if size < head:
            return
        yield kind, at + head, min(at + size, end)
        at += size


def _boxes_in(
    file: BinaryIO, outer: bytes, *inner: bytes, at: int = 0, end: int | None = None
) -> Iterator[tuple[bytes, int, int]]:
    """Yield the same for the boxes inside all boxes of kind `outer`, or further inside `inner`."""
    for kind, first, last in _boxes(file, at, end):
        if kind == outer:
            start = first + _HEADS.get(kind, 0)
            if inner:
                yield from _boxes_in(file, *inner, at=start, end=last)
            else:
                yield from _boxes(file, start, last)
