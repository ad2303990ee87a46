"""Pictures to tensors and back: exact at 8 and 16 bits, with grey and alpha kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from c2fdft_cli.data.images.formats import OUTPUT_FORMAT_OF, WRITE_SUFFIXES
from c2fdft_cli.data.images.metadata import Metadata
from c2fdft_cli.data.images.picture import Picture
from c2fdft_cli.data.images.tensors import planes_of, to_unit
from c2fdft_cli.engine.restore.pictures import (
    comparison,
    deviation_map,
    dropped,
    heat_map,
    quantise,
    to_picture,
)
from tests.kit.restore import random_picture


def to_tensor(picture: Picture) -> Tensor:
    return to_unit(planes_of(torch.from_numpy(picture.pixels)[None]))[0]


ALL = Metadata(
    icc=b"p", exif=b"e", xmp=b"x", iptc=b"i", texts=(("Comment", "c"),), density=(72, 72),
    png_chunks=b"cICP",
)  # fmt: skip


@pytest.mark.parametrize("suffix", sorted(WRITE_SUFFIXES))
def test_metadata_that_a_format_cannot_hold_are_named(suffix: str) -> None:
    picture = Picture(random_picture(2, 2).pixels, metadata=ALL)
    lost = [kind for kind in ALL.kinds if kind in OUTPUT_FORMAT_OF[suffix].dropped]
    expected = [f"{', '.join(lost)} dropped: {suffix[1:]} cannot hold this"] if lost else []
    assert dropped(picture, suffix, None) == expected
    assert dropped(random_picture(2, 2), suffix, None) == []


def test_metadata_that_are_too_long_or_unread_are_named() -> None:
    long = Metadata(xmp=bytes(70000), lost="the frames after the first")
    notes = dropped(Picture(random_picture(2, 2).pixels, metadata=long), ".jpg", None)
    assert notes == [
        "XMP over 64 kB dropped: jpg cannot hold this",
        "not read: the frames after the first",
    ]


def test_rounding_to_8_bits_is_named_unless_it_was_requested() -> None:
    deep = random_picture(2, 2, depth=16)
    assert dropped(deep, ".jpg", None) == ["16 bits rounded to 8: jpg holds 8"]
    assert dropped(deep, ".jpg", 8) == dropped(deep, ".png", None) == []


@pytest.mark.parametrize("depth", [8, 16])
def test_every_level_survives(depth: int) -> None:
    dtype = np.uint8 if depth == 8 else np.uint16
    levels = np.arange(2**depth, dtype=dtype).reshape(2 ** (depth // 2), -1)
    picture = Picture(np.repeat(levels[..., None], 3, axis=2))
    image = to_tensor(picture)
    assert image.dtype == torch.float32
    assert (image.min(), image.max()) == (0, 1)
    assert np.array_equal(quantise(image, depth), picture.pixels)


@pytest.mark.parametrize("options", [{}, {"grey": True}, {"alpha": True}, {"depth": 16}])
def test_everything_but_the_colours_is_copied(options: dict[str, Any]) -> None:
    source = random_picture(3, 4, **options)
    depth = source.bit_depth
    made = to_picture(quantise(to_tensor(source), depth, grey=source.grey), source)
    assert made.grey == source.grey
    assert made.bit_depth == source.bit_depth
    assert (made.alpha is None) == (source.alpha is None)
    assert np.array_equal(made.pixels, source.pixels)


def test_bit_depth_changes_pixels_and_alpha_together() -> None:
    source = random_picture(3, 4, alpha=True)
    deep = to_picture(quantise(to_tensor(source), 16), source)
    assert deep.bit_depth == 16
    assert deep.alpha is not None
    assert np.array_equal(deep.alpha, source.alpha.astype(int) * 257)
    back = to_picture(quantise(to_tensor(deep), 8), deep)
    assert np.array_equal(back.pixels, source.pixels)
    assert np.array_equal(back.alpha, source.alpha)


def test_grey_is_the_mean_of_the_unrounded_channels() -> None:
    image = torch.tensor([0.4, 0.4, 1.0]).reshape(3, 1, 1) / 255
    assert quantise(image, 8, grey=True).tolist() == [[[1, 1, 1]]]
    assert quantise(image, 8).tolist() == [[[0, 0, 1]]]


def test_the_comparison_has_three_pictures_and_is_grey_without_a_change() -> None:
    source = random_picture(5, 7)
    made = comparison(source, to_tensor(source)).pixels
    assert made.shape == (5, 3 * 7 + 16, 3)
    assert np.array_equal(made[:, :7], source.pixels)
    assert np.array_equal(made[:, 15:22], source.pixels)
    assert (made[:, -7:] == 128).all()


def test_the_deviation_map_is_in_65535ths_of_the_range() -> None:
    made = deviation_map(torch.tensor([[[0.0, 0.001, 0.25]]]))
    assert made.grey
    assert made.pixels[0, :, 0].tolist() == [0, 66, 16384]


def test_the_heat_map_is_white_where_the_deviation_is_largest() -> None:
    deviation = torch.zeros(1, 8, 8)
    deviation[0, :, 4:] = 0.1
    made = heat_map(torch.zeros(3, 8, 8), deviation).pixels
    assert (made[:, 4:] == 255).all()
    assert (made[:, :4] == 0).all()
    assert (heat_map(torch.ones(3, 8, 8), torch.zeros(1, 8, 8)).pixels == 89).all()
