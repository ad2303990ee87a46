"""Resolution, XMP, IPTC, texts and profiles are kept between formats, as Pillow confirms."""

from __future__ import annotations

import contextlib
import struct

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from c2fdft_cli.data.images.formats import OUTPUT_FORMATS
from c2fdft_cli.data.images.metadata import (
    Metadata,
    iptc_of,
    photoshop_block,
    upright_exif,
    upright_xmp,
)
from c2fdft_cli.data.images.picture import Picture, read_picture, write_picture
from c2fdft_cli.data.images.pillow import quiet_pillow, too_long
from c2fdft_cli.errors import DataError
from tests.kit.images import encoded, exif_block, ramp, tagged_tiff, tiff_bytes

RGB = ramp(dtype=np.uint8)
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/">a caption</x:xmpmeta>'
IPTC = b"\x1c\x02\x78\x00\x05Title\x1c\x02\x50\x00\x02Me"
EVERYTHING = Metadata(
    xmp=XMP, iptc=IPTC, texts=(("Comment", "by me"), ("Title", "Grüße")), density=(300.0, 150.0)
)


def jpeg_with_everything():
    block = b"Photoshop 3.0\0" + photoshop_block(IPTC)
    segment = b"\xff\xed" + struct.pack(">H", len(block) + 2) + block
    image = Image.fromarray(RGB)
    return encoded(image, "JPEG", xmp=XMP, comment=b"by me", dpi=(300, 150), extra=segment)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_every_block_survives_if_the_format_supports_it(tmp_path, suffix):
    write_picture(tmp_path / f"a{suffix}", Picture(RGB, metadata=EVERYTHING))
    got = read_picture(tmp_path / f"a{suffix}").metadata
    assert (got.xmp, got.iptc) == (XMP, IPTC)
    np.testing.assert_allclose(got.density, (300, 150), rtol=1e-4)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_other_programs_read_the_metadata(tmp_path, suffix):
    write_picture(tmp_path / f"a{suffix}", Picture(RGB, metadata=EVERYTHING))
    with Image.open(tmp_path / f"a{suffix}") as image:
        assert tuple(map(round, image.info["dpi"])) == (300, 150)
        xmp = image.info["xmp"]
        assert (xmp.encode() if isinstance(xmp, str) else xmp) == XMP
        if suffix == ".png":
            assert (image.text["Comment"], image.text["Title"]) == ("by me", "Grüße")
        elif suffix == ".jpg":
            assert image.info["comment"].decode() == "by me\nTitle: Grüße"
            assert image.info["photoshop"][0x0404] == IPTC
        else:
            assert image.tag_v2[33723] == IPTC
            assert "by me" in image.tag_v2[270]


def test_png_and_tiff_keep_all_metadata_of_a_jpeg(tmp_path):
    read = read_picture(jpeg_with_everything())
    assert read.metadata.texts == (("Comment", "by me"),)
    for suffix in (".png", ".tif"):
        write_picture(tmp_path / f"a{suffix}", read)
        got = read_picture(tmp_path / f"a{suffix}").metadata
        assert (got.xmp, got.iptc) == (XMP, IPTC)
        np.testing.assert_allclose(got.density, (300, 150), rtol=1e-4)


def test_texts_of_a_png_of_all_three_kinds_are_read():
    info = PngImagePlugin.PngInfo()
    info.add_text("Author", "me")
    info.add_text("Long", "word " * 1000, zip=True)
    info.add_itxt("Title", "Grüße", zip=True)
    info.add_itxt("XML:com.adobe.xmp", XMP.decode())
    got = read_picture(encoded(Image.fromarray(RGB), "PNG", pnginfo=info)).metadata
    assert dict(got.texts) == {"Author": "me", "Long": "word " * 1000, "Title": "Grüße"}
    assert got.xmp == XMP


def test_a_png_keeps_texts_that_latin_1_cannot_encode(tmp_path):
    texts = (("Title", "雨"),)
    write_picture(tmp_path / "a.png", Picture(RGB, metadata=Metadata(texts=texts)))
    assert read_picture(tmp_path / "a.png").metadata.texts == texts


def test_webp_keeps_xmp_and_bmp_the_density(tmp_path):
    write_picture(tmp_path / "a.webp", Picture(RGB, metadata=EVERYTHING))
    assert read_picture(tmp_path / "a.webp").metadata.xmp == XMP
    write_picture(tmp_path / "a.bmp", Picture(RGB, metadata=EVERYTHING))
    np.testing.assert_allclose(
        read_picture(tmp_path / "a.bmp").metadata.density, (300, 150), rtol=1e-3
    )


