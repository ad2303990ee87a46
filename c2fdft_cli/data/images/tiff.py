"""TIFF: tifffile decodes the pixels; the tags that describe the picture pass through Pillow."""

from __future__ import annotations

import contextlib
import io
import math
import struct
import weakref
from collections import ChainMap
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
import tifffile
from PIL import TiffImagePlugin
from PIL.ExifTags import IFD, Base
from tifffile.tifffile import jpeg_shape

from c2fdft_cli.data.images import lzw
from c2fdft_cli.data.images.formats import HINTS, Unreadable
from c2fdft_cli.data.images.metadata import Metadata, density_of, iptc_of, upright_xmp
from c2fdft_cli.data.images.pillow import quiet_pillow
from c2fdft_cli.data.images.samples import (
    MAX_FRAMES,
    Array,
    Decoded,
    check_size,
    full_range,
    grey_if_equal,
    no_frame,
    rgb_from_cmyk,
)

# Tags that describe a picture; the other tags of a directory describe how its pixels are stored.
_DESCRIPTIONS = {270, 271, 272, 282, 283, 296, 305, 306, 315, 33432, *range(40091, 40096)}
_EXIF_DIRECTORIES = {IFD.Exif.value, IFD.GPSInfo.value}
_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3}  # photometric interpretation: channels
_WHITE_IS_ZERO, _PALETTE, _CMYK, _YCBCR = 0, 3, 5, 6
_WITH_ALPHA = {_WHITE_IS_ZERO, 1, 2}
_ASSOCIATED_ALPHA, _ALPHA = 1, 2
_LZW, _JPEG = 5, 7
_COPY, _MASK = 1, 4
"""Bits of a page's subfile type: a smaller copy of another page, or its mask."""
# None, CCITT, LZW, JPEG, deflate, PackBits, LZMA, Zstandard. For strips in other image formats
# (JPEG 2000, WebP, ...) the size in their headers would have to be checked before decoding.
_COMPRESSIONS = {1, 2, 3, 4, 5, _JPEG, 8, 32946, 32773, 34925, 50000}
_MAX_TAGS, _KNOWN_LOOPS = 4096, 100
"""Limits of tifffile: of tags in a directory, and of directories among which it finds a loop."""
_STRIP_SIZE = 1 << 20
_YCBCR_COEFFICIENTS, _REFERENCE_BLACK_WHITE = 529, 532
_BT601, _FULL_RANGE = (0.299, 0.587, 0.114), (0.0, 255.0, 128.0, 255.0, 128.0, 255.0)
_ROWS = 256
"""Rows that are converted at a time, to bound the memory."""

# Replaced for the whole process: tifffile does not let a file have decoders of its own.
tifffile.TIFF.DECOMPRESSORS = ChainMap(
    {_LZW: lzw.decode},
    tifffile.TIFF.DECOMPRESSORS,  # type: ignore[arg-type]  # nothing is written to it
)


def decode_tiff(data: bytes, frame: int) -> Decoded:
    """Decode a page of a TIFF, as `codec.decode` does."""
    return Pages(data).decode(frame)


