"""Netpbm pictures of every kind and with any maximum value."""

from __future__ import annotations

import numpy as np
import pytest

from c2fdft_cli.data.images.picture import image_size, read_picture
from c2fdft_cli.errors import DataError
from tests.kit.images import ramp


@pytest.mark.parametrize(
    "data",
    [
        b"P6 9 6 65535\n" + ramp().astype(">u2").tobytes(),
        b"P6\n# a comment\n9 # another\n6\n65535\n" + ramp().astype(">u2").tobytes(),
    ],
)
def test_16_bit_colours_survive(data):
    got = read_picture(data)
    np.testing.assert_array_equal(got.pixels, ramp())


@pytest.mark.parametrize(("white", "top"), [(1, 255), (11, 255), (255, 255), (1023, 65535)])
@pytest.mark.parametrize("kind", [2, 5])
def test_the_maximum_value_is_white(kind, white, top):
    values = np.array([0, white // 2, white])
    body = values.astype(np.uint8 if white < 256 else ">u2").tobytes()
    body = " ".join(map(str, values)).encode() if kind == 2 else body
    got = read_picture(b"P%d 3 1 %d\n" % (kind, white) + body)
    assert got.grey
    assert got.pixels.dtype == (np.uint8 if top == 255 else np.uint16)
    expected = np.rint(values * (top / white))
    np.testing.assert_array_equal(got.pixels[0, :, 0], expected)


@pytest.mark.parametrize(
    "data", [b"P1 9 2\n101010101\n0 0 0 0 0 0 0 0 1", b"P4 9 2\n\xaa\x80\0\x80"]
)
def test_a_set_bit_is_black(data, tmp_path):
    got = read_picture(data)
    np.testing.assert_array_equal(got.pixels[0, :, 0], [0, 255, 0, 255, 0, 255, 0, 255, 0])
    np.testing.assert_array_equal(got.pixels[1, :, 0], [255] * 8 + [0])
    (tmp_path / "a.pbm").write_bytes(data)
    assert image_size(tmp_path / "a.pbm") == (2, 9)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"P6 9 6 255\n" + bytes(161), "truncated"),
        (b"P4 9 9\n\0", "truncated"),
        (b"P5 9 6 0\n" + bytes(54), "maximum value"),
        (b"P5 9 6 70000\n" + bytes(108), "maximum value"),
        (b"P5 99999 99999 255\n", "over the limit"),
        (b"P2 2 2 255\n1 2 x 4", "cannot read"),
        (b"P2 99999 99999 255\n1", "over the limit"),
        (b"P2 2 2 255\n1 2", "not enough"),
        (b"P1 2 2\n1 0 1 2\n", "Invalid token"),
        (b"P5 2 2", "header"),
        (b"P2 2 2 255\n1 2 3 00000000004", "too long"),
        (b"P3 1 1 256\n1 2 3", "text with more than 8 bits"),
    ],
)
def test_damaged_files_are_refused(data, reason):
    with pytest.raises(DataError, match=reason):
        read_picture(data)


def test_colours_may_be_text():
    words = b" ".join(b"%d" % value for value in ramp(dtype=np.uint8).ravel())
    got = read_picture(b"P3\n9 6\n255\n# all of them\n" + words + b" 1 2 3")
    np.testing.assert_array_equal(got.pixels, ramp(dtype=np.uint8))


def test_comments_in_the_header_may_be_long(tmp_path):
    whole = (
        b"P5\n#" + b"c" * 990 + b"\n12 1234 # and " + b"d" * 2000 + b"\n255\n" + bytes(12 * 1234)
    )
    (tmp_path / "a.pgm").write_bytes(whole)
    assert image_size(tmp_path / "a.pgm") == read_picture(whole).pixels.shape[:2] == (1234, 12)
