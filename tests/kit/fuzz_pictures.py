"""Fuzz targets: pictures of every format, and lists of files."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from unittest import mock

import imagecodecs
import numpy as np
from PIL import Image

from c2fdft_cli.data.images import samples
from c2fdft_cli.data.images.picture import (
    Picture,
    frame_count,
    image_size,
    read_picture,
    write_picture,
)
from c2fdft_cli.engine.restore.inputs import find_inputs
from tests.kit.fuzz import Target
from tests.kit.images import encoded, exif_block, ramp, tagged_tiff, tiff_bytes

MAX_PIXELS = 1 << 22
BY_PILLOW = ("BMP", "DDS", "PCX", "PPM", "QOI", "SGI", "TGA", "JPEG2000")
WITH_FRAMES = ("AVIF", "GIF", "MPO", "PNG", "WEBP")
WRITTEN = (".png", ".jpg", ".tif", ".webp")
TAGS = {
    271: (2, 7, b"Cam\xe9ra\0"),
    282: (5, 1, struct.pack("<II", 300, 1)),
    305: (5, 1, struct.pack("<II", 3, 1)),
    306: (7, 4, b"2026"),
    700: (1, 4, b"<x/>"),
    33723: (4, 2, b"\x1c\x02\x78\0\x03abc"),
    34675: (2, 8, b"profile\0"),
}
"""Metadata by tag: (type, count, bytes). Some types deliberately differ from the standard."""
COMPRESSIONS = ("jpeg", "lzma", "lzw", "packbits", "zlib", "zstd")


def seeds_of_pictures(_folder: Path) -> list[bytes]:
    """A small picture in each readable format, some with 16 bits, several frames or metadata."""
    shallow, deep = ramp(24, 32, dtype=np.uint8), ramp(24, 32)
    image = Image.fromarray(shallow)
    frames = {"save_all": True, "append_images": [image.rotate(180)]}
    psd = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 4, 4, 8, 3) + bytes(14) + bytes(48)
    sun = struct.pack(">8I", 0x59A66A95, 4, 4, 24, 48, 1, 0, 0) + bytes(48)
    return [
        *(encoded(image, kind) for kind in (*BY_PILLOW, *WITH_FRAMES)),
        *(encoded(image, kind, **frames) for kind in WITH_FRAMES),
        *(tiff_bytes(shallow, photometric="rgb", compression=one) for one in COMPRESSIONS),
        tiff_bytes(deep, photometric="rgb", tile=(16, 16), compression="lzw"),
        encoded(image.convert("1"), "TIFF", compression="group4"),
        encoded(image, "JPEG", dpi=(300, 300), comment=b"mine", xmp=b"<x/>"),
        encoded(image, "JPEG", exif=b"Exif\0\0" + exif_block(TAGS)),
        tagged_tiff(shallow, TAGS),
        b"P3 4 4 99\n" + b" ".join(b"%d" % value for value in range(48)),
        b"P1 4 4\n" + b"0 1\n" * 8,
        imagecodecs.jpeg2k_encode(deep, level=0),
        imagecodecs.jpegxl_encode(shallow),
        imagecodecs.jpegxl_encode(deep, usecontainer=True),
        imagecodecs.avif_encode(deep >> 6, bitspersample=10),
        psd,
        sun,
    ]


def read_all_of_it(path: Path) -> None:
    """Read header and pixels as `restore` does, and write the picture in each output format."""
    image_size(path)
    with mock.patch.object(samples, "MAX_PIXELS", MAX_PIXELS):
        found = read_picture(path, frame=frame_count(path) - 1)
    for suffix in WRITTEN:
        write_picture(path.with_name(f"output{suffix}"), few_pixels(found))


def few_pixels(picture: Picture) -> Picture:
    """Crop to a corner: writing fails on metadata, if at all, and WebP is slow on many pixels."""
    pixels, alpha = picture.pixels[:16, :16], picture.alpha
    return replace(picture, pixels=pixels, alpha=None if alpha is None else alpha[:16, :16])


def seeds_of_lists(folder: Path) -> list[bytes]:
    """Lists of files that do not exist, in several encodings."""
    text = f"# mine\r\n{folder}/a.png\n\ncafé/b.jpg\nc.heic\n"
    return [text.encode(one) for one in ("utf-8", "utf-8-sig", "latin-1", "utf-16")]


TARGETS = [
    # content without a known signature is read as TGA, which has none
    Target("pictures", ".tga", seeds_of_pictures, read_all_of_it),
    Target("lists", ".txt", seeds_of_lists, lambda path: find_inputs([f"@{path}"])),
]