class Pages:
    """The pages of a TIFF; several threads may decode them at a time.

    A page is found through the directories of all pages before it. They are read once: in ascending
    order, the pages take time in proportion to their number.

    Args:
        data: the whole file.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        file = io.BytesIO(data)
        # tifffile's objects refer to each other, and would hold the data until the next garbage
        # collection.
        weakref.finalize(self, file.close)
        self._tiff = _opened(file)
        self._tiff.filehandle.set_lock(True)  # tifffile then locks it where it decodes a page

    def decode(self, frame: int) -> Decoded:
        """Decode a page, as `codec.decode` does."""
        with self._tiff.filehandle.lock:
            page = _page(self._tiff, frame)
        check_size(page.imagewidth, page.imagelength)
        # Tiles too: a small picture may declare a huge tile, and a tile is decoded as a whole.
        check_size(page.tilewidth or 1, (page.tilelength or 1) * page.tiledepth)
        _check_kind(page)
        _check_segments(page, self._data)
        return Decoded(_samples(page), _orientation(page), _metadata(page, self._data))


def _opened(file: BinaryIO) -> tifffile.TiffFile:
    """Open a TIFF, unless tifffile would follow its directories without end.

    Raises:
        ValueError: they form a loop, which tifffile recognises only among the first hundred.
        Unreadable: there are more than `MAX_FRAMES`.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    is_big = 43 in head[2:4]
    count, link, entry = ("Q", "Q", 20) if is_big else ("H", "I", 12)
    places: set[int] = set()
    with contextlib.suppress(struct.error):  # tifffile too ends where the file does
        (place,) = struct.unpack_from(order + link, head, 8 if is_big else 4)
        while 0 < place < size and place not in places:
            places.add(place)
            if len(places) > MAX_FRAMES:
                raise Unreadable(f"over {MAX_FRAMES} frames")
            file.seek(place)
            (tags,) = struct.unpack(order + count, file.read(struct.calcsize(count)))
            if tags > _MAX_TAGS:
                break
            file.seek(tags * entry, io.SEEK_CUR)
            (place,) = struct.unpack(order + link, file.read(struct.calcsize(link)))
        if place in places and len(places) >= _KNOWN_LOOPS:
            raise ValueError("its pages form a loop")
    file.seek(0)
    # tifffile directly, because imageio's plugin does not expose the offset of a page's directory.
    return tifffile.TiffFile(file)


def _page(tiff: tifffile.TiffFile, frame: int = 0) -> tifffile.TiffPage:
    try:
        page = tiff.pages[frame].aspage()
    except IndexError:
        raise no_frame(frame, len(tiff.pages)) from None
    if Base.DNGVersion in page.tags or (page.is_reduced and "SubIFDs" in page.tags):
        raise Unreadable("files of this kind are not read: camera raw", HINTS["camera raw"])
    return page


def _metadata(page: tifffile.TiffPage, data: bytes) -> Metadata:
    tags = _descriptions(data, page.offset)
    density = density_of(tags)
    if _orientation(page) >= 5:  # width and height will be swapped
        turned: dict[int, int] = {
            Base.XResolution: Base.YResolution,
            Base.YResolution: Base.XResolution,
        }
        tags = {turned.get(tag, tag): value for tag, value in tags.items()}
    return Metadata(
        # The profile of a CMYK picture has already been applied: the pixels are sRGB.
        icc=_block(page, Base.InterColorProfile) if page.photometric != _CMYK else None,
        exif=_directory(tags) if tags else None,
        xmp=upright_xmp(_block(page, Base.XMLPacket)),
        iptc=iptc_of(_block(page, Base.IPTCNAA)) or iptc_of(_block(page, Base.ImageResources)),
        density=density,
        lost=_lost(page),
    )


def _block(page: tifffile.TiffPage, tag: int) -> bytes | None:
    """Return a tag's value as bytes, whatever its type: IPTC is often stored as 32-bit words."""
    found = page.tags.get(tag)
    if found is None:
        return None
    file = page.parent.filehandle
    with file.lock:
        file.seek(found.valueoffset)
        return bytes(file.read(found.valuebytecount))


def stored_size(file: BinaryIO) -> tuple[int, int, int]:
    """See `codec.stored_size`."""
    with _opened(file) as tiff:
        page = _page(tiff)
        return page.imagewidth, page.imagelength, _orientation(page)


def count_pages(file: BinaryIO) -> int:
    """Count the pages of an open TIFF file, without smaller copies and masks at its end.

    Programs for maps, microscopes and scanners store a picture in several sizes in this way. Pages
    in between are not examined, because reading each directory of a long stack takes too long.
    """
    with _opened(file) as tiff:
        count = len(tiff.pages)
        with contextlib.suppress(Exception):  # a damaged directory is reported when it is decoded
            first = tiff.pages[0].aspage()
            while count > 1 and _is_copy_or_mask(tiff.pages[count - 1].aspage(), first):
                count -= 1
        return count


def _is_copy_or_mask(page: tifffile.TiffPage, first: tifffile.TiffPage) -> bool:
    # A page that is not smaller is a picture of its own, whatever it is declared to be.
    smaller = page.imagewidth < first.imagewidth and page.imagelength < first.imagelength
    return bool(page.subfiletype & _MASK or (page.subfiletype & _COPY and smaller))


