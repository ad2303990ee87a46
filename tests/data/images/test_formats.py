"""A picture's format is recognised by its content; unsupported ones are named with a hint."""

from __future__ import annotations

import contextlib
import struct

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from c2fdft_cli.data.images import formats
from c2fdft_cli.data.images.formats import HEAD_BYTES, HINTS, is_read, recognise
from c2fdft_cli.data.images.picture import image_size, read_picture
from c2fdft_cli.errors import DataError
from tests.kit.images import encoded, ramp, tiff_bytes

RGB = ramp(dtype=np.uint8)
HEIC = struct.pack(">I", 24) + b"ftypmif1\0\0\0\0mif1heic" + bytes(64)


@pytest.mark.parametrize("suffix", ["", ".jpg", ".txt", ".mp4"])
@pytest.mark.parametrize(
    "kind", ["PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF", "JPEG2000", "QOI", "DDS", "PPM", "AVIF"]
)
def test_a_wrong_suffix_changes_nothing(tmp_path, kind, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(encoded(Image.fromarray(RGB), kind))
    assert recognise(path.read_bytes()[:HEAD_BYTES], suffix) == kind
    assert image_size(path) == (6, 9)
    assert read_picture(path).pixels.shape == (6, 9, 3)


@pytest.mark.parametrize(
    ("kind", "suffix"), [("TGA", ".tga"), ("PCX", ".pcx"), ("SGI", ".sgi"), ("SGI", ".rgb")]
)
def test_formats_without_a_signature_need_their_suffix(tmp_path, kind, suffix):
    data = encoded(Image.fromarray(RGB), kind)
    (tmp_path / f"a{suffix}").write_bytes(data)
    np.testing.assert_array_equal(read_picture(tmp_path / f"a{suffix}").pixels, RGB)
    assert recognise(data, ".dat") is None


@pytest.mark.parametrize(
    ("head", "suffix", "kind"),
    [
        (HEIC, "", "HEIC"),
        (b"", ".heic", "HEIC"),
        (b"\0\0\0\x18ftypcrx \0\0\0\0crx isom", "", "camera raw"),
        (b"II*\0\x10\0\0\0CR\2\0", ".jpg", "camera raw"),
        (b"II*\0\x08\0\0\0\0\0", ".dng", "camera raw"),
        (b"FUJIFILMCCD-RAW 0201", "", "camera raw"),
        (b"\x76\x2f\x31\x01\2", "", "high dynamic range"),
        (b"II\xbc\x01\x20", ".jpg", "JPEG XR"),
        (b"\xff\xd8\xff\xf7\0", ".jpg", "JPEG-LS"),
        (b"<svg xmlns=", ".svg", "vector graphics"),
        (b"\xff\xd8\xff\xe0", ".thm", "preview or backup copy"),
        (b"\xff\xd8\xff\xe0", ".heic", "JPEG"),
        (b"\xff\xd8\xff\xe0", ".dng", "JPEG"),
    ],
)
def test_unsupported_formats_are_recognised_by_content_and_name(head, suffix, kind):
    assert recognise(head, suffix) == kind
    assert kind in HINTS or kind == "JPEG"


@pytest.mark.parametrize(
    ("head", "suffix"),
    [
        (b"BMW is a maker of cars", ""),
        (b"P5 is the fifth part of it", ""),
        (b"plain text", ".bak"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isomavc1", ""),
        (b"RIFF\0\0\0\0AVI LIST", ""),
        (b"", ""),
    ],
)
def test_other_files_have_no_picture_format(head, suffix):
    assert recognise(head, suffix) is None


def dng_like(path):
    version = (50706, 1, 4, b"\1\4\0\0", True)
    path.write_bytes(tiff_bytes(RGB, photometric="rgb", extratags=[version]))


def nef_like(path):
    """A TIFF of a thumbnail, whose sub-directory holds the picture."""
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(RGB, photometric="rgb", subifds=1, subfiletype=1)
        tiff.write(np.tile(RGB, (4, 4, 1)), photometric="rgb")


@pytest.mark.parametrize("write", [dng_like, nef_like])
@pytest.mark.parametrize("function", [image_size, read_picture])
def test_a_raw_file_named_tif_is_not_read_as_its_thumbnail(tmp_path, write, function):
    write(tmp_path / "a.tif")
    with pytest.raises(DataError, match="are not read: camera raw") as caught:
        function(tmp_path / "a.tif")
    assert "16-bit TIFF" in caught.value.hint


def test_heic_without_its_decoder_is_refused_with_a_hint(tmp_path, monkeypatch):
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda _name: None)
    is_read.cache_clear()
    try:
        (tmp_path / "a.jpg").write_bytes(HEIC)
        with pytest.raises(DataError, match="are not read: HEIC") as caught:
            read_picture(tmp_path / "a.jpg")
        assert "c2fdft[heif]" in caught.value.hint
    finally:
        is_read.cache_clear()


def test_jpeg_xl_is_recognised_with_and_without_its_container():
    for container in (False, True):
        data = imagecodecs.jpegxl_encode(RGB, lossless=True, usecontainer=container)
        assert recognise(data, "") == "JPEGXL"
        np.testing.assert_array_equal(read_picture(data).pixels, RGB)


@pytest.mark.parametrize(
    "kind", ["JPEG", "WEBP", "GIF", "BMP", "JPEG2000", "QOI", "DDS", "PPM", "AVIF", "JPEGXL"]
)
def test_damaged_files_are_refused_in_silence(kind, capfd, monkeypatch):
    """Nothing of the libraries' own messages reaches standard error."""
    monkeypatch.setattr("c2fdft_cli.data.images.samples.MAX_PIXELS", 1 << 16)
    image = Image.fromarray(np.tile(RGB, (4, 4, 1)))
    whole = imagecodecs.jpegxl_encode(RGB) if kind == "JPEGXL" else encoded(image, kind)
    for at in range(0, len(whole), max(1, len(whole) // 60)):
        for damaged in (whole[:at] + bytes([whole[at] ^ 0xA5]) + whole[at + 1 :], whole[:at]):
            with contextlib.suppress(DataError):
                read_picture(damaged)
    assert capfd.readouterr() == ("", "")
