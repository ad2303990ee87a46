"""AVIF, HEIC, JPEG 2000 and JPEG XL: sizes in headers, bit depth, orientation, metadata."""

from __future__ import annotations

import io
import struct

import imagecodecs
import numpy as np
import pytest
from PIL import AvifImagePlugin, Image

from c2fdft_cli.data.images.boxes import _boxes_in, _JxlHeader
from c2fdft_cli.data.images.metadata import Metadata
from c2fdft_cli.data.images.picture import (
    Picture,
    frame_count,
    image_size,
    read_picture,
    write_picture,
)
from c2fdft_cli.errors import DataError
from tests.kit.images import SRGB_PROFILE, encoded, ramp

XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
RGB = ramp(dtype=np.uint8)


def jpeg2000(values, bits=None):
    return imagecodecs.jpeg2k_encode(values, level=0, bitspersample=bits)


def jpegxl(values, bits=None, **options):
    return imagecodecs.jpegxl_encode(values, lossless=True, bitspersample=bits, **options)


@pytest.mark.parametrize("encode", [jpeg2000, jpegxl])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_lossless_files_are_read_exactly(tmp_path, encode, dtype, channels):
    values = ramp(channels=channels, dtype=dtype)
    (tmp_path / "a").write_bytes(encode(values if channels > 1 else values[..., 0]))
    got = read_picture(tmp_path / "a")
    assert (got.grey, got.alpha is not None) == (channels == 1, channels == 4)
    np.testing.assert_array_equal(got.pixels[..., : min(channels, 3)], values[..., :3])
    if got.alpha is not None:
        np.testing.assert_array_equal(got.alpha, values[..., 3])
    assert image_size(tmp_path / "a") == (6, 9)
    assert frame_count(tmp_path / "a") == 1


def animated_jpegxl(values, bits):
    return jpegxl(np.stack([values, values[::-1]]), bits)


@pytest.mark.parametrize("encode", [jpeg2000, jpegxl, animated_jpegxl])
@pytest.mark.parametrize("bits", [10, 12])
def test_white_of_10_and_12_bits_is_white(encode, bits):
    values = ramp() >> (16 - bits)
    got = read_picture(encode(values, bits))
    np.testing.assert_array_equal(got.pixels, np.rint(values * (65535 / (2**bits - 1))))


@pytest.mark.parametrize("bits", [10, 12])
def test_avif_keeps_more_than_8_bits(bits):
    values = ramp(32, 48) >> (16 - bits)
    white = np.full_like(values, 2**bits - 1)
    assert (read_picture(imagecodecs.avif_encode(white, bitspersample=bits)).pixels == 65535).all()
    data = imagecodecs.avif_encode(values, level=100, bitspersample=bits)
    got = read_picture(data)
    assert got.pixels.dtype == np.uint16
    levels = got.pixels / (65535 / (2**bits - 1))
    assert np.abs(levels - values).max() < 3


def test_an_avif_of_more_than_8_bits_is_decoded_once(monkeypatch):
    data = imagecodecs.avif_encode(ramp() >> 6, bitspersample=10)
    monkeypatch.setattr(AvifImagePlugin.AvifImageFile, "load", None)
    assert read_picture(data).bit_depth == 16