def _orientation(page: tifffile.TiffPage) -> int:
    orientation = page.tags.valueof(Base.Orientation, default=1)
    return int(orientation) if orientation in range(1, 9) else 1


def _check_kind(page: tifffile.TiffPage) -> None:
    """Refuse sample types without a defined white, and pictures that are not grey or colour."""
    kind = "?" if page.dtype is None else page.dtype.kind
    if kind not in "bufi" or kind == "i" or (kind == "u" and page.bitspersample > 16):
        name = f"{page.bitspersample}-bit {'signed ' if kind == 'i' else ''}integer TIFF"
        raise Unreadable(f"{name} is not supported", "save it with 8 or 16 unsigned bits")
    channels, photometric = page.samplesperpixel, int(page.photometric)
    colours = _COLOURS.get(photometric, 0)
    plain = photometric in {0, 1, 2}
    if page.axes not in {"YX", "YXS", "SYX"} or not (
        colours and colours <= channels <= colours + 4 and (plain or page.bitspersample <= 8)
    ):
        name = getattr(page.photometric, "name", "unknown")
        what = f"a TIFF of {channels} {page.bitspersample}-bit {name} channels is not supported"
        raise Unreadable(what, "save it as grey or RGB")


def _check_segments(page: tifffile.TiffPage, data: bytes) -> None:
    """Refuse strips or tiles that are truncated, or would decode to more than their own size."""
    if page.compression not in _COMPRESSIONS:
        name = getattr(page.compression, "name", page.compression)
        what = f"a TIFF with {name} compression is not supported"
        raise Unreadable(what, "save it with LZW, deflate or no compression")
    parts = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    # tifffile fills parts that are not listed with black, and reads those behind an empty one
    # elsewhere. A part without offset and size is not stored because it is empty.
    if len(parts) < math.prod(page.chunked) or any(offset and not size for offset, size in parts):
        raise ValueError("a part of the picture is missing")
    largest = max(page.imagewidth, page.imagelength, page.tilewidth, page.tilelength)
    for offset, size in parts:
        if offset + size > len(data):
            raise ValueError("the file is truncated")
        if page.compression == _JPEG:
            # A JPEG states its own size, and its decoder allocates memory for that size, not for
            # the strip's.
            _, height, width, _ = jpeg_shape(data[offset : offset + size])
            if max(height, width) > largest:
                raise ValueError("a part of the file is larger than the picture")


def _samples(page: tifffile.TiffPage) -> Array:
    """Return uint8 or uint16 [h, w, c], white as the largest value, alpha not premultiplied."""
    samples = np.atleast_3d(page.asarray())
    samples = np.moveaxis(samples, 0, 2) if page.axes == "SYX" else samples
    if samples.shape != (page.imagelength, page.imagewidth, page.samplesperpixel):
        raise ValueError("the pixels are damaged")
    photometric = int(page.photometric)
    if photometric == _PALETTE:
        colours = np.asarray(page.colormap).T
        # Of 16 bits; some programs write 8, and libtiff reads them so too.
        palette: Array = (colours >> 8 if colours.max() > 255 else colours).astype(np.uint8)
        return grey_if_equal(palette[samples[..., 0]], _block(page, Base.InterColorProfile))
    if photometric == _CMYK:
        return rgb_from_cmyk(samples[..., :4], _block(page, Base.InterColorProfile))
    if photometric == _YCBCR and page.compression != _JPEG:  # its decoder returns RGB
        return _rgb_from_ycbcr(samples[..., :3], page)
    samples = full_range(samples, page.bitspersample)
    count = _COLOURS[photometric]
    colours, alpha = samples[..., :count], samples[..., count : count + 1]
    white = np.iinfo(samples.dtype).max
    if photometric == _WHITE_IS_ZERO:
        colours = white - colours
    if not alpha.size or not _has_alpha(page):
        return colours
    if page.extrasamples and page.extrasamples[0] == _ASSOCIATED_ALPHA:
        plain = np.rint(colours * (white / np.maximum(alpha.astype(np.float64), 1)))
        colours = np.minimum(plain, white).astype(samples.dtype)
    return np.concatenate([colours, alpha], axis=2)


