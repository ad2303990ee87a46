"""PNG: written files (other readers, filters and size), and animations."""

from __future__ import annotations

import io
import struct
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from c2fdft_cli.data.images import png
from c2fdft_cli.data.images.formats import Unreadable
from c2fdft_cli.data.images.metadata import NO_METADATA
from c2fdft_cli.data.images.picture import frame_count
from tests.kit.images import ramp


def by_pillow(data: bytes) -> np.ndarray[Any, Any]:
    """The samples as Pillow reads them, checking checksums; it supports 16 bits only in grey."""
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (33, 7), (70, 50)])
def test_other_readers_read_the_same_samples(
    size: tuple[int, int], dtype: Any, channels: int
) -> None:
    samples = ramp(*size, channels, dtype)
    data = png.encode_png(samples, NO_METADATA)
    assert np.array_equal(imagecodecs.png_decode(data).reshape(samples.shape), samples)
    if dtype == np.uint8:
        assert np.array_equal(by_pillow(data).reshape(samples.shape), samples)
    elif channels == 1:
        assert np.array_equal(by_pillow(data), samples[..., 0])


def test_pixels_too_long_for_one_chunk_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = ramp(30, 40, 3, np.uint8)
    whole = png.encode_png(samples, NO_METADATA)
    monkeypatch.setattr(png, "_IDAT_BYTES", 100)
    parts = png.encode_png(samples, NO_METADATA)
    assert (whole.count(b"IDAT"), parts.count(b"IDAT")) == (1, (len(whole) - 57) // 100 + 1)
    assert np.array_equal(by_pillow(parts), samples)


def test_a_wrong_byte_is_noticed() -> None:
    data = bytearray(png.encode_png(ramp(30, 40, 3, np.uint8), NO_METADATA))
    data[len(data) // 2] ^= 1
    with pytest.raises((OSError, SyntaxError)):
        by_pillow(bytes(data))


def test_each_row_has_the_filter_that_suits_it() -> None:
    noise = np.random.default_rng(0).integers(0, 256, 100, np.uint8)
    columns = np.broadcast_to(noise, (80, 100))[..., None]
    assert (png._filtered(columns)[1:, 0] == 2).all()
    rows = np.ascontiguousarray(columns[:, :80].transpose(1, 0, 2))
    assert (png._filtered(rows)[:, 0] == 1).all()


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea", "rocket"])
def test_photographs_stay_within_a_tenth_of_a_slow_encoder(name: str) -> None:
    photo = getattr(pytest.importorskip("skimage.data"), name)()
    slow = imagecodecs.png_encode(
        photo,
        level=imagecodecs.PNG.COMPRESSION.SPEED,
        strategy=imagecodecs.PNG.STRATEGY.RLE,
        filter=imagecodecs.PNG.FILTER.PAETH,
    )
    assert len(png.encode_png(photo, NO_METADATA)) < 1.1 * len(slow)


RED, BLUE, GREEN = (255, 0, 0, 255), (0, 0, 255, 128), (0, 255, 0, 255)
LIGHT, NOTHING = (0, 255, 0, 128), (0, 0, 0, 0)
KEEP, CLEAR, REVERT = 0, 1, 2


class Frame(NamedTuple):
    """A frame of one colour, its region (left, top, width, height), its disposal and blending."""

    colour: tuple[int, ...]
    region: tuple[int, int, int, int] = (0, 0, 6, 4)
    disposal: int = KEEP
    over: bool = False


def animated(frames: list[Frame], dtype: Any = np.uint8, hidden: bool = False) -> bytes:
    """An animation; `hidden` puts a green picture before it that is not part of it."""
    whole = np.iinfo(dtype).max // 255

    def pixels(colour: tuple[int, ...], width: int, height: int) -> bytes:
        still = png.encode_png(
            np.full((height, width, len(colour)), colour, dtype) * whole, NO_METADATA
        )
        return b"".join(part for kind, part in png._all_chunks(still) if kind == b"IDAT")

    sort = {1: 0, 2: 4, 3: 2, 4: 6}[len(frames[0].colour)]
    header = struct.pack(">IIBB3x", 6, 4, 8 * np.dtype(dtype).itemsize, sort)
    chunks = [
        png.png_chunk(b"IHDR", header),
        png.png_chunk(b"acTL", struct.pack(">II", len(frames), 0)),
    ]
    if hidden:
        chunks.append(png.png_chunk(b"IDAT", pixels(GREEN[: len(frames[0].colour)], 6, 4)))
    for number, (colour, (left, top, width, height), disposal, over) in enumerate(frames):
        place = (number, width, height, left, top, 1, 10, disposal, over)
        chunks.append(png.png_chunk(b"fcTL", struct.pack(">5I2H2B", *place)))
        data = pixels(colour, width, height)
        if number == 0 and not hidden:
            chunks.append(png.png_chunk(b"IDAT", data))
        else:
            chunks.append(png.png_chunk(b"fdAT", struct.pack(">I", number) + data))
    return b"".join([b"\x89PNG\r\n\x1a\n", *chunks, png.png_chunk(b"IEND", b"")])


def rgba(data: bytes, frame: int) -> Any:
    samples = png.decode_png(data, frame).samples
    assert samples.shape == (4, 6, 4)
    return samples


INNER = (1, 1, 3, 2)


@pytest.mark.parametrize(
    ("frames", "inside", "outside"),
    [
        ([Frame(RED), Frame(GREEN, INNER)], GREEN, RED),
        ([Frame(RED), Frame(BLUE, INNER)], BLUE, RED),
        # half of blue over opaque red is opaque
        ([Frame(RED), Frame(BLUE, INNER, over=True)], (127, 0, 128, 255), RED),
        # over nothing its colour and its alpha stay
        ([Frame(NOTHING), Frame(BLUE, INNER, over=True)], BLUE, NOTHING),
        ([Frame(BLUE), Frame(NOTHING, INNER, over=True)], BLUE, BLUE),
        # alpha 1 - (1 - 128/255)^2, the colour between both
        ([Frame(LIGHT), Frame(BLUE, INNER, over=True)], (0, 85, 170, 192), LIGHT),
        ([Frame(RED), Frame(GREEN, INNER, CLEAR), Frame(GREEN, (5, 3, 1, 1))], NOTHING, RED),
        ([Frame(RED), Frame(GREEN, INNER, REVERT), Frame(GREEN, (5, 3, 1, 1))], RED, RED),
        ([Frame(RED), Frame(BLUE, INNER, REVERT, over=True), Frame(GREEN, (5, 3, 1, 1))], RED, RED),
        # before the first frame there was nothing
        ([Frame(RED, disposal=REVERT), Frame(GREEN, INNER)], GREEN, NOTHING),
        ([Frame(RED, disposal=CLEAR), Frame(GREEN, INNER)], GREEN, NOTHING),
    ],
)  # fmt: skip
@pytest.mark.parametrize("hidden", [False, True])
def test_frames_are_drawn_as_the_standard_says(
    frames: list[Frame], inside: Any, outside: Any, hidden: bool
) -> None:
    data = animated(frames, hidden=hidden)
    expected = np.full((4, 6, 4), outside)
    expected[1:3, 1:4] = inside
    if len(frames) == 3:
        expected[3, 5] = GREEN
    last = len(frames) - 1 + hidden
    np.testing.assert_array_equal(rgba(data, last), expected)
    # whatever was decoded before
    animation = png.Animation(data)
    for number in (last, hidden, last):
        animation.decode(number)
    np.testing.assert_array_equal(animation.decode(last), expected)


def test_a_picture_before_the_animation_is_its_first_frame() -> None:
    data = animated([Frame(RED), Frame(BLUE)], hidden=True)
    assert [tuple(rgba(data, number)[0, 0]) for number in range(3)] == [GREEN, RED, BLUE]
    assert frame_count(data) == 3


def test_animations_of_16_bits_are_decoded() -> None:
    samples = rgba(animated([Frame(RED), Frame(BLUE, over=True)], np.uint16), 1)
    # 128 * 257 of 65535 is half of it and a quarter of a step of 8 bits
    assert samples.dtype == np.uint16
    assert tuple(samples[0, 0]) == (32639, 0, 32896, 65535)


def test_frames_have_the_channels_of_the_file() -> None:
    frames = [Frame((200,)), Frame((10,), INNER)]
    assert png.decode_png(animated(frames), 1).samples.shape == (4, 6, 1)
    cleared = [Frame((200,), disposal=CLEAR), Frame((10,), INNER)]
    grey = png.decode_png(animated(cleared), 1).samples  # what was cleared is transparent
    assert (tuple(grey[0, 0]), tuple(grey[1, 1])) == ((0, 0), (10, 255))
    opaque = [Frame((1, 2, 3, 255)), Frame((4, 5, 6, 255))]
    assert png.decode_png(animated(opaque), 1).samples.shape == (4, 6, 4)


@pytest.mark.parametrize("region", [(4, 1, 3, 2), (1, 3, 3, 2), (7, 0, 1, 1), (0, 0, 1 << 30, 1)])
def test_a_frame_outside_of_the_picture_is_refused(region: tuple[int, int, int, int]) -> None:
    data = animated([Frame(RED), Frame(BLUE, (0, 0, 1, 1))])
    wrong = data.replace(
        struct.pack(">5I", 1, 1, 1, 0, 0), struct.pack(">5I", 1, *region[2:], *region[:2])
    )
    with pytest.raises(Unreadable, match="does not lie inside the picture"):
        rgba(with_checks(wrong), 1)


def with_checks(data: bytes) -> bytes:
    """Make the checksums right again."""
    at, chunks = 8, [data[:8]]
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        chunks.append(png.png_chunk(kind, data[at + 8 : at + 8 + length]))
        at += length + 12
    return b"".join(chunks)


def test_a_damaged_animation_is_refused() -> None:
    data = animated([Frame(RED), Frame(BLUE)])
    for wrong, match in (
        (data[:-20], "truncated"),
        (data[:-20] + bytes([data[-20] ^ 1]) + data[-19:], "a chunk is damaged"),
    ):
        with pytest.raises(ValueError, match=match):
            png.Animation(wrong)
    with pytest.raises(Unreadable, match="it has 2 frames"):
        rgba(data, 2)


def test_whether_it_is_animated_is_read_before_the_pixels() -> None:
    """Some programs divide the pixels into thousands of chunks."""
    for data, is_animated in (
        (png.encode_png(ramp(8, 8, 3, np.uint8), NO_METADATA), False),
        (animated([Frame(RED), Frame(BLUE)]), True),
    ):
        file = io.BytesIO(data)
        assert png.is_animated(file) == is_animated
        assert file.tell() <= len(data) - len(png.png_chunk(b"IEND", b""))