def test_avif_is_rotated_once_and_keeps_its_metadata(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.linear_gradient("L").resize((36, 24)).convert("RGB")
    image.paste((200, 0, 0), (0, 0, 8, 8))
    data = encoded(
        image, "AVIF", exif=exif.tobytes(), icc_profile=SRGB_PROFILE, xmp=XMP, quality=95
    )
    (tmp_path / "a.avif").write_bytes(data)
    assert image_size(tmp_path / "a.avif") == (36, 24)
    got = read_picture(tmp_path / "a.avif")
    turned = np.asarray(image.transpose(Image.Transpose.ROTATE_270)).astype(int)
    assert np.abs(got.pixels - turned).mean() < 6
    assert got.metadata.icc == SRGB_PROFILE
    assert b'tiff:Orientation="1"' in got.metadata.xmp


def test_frames_of_an_avif_are_read(tmp_path):
    frames = [Image.new("RGB", (16, 16), (shade, 0, 0)) for shade in (0, 100, 200)]
    frames[0].save(tmp_path / "a.avif", save_all=True, append_images=frames[1:])
    assert frame_count(tmp_path / "a.avif") == 3
    for number in (2, 0, 1):
        shade = read_picture(tmp_path / "a.avif", frame=number).pixels[0, 0, 0]
        assert abs(int(shade) - 100 * number) < 9
    with pytest.raises(DataError, match="there is no frame 3"):
        read_picture(tmp_path / "a.avif", frame=3)


def with_codes(data):
    """Return an AVIF or HEIC with colour codes of Display P3 and PQ, and unknown brands."""
    at = data.index(b"colrnclx") + 8
    data = data[:at] + struct.pack(">HH", 12, 16) + data[at + 4 :]
    return data.replace(b"mif1miaf", b"colrnclx").replace(b"heicmiaf", b"colrnclx")


def test_colour_codes_are_written_to_a_png():
    data = encoded(Image.fromarray(RGB), "AVIF")
    got = read_picture(with_codes(data))
    assert got.metadata.png_chunks[4:12] == b"cICP" + bytes([12, 16, 0, 1])
    assert read_picture(data).metadata.png_chunks == b""


def test_names_of_boxes_outside_their_places_are_no_boxes():
    data = imagecodecs.avif_encode(ramp() >> 6, bitspersample=10)
    assert read_picture(data.replace(b"MA1A", b"av1C")).bit_depth == 16


def test_an_animation_without_a_still_picture_is_described_by_its_track():
    frames = [Image.new("RGB", (16, 16), (shade, 0, 0)) for shade in (0, 100)]
    data = encoded(frames[0], "AVIF", save_all=True, append_images=frames[1:])
    data = data.replace(b"avifavis", b"isomavis").replace(b"mif1", b"iso8", 1)
    data = bytearray(data.replace(b"meta", b"free", 1))
    data[data.rindex(b"av1C") + 6] |= 0x40
    assert read_picture(bytes(data)).metadata.lost == "more than 8 bits of an animation"


def test_the_crop_of_an_avif_is_noted():
    data = bytearray(encoded(Image.fromarray(RGB), "AVIF", icc_profile=SRGB_PROFILE))
    assert read_picture(bytes(data)).metadata.lost is None
    properties = [kind for kind, _, _ in _boxes_in(io.BytesIO(data), b"meta", b"iprp", b"ipco")]
    number = properties.index(b"colr") + 1
    # a crop to 4 x 4 px in place of the profile, marked as essential, as the standard demands
    struct.pack_into(">4s8I", data, data.index(b"colrprof"), b"clap", 4, 1, 4, 1, 0, 1, 0, 1)
    uses = data.index(b"ipma")
    data[data.index(number, uses + 16)] |= 0x80
    got = read_picture(bytes(data))
    assert got.pixels.shape == RGB.shape
    assert got.metadata.lost == "the crop that an AVIF file states (clean aperture)"


@pytest.mark.parametrize(
    ("data", "kind"), [(jpeg2000(RGB), b"jp2c"), (jpegxl(RGB, usecontainer=True), b"jxlc")]
)
def test_megabytes_of_metadata_may_precede_the_picture(tmp_path, data, kind):
    at = data.index(kind) - 4
    box = struct.pack(">I", 8 + (3 << 19)) + b"uuid" + bytes(3 << 19)
    (tmp_path / "a").write_bytes(data[:at] + box + data[at:])
    assert image_size(tmp_path / "a") == (6, 9)
    np.testing.assert_array_equal(read_picture(tmp_path / "a").pixels, RGB)


def test_jpeg2000_in_ycc_and_with_a_profile_is_read():
    image = Image.fromarray(np.tile(RGB, (4, 4, 1)))
    got = read_picture(encoded(image.convert("YCbCr"), "JPEG2000"))
    assert np.abs(got.pixels.astype(int) - np.asarray(image)).max() < 8
    data = jpeg2000(RGB)
    at = data.index(b"colr") - 4
    (size,) = struct.unpack_from(">I", data, at)
    colr = struct.pack(">I", 11 + len(SRGB_PROFILE)) + b"colr\2\0\0" + SRGB_PROFILE
    head = data.index(b"jp2h") - 4
    (total,) = struct.unpack_from(">I", data, head)
    grown = struct.pack(">I", total + len(colr) - size)
    changed = data[:head] + grown + data[head + 4 : at] + colr + data[at + size :]
    uuid = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
    changed += struct.pack(">I", 24 + len(XMP)) + b"uuid" + uuid + XMP
    got = read_picture(changed)
    assert got.metadata.icc == SRGB_PROFILE
    assert b'Orientation="1"' in got.metadata.xmp
    np.testing.assert_array_equal(got.pixels, RGB)


def cmyk_jpeg2000(values, code):
    """A JPEG 2000 file with the code of its colour space replaced: 12 is CMYK, 14 CIELab."""
    data = jpeg2000(values)
    at = data.index(b"colr") + 7
    return data[:at] + struct.pack(">I", code) + data[at + 4 :]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_jpeg2000_in_cmyk_becomes_rgb(dtype):
    values = ramp(channels=4, dtype=dtype)
    got = read_picture(cmyk_jpeg2000(values, 12))
    inks = values if dtype == np.uint8 else (values / 257).round().astype(np.uint8)
    image = Image.frombytes("CMYK", (9, 6), inks.tobytes())
    np.testing.assert_array_equal(got.pixels, np.asarray(image.convert("RGB")))
    assert (got.grey, got.alpha, got.metadata.icc) == (False, None, None)


@pytest.mark.parametrize(
    ("channels", "code", "says"), [(3, 14, "the colour space of code 14"), (3, 12, "3 channels")]
)
def test_jpeg2000_in_other_colours_is_refused(channels, code, says):
    with pytest.raises(DataError, match=says):
        read_picture(cmyk_jpeg2000(ramp(channels=channels, dtype=np.uint8), code))


def test_the_first_description_of_the_colours_of_a_jpeg2000_counts():
    data = jpeg2000(RGB)
    at, head = data.index(b"colr") + 11, data.index(b"jp2h") - 4
    (total,) = struct.unpack_from(">I", data, head)
    other = struct.pack(">I4s3BI", 15, b"colr", 1, 0, 0, 14)
    grown = struct.pack(">I", total + len(other)) + data[head + 4 : at] + other + data[at:]
    np.testing.assert_array_equal(read_picture(data[:head] + grown).pixels, RGB)


@pytest.mark.parametrize("colours", ["RGB", "YCbCr"])
def test_the_orientation_of_a_jpeg2000_is_applied(tmp_path, colours):
    image = Image.fromarray(np.tile(RGB, (4, 4, 1)))
    data = encoded(image.convert(colours), "JPEG2000")
    plain = read_picture(data).pixels
    block = b"JpgTiffExif->JP2" + oriented(6).removeprefix(b"Exif\0\0")
    (tmp_path / "a.jp2").write_bytes(data + struct.pack(">I", 8 + len(block)) + b"uuid" + block)
    got = read_picture(tmp_path / "a.jp2")
    np.testing.assert_array_equal(got.pixels, np.rot90(plain, -1))
    assert image_size(tmp_path / "a.jp2") == (36, 24)
    exif = Image.Exif()
    exif.load(got.metadata.exif)
    assert exif[0x0112] == 1


def test_metadata_of_a_jpeg_xl_are_read_or_noted(tmp_path):
    exif = Image.Exif()
    exif[0x013B] = "A. Painter"
    block = exif.tobytes().removeprefix(b"Exif\0\0")
    data = jpegxl(RGB, usecontainer=True)
    data += struct.pack(">I", 12 + len(block)) + b"Exif\0\0\0\0" + block
    data += struct.pack(">I", 8 + len(XMP)) + b"xml " + XMP
    got = read_picture(data)
    assert got.metadata.exif == block
    assert b'Orientation="1"' in got.metadata.xmp
    assert got.metadata.lost is None
    animated = read_picture(jpegxl(np.stack([RGB, RGB[::-1]])))
    np.testing.assert_array_equal(animated.pixels, RGB)
    assert animated.metadata.lost == "the frames after the first"


def test_an_oriented_jpeg_xl_has_the_size_that_it_decodes_to(tmp_path):
    jpeg = encoded(Image.fromarray(np.tile(RGB, (4, 4, 1))), "JPEG", exif=oriented(6))
    (tmp_path / "a.jxl").write_bytes(imagecodecs.jpegxl_encode_jpeg(jpeg))
    got = read_picture(tmp_path / "a.jxl")
    assert got.pixels.shape[:2] == image_size(tmp_path / "a.jxl") == (36, 24)


JXL_RATIOS = [(7, 7), (10, 12), (9, 12), (10, 15), (9, 16), (12, 15), (6, 12)]
JXL_SIDES = [(16, 248), (512, 3), (513, 3), (8193, 3), (3, 262_145)]
"""Multiples of 8, and each number of bits of a side."""


@pytest.mark.parametrize("size", JXL_RATIOS + JXL_SIDES)
def test_the_size_of_a_jpeg_xl_is_read_from_its_header(tmp_path, size):
    (tmp_path / "a.jxl").write_bytes(jpegxl(np.zeros(size, np.uint8)))
    assert image_size(tmp_path / "a.jxl") == size


def oriented(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif.tobytes()


@pytest.mark.parametrize(
    "data", [jpeg2000(RGB), jpegxl(RGB), encoded(Image.fromarray(RGB), "AVIF")]
)
def test_a_bomb_is_refused_before_it_is_decoded(data, monkeypatch):
    monkeypatch.setattr("c2fdft_cli.data.images.samples.MAX_PIXELS", 53)
    with pytest.raises(DataError, match="over the limit"):
        read_picture(data)


def heic(image, **options):
    pillow_heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    pillow_heif.from_pillow(image).save(file, **options)
    return file.getvalue()


def test_heic_is_read_with_its_metadata(tmp_path):
    image = Image.fromarray(np.tile(RGB, (4, 4, 1)))
    data = heic(image, quality=-1, chroma=444, exif=oriented(1), xmp=b"<x:xmpmeta/>")
    (tmp_path / "IMG_1.HEIC").write_bytes(data)
    got = read_picture(tmp_path / "IMG_1.HEIC")
    assert np.abs(got.pixels.astype(int) - np.asarray(image)).max() <= 2
    assert image_size(tmp_path / "IMG_1.HEIC") == (24, 36)
    assert got.metadata.exif
    assert got.metadata.xmp == b"<x:xmpmeta/>"
    write_picture(tmp_path / "a.png", got)
    assert read_picture(tmp_path / "a.png").metadata.xmp == got.metadata.xmp


def test_colour_codes_of_a_heic_are_kept():
    data = heic(Image.fromarray(np.tile(RGB, (4, 4, 1))))
    if b"colrnclx" not in data:
        pytest.skip("this version of pillow-heif writes no colour codes")
    got = read_picture(with_codes(data))
    assert got.metadata.png_chunks[4:12] == b"cICP" + bytes([12, 16, 0, 1])


def test_the_resolution_of_a_turned_heic_is_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x011A], exif[0x011B], exif[0x0128] = 6, 300.0, 150.0, 2
    image = Image.fromarray(np.tile(RGB, (4, 4, 1)))
    got = read_picture(heic(image, exif=exif.tobytes()))
    assert got.pixels.shape[:2] == (36, 24)
    assert got.metadata.density == (150, 300)


def test_white_of_a_10_bit_heic_is_white():
    pillow_heif = pytest.importorskip("pillow_heif")
    white = np.full((16, 16, 3), 65535, np.uint16)
    file = io.BytesIO()
    pillow_heif.from_bytes("RGB;16", (16, 16), white.tobytes()).save(file, quality=-1)
    assert (read_picture(file.getvalue()).pixels == 65535).all()


def test_a_picture_without_metadata_has_none():
    assert Picture(RGB).metadata == Metadata()


SRGB = [(0, 1), (0, 2), (1, 2), (1, 2), (0, 1), (2, 2), (11, 4)]
"""(value, bits): no profile, RGB, D65, BT.709's primaries, no gamma, transfer 2 + 11."""
GREY_SRGB, LINEAR = [(0, 1), (1, 2), *SRGB[2:3], *SRGB[4:]], [*SRGB[:-1], (6, 4)]
ALPHA_16 = [(0, 1), (0, 2), (0, 1), (3, 2), (15, 6), (0, 2), (1, 2), (2, 4), (0x6261, 16), (0, 1)]
"""(value, bits) of an alpha channel: 1 + 15 bits, no shift, a name of 2 letters, straight."""


@pytest.mark.parametrize(
    ("channels", "colours", "expected"),
    [
        ([(0, 2)], [(1, 1)], True),
        ([(0, 2)], [(0, 1), *SRGB], True),
        ([(0, 2)], [(0, 1), *GREY_SRGB], True),
        ([(0, 2)], [(0, 1), *LINEAR], False),
        ([(0, 2)], [(0, 1), (1, 1), *SRGB[1:]], False),  # a profile
        ([(0, 2)], [(0, 1), *SRGB[:3], (2, 2), (9, 4), *SRGB[4:]], False),  # Display P3
        ([(1, 2), (1, 1)], [(0, 1), *SRGB], True),
        ([(1, 2), *ALPHA_16], [(1, 1)], True),
        ([(1, 2), *ALPHA_16], [(0, 1), *SRGB], True),
        ([(1, 2), *ALPHA_16], [(0, 1), *LINEAR], False),
        ([(1, 2), (0, 1), (2, 2), (0, 4)], [(1, 1)], False),  # an extra channel: a spot colour
    ],
)
def test_jpeg_xl_files_in_srgb_are_recognised(channels, colours, expected):
    """Headers of 8 x 8 px without extra channels, 8 bits per sample, not XYB."""
    size, depth = [(1, 1), (0, 5), (1, 3)], [(0, 1), (0, 1), (0, 1), (0, 2), (1, 1)]
    fields = [*size, *depth, *channels, (0, 1), *colours]
    bits = "".join(f"{value:0{count}b}"[::-1] for value, count in fields)
    header = _JxlHeader(b"\xff\x0a" + int(bits[::-1], 2).to_bytes(64, "little"))
    assert (header.width, header.height, header.bits) == (8, 8, 8)
    assert header.is_srgb == expected


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_8_bit_jpeg_xl_of_plain_colours_loses_nothing(channels):
    values = ramp(channels=channels, dtype=np.uint8)
    assert read_picture(jpegxl(values if channels > 1 else values[..., 0])).metadata.lost is None
