"""Less common image files: palettes, CMYK, animations, PNG chunks."""

from __future__ import annotations

import io
import struct
import tracemalloc
import warnings
import zlib
from threading import Thread

import numpy as np
import pytest
from PIL import GifImagePlugin, Image, ImageCms, ImageFile

from c2fdft_cli.data.images.picture import (
    Picture,
    frame_count,
    image_size,
    read_picture,
    write_picture,
)
from c2fdft_cli.data.images.pillow import quiet_pillow
from c2fdft_cli.data.images.png import read_chunks
from c2fdft_cli.errors import DataError
from tests.kit.images import SRGB_PROFILE, encoded, ramp, tiff_bytes


def chunk(kind, payload):
    check = zlib.crc32(kind + payload)
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", check)


def with_chunk(data, kind, payload):
    """Return a PNG with an additional chunk before its pixels."""
    at = data.index(b"IDAT") - 4
    return data[:at] + chunk(kind, payload) + data[at:]


def test_one_bit_becomes_grey():
    image = Image.fromarray(ramp(channels=1, dtype=np.uint8)[..., 0] > 90)
    got = read_picture(encoded(image, "PNG"))
    assert got.grey
    assert set(np.unique(got.pixels)) == {0, 255}


def test_grey_with_alpha_is_kept():
    values = ramp(channels=2, dtype=np.uint8)
    got = read_picture(encoded(Image.fromarray(values), "PNG"))
    assert got.grey
    np.testing.assert_array_equal(got.pixels[..., 1], values[..., 0])
    np.testing.assert_array_equal(got.alpha, values[..., 1])


def test_a_palette_with_a_transparent_colour_becomes_alpha():
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    got = read_picture(encoded(image, "PNG", transparency=1))
    assert got.pixels.tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]
    assert got.alpha.tolist() == [[255, 0, 255]]
    assert not got.grey
    opacities = read_picture(encoded(image, "PNG", transparency=bytes([9, 8, 7])))
    assert opacities.alpha.tolist() == [[9, 8, 7]]
    assert read_picture(encoded(image, "PNG")).alpha is None


def test_a_palette_of_greys_is_grey():
    image = Image.new("P", (2, 1))
    image.putpalette([9, 9, 9, 200, 200, 200])
    image.putdata([0, 1])
    got = read_picture(encoded(image, "PNG"))
    assert got.grey
    assert got.pixels[..., 2].tolist() == [[9, 200]]


def test_a_palette_whose_channels_differ_only_in_green_is_colour():
    image = Image.new("P", (1, 1))
    image.putpalette([9, 200, 9])
    got = read_picture(encoded(image, "PNG"))
    assert not got.grey
    assert got.pixels[0, 0].tolist() == [9, 200, 9]


def test_the_merged_picture_of_a_layered_psd_is_read():
    head = struct.pack(">4sH6xHIIHH", b"8BPS", 1, 3, 1, 2, 8, 3)  # 3 channels of 8 bits, RGB, 2 x 1
    layer = struct.pack(">4i", 0, 0, 1, 1) + struct.pack(">H", 3)  # top, left, bottom, right
    layer += b"".join(struct.pack(">HI", channel, 3) for channel in range(3))
    layer += b"8BIMnorm" + bytes([255, 0, 0, 0]) + struct.pack(">I", 12) + bytes(12)
    layers = struct.pack(">H", 1) + layer + b"\0\0\x63" * 3  # uncompressed
    layers += bytes(len(layers) % 2)
    section = struct.pack(">I", len(layers)) + layers + bytes(4)
    merged = struct.pack(">H", 0) + bytes([1, 2, 3, 4, 5, 6])  # uncompressed, plane by plane
    data = head + bytes(8) + struct.pack(">I", len(section)) + section + merged
    assert read_picture(data).pixels.tolist() == [[[1, 3, 5], [2, 4, 6]]]


@pytest.mark.parametrize(("width", "height"), [(0, 1), (1, 0)])
def test_a_picture_without_pixels_is_refused(width, height):
    with pytest.raises(DataError, match=f"a picture of {width} x {height} px"):
        read_picture(b"P6 %d %d 255 " % (width, height))


