"""TIFF in its many forms."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from c2fdft_cli.data.images.picture import frame_count, read_picture
from c2fdft_cli.errors import DataError
from tests.kit.decoding import ramp, tiff_bytes


@pytest.mark.parametrize(
    "options",
    [
        {"byteorder": ">"},
        {"bigtiff": True},
        {"compression": "zlib", "predictor": True},
        {"compression": "zlib", "predictor": True, "byteorder": ">"},
        {"tile": (16, 16)},
        {"rowsperstrip": 2},
    ],
)
def test_forms_of_a_16_bit_tiff(options):
    got = read_picture(tiff_bytes(ramp(), photometric="rgb", **options))
    np.testing.assert_array_equal(got.pixels, ramp())


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_planar_and_grey_with_alpha_16_bit_tiff(compression):
    planar = np.ascontiguousarray(ramp().transpose(2, 0, 1))
    options = {"compression": compression, "rowsperstrip": 4}
    got = read_picture(tiff_bytes(planar, photometric="rgb", planarconfig="separate", **options))
    np.testing.assert_array_equal(got.pixels, ramp())
    values = ramp(channels=2)
    got = read_picture(
        tiff_bytes(
            values, photometric="minisblack", planarconfig="contig", extrasamples=[2], **options
        )
    )
    assert got.grey
    np.testing.assert_array_equal(got.pixels[..., 0], values[..., 0])
    np.testing.assert_array_equal(got.alpha, values[..., 1])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_a_16_bit_tiff(orientation):
    tag = (274, "H", 1, orientation, True)
    wide, narrow = (
        read_picture(tiff_bytes(values, photometric="rgb", extratags=[tag])).pixels
        for values in (ramp(), ramp(dtype=np.uint8))
    )
    np.testing.assert_array_equal(wide >> 8, narrow)
    assert wide.shape[:2] == ((6, 9) if orientation < 5 else (9, 6))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_min_is_white_is_turned_round(dtype):
    values = ramp(channels=1, dtype=dtype)[..., 0]
    got = read_picture(tiff_bytes(values, photometric="miniswhite"))
    np.testing.assert_array_equal(got.pixels[..., 0], np.iinfo(dtype).max - values)


def test_alpha_that_was_multiplied_in_is_taken_out():
    values = np.array([[[100, 200, 300, 32768], [0, 0, 0, 0]]], np.uint16)
    got = read_picture(tiff_bytes(values, photometric="rgb", extrasamples=[1]))
    assert got.pixels.tolist() == [[[200, 400, 600], [0, 0, 0]]]
    assert got.alpha.tolist() == [[32768, 0]]


def test_an_unspecified_fourth_channel_is_no_alpha():
    values = ramp(channels=4)
    got = read_picture(tiff_bytes(values, photometric="rgb", extrasamples=[0]))
    assert got.alpha is None
    np.testing.assert_array_equal(got.pixels, values[..., :3])


@pytest.mark.parametrize("channels", [1, 3])
def test_float_tiff_in_0_1_becomes_16_bit(channels):
    values = (ramp(channels=channels) / 65535).astype(np.float32)
    photometric = "rgb" if channels == 3 else "minisblack"
    got = read_picture(tiff_bytes(np.squeeze(values), photometric=photometric))
    assert got.grey == (channels == 1)
    np.testing.assert_array_equal(got.pixels[..., :channels], ramp(channels=channels))


@pytest.mark.parametrize("bad", [1.5, -0.1, np.nan, np.inf])
def test_float_tiff_outside_0_1_is_refused_with_a_hint(bad):
    values = np.full((4, 4), 0.5, np.float32)
    values[2, 2] = bad
    with pytest.raises(DataError, match=r"float TIFF with values outside 0\.\.1.*scale it"):
        read_picture(tiff_bytes(values, photometric="minisblack"))


@pytest.mark.parametrize(
    ("values", "photometric", "name"),
    [
        (ramp(channels=1)[..., 0].astype(np.int16), "minisblack", "16-bit signed integer TIFF"),
        (ramp(channels=1)[..., 0].astype(np.uint32), "minisblack", "32-bit integer TIFF"),
        (ramp(channels=4), "separated", "4 CMYK channels"),
        (np.full((6, 9), 0.5, np.float16), "minisblack", "float TIFF layout"),
    ],
)
def test_unsupported_tiff_is_refused_by_name(values, photometric, name):
    with pytest.raises(DataError, match=name) as caught:
        read_picture(tiff_bytes(values, photometric=photometric))
    assert caught.value.hint


def test_tiff_pages_in_a_loop_are_refused(tmp_path):
    data = bytearray(tiff_bytes(ramp(), photometric="rgb"))
    first = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, first)[0]
    struct.pack_into("<I", data, first + 2 + 12 * count, first)
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(DataError, match="loop"):
        frame_count(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.tif").pixels, ramp())