def _rgb_from_ycbcr(samples: Array, page: tifffile.TiffPage) -> Array:
    """Convert uint8 [h, w, 3] to RGB (TIFF 6.0, section 21)."""
    red, green, blue = _fractions(page, _YCBCR_COEFFICIENTS, _BT601)
    limits = np.array(_fractions(page, _REFERENCE_BLACK_WHITE, _FULL_RANGE)).reshape(3, 2)
    black, span = limits[:, 0], limits[:, 1] - limits[:, 0]
    if min(red, green, blue) <= 0 or span.min() <= 0:
        raise ValueError("its description of the colours is damaged")
    # Each sample is a byte, so the products are looked up.
    codes = np.arange(256)[:, None]
    y, cb, cr = ((codes - black) * (np.array([255, 127, 127]) / span)).T
    columns = [samples[..., channel] for channel in range(3)]
    rgb = np.empty(samples.shape, np.uint8)
    for top in range(0, len(samples), _ROWS):
        rows = slice(top, top + _ROWS)
        light, towards_blue, towards_red = (
            table[column[rows]] for table, column in zip((y, cb, cr), columns, strict=True)
        )
        r = light + towards_red * (2 - 2 * red)
        b = light + towards_blue * (2 - 2 * blue)
        g = (light - blue * b - red * r) / green
        rgb[rows] = np.rint(np.stack([r, g, b], axis=2)).clip(0, 255)
    return rgb


def _fractions(page: tifffile.TiffPage, tag: int, usual: tuple[float, ...]) -> tuple[float, ...]:
    """Return the numbers of a tag: fractions, or of any other type; `usual` without the tag.

    Raises:
        ValueError: their number is another than that of `usual`, or a denominator is 0.
    """
    stored = page.tags.valueof(tag, default=None)
    if stored is None:
        return usual
    stored = stored if isinstance(stored, tuple) else (stored,)
    if len(stored) == len(usual):
        return tuple(map(float, stored))
    above, below = stored[::2], stored[1::2]  # tifffile returns fractions as pairs of integers
    if len(stored) != 2 * len(usual) or not all(below):
        raise ValueError("its description of the colours is damaged")
    return tuple(a / b for a, b in zip(above, below, strict=True))


def _has_alpha(page: tifffile.TiffPage) -> bool:
    """Whether the first channel after the colours is opacity that `_samples` returns."""
    extra = int((page.extrasamples or (_ALPHA,))[0])
    return int(page.photometric) in _WITH_ALPHA and extra in (_ASSOCIATED_ALPHA, _ALPHA)


def _lost(page: tifffile.TiffPage) -> str | None:
    """Name the channels that `_samples` does not return, such as near infrared."""
    total, colours = page.samplesperpixel, _COLOURS[int(page.photometric)]
    lost = total - colours - (1 if total > colours and _has_alpha(page) else 0)
    return f"{lost} of {total} channels" if lost else None


class _Text(str):
    """A text whose encoding no tag states, as Pillow reads it: one character for each byte."""

    __slots__ = ()

    def encode(self, encoding: str = "", errors: str = "") -> bytes:
        """Return the bytes that were read, although Pillow requests ASCII with question marks."""
        return super().encode("latin-1")


