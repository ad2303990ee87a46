"""What each output format keeps of a picture, and what it cannot hold."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from c2fdft_cli.data.images.formats import (
    JPEG_SUFFIXES,
    OUTPUT_FORMAT_OF,
    OUTPUT_FORMATS,
    WRITE_SUFFIXES,
    MetadataKind,
    OutputFormat,
)
from c2fdft_cli.data.images.metadata import Metadata
from c2fdft_cli.data.images.picture import Picture, read_picture, save_rgb8, write_picture
from c2fdft_cli.errors import ResourceError, UsageError
from tests.kit.images import SRGB_PROFILE, assert_same, drawn, drawn_picture, painters_exif

LOSSLESS = [*sorted(WRITE_SUFFIXES - JPEG_SUFFIXES), ".TIFF"]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_other_programs_read_the_written_files(tmp_path, suffix):
    before = drawn_picture(
        np.uint16, alpha=True, metadata=Metadata(icc=SRGB_PROFILE, exif=painters_exif())
    )
    path = tmp_path / f"a{suffix}"
    write_picture(path, before)
    opencv = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(opencv[..., 2::-1], before.pixels)
    np.testing.assert_array_equal(opencv[..., 3], before.alpha)
    with Image.open(path) as image:
        image.load()
        assert image.info["icc_profile"] == SRGB_PROFILE
        assert image.getexif()[0x013B] == "A. Painter"
    if suffix == ".tif":
        np.testing.assert_array_equal(tifffile.imread(path)[..., :3], before.pixels)


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_lossless_formats_keep_8_bit_colours(tmp_path, suffix):
    before = drawn_picture(metadata=Metadata(icc=SRGB_PROFILE, exif=painters_exif()))
    write_picture(tmp_path / f"a{suffix}", before)
    after = read_picture(tmp_path / f"a{suffix}")
    assert_same(after, before)
    dropped = OUTPUT_FORMAT_OF[suffix.lower()].dropped
    assert after.metadata.icc == (None if "colour profile" in dropped else SRGB_PROFILE)


def test_a_tiff_of_several_strips_is_read_by_other_programs(tmp_path, monkeypatch):
    monkeypatch.setattr("c2fdft_cli.data.images.tiff._STRIP_SIZE", 5 * 11 * 3)
    save_rgb8(tmp_path / "a.tif", drawn())
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert len(file.pages[0].dataoffsets) == 3  # 13 rows, 5 in a strip
        np.testing.assert_array_equal(file.asarray(), drawn())


def test_webp_keeps_alpha_and_the_colours_under_it(tmp_path):
    before = drawn_picture(alpha=True)
    write_picture(tmp_path / "a.webp", before)
    assert_same(read_picture(tmp_path / "a.webp"), before)


def test_jpeg_keeps_profile_exif_and_full_colour_resolution(tmp_path):
    before = Picture(
        np.full((16, 16, 3), (200, 40, 90), np.uint8),
        metadata=Metadata(icc=SRGB_PROFILE, exif=painters_exif()),
    )
    before.pixels[:, ::2] = (20, 90, 200)
    write_picture(tmp_path / "a.jpg", before, quality=95)
    after = read_picture(tmp_path / "a.jpg")
    assert np.abs(after.pixels.astype(int) - before.pixels).max() < 12
    assert after.metadata.icc == SRGB_PROFILE
    assert after.metadata.exif is not None
    write_picture(tmp_path / "low.jpg", before, quality=10)
    assert (tmp_path / "low.jpg").stat().st_size < (tmp_path / "a.jpg").stat().st_size


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif"])
def test_grey_is_stored_in_one_channel_and_stays_grey(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write_picture(path, drawn_picture(grey=True))
    with Image.open(path) as image:
        assert image.mode == "L"
    assert read_picture(path).grey


def test_a_restored_grey_picture_is_the_mean_of_its_channels(tmp_path):
    pixels = np.array([[[10, 11, 12], [9, 9, 11]]], np.uint8)
    write_picture(tmp_path / "a.png", Picture(pixels, grey=True))
    assert read_picture(tmp_path / "a.png").pixels[..., 0].tolist() == [[11, 10]]


@pytest.mark.parametrize("suffix", [one.suffixes[0] for one in OUTPUT_FORMATS if not one.is_deep])
def test_16_bits_are_rounded_for_8_bit_formats_and_alpha_dropped(tmp_path, suffix):
    pixels = np.array([[[0, 128, 129], [65535, 65407, 65406]]], np.uint16).repeat(8, 0)
    write_picture(tmp_path / f"a{suffix}", Picture(pixels, alpha=pixels[..., 0].copy()))
    after = read_picture(tmp_path / f"a{suffix}")
    assert after.pixels.dtype == np.uint8
    assert (after.alpha is not None) == OUTPUT_FORMAT_OF[suffix].has_alpha
    if suffix != ".jpg":
        assert after.pixels[0].tolist() == [[0, 0, 1], [255, 255, 254]]


def test_a_row_is_enough_to_write_another_format_of_pillow(tmp_path, monkeypatch):
    row = OutputFormat("TGA", (".tga",), has_alpha=True, dropped=frozenset(get_args(MetadataKind)))
    monkeypatch.setitem(OUTPUT_FORMAT_OF, ".tga", row)
    before = drawn_picture(alpha=True, metadata=Metadata(icc=SRGB_PROFILE, exif=painters_exif()))
    write_picture(tmp_path / "a.tga", before)
    after = read_picture(tmp_path / "a.tga")
    assert_same(after, before)
    assert after.alpha is not None


def test_what_the_row_of_a_format_does_not_allow_is_not_written(tmp_path, monkeypatch):
    before = drawn_picture(alpha=True, metadata=Metadata(icc=SRGB_PROFILE, exif=painters_exif()))
    row = replace(OUTPUT_FORMAT_OF[".webp"], has_alpha=False, dropped={"colour profile"})
    monkeypatch.setitem(OUTPUT_FORMAT_OF, ".webp", row)
    write_picture(tmp_path / "a.webp", before)
    after = read_picture(tmp_path / "a.webp")
    assert after.alpha is None
    assert (after.metadata.icc, after.metadata.exif) == (None, before.metadata.exif)


@pytest.mark.parametrize("name", ["a.gif", "a", "a.png.txt"])
def test_writing_an_unknown_suffix_is_a_usage_error(tmp_path, name):
    with pytest.raises(UsageError, match="cannot write images as"):
        save_rgb8(tmp_path / name, drawn())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("suffix", "side"), [("webp", 16383), ("png", 1_000_000)])
def test_a_picture_too_large_for_its_format_is_refused(tmp_path, suffix, side):
    save_rgb8(tmp_path / f"a.{suffix}", np.zeros((1, side, 3), np.uint8))
    assert read_picture(tmp_path / f"a.{suffix}").pixels.shape == (1, side, 3)
    with pytest.raises(UsageError, match=f"{side + 1} x 1 px is too large for {suffix}"):
        save_rgb8(tmp_path / f"b.{suffix}", np.zeros((1, side + 1, 3), np.uint8))


def test_an_output_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot write"):
        save_rgb8(tmp_path / "file" / "a.png", drawn())


def test_tags_that_describe_the_input_pixels_are_not_written_to_a_tiff(tmp_path):
    exif = Image.Exif()
    for tag, value in {0x013B: "A. Painter", 322: 16, 325: 99, 317: 3, 339: 3, 256: 9}.items():
        exif[tag] = value
    before = drawn_picture(metadata=Metadata(exif=exif.tobytes().removeprefix(b"Exif\0\0")))
    write_picture(tmp_path / "a.tif", before)
    after = read_picture(tmp_path / "a.tif")
    assert_same(after, before)
    found = Image.Exif()
    found.load(after.metadata.exif)
    assert dict(found) == {0x013B: "A. Painter"}


@pytest.mark.parametrize(
    "suffix", [one.suffixes[0] for one in OUTPUT_FORMATS if "EXIF" not in one.dropped]
)
def test_camera_and_location_data_survive(tmp_path, suffix):
    exif = Image.Exif()
    exif[271] = "Maker"
    exif.get_ifd(0x8769)[0x829A] = 0.5
    exif.get_ifd(0x8825)[1] = "N"
    before = drawn_picture(metadata=Metadata(exif=exif.tobytes().removeprefix(b"Exif\0\0")))
    write_picture(tmp_path / f"a{suffix}", before)
    found = Image.Exif()
    found.load(read_picture(tmp_path / f"a{suffix}").metadata.exif)
    assert found[271] == "Maker"
    assert found.get_ifd(0x8769)[0x829A] == 0.5
    assert found.get_ifd(0x8825)[1] == "N"


def test_an_exif_block_too_long_for_a_jpeg_is_dropped(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "x" * 70000
    write_picture(
        tmp_path / "a.jpg",
        drawn_picture(metadata=Metadata(exif=exif.tobytes().removeprefix(b"Exif\0\0"))),
    )
    assert read_picture(tmp_path / "a.jpg").metadata.exif is None


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_png_of_a_smooth_picture_is_much_smaller_than_its_pixels(tmp_path, dtype):
    """With filters and compression a smooth picture takes less than a third."""
    y, x = np.mgrid[:256, :256]
    pixels = np.repeat(((y + 2 * x) * 60)[..., None], 3, axis=2) // (
        257 if dtype == np.uint8 else 1
    )
    write_picture(tmp_path / "a.png", Picture(pixels.astype(dtype)))
    assert (tmp_path / "a.png").stat().st_size < pixels.astype(dtype).nbytes / 3


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_pixels_may_have_any_memory_order(tmp_path, suffix):
    whole = drawn(26, 22)
    pixel = np.broadcast_to(whole[0, 0], (1, 1, 3))
    for pixels in (whole[::2, ::-2], whole.swapaxes(0, 1), whole[..., ::-1], pixel):
        write_picture(tmp_path / f"a{suffix}", Picture(pixels))
        np.testing.assert_array_equal(read_picture(tmp_path / f"a{suffix}").pixels, pixels)
