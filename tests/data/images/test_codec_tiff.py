"""TIFF in its many variants."""

from __future__ import annotations

import contextlib
import gc
import io
import struct
import sys
from concurrent.futures import ThreadPoolExecutor

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from c2fdft_cli.data.images import tiff
from c2fdft_cli.data.images.codec import frame_decoder
from c2fdft_cli.data.images.picture import frame_count, image_size, read_picture
from c2fdft_cli.errors import DataError
from tests.kit.images import encoded, exif_block, ramp, tiff_bytes


@pytest.mark.parametrize(
    "options",
    [
        {"byteorder": ">"},
        {"bigtiff": True},
        {"compression": "zlib", "predictor": True},
        {"compression": "zlib", "predictor": True, "byteorder": ">"},
        {"tile": (16, 16)},
        {"rowsperstrip": 2},
        {"compression": "lzw", "predictor": True},
        {"compression": "packbits"},
        {"compression": "lzma"},
        {"compression": "zstd"},
        {"tile": (16, 32), "compression": "lzw", "predictor": True, "bigtiff": True},
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("planar", [False, True])
def test_every_layout_of_a_tiff_gives_the_same_pixels(options, dtype, channels, planar):
    values = ramp(channels=channels, dtype=dtype)
    stored = np.ascontiguousarray(values.transpose(2, 0, 1)) if planar else values
    more = {"photometric": "rgb" if channels >= 3 else "minisblack"}
    more |= {"extrasamples": [2]} if channels in (2, 4) else {}
    more |= {"planarconfig": "separate" if planar else "contig"} if channels > 1 else {}
    data = tiff_bytes(stored if channels > 1 else values[..., 0], **more, **options)
    got = read_picture(data)
    colours = channels - (channels + 1) % 2
    assert got.grey == (colours == 1)
    assert got.bit_depth == 8 * np.dtype(dtype).itemsize
    np.testing.assert_array_equal(got.pixels[..., :colours], values[..., :colours])
    assert (got.alpha is None) == (colours == channels)
    if got.alpha is not None:
        np.testing.assert_array_equal(got.alpha, values[..., -1])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_16_bit_tiff_is_applied(orientation):
    tag = (274, "H", 1, orientation, True)
    wide, narrow = (
        read_picture(tiff_bytes(values, photometric="rgb", extratags=[tag])).pixels
        for values in (ramp(), ramp(dtype=np.uint8))
    )
    np.testing.assert_array_equal(wide >> 8, narrow)
    assert wide.shape[:2] == ((6, 9) if orientation < 5 else (9, 6))


@pytest.mark.parametrize("orientation", [0, 9])
def test_an_undefined_orientation_is_ignored(tmp_path, orientation):
    tag, path = (274, "H", 1, orientation, True), tmp_path / "a.tif"
    path.write_bytes(tiff_bytes(ramp(), photometric="rgb", extratags=[tag]))
    np.testing.assert_array_equal(read_picture(path).pixels, ramp())
    assert image_size(path) == (6, 9)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_min_is_white_is_inverted(dtype):
    values = ramp(channels=1, dtype=dtype)[..., 0]
    got = read_picture(tiff_bytes(values, photometric="miniswhite"))
    np.testing.assert_array_equal(got.pixels[..., 0], np.iinfo(dtype).max - values)


def test_premultiplied_alpha_is_divided_out():
    values = np.array([[[100, 200, 300, 32768], [0, 0, 0, 0]]], np.uint16)
    got = read_picture(tiff_bytes(values, photometric="rgb", extrasamples=[1]))
    assert got.pixels.tolist() == [[[200, 400, 600], [0, 0, 0]]]
    assert got.alpha.tolist() == [[32768, 0]]


def test_an_unspecified_fourth_channel_is_not_alpha():
    values = ramp(channels=4)
    got = read_picture(tiff_bytes(values, photometric="rgb", extrasamples=[0]))
    assert got.alpha is None
    np.testing.assert_array_equal(got.pixels, values[..., :3])


@pytest.mark.parametrize(
    ("channels", "photometric", "extra", "lost"),
    [
        (3, "minisblack", [0, 0], "2 of 3 channels"),  # of a microscope
        (5, "rgb", [0, 0], "2 of 5 channels"),  # near infrared of a drone
        (5, "rgb", [2, 0], "1 of 5 channels"),
        (5, "separated", [2], "1 of 5 channels"),
        (4, "rgb", [2], None),
        (2, "minisblack", [1], None),
        (4, "separated", [], None),
    ],
)
def test_channels_that_are_not_read_are_reported(channels, photometric, extra, lost):
    values = ramp(channels=channels, dtype=np.uint8)
    got = read_picture(tiff_bytes(values, photometric=photometric, extrasamples=extra or None))
    assert got.metadata.lost == lost


def tiff_of_pages(*pages):
    """A TIFF of pages, each given as its array and its subfile type."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as tiff:
        for values, kind in pages:
            tiff.write(values, photometric="rgb", subfiletype=kind, metadata=None)
    return file.getvalue()


def test_smaller_copies_at_the_end_of_a_tiff_are_not_pages():
    large, small = ramp(16, 24, dtype=np.uint8), ramp(8, 12, dtype=np.uint8)
    assert frame_count(tiff_of_pages((large, 0), (small, 1), (small[:4, :6], 1))) == 1
    assert frame_count(tiff_of_pages((large, 0), (large, 0), (small, 1))) == 2
    assert frame_count(tiff_of_pages((large, 0), (small, 0))) == 2
    # declared wrongly: a copy is smaller in both directions
    assert frame_count(tiff_of_pages((large, 1), (large, 1), (large, 1))) == 3
    assert frame_count(tiff_of_pages((large, 0), (large[:8], 1), (large[:, :12], 1))) == 3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("channels", [1, 3])
def test_float_tiff_in_0_1_becomes_16_bit(channels, dtype):
    values = (ramp(channels=channels) / 65535).astype(dtype)
    photometric = "rgb" if channels == 3 else "minisblack"
    got = read_picture(tiff_bytes(np.squeeze(values), photometric=photometric))
    assert got.grey == (channels == 1)
    np.testing.assert_array_equal(got.pixels[..., :channels], ramp(channels=channels))


@pytest.mark.parametrize("bad", [1.5, -0.1, np.nan, np.inf])
def test_float_tiff_outside_0_1_is_refused_with_a_hint(bad):
    values = np.full((4, 4), 0.5, np.float32)
    values[2, 2] = bad
    with pytest.raises(DataError, match=r"float picture with values outside 0\.\.1") as caught:
        read_picture(tiff_bytes(values, photometric="minisblack"))
    assert "scale it" in caught.value.hint


def test_half_floats_become_16_bit():
    values = np.array([[0, 0.25, 1]], np.float16)
    got = read_picture(tiff_bytes(values, photometric="minisblack"))
    assert got.pixels[..., 0].tolist() == [[0, 16384, 65535]]


@pytest.mark.parametrize(("bits", "white"), [(2, 255), (4, 255), (12, 65535)])
def test_other_bit_depths_are_scaled_to_8_or_16(bits, white):
    top = 2**bits - 1
    values = np.array([[0, 1, top - 1, top]], np.uint16 if bits > 8 else np.uint8)
    pytest.importorskip("imagecodecs", minversion="2026.3", reason="it packs no bits before")
    got = read_picture(tiff_bytes(values, photometric="minisblack", bitspersample=bits))
    expected = np.rint(values * (white / top)).astype(int).tolist()
    assert got.pixels[..., 0].tolist() == expected


@pytest.mark.parametrize("photometric", ["separated", "palette", "ycbcr"])
@pytest.mark.parametrize("options", [{}, {"compression": "lzw", "tile": (16, 16)}])
def test_other_8_bit_colour_spaces_are_converted(photometric, options):
    values = ramp(channels={"separated": 4, "palette": 1, "ycbcr": 3}[photometric], dtype=np.uint8)
    if photometric == "palette":
        colours = np.stack([np.arange(256), 255 - np.arange(256), np.full(256, 7)])
        expected = colours.T[values[..., 0]]
        more = {"colormap": (colours * 257).astype(np.uint16)}
        values = values[..., 0]
    else:
        mode, more = {"separated": "CMYK", "ycbcr": "YCbCr"}[photometric], {}
        expected = np.asarray(
            Image.frombytes(mode, values.shape[1::-1], values.tobytes()).convert("RGB")
        )
    got = read_picture(tiff_bytes(values, photometric=photometric, **more, **options))
    # Pillow computes YCbCr in integers
    atol = 1 if photometric == "ycbcr" else 0
    np.testing.assert_allclose(got.pixels.astype(int), expected, rtol=0, atol=atol)


def test_a_colour_map_of_8_bits_is_not_black():
    colours = np.stack([np.arange(256), 255 - np.arange(256), np.full(256, 7)]).astype(np.uint16)
    values = ramp(channels=1, dtype=np.uint8)[..., 0]
    got = read_picture(tiff_bytes(values, photometric="palette", colormap=colours))
    np.testing.assert_array_equal(got.pixels, colours.T[values])


STUDIO = (16, 1, 235, 1, 128, 1, 240, 1, 128, 1, 240, 1)


def ycbcr_tiff(values, *tags):
    """A YCbCr TIFF with further tags of fractions: (tag, numerators and denominators)."""
    extra = [(tag, 5, len(fractions) // 2, fractions, True) for tag, fractions in tags]
    return tiff_bytes(np.array([[values]], np.uint8), photometric="ycbcr", extratags=extra)


@pytest.mark.parametrize(
    ("values", "tags", "expected"),
    [
        ((16, 128, 128), [(532, STUDIO)], (0, 0, 0)),
        ((235, 128, 128), [(532, STUDIO)], (255, 255, 255)),
        # BT.709's red in studio range
        (
            (63, 102, 240),
            [(532, STUDIO), (529, (2126, 10**4, 7152, 10**4, 722, 10**4))],
            (255, 0, 0),
        ),
        ((76, 85, 255), [], (254, 0, 0)),
    ],
)
def test_ycbcr_has_the_range_and_coefficients_of_its_tags(values, tags, expected):
    got = read_picture(ycbcr_tiff(values, *tags))
    assert np.abs(got.pixels[0, 0].astype(int) - expected).max() <= 1


def test_the_range_of_ycbcr_may_be_stored_as_integers():
    extra = [(532, 4, 6, STUDIO[::2], True)]
    values = np.array([[[235, 128, 128]]], np.uint8)
    got = read_picture(tiff_bytes(values, photometric="ycbcr", extratags=extra))
    assert got.pixels.tolist() == [[[255, 255, 255]]]


@pytest.mark.parametrize(
    "tag",
    [
        (532, (16, 1)),
        (532, (16, 1, 235, 1)),
        (532, (16, 0, *STUDIO[2:])),
        (532, (235, 1, 16, 1, *STUDIO[4:])),
        (529, (1, 1, 0, 1, 1, 1)),
    ],
)
def test_a_damaged_description_of_ycbcr_is_refused(tag):
    with pytest.raises(DataError, match="its description of the colours is damaged"):
        read_picture(ycbcr_tiff((1, 2, 3), tag))


@pytest.mark.parametrize(
    ("values", "photometric", "name"),
    [
        (ramp(channels=1)[..., 0].astype(np.int16), "minisblack", "16-bit signed integer TIFF"),
        (ramp(channels=1)[..., 0].astype(np.uint32), "minisblack", "32-bit integer TIFF"),
        (ramp(channels=4), "separated", "4 16-bit SEPARATED channels"),
        (ramp(dtype=np.uint8), "cielab", "3 8-bit CIELAB channels"),
    ],
)
def test_unsupported_tiff_is_refused_by_name(values, photometric, name):
    with pytest.raises(DataError, match=name) as caught:
        read_picture(tiff_bytes(values, photometric=photometric))
    assert caught.value.hint


def test_tiff_pages_in_a_loop_are_counted_once(tmp_path):
    data = bytearray(tiff_bytes(ramp(), photometric="rgb"))
    first = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, first)[0]
    struct.pack_into("<I", data, first + 2 + 12 * count, first)
    (tmp_path / "a.tif").write_bytes(data)
    assert frame_count(tmp_path / "a.tif") == 1
    np.testing.assert_array_equal(read_picture(tmp_path / "a.tif").pixels, ramp())


def test_a_loop_of_tiff_pages_after_the_hundredth_ends(tmp_path, monkeypatch):
    """tifffile itself looks for loops only among the first hundred directories."""
    data = bytearray(tiff_bytes(np.zeros((150, 2, 2, 3), np.uint8), photometric="rgb"))
    places = [struct.unpack_from("<I", data, 4)[0]]
    while places[-1]:
        end = places[-1] + 2 + 12 * struct.unpack_from("<H", data, places[-1])[0]
        places.append(struct.unpack_from("<I", data, end)[0])
    assert len(places) == 151
    (tmp_path / "whole.tif").write_bytes(data)
    assert frame_count(tmp_path / "whole.tif") == 150
    struct.pack_into("<I", data, end, places[120])
    (tmp_path / "loop.tif").write_bytes(data)
    for read in (frame_count, image_size, read_picture):
        with pytest.raises(DataError, match="its pages form a loop"):
            read(tmp_path / "loop.tif")
    monkeypatch.setattr(tiff, "MAX_FRAMES", 149)
    with pytest.raises(DataError, match="over 149 frames"):
        frame_count(tmp_path / "whole.tif")


def test_a_tiff_that_was_read_is_not_held_in_memory():
    """The objects that read it refer to each other, so only a garbage collection frees them."""
    data = bytes(tiff_bytes(ramp(), photometric="rgb"))
    count = sys.getrefcount(data)
    gc.disable()
    try:
        read_picture(data)
        assert sys.getrefcount(data) == count
    finally:
        gc.enable()


@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
def test_pages_of_a_tiff_are_decoded_in_several_threads(compression):
    pages = np.stack([np.roll(ramp(40, 50), i, axis=1) for i in range(30)])
    read = frame_decoder(tiff_bytes(pages, photometric="rgb", compression=compression), "TIFF")
    with ThreadPoolExecutor(8) as pool:
        for page, found in zip(pages, pool.map(read, range(30)), strict=True):
            np.testing.assert_array_equal(found.samples, page)


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "packbits", "jpeg"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_a_truncated_tiff_is_refused_whatever_its_compression(compression, tile):
    values = ramp(40, 40, dtype=np.uint8)
    data = tiff_bytes(values, photometric="rgb", compression=compression, tile=tile)
    with pytest.raises(DataError, match="the file is truncated"):
        read_picture(data[:-100])


def tiff_page(strip, tags):
    """A TIFF of one grey 8-bit page of 4 x 4 px with additional tags; its strip is at offset 8."""
    entries = sorted(({256: 4, 257: 4, 258: 8, 262: 1, 277: 1} | tags).items())
    data = b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip + struct.pack("<H", len(entries))
    return (
        data + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries) + bytes(4)
    )


def test_strips_and_tiles_larger_than_the_picture_are_refused():
    file = io.BytesIO()
    Image.new("L", (2000, 2000)).save(file, "JPEG")
    strip = file.getvalue()
    for tags, reason in [
        ({259: 7, 273: 8, 278: 4, 279: len(strip)}, "larger than the picture"),
        ({259: 1, 322: 1 << 20, 323: 1 << 20, 324: 8, 325: len(strip)}, "over the limit"),
        ({259: 50001, 273: 8, 278: 4, 279: len(strip)}, "WEBP compression is not supported"),
    ]:
        with pytest.raises(DataError, match=reason):
            read_picture(tiff_page(strip, tags))


@pytest.mark.parametrize("extra", [1, 2])
def test_an_alpha_that_is_declared_but_missing_is_ignored(extra):
    strip = bytes(range(16))
    got = read_picture(tiff_page(strip, {259: 1, 273: 8, 278: 4, 279: 16, 338: extra}))
    assert got.alpha is None
    assert got.pixels[..., 0].tobytes() == strip


def test_descriptions_of_a_page_survive_in_classic_and_big_tiffs():
    for bigtiff in (False, True):
        data = tiff_bytes(ramp(), photometric="rgb", bigtiff=bigtiff, resolution=(300, 200))
        exif = Image.Exif()
        exif.load(read_picture(data).metadata.exif)
        assert (exif[282], exif[283]) == (300, 200)


def test_every_tag_that_describes_a_tiff_is_kept():
    texts = {270: "rain", 271: "maker", 272: "model", 305: "program", 306: "2024:01:01 00:00:00",
             315: "artist", 33432: "rights"}  # fmt: skip
    tags = [(tag, "s", 0, text, True) for tag, text in texts.items()]
    data = tiff_bytes(ramp(), photometric="rgb", metadata=None, software=False, extratags=tags)
    exif = Image.Exif()
    exif.load(read_picture(data).metadata.exif)
    assert {tag: exif.get(tag) for tag in texts} == texts


def test_damaged_files_write_nothing_to_standard_error(capfd):
    whole = tiff_bytes(ramp(40, 40, dtype=np.uint8), photometric="rgb", compression="lzw")
    for at in range(0, len(whole), 97):
        damaged = whole[:at] + bytes([whole[at] ^ 0xA5]) + whole[at + 1 :]
        with contextlib.suppress(DataError):
            read_picture(damaged)
    assert capfd.readouterr() == ("", "")


def test_lzw_codes_that_were_not_defined_are_found_before_they_are_decoded():
    """Given the output size, imagecodecs follows them beyond its table: this stream crashed it."""
    codes = bytes.fromhex("807f20503824160d0784426150b864361d0f8844625138a456")
    data = tiff_bytes(ramp(40, 40, dtype=np.uint8), photometric="rgb", compression="lzw")
    at = data.index(imagecodecs.lzw_encode(ramp(40, 40, dtype=np.uint8).tobytes())[:24])
    with pytest.raises(DataError, match="LZW codes are damaged"):
        read_picture(data[:at] + codes + data[at + len(codes) :])


def test_lzw_with_its_low_bits_first_is_read():
    image = Image.fromarray(ramp(dtype=np.uint8))
    data = encoded(image, "TIFF", compression="tiff_lzw", tiffinfo={266: 2})
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        assert tiff.pages[0].fillorder == 2
    np.testing.assert_array_equal(read_picture(data).pixels, ramp(dtype=np.uint8))


@pytest.mark.parametrize(
    ("height", "sides"),
    [
        (64, {"rowsperstrip": 32}),
        (50, {"rowsperstrip": 32}),
        (64, {"tile": (32, 48)}),
        (32, {"planarconfig": "separate"}),
    ],
)
def test_lzw_with_invalid_codes_after_the_last_pixel_is_read(height, sides):
    """Some programs end a stream wrongly."""
    values = ramp(height, 48, dtype=np.uint8)
    halves = values[:32], values[32:]
    if "planarconfig" in sides:
        values = halves = np.moveaxis(values, 2, 0)
    parts = [imagecodecs.lzw_encode(half.tobytes() + bytes(99)) for half in halves]
    parts = [part[:-3] + b"\xff" * 6 for part in parts]
    with pytest.raises(RuntimeError, match="CORRUPT"):
        imagecodecs.lzw_decode(parts[0])
    about = {"shape": values.shape, "dtype": np.uint8, "compression": "lzw", **sides}
    data = tiff_bytes(iter(parts), photometric="rgb", **about)
    np.testing.assert_array_equal(read_picture(data).pixels, ramp(height, 48, dtype=np.uint8))


def test_lzw_codes_of_every_plane_and_strip_are_checked():
    planes = np.moveaxis(ramp(50, 48, dtype=np.uint8), 2, 0)
    parts = [
        imagecodecs.lzw_encode(half.tobytes()) for one in planes for half in (one[:32], one[32:])
    ]
    about = {"shape": planes.shape, "dtype": np.uint8, "compression": "lzw", "rowsperstrip": 32}
    for damaged in range(6):
        wrong = [*parts]
        wrong[damaged] = parts[damaged][:-20] + b"\xff" * 20
        data = tiff_bytes(iter(wrong), photometric="rgb", planarconfig="separate", **about)
        with pytest.raises(DataError, match="LZW codes are damaged"):
            read_picture(data)


def lzw_page(strip, start, **tags):
    """The tags of a grey picture of 64 x 36 px in one strip or tile."""
    values = {256: 64, 257: 36, 258: 8, 259: 5, 262: 1, 277: 1, 278: 36, 273: start}
    values |= {279: len(strip)} | {int(tag[1:]): value for tag, value in tags.items()}
    return sorted(values.items())


def test_a_tile_of_negative_depth_is_refused():
    """The decoder is then asked for all bytes, whatever codes they have."""
    strip = imagecodecs.lzw_encode(bytes(64 * 36))[:-2] + b"\xff" * 20
    about = {"t322": 64, "t323": 36, "t324": 8, "t325": len(strip)}
    for depth, says in ((-1, "64 x -36 px"), (0, "64 x 0 px"), (1 << 20, "over the limit")):
        tags = lzw_page(strip, 8, **about, t32998=depth)
        entries = b"".join(struct.pack("<HHIi", tag, 9, 1, value) for tag, value in tags)
        head = struct.pack("<2sHI", b"II", 42, 8 + len(strip))
        data = head + strip + struct.pack("<H", len(tags)) + entries + bytes(4)
        with pytest.raises(DataError, match=says):
            read_picture(data)


@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
def test_a_tiff_without_one_of_its_strips_is_refused(compression):
    """tifffile filled it with black, and read the strip behind an empty one from its place."""
    values = ramp(108, 64, 1, np.uint8)
    about = {"photometric": "minisblack", "rowsperstrip": 36, "compression": compression}
    data = tiff_bytes(values[..., 0], **about)
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        sizes = tiff.pages[0].databytecounts
    whole, tag = struct.pack("<3H", *sizes), struct.pack("<HHI", 279, 3, 3)
    assert data.count(whole) == data.count(tag) == 1
    np.testing.assert_array_equal(read_picture(data).pixels[..., :1], values)
    at = data.index(tag)
    listed = struct.pack("<HHI2H", 279, 3, 2, *sizes[:2])
    for damaged in (
        data.replace(whole, struct.pack("<3H", sizes[0], 0, sizes[2])),
        data.replace(whole, bytes(6)),
        data[:at] + listed + data[at + len(listed) :],
    ):
        with pytest.raises(DataError, match="a part of the picture is missing"):
            read_picture(damaged)


def test_parts_that_are_not_stored_because_they_are_empty_are_black():
    """Programs for maps leave such tiles out."""
    tiles = iter([ramp(16, 16, 1, np.uint8), None])
    about = {"shape": (16, 32), "dtype": np.uint8, "tile": (16, 16), "compression": "zlib"}
    pixels = read_picture(tiff_bytes(tiles, photometric="minisblack", **about)).pixels
    np.testing.assert_array_equal(pixels[:, :16, :1], ramp(16, 16, 1, np.uint8))
    assert not pixels[:, 16:].any()


@pytest.mark.parametrize("bits", [1, 4, 12])
def test_lzw_codes_after_the_last_pixel_of_few_bits_are_checked(bits):
    """The decoder is asked for more bytes than these pixels have, and followed such codes."""
    packed = ramp(64, 8 * bits, 1, np.uint8).tobytes()
    whole = imagecodecs.lzw_encode(packed)
    for strip in (whole, whole[:-2] + b"\xff" * 6):
        tags = {256: 64, 257: 64, 258: bits, 259: 5, 262: 1, 277: 1, 278: 64, 279: len(strip)}
        entries = {tag: (4, 1, struct.pack("<I", number)) for tag, number in tags.items()}
        start = len(exif_block({**entries, 273: (4, 1, bytes(4))}))
        data = exif_block({**entries, 273: (4, 1, struct.pack("<I", start))}) + strip
        if strip is whole:
            assert read_picture(data).pixels.shape == (64, 64, 3)
        else:
            with pytest.raises(DataError, match="LZW codes are damaged"):
                read_picture(data)