def _descriptions(tiff: bytes, offset: int | None = None) -> dict[int, Any]:
    """Read the tags of a TIFF file or EXIF block that describe camera, place and picture.

    Pillow reads them, because tifffile reads the values but writes no EXIF block. A tag that Pillow
    cannot read, or cannot write again, is skipped without losing the others.

    Args:
        tiff: a file or an EXIF block.
        offset: position of the directory; None for the first.
    """
    file, head = io.BytesIO(tiff), tiff[: 16 if 43 in tiff[2:4] else 8]

    def described(at: int | None, group: int | None = None) -> dict[int, Any]:
        found = TiffImagePlugin.ImageFileDirectory_v2(head, group=group)
        file.seek(found.next if at is None else at)
        found.load(file)
        tags: dict[int, Any] = {}
        # The interoperability directory is skipped: the offset that leads to it would change.
        outside = {IFD.Interop.value} if group else found.keys() - _DESCRIPTIONS - _EXIF_DIRECTORIES
        for tag in found.keys() - outside:
            with contextlib.suppress(Exception):
                value = found[tag]
                if tag in _EXIF_DIRECTORIES and group is None:
                    value = described(value, tag)
                value = _Text(value) if isinstance(value, str) else value
                _directory({tag: value}, group)
                tags[tag] = value
        return tags

    # With a damaged directory only the descriptions are lost, not the picture.
    # Closed, because `described` refers to itself and would hold the data until the next garbage
    # collection.
    with file, quiet_pillow(), contextlib.suppress(Exception):
        return described(offset)
    return {}


def encode_tiff(samples: Array, metadata: Metadata) -> bytes:
    """Encode samples as a TIFF file with deflate compression.

    Pillow writes the directory, because tifffile refuses to write EXIF and GPS directories in it.
    The strips are made here, because Pillow's own pictures have no 16-bit colours.
    """
    height, width, count = samples.shape
    rows = max(1, _STRIP_SIZE // (width * count * samples.itemsize))
    strips = [_strip(samples[top : top + rows]) for top in range(0, height, rows)]
    ends = np.cumsum([len(strip) for strip in strips], dtype=np.int64).tolist()
    pixels: dict[int, Any] = {
        Base.ImageWidth: width,
        Base.ImageLength: height,
        Base.BitsPerSample: (samples.itemsize * 8,) * count,
        Base.Compression: 8,
        Base.PhotometricInterpretation: 2 if count >= 3 else 1,
        Base.Orientation: 1,
        Base.SamplesPerPixel: count,
        Base.RowsPerStrip: rows,
        Base.StripByteCounts: tuple(len(strip) for strip in strips),
        Base.StripOffsets: (0, *ends[:-1]),  # relative: the directory adds its own size
        Base.PlanarConfiguration: 1,
        Base.Predictor: 2,
    }
    if count in (2, 4):
        pixels[Base.ExtraSamples] = _ALPHA
    blocks = {
        Base.InterColorProfile: metadata.icc,
        Base.XMLPacket: metadata.xmp,
        Base.IPTCNAA: metadata.iptc,
    }
    pixels |= {int(tag): block for tag, block in blocks.items() if block}
    return _directory(pixels | _described(metadata)) + b"".join(strips)


def _described(metadata: Metadata) -> dict[int, Any]:
    """Return an EXIF block's tags, with resolution and texts from elsewhere if it has none."""
    tags = _descriptions(metadata.exif or b"")
    if metadata.density and not {Base.XResolution, Base.YResolution} <= tags.keys():
        tags[Base.XResolution], tags[Base.YResolution] = metadata.density
        tags[Base.ResolutionUnit] = 2
    if metadata.texts:
        tags.setdefault(Base.ImageDescription, metadata.text.encode("utf-8", "replace"))
    return tags


def _strip(rows: Array) -> bytes:
    """Compress rows as differences from the pixel to the left."""
    differences = imagecodecs.delta_encode(np.ascontiguousarray(rows), axis=1)
    values = differences.astype(differences.dtype.newbyteorder("<"), copy=False)
    return bytes(imagecodecs.deflate_encode(values.tobytes(), level=1, raw=False))


def _directory(tags: dict[int, Any], group: int | None = None) -> bytes:
    """Return an EXIF block, or the beginning of a TIFF file, whose strips follow the directory.

    Args:
        tags: values by tag number; Pillow may raise any error for a value that it cannot write.
        group: the tag that leads to this directory, such as that of EXIF; None for a main one.
    """
    directory = TiffImagePlugin.ImageFileDirectory_v2(group=group)
    directory.tagtype |= {Base.InterColorProfile: 7, Base.XMLPacket: 1, Base.IPTCNAA: 7}
    with quiet_pillow():
        for tag, value in tags.items():
            directory[tag] = value
        return b"II*\0\x08\0\0\0" + directory.tobytes(8)