@pytest.mark.parametrize("orientation", [5, 6])
def test_density_follows_the_rotation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(RGB)
    data = encoded(image, "JPEG", dpi=(300, 150), exif=exif.tobytes())
    assert read_picture(data).metadata.density == (150, 300)


@pytest.mark.parametrize("orientation", [1, 4, 5, 8])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_resolution_in_exif_follows_the_rotation(tmp_path, kind, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112], exif[0x011A], exif[0x011B], exif[0x0128] = orientation, 204.0, 98.0, 2
    data = encoded(Image.fromarray(RGB), kind, exif=exif.tobytes(), dpi=(204, 98))
    write_picture(tmp_path / f"a{suffix}", read_picture(data))
    with Image.open(tmp_path / f"a{suffix}") as written:
        found = written.getexif()
    assert (found[0x011A], found[0x011B]) == ((98, 204) if orientation >= 5 else (204, 98))
    across, along = read_picture(tmp_path / f"a{suffix}").metadata.density
    assert (across < along) == (orientation >= 5)


@pytest.mark.parametrize(("unit", "expected"), [(2, (300, 200)), (3, (762, 508)), (1, None)])
def test_density_of_a_tiff_depends_on_its_unit(unit, expected):
    data = tiff_bytes(RGB, photometric="rgb", resolution=(300, 200), resolutionunit=unit)
    density = read_picture(data).metadata.density
    assert density is None if expected is None else np.allclose(density, expected)


def test_density_of_a_tiff_without_a_unit_is_in_inches():
    value = (5, 1, struct.pack("<II", 300, 1))
    data = tagged_tiff(RGB, {282: value, 283: value})
    assert read_picture(data).metadata.density == (300, 300)


def test_a_camera_jpeg_without_a_density_gets_none():
    exif = Image.Exif()
    exif[0x013B] = "A. Painter"
    data = encoded(Image.fromarray(RGB), "JPEG", exif=exif.tobytes())
    assert read_picture(data).metadata.density is None


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        (b'<a tiff:Orientation="6"/>', b'<a tiff:Orientation="1"/>'),
        (b"<tiff:Orientation>8</tiff:Orientation>", b"<tiff:Orientation>1</tiff:Orientation>"),
        (b"<tiff:Orientation>1</tiff:Orientation>", b"<tiff:Orientation>1</tiff:Orientation>"),
        (b"", None),
    ],
)
def test_xmp_does_not_rotate_the_picture_again(packet, expected):
    assert upright_xmp(packet) == expected


@pytest.mark.parametrize(
    "block",
    [
        photoshop_block(IPTC),
        b"8BIM\x03\xed\0\0\0\0\0\x03abc\0" + photoshop_block(IPTC),
        b"8BIM\x03\xed\x03abc\0\0\0\x02ab" + photoshop_block(IPTC),
        IPTC,
    ],
)
def test_iptc_is_found_among_photoshops_resources(block):
    assert iptc_of(block) == IPTC


@pytest.mark.parametrize("block", [b"", None, b"8BIM", b"8BIM\4\4\0\0\xff\xff\xff", b"junk" * 9])
def test_damaged_resources_have_no_iptc(block):
    assert not iptc_of(block)


def test_blocks_too_long_for_a_jpeg_are_dropped(tmp_path):
    long = Metadata(xmp=b"x" * 70000, iptc=b"\x1c" * 70000, texts=(("Comment", "y" * 70000),))
    write_picture(tmp_path / "a.jpg", Picture(RGB, metadata=long))
    assert read_picture(tmp_path / "a.jpg").metadata == Metadata()


@pytest.mark.parametrize("length", [64999, 65000])
def test_a_block_is_either_kept_or_named_as_too_long(tmp_path, length):
    metadata = Metadata(xmp=b"x" * length)
    write_picture(tmp_path / "a.jpg", Picture(RGB, metadata=metadata))
    is_kept = read_picture(tmp_path / "a.jpg").metadata == metadata
    assert (is_kept, too_long(metadata, ".jpg")) == (
        (True, []) if length < 65000 else (False, ["XMP"])
    )


def test_files_with_flipped_bytes_in_metadata_are_read_or_refused():
    data = jpeg_with_everything()
    for at in range(20, data.index(b"\xff\xdb"), 3):
        with contextlib.suppress(DataError):
            read_picture(data[:at] + bytes([data[at] ^ 0x5A]) + data[at + 1 :])


