"""The TIFF container (EXIF blocks are one too): read a page's tags, patch them, write a page."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import TiffImagePlugin

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
STRIP_OFFSETS, ORIENTATION, SAMPLES, ROWS_PER_STRIP, STRIP_BYTES = 273, 274, 277, 278, 279
PLANAR, PREDICTOR, EXTRA_SAMPLES, SAMPLE_FORMAT, ICC_PROFILE = 284, 317, 338, 339, 34675
# What describes a picture; the other tags of a directory tell how its own pixels lie.
DESCRIPTIONS = {270, 271, 272, 282, 283, 296, 305, 306, 315, 33432, *range(40091, 40096)}
EXIF_DIRECTORY, GPS_DIRECTORY = 0x8769, 0x8825
_INTEGERS = {1: "B", 3: "H", 4: "I", 7: "B", 16: "Q"}  # BYTE, SHORT, LONG, UNDEFINED, LONG8
_DEFLATE = {8, 32946}
_MAX_VALUES = 16 << 20
_STRIP_SIZE = 1 << 20


class TiffPage:
    """One image directory of a TIFF file; every method raises ValueError on damage.

    Args:
        file: the file; classic or BigTIFF, either byte order.
        offset: where the directory lies; None for the first.
    """

    def __init__(self, file: BinaryIO, offset: int | None = None) -> None:
        self._file = file
        head = self._read(0, 8)
        self.order = {b"II": "<", b"MM": ">"}.get(head[:2], "")
        magic = struct.unpack(f"{self.order or '<'}H", head[2:4])[0]
        if not self.order or magic not in (42, 43):
            raise ValueError("the TIFF header is damaged")
        self._word = "Q" if magic == 43 else "I"
        self.first_position = 8 if magic == 43 else 4
        self.offset = self._unpack(self._word, self.first_position) if offset is None else offset
        self._parse_directory()

    def values(self, tag: int) -> tuple[int, ...]:
        """The integers of a tag, () when the page does not have it."""
        if tag not in self._entries:
            return ()
        kind, count, position = self._entries[tag]
        if kind not in _INTEGERS or count > _MAX_VALUES:
            raise ValueError(f"TIFF tag {tag} is damaged")
        layout = struct.Struct(f"{self.order}{count}{_INTEGERS[kind]}")
        return layout.unpack(self._read(position, layout.size))

    def value(self, tag: int, default: int) -> int:
        """The first integer of a tag, or the default."""
        return next(iter(self.values(tag)), default)

    def upright(self, data: bytes) -> bytes:
        """`data` with this page as its first and only one, and its orientation set to 1."""
        patched = bytearray(data)
        struct.pack_into(self.order + self._word, patched, self.first_position, self.offset)
        struct.pack_into(self.order + self._word, patched, self._next_position, 0)
        if ORIENTATION in self._entries:
            kind, _, position = self._entries[ORIENTATION]
            struct.pack_into(self.order + _INTEGERS.get(kind, "H"), patched, position, 1)
        return bytes(patched)

    def next_offset(self) -> int:
        """Where the next page's directory lies, 0 after the last."""
        return self._unpack(self._word, self._next_position)

    def _parse_directory(self) -> None:
        count_format, count_size = ("Q", 8) if self._word == "Q" else ("H", 2)
        inline = struct.calcsize(self._word)
        size = 4 + 2 * inline
        count = self._unpack(count_format, self.offset)
        if count > 4096:
            raise ValueError("the TIFF directory is damaged")
        start = self.offset + count_size
        table = self._read(start, count * size)
        self._next_position = start + count * size
        self._entries: dict[int, tuple[int, int, int]] = {}
        for index in range(count):
            entry = struct.unpack_from(f"{self.order}HH{self._word}", table, index * size)
            tag, kind, number = entry
            position = start + index * size + 4 + inline
            if struct.calcsize(_INTEGERS.get(kind, "B")) * number > inline:
                position = self._unpack(self._word, position)
            self._entries[tag] = (kind, number, position)

    def _unpack(self, layout: str, position: int) -> int:
        size = struct.calcsize(layout)
        return int(struct.unpack(self.order + layout, self._read(position, size))[0])

    def _read(self, position: int, size: int) -> bytes:
        self._file.seek(position)
        data = self._file.read(size)
        if len(data) < size:
            raise ValueError("the file is truncated")
        return data


def tiff_pages(file: BinaryIO) -> Iterator[TiffPage]:
    """Every page in order; ValueError on damage or a loop."""
    seen = set()
    page = TiffPage(file)
    while True:
        seen.add(page.offset)
        yield page
        following = page.next_offset()
        if not following:
            return
        if following in seen:
            raise ValueError("the TIFF pages form a loop")
        page = TiffPage(file, following)