def test_cmyk_is_converted_with_and_without_a_profile():
    image = Image.new("CMYK", (4, 4), (0, 255, 255, 0))
    plain = read_picture(encoded(image, "JPEG", quality=100))
    assert plain.pixels[0, 0, 0] > 200
    assert plain.pixels[0, 0, 1:].max() < 60
    for wrong in (SRGB_PROFILE, b"no profile at all"):
        got = read_picture(encoded(image, "TIFF", icc_profile=wrong))
        assert got.pixels[0, 0].tolist() == [255, 0, 0]
        assert got.metadata.icc is None


def test_a_usable_cmyk_profile_determines_the_colours(monkeypatch):
    seen = []

    def convert(image, source, target, outputMode):
        seen.append((image.mode, source, outputMode))
        return Image.new("RGB", image.size, (1, 2, 3))

    monkeypatch.setattr(ImageCms, "profileToProfile", convert)
    got = read_picture(encoded(Image.new("CMYK", (2, 2)), "TIFF", icc_profile=SRGB_PROFILE))
    assert got.pixels[0, 0].tolist() == [1, 2, 3]
    assert got.metadata.icc is None
    assert [(mode, output) for mode, _, output in seen] == [("CMYK", "RGB")]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_frames_of_an_animation_are_read(tmp_path, kind):
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    frames = [Image.new("RGB", (8, 4), colour) for colour in colours]
    more = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **more)
    (tmp_path / "a").write_bytes(data)
    assert frame_count(tmp_path / "a") == 3
    assert image_size(tmp_path / "a") == (4, 8)
    assert read_picture(data).pixels[0, 0].tolist() == [200, 0, 0]
    for number, colour in enumerate(colours):
        assert read_picture(data, frame=number).pixels[3, 7].tolist() == list(colour)
    with pytest.raises(DataError, match=r"3 frames.* no frame 3"):
        read_picture(data, frame=3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pages_of_a_tiff_are_read(tmp_path, dtype):
    pages = np.stack([ramp(dtype=dtype), ramp(dtype=dtype)[::-1], ramp(dtype=dtype)[:, ::-1]])
    data = tiff_bytes(pages, photometric="rgb")
    (tmp_path / "a.tif").write_bytes(data)
    assert frame_count(tmp_path / "a.tif") == 3
    for number, page in enumerate(pages):
        np.testing.assert_array_equal(read_picture(data, frame=number).pixels, page)
    with pytest.raises(DataError, match=r"3 frames.* no frame 7"):
        read_picture(data, frame=7)


@pytest.mark.parametrize("kind", ["GIF", "MPO"])
def test_a_later_frame_that_is_too_large_is_refused_before_it_is_decoded(kind, monkeypatch):
    sides = (8, 8, 8) if kind == "GIF" else (8, 16, 8)
    frames = [Image.new("RGB", (side, side), colour) for side, colour in
              zip(sides, ("red", "green", "blue"), strict=True)]  # fmt: skip
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=9)
    if kind == "GIF":
        images = [at for at in range(len(data)) if data[at : at + 5] == b",\0\0\0\0"]
        for at in images[1:]:
            data = data[: at + 5] + struct.pack("<HH", 60000, 60000) + data[at + 9 :]
    monkeypatch.setattr("c2fdft_cli.data.images.samples.MAX_PIXELS", 100)
    assert read_picture(data).pixels.shape == (8, 8, 3)
    with pytest.raises(DataError, match="over the limit"):
        read_picture(data, frame=1)


def test_a_jpeg_with_a_preview_is_one_picture_and_a_stereo_jpeg_two(tmp_path):
    image = Image.fromarray(np.tile(ramp(dtype=np.uint8), (8, 8, 1)))
    preview = image.resize((9, 6))
    data = encoded(image, "MPO", save_all=True, append_images=[preview])
    for name, frames in (("a.jpg", 1), ("a.mpo", 2)):
        (tmp_path / name).write_bytes(data)
        assert frame_count(tmp_path / name) == frames
        assert read_picture(tmp_path / name).pixels.shape == (48, 72, 3)
    assert read_picture(tmp_path / "a.mpo", frame=1).pixels.shape == (6, 9, 3)