SUFFIXES = [one.suffixes[0] for one in OUTPUT_FORMATS if "EXIF" not in one.dropped]


def exif_tags(block):
    with quiet_pillow():
        exif = Image.Exif()
        exif.load(block)
        return dict(exif) | {34665: exif.get_ifd(34665)}


def jpeg_and_tiff(tags):
    """A JPEG and a TIFF with the same tags."""
    exif = b"Exif\0\0" + exif_block(tags)
    return encoded(Image.fromarray(RGB), "JPEG", exif=exif), tagged_tiff(RGB, tags)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_accents_in_any_encoding_survive(tmp_path, suffix):
    """EXIF does not state the encoding of its texts."""
    utf_8, latin_1 = "Jürgen".encode() + b"\0", "Müller".encode("latin-1") + b"\0"
    for data in jpeg_and_tiff({315: (2, len(utf_8), utf_8), 33432: (2, len(latin_1), latin_1)}):
        write_picture(tmp_path / f"a{suffix}", read_picture(data))
        written = (tmp_path / f"a{suffix}").read_bytes()
        assert utf_8 in written
        assert latin_1 in written


def test_accents_in_a_sub_directory_stay_texts(tmp_path):
    taken, lens = b"2026:01:02 03:04:05\0", b"Objekt\xe9\0"
    inner = exif_block({36867: (2, 20, taken), 42036: (2, 8, lens)})
    outer = exif_block({34665: (4, 1, struct.pack("<I", 100))}).ljust(92, b"\0")
    at = 100 - 8  # the sub-directory; its offsets count from the start of the block
    moved = bytearray(inner[8:])
    for entry in (2, 14):
        (place,) = struct.unpack_from("<I", moved, entry + 8)
        struct.pack_into("<I", moved, entry + 8, place + at)
    block = outer.ljust(100, b"\0") + bytes(moved)
    write_picture(tmp_path / "a.tif", Picture(RGB, metadata=Metadata(exif=block)))
    block = read_picture(tmp_path / "a.tif").metadata.exif
    assert exif_tags(block)[34665] == {36867: "2026:01:02 03:04:05", 42036: "Objekt\xe9"}


PROFILE = b"p" * 16 + b"RGB "


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", [2, 1, 3])
def test_a_profile_is_read_from_a_tag_of_any_type(tmp_path, kind, suffix):
    count = 10 if kind == 3 else 20
    data = tagged_tiff(RGB, {34675: (kind, count, PROFILE)})
    assert read_picture(data).metadata.icc == PROFILE
    write_picture(tmp_path / f"a{suffix}", read_picture(data))
    np.testing.assert_equal(read_picture(tmp_path / f"a{suffix}").pixels.shape, RGB.shape)


ODD = {
    "rational": {305: (5, 1, struct.pack("<II", 3, 1))},
    "negative": {282: (10, 1, struct.pack("<ii", -72, 1))},
    "text": {282: (2, 3, b"72\0"), 306: (5, 1, struct.pack("<II", 3, 1))},
    "large": {296: (4, 1, struct.pack("<I", 1 << 16))},
    "many": {282: (5, 2, struct.pack("<4I", 72, 1, 72, 1))},
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("odd", ODD.values(), ids=list(ODD))
def test_a_tag_of_an_odd_type_affects_neither_picture_nor_other_tags(
    tmp_path, odd, suffix, recwarn
):
    for data in jpeg_and_tiff(odd | {315: (2, 5, b"Anna\0")}):
        write_picture(tmp_path / f"a{suffix}", read_picture(data))
        block = read_picture(tmp_path / f"a{suffix}").metadata.exif
        assert exif_tags(block)[315] == "Anna"
    assert not recwarn.list


@pytest.mark.parametrize("end", [b"", b"\0\0"])
def test_an_exif_block_may_end_before_the_pointer_to_the_next(end):
    block = exif_block({274: (3, 1, struct.pack("<H", 6))}, end)
    orientation, whole = upright_exif(block)
    assert orientation == 6
    assert whole == exif_block({274: (3, 1, struct.pack("<H", 1))})
    assert upright_exif(block[: -len(end) - 5]) == (1, None)
    data = encoded(Image.fromarray(RGB), "JPEG", exif=b"Exif\0\0" + block)
    assert read_picture(data).pixels.shape == (9, 6, 3)