def upright_exif(block: bytes) -> tuple[int, bytes | None]:
    """An EXIF block's orientation (1 to 8), and the block with orientation 1.

    The thumbnail is unlinked, as it would go on showing the picture as it was. A damaged block
    gives (1, None).
    """
    block = block.removeprefix(b"Exif\0\0")
    try:
        page = TiffPage(io.BytesIO(block))
        orientation = page.value(ORIENTATION, 1)
        return orientation if 1 <= orientation <= 8 else 1, page.upright(block)
    except (ValueError, struct.error):
        return 1, None


def decode_strips(data: bytes, page: TiffPage) -> npt.NDArray[np.uint16]:
    """16-bit samples [h, w, c] of a page that OpenCV misreads: planar, or grey with alpha.

    Raises:
        ValueError: the page is compressed by other means than deflate, tiled, or damaged.
    """
    compression = page.value(COMPRESSION, 1)
    if compression not in {1, *_DEFLATE} or not page.values(STRIP_OFFSETS):
        raise ValueError("this TIFF layout is not supported; save it as a 16-bit PNG")
    height, width = page.value(HEIGHT, 0), page.value(WIDTH, 0)
    count = page.value(SAMPLES, 1)
    planes, inner = (count, 1) if page.value(PLANAR, 1) == 2 else (1, count)
    rows = min(page.value(ROWS_PER_STRIP, height), height) or 1
    strips = list(zip(page.values(STRIP_OFFSETS), page.values(STRIP_BYTES), strict=False))
    per_plane = -(-height // rows)
    if len(strips) != planes * per_plane:
        raise ValueError("the TIFF strips are damaged")
    samples = np.empty((planes, height, width, inner), np.uint16)
    for index, (offset, size) in enumerate(strips):
        plane, top = index // per_plane, index % per_plane * rows
        target = samples[plane, top : top + rows]
        strip = data[offset : offset + size]
        if compression in _DEFLATE:
            strip = zlib.decompressobj().decompress(strip, target.size * 2)
        if len(strip) < target.size * 2:
            raise ValueError("the file is truncated")
        target[:] = np.frombuffer(strip, f"{page.order}u2", target.size).reshape(target.shape)
    if page.value(PREDICTOR, 1) == 2:
        np.cumsum(samples, axis=2, dtype=np.uint16, out=samples)
    return np.ascontiguousarray(samples.transpose(1, 2, 0, 3).reshape(height, width, count))


def encode_tiff(samples: npt.NDArray[Any], *, icc: bytes | None, tags: Mapping[int, Any]) -> bytes:
    """A deflated TIFF from uint8 or uint16 samples [h, w, c]; c: 1, 2 (grey + alpha), 3, 4.

    `tags` are further tags (descriptions, EXIF sub-directories) in Pillow's form.
    """
    height, width, count = samples.shape
    rows = max(1, _STRIP_SIZE // (width * count * samples.itemsize))
    strips = [_packed(samples[top : top + rows]) for top in range(0, height, rows)]
    ends = np.cumsum([len(strip) for strip in strips], dtype=np.int64).tolist()
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        directory[tag] = value
    directory[WIDTH], directory[HEIGHT] = width, height
    directory[BITS] = (samples.itemsize * 8,) * count
    directory[COMPRESSION], directory[PREDICTOR], directory[SAMPLES] = 8, 2, count
    directory[PHOTOMETRIC] = 2 if count >= 3 else 1
    directory[ORIENTATION] = directory[PLANAR] = 1
    if count in (2, 4):
        directory[EXTRA_SAMPLES] = 2
    if icc:
        directory.tagtype[ICC_PROFILE] = 7
        directory[ICC_PROFILE] = icc
    directory[ROWS_PER_STRIP] = rows
    directory[STRIP_BYTES] = tuple(len(strip) for strip in strips)
    directory[STRIP_OFFSETS] = (0, *ends[:-1])  # relative: the directory adds its own size
    return b"II*\0\x08\0\0\0" + directory.tobytes(8) + b"".join(strips)


def _packed(strip: npt.NDArray[Any]) -> bytes:
    """One strip with the horizontal predictor, compressed."""
    differences = strip.copy()
    differences[:, 1:] -= strip[:, :-1]
    values = differences.astype(differences.dtype.newbyteorder("<")).tobytes()
    packer = zlib.compressobj(strategy=zlib.Z_RLE)
    return packer.compress(values) + packer.flush()
