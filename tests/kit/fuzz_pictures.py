"""Pictures of every format, and lists of files, to be mutated."""

from __future__ import annotations

import struct
from pathlib import Path

import imagecodecs
import numpy as np
from PIL import Image

from c2fdft_cli.data.images.picture import frame_count, image_size, read_picture
from c2fdft_cli.engine.restore.inputs import find_inputs
from tests.kit.fuzz import Target
from tests.kit.images import encoded, ramp, tiff_bytes

MAX_PIXELS = 1 << 22
BY_PILLOW = ("BMP", "DDS", "PCX", "PPM", "QOI", "SGI", "TGA", "JPEG2000")
WITH_FRAMES = ("AVIF", "GIF", "MPO", "PNG", "WEBP")
COMPRESSIONS = ("jpeg", "lzma", "lzw", "packbits", "zlib", "zstd")


def seeds_of_pictures(_folder: Path) -> list[bytes]:
    """A small picture in each format that is read, some with 16 bits, frames and metadata."""
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
    """Headers and pixels as restoring reads them."""
    image_size(path)
    read_picture(path, frame=frame_count(path) - 1, max_pixels=MAX_PIXELS)


def seeds_of_lists(folder: Path) -> list[bytes]:
    """Lists of files, none of which is there, in several encodings."""
    text = f"# mine\r\n{folder}/a.png\n\ncafé/b.jpg\nc.heic\n"
    return [text.encode(one) for one in ("utf-8", "utf-8-sig", "latin-1", "utf-16")]


TARGETS = [
    # what no signature tells is tried as TGA, which has none
    Target("pictures", ".tga", seeds_of_pictures, read_all_of_it),
    Target("lists", ".txt", seeds_of_lists, lambda path: find_inputs([f"@{path}"])),
]
