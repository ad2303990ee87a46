"""Pictures made by formula, encoded in many formats."""

from __future__ import annotations

import io
import os
import struct

import numpy as np
import tifffile
from PIL import Image, ImageCms

from c2fdft_cli.data.images.picture import Picture

_MADE_NOW = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# With a fixed date, because the profile is part of the names of tests, which all processes of
# pytest must give alike.
SRGB_PROFILE = _MADE_NOW[:24] + struct.pack(">6H", 2000, 1, 1, 0, 0, 0) + _MADE_NOW[36:]
EXCHANGED_PROFILE = (  # its red is the blue of sRGB
    SRGB_PROFILE.replace(b"rXYZ", b"----").replace(b"bXYZ", b"rXYZ").replace(b"----", b"bXYZ")
)

NO_FILES = ("dangling link", "link loop", "pipe", "device")


def no_file(path, kind):
    """Replace a file by one of `NO_FILES`."""
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"dangling link": "nowhere", "link loop": path.name}.get(kind, "/dev/zero"))


def damage_pixels(path):
    """Damage a PNG's pixels behind an intact header, which is noticed only when they are read."""
    data = bytearray(path.read_bytes())
    for place in range(len(data) // 2, len(data) // 2 + 20):
        data[place] ^= 0x55
    path.write_bytes(data)


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def drawn(height=13, width=11, channels=3, dtype=np.uint8, grey=False):
    """Pixels that use all bits and differ in every direction."""
    values = ramp(height, width, 1 if grey else channels, dtype)
    return np.repeat(values, channels, axis=2) if grey else values


def drawn_picture(dtype=np.uint8, grey=False, alpha=False, **more):
    plane = drawn(channels=1, dtype=dtype)[::-1, :, 0].copy() if alpha else None
    return Picture(drawn(dtype=dtype, grey=grey), grey=grey, alpha=plane, **more)


def assert_same(got, expected):
    assert got.pixels.dtype == expected.pixels.dtype
    assert got.pixels.flags.c_contiguous
    np.testing.assert_array_equal(got.pixels, expected.pixels)
    assert got.grey == expected.grey
    assert (got.alpha is None) == (expected.alpha is None)
    if expected.alpha is not None:
        np.testing.assert_array_equal(got.alpha, expected.alpha)


def ramp(height=6, width=9, channels=3, dtype=np.uint16):
    y, x, c = np.mgrid[:height, :width, :channels]
    values = (y * 4099 + x * 17391 + c * 29009 + 7) % 65536
    return (values if dtype == np.uint16 else values >> 8).astype(dtype)


def tiff_bytes(values, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def painters_exif(orientation=1):
    """An EXIF block with an artist, written by Pillow."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x013B] = "A. Painter"
    return exif.tobytes().removeprefix(b"Exif\0\0")


def exif_block(entries, end=bytes(4)):
    """A little-endian EXIF block; `entries` maps tags to (type, count, bytes of the values)."""
    begin, values = 8 + 2 + 12 * len(entries) + len(end), b""
    head = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries))
    for tag, (kind, count, data) in sorted(entries.items()):
        place = data.ljust(4, b"\0")
        if len(data) > 4:
            place, values = struct.pack("<I", begin + len(values)), values + data
        head += struct.pack("<HHI", tag, kind, count) + place
    return head + end + values


def tagged_tiff(values, tags):
    """Encode uint8 `[h, w, 3]` as a TIFF with additional tags, given as in `exif_block`."""
    height, width, channels = values.shape
    numbers = {256: width, 257: height, 258: 8, 259: 1, 262: 2, 273: 0, 277: channels}
    numbers |= {278: height, 279: values.size}
    entries = {tag: (4, 1, struct.pack("<I", number)) for tag, number in numbers.items()} | tags
    entries[258] = (3, channels, struct.pack("<H", 8) * channels)
    entries[273] = (4, 1, struct.pack("<I", len(exif_block(entries))))
    return exif_block(entries) + values.tobytes()
