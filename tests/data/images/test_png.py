"""Written PNG files: other readers, filters and size."""

from __future__ import annotations

import io
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from c2fdft_cli.data.images import png
from c2fdft_cli.data.images.metadata import NO_METADATA
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