def test_a_still_picture_has_one_frame(tmp_path):
    for suffix in (".png", ".jpg", ".tif", ".bmp", ".webp"):
        path = tmp_path / f"a{suffix}"
        write_picture(path, Picture(ramp(dtype=np.uint8)))
        assert frame_count(path) == 1
        with pytest.raises(DataError, match="there is no"):
            read_picture(path, frame=1)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_transparent_value_of_a_16_bit_png_becomes_alpha(tmp_path, channels):
    values = ramp(channels=channels)
    pixels = np.ascontiguousarray(np.broadcast_to(values, (*values.shape[:2], 3)))
    write_picture(tmp_path / "a.png", Picture(pixels, grey=channels == 1))
    key = values[2, 3].astype(">u2").tobytes()
    got = read_picture(with_chunk((tmp_path / "a.png").read_bytes(), b"tRNS", key))
    assert got.grey == (channels == 1)
    assert got.alpha[2, 3] == 0
    assert got.alpha.dtype == np.uint16
    assert (got.alpha == 65535).sum() == got.alpha.size - 1
    np.testing.assert_array_equal(got.pixels, pixels)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_the_transparent_value_of_a_grey_png_with_few_bits_becomes_alpha(depth):
    row, width = 0b00011011, 8 // depth
    data = b"\x89PNG\r\n\x1a\n"
    data += chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, 0, 0, 0, 0))
    data += chunk(b"tRNS", b"\0\1") + chunk(b"IDAT", zlib.compress(bytes([0, row])))
    data += chunk(b"IEND", b"")
    values = [row >> 8 - depth * (i + 1) & 2**depth - 1 for i in range(width)]
    got = read_picture(data)
    assert got.pixels[0, :, 0].tolist() == [value * 255 // (2**depth - 1) for value in values]
    assert got.alpha[0].tolist() == [0 if value == 1 else 255 for value in values]


@pytest.mark.parametrize("kind", [b"zTXt", b"tEXt"])
def test_exif_as_hexadecimal_text_in_an_old_png_is_read(tmp_path, kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    block = exif.tobytes()
    text = f"\nexif\n{len(block):8d}\n{block.hex()}\n".encode()
    payload = b"\0" + zlib.compress(text) if kind == b"zTXt" else text
    data = encoded(Image.fromarray(ramp(dtype=np.uint8)), "PNG")
    data = with_chunk(data, kind, b"Raw profile type exif\0" + payload)
    data = with_chunk(data, kind, b"Comment\0other text")
    (tmp_path / "a.png").write_bytes(data)
    assert image_size(tmp_path / "a.png") == (9, 6)
    assert read_picture(data).pixels.shape == (9, 6, 3)


@pytest.mark.parametrize("text", [b"", b"\nexif\n", b"\nexif\n 4\nzz", b"\xff\xfe x y"])
def test_damaged_hexadecimal_exif_is_dropped(text):
    data = encoded(Image.fromarray(ramp(dtype=np.uint8)), "PNG")
    for kind, payload in (
        (b"zTXt", b"\0" + zlib.compress(text)),
        (b"zTXt", b"\0x"),
        (b"tEXt", text),
    ):
        got = read_picture(with_chunk(data, kind, b"Raw profile type exif\0" + payload))
        assert got.metadata.exif is None
        np.testing.assert_array_equal(got.pixels, ramp(dtype=np.uint8))


def test_colours_without_a_profile_and_the_resolution_of_a_png_survive(tmp_path):
    data = encoded(Image.fromarray(ramp(dtype=np.uint8)), "PNG")
    kept = {b"cICP": bytes([9, 16, 0, 1]), b"gAMA": struct.pack(">I", 100000)}
    kept |= {b"cHRM": bytes(range(32)), b"pHYs": struct.pack(">IIB", 300, 200, 1)}
    for kind, payload in kept.items():
        data = with_chunk(data, kind, payload)
    data = with_chunk(data, b"sRGB", b"too long")
    write_picture(tmp_path / "a.png", read_picture(data))
    written = (tmp_path / "a.png").read_bytes()
    assert all(chunk(kind, payload) in written for kind, payload in kept.items())
    assert b"sRGB" not in written
    exif = Image.Exif()
    exif[0x0112] = 6
    write_picture(tmp_path / "a.png", read_picture(with_chunk(data, b"eXIf", exif.tobytes()[6:])))
    assert chunk(b"pHYs", struct.pack(">IIB", 200, 300, 1)) in (tmp_path / "a.png").read_bytes()
    write_picture(tmp_path / "a.jpg", read_picture(data))
    assert read_picture(tmp_path / "a.jpg").metadata.png_chunks == b""


def test_the_shape_of_pixels_is_no_resolution():
    data = encoded(Image.fromarray(ramp(dtype=np.uint8)), "PNG")
    for unit, density in ((0, None), (1, pytest.approx((7.62, 5.08)))):
        found = read_picture(with_chunk(data, b"pHYs", struct.pack(">IIB", 300, 200, unit)))
        assert found.metadata.density == density


def test_exif_after_the_pixels_of_a_png_is_read(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    block = exif.tobytes().removeprefix(b"Exif\0\0")
    data = encoded(Image.fromarray(ramp(dtype=np.uint8)), "PNG")
    chunk = with_chunk(data, b"eXIf", block)
    late = data[:-12] + chunk[chunk.index(b"eXIf") - 4 :][: len(block) + 12] + data[-12:]
    (tmp_path / "a.png").write_bytes(late)
    assert image_size(tmp_path / "a.png") == (9, 6)
    assert read_picture(tmp_path / "a.png").pixels.shape == (9, 6, 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_flipped_bit_in_a_png_is_noticed(tmp_path, dtype):
    write_picture(tmp_path / "a.png", Picture(ramp(dtype=dtype)))
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[data.index(b"IDAT") + 9] ^= 4
    with pytest.raises(DataError, match="PNG data are damaged"):
        read_picture(bytes(data))


def test_a_damaged_or_huge_profile_is_dropped(tmp_path):
    write_picture(tmp_path / "a.png", Picture(ramp(dtype=np.uint8)))
    data = (tmp_path / "a.png").read_bytes()
    bomb = b"bomb\0\0" + zlib.compress(bytes(64 << 20))
    for payload in (b"", b"name", b"name\0\0garbage", bomb):
        got = read_picture(with_chunk(data, b"iCCP", payload))
        assert got.metadata.icc is None
        np.testing.assert_array_equal(got.pixels, ramp(dtype=np.uint8))


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt"])
def test_texts_that_unpack_to_gigabytes_in_total_are_dropped(kind):
    """Each is below the limit for one text; 650 kB of them would take 600 MiB."""
    packed = zlib.compress(b"a" * (15 << 20))
    payload = b"bomb\0" + (b"\1\0\0\0" if kind == b"iTXt" else b"\0") + packed
    data = encoded(Image.fromarray(ramp(dtype=np.uint8)), "PNG")
    data = with_chunk(data, b"tEXt", b"Author\0A. Painter")
    for _ in range(20):
        data = with_chunk(data, kind, payload)
    tracemalloc.start()
    try:
        got = read_picture(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100 << 20
    assert sum(len(text) for _, text in got.metadata.texts) <= 16 << 20
    np.testing.assert_array_equal(got.pixels, ramp(dtype=np.uint8))


def test_chunks_of_unknown_kinds_are_not_kept():
    data = encoded(Image.fromarray(ramp(dtype=np.uint8)), "PNG")
    for number in range(50):
        data = with_chunk(data, b"ab" + bytes([97 + number // 26, 97 + number % 26]), b"")
    kept = read_chunks(io.BytesIO(data)).first
    assert not [kind for kind in kept if kind.startswith(b"ab")]


def test_the_thumbnail_in_the_exif_block_is_unlinked():
    tags = struct.pack("<HHHII", 1, 0x0112, 3, 1, 3)
    block = b"II*\0\x08\0\0\0" + tags + struct.pack("<I", 26) + tags + struct.pack("<I", 0)
    image = Image.fromarray(ramp(dtype=np.uint8))
    got = read_picture(encoded(image, "JPEG", exif=b"Exif\0\0" + block))
    assert struct.unpack_from("<I", got.metadata.exif, 22)[0] == 0
    assert struct.unpack_from("<H", got.metadata.exif, 18)[0] == 1
    assert len(got.metadata.exif) == len(block)


def outcome(data):
    try:
        return f"{read_picture(data).bit_depth} bit"
    except DataError as error:
        return str(error)


def test_any_cut_or_flipped_byte_is_read_or_refused(tmp_path, monkeypatch):
    """A sweep over small files: each reads, or is refused as bad data."""
    monkeypatch.setattr("c2fdft_cli.data.images.samples.MAX_PIXELS", 1 << 16)
    for suffix, dtype in [(".png", np.uint16), (".tif", np.uint16), (".jpg", np.uint8)]:
        write_picture(tmp_path / f"a{suffix}", Picture(ramp(dtype=dtype)))
        data = (tmp_path / f"a{suffix}").read_bytes()
        for at in range(0, len(data), 7):
            flipped = data[:at] + bytes([data[at] ^ 0xA5]) + data[at + 1 :]
            for hostile in (flipped, data[:at]):
                assert "\n" not in outcome(hostile)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("rest", [b"", b"\xee" * 300])
def test_a_damaged_header_is_reported_as_such(kind, rest):
    """The message is not that of a library that is tried before Pillow."""
    data = encoded(Image.fromarray(ramp(40, 40, dtype=np.uint8)), kind)
    with pytest.raises(DataError, match=r"^cannot read the image: its header is damaged"):
        read_picture(data[:18] + rest)


def test_only_a_damaged_exif_block_of_a_webp_is_dropped():
    image = Image.fromarray(ramp(dtype=np.uint8))
    damaged = b"Exif\0\0no TIFF structure"
    data = encoded(image, "WEBP", lossless=True, exif=damaged, icc_profile=SRGB_PROFILE)
    found = read_picture(data)
    np.testing.assert_array_equal(found.pixels, ramp(dtype=np.uint8))
    assert (found.metadata.exif, found.metadata.icc) == (None, SRGB_PROFILE)


def test_other_threads_keep_pillows_limit_and_their_warnings(monkeypatch):
    """A service may limit uploads, and open them while files are restored in another thread."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    upload = encoded(Image.fromarray(ramp(40, 40, dtype=np.uint8)), "PNG")
    filters = list(warnings.filters)
    found = []

    def open_upload() -> None:
        try:
            Image.open(io.BytesIO(upload))
        except Image.DecompressionBombError as error:
            found.append(error)
        found.append(list(warnings.filters))

    with quiet_pillow():
        thread = Thread(target=open_upload)
        thread.start()
        thread.join()
        assert Image.open(io.BytesIO(upload)).size == (40, 40)
    assert [type(found[0]), found[1]] == [Image.DecompressionBombError, filters]
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(upload))


@pytest.mark.parametrize("kind", ["QOI", "AVIF", "GIF", "WEBP"])
def test_several_threads_decode_at_once(kind):
    data = encoded(Image.fromarray(ramp(40, 40, dtype=np.uint8)), kind)
    found = []
    thread = Thread(target=lambda: found.append(read_picture(data)), daemon=True)
    with quiet_pillow():
        thread.start()
        thread.join(10)
        assert found


def test_pillows_settings_change_no_result_and_are_not_changed(monkeypatch):
    """Programs and other libraries change them, some when they are imported."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    strategy = GifImagePlugin.LoadingStrategy.RGB_ALWAYS
    monkeypatch.setattr(GifImagePlugin, "LOADING_STRATEGY", strategy)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for kind in ("JPEG", "BMP"):
        data = encoded(Image.fromarray(noise), kind)
        read_picture(data)
        with pytest.raises(DataError, match="truncated"):
            read_picture(data[: len(data) * 3 // 4])
    grey = Image.fromarray(ramp(channels=1, dtype=np.uint8)[..., 0])
    assert read_picture(encoded(grey, "GIF")).grey
    assert ImageFile.LOAD_TRUNCATED_IMAGES
    assert Image.MAX_IMAGE_PIXELS == 1
    assert strategy == GifImagePlugin.LOADING_STRATEGY
