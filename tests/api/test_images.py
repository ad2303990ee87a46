"""Images of every kind are converted to pictures and back without a change."""

from __future__ import annotations

import os
from collections import deque

import numpy as np
import PIL.Image
import pytest
import torch

from c2fdft_cli.api.images import as_list, unpack
from c2fdft_cli.errors import DataError, UsageError
from tests.kit.restore import random_picture

IMAGES = [
    random_picture(5, 7).pixels,
    random_picture(5, 7, depth=16).pixels,
    random_picture(5, 7).pixels[..., 0],
    random_picture(5, 7).pixels.astype(np.float64) / 255,
    random_picture(5, 7).pixels[:, ::-1],
    torch.arange(2 * 3 * 20, dtype=torch.uint8).view(2, 3, 4, 5),
    torch.linspace(0, 1, 60).view(3, 4, 5),
]


@pytest.mark.parametrize("image", IMAGES, ids=lambda x: f"{x.dtype}{list(x.shape)}")
def test_converting_an_image_and_back_changes_nothing(image):
    apart = unpack(image)
    assert apart.lq.dim() == 4
    assert 0 <= apart.lq.min() <= apart.lq.max() <= 1
    back = apart.pack(apart.lq)
    assert (type(back), back.dtype, back.shape) == (type(image), image.dtype, image.shape)
    assert np.allclose(np.asarray(back), np.asarray(image), rtol=0, atol=1e-6)
    if "float" not in str(image.dtype):
        assert np.array_equal(np.asarray(back), np.asarray(image))
    assert apart.levels.dtype == torch.float64
    assert torch.allclose(apart.levels / 255, apart.lq.double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "I;16"])
def test_pil_images_keep_mode_alpha_and_metadata(mode):
    options = {"grey": mode[0] in "LI", "depth": 16 if mode == "I;16" else 8}
    picture = random_picture(5, 7, **options)
    image = PIL.Image.fromarray(picture.pixels[..., 0] if options["grey"] else picture.pixels)
    if mode.endswith("A"):
        image.putalpha(PIL.Image.fromarray(random_picture(5, 7, seed=1).pixels[..., 0]))
    image.info["icc_profile"] = b"profile"
    apart = unpack(image)
    back = apart.pack(apart.lq)
    assert (back.mode, back.info) == (image.mode, image.info)
    assert np.array_equal(np.asarray(back), np.asarray(image))


@pytest.mark.parametrize("kind", [str, os.fsencode])
def test_pil_images_know_their_file_by_text_or_bytes(tmp_path, kind):
    path = tmp_path / "a.png"
    PIL.Image.fromarray(random_picture(5, 7).pixels).save(path)
    with PIL.Image.open(kind(path)) as image:
        assert unpack(image).name == str(path)
    assert unpack(PIL.Image.new("L", (5, 7))).name is None


def test_one_image_is_a_list_of_one():
    assert as_list(IMAGES[0]) == [IMAGES[0]]
    assert as_list((IMAGES[0], IMAGES[1])) == [IMAGES[0], IMAGES[1]]


@pytest.mark.parametrize("kind", [">u2", ">f4"])
def test_arrays_of_the_other_byte_order_are_read_and_come_back_native(kind):
    """Some libraries read a 16-bit TIFF of a Mac like this."""
    values = random_picture(5, 7, depth=16).pixels
    native = values if kind == ">u2" else (values / 65535).astype(np.float32)
    apart = unpack(native.astype(kind))
    assert torch.equal(apart.lq, unpack(native).lq)
    back = apart.pack(apart.lq)
    assert back.dtype == native.dtype
    assert np.allclose(back, native, rtol=0, atol=1e-6)


def test_a_numpy_matrix_is_treated_as_an_array():
    values = random_picture(5, 7).pixels[..., 0]
    with pytest.warns(PendingDeprecationWarning):
        apart = unpack(np.matrix(values))
    assert np.array_equal(apart.pack(apart.lq), values)


@pytest.mark.parametrize("convert", [np.float16, np.float64, torch.from_numpy])
def test_an_image_on_the_scale_of_diffusion_is_refused_and_a_noisy_black_one_is_not(convert):
    """Diffusion models use -1 .. 1; a photo's mean there is usually negative."""
    photo = random_picture(16, 16).pixels.transpose(2, 0, 1) / 255 * 0.7
    if convert is not torch.from_numpy:
        photo = photo.transpose(1, 2, 0)
    with pytest.raises(UsageError, match="on the scale 0 to 1, got a mean of -0") as caught:
        unpack(convert(2 * photo - 1))
    assert "(image + 1) / 2" in caught.value.hint
    noise = np.random.default_rng(0).normal(0, 100 / 255, photo.shape)
    assert unpack(convert(noise)).lq.min() < 0


@pytest.mark.parametrize(("image", "tries"), [
    (np.zeros((3, 8, 9), np.uint8), "image.transpose(1, 2, 0)"),
    (np.zeros((8, 9, 1), np.uint8), "image[..., 0]"),
    (np.zeros((8, 9, 4), np.uint8), "image[..., :3]"),
    (np.zeros((2, 8, 9, 3), np.uint8), "as a list"),
    (torch.zeros(8, 9, 3), "image.permute(2, 0, 1)"),
    (torch.zeros(2, 8, 9, 3), "images.permute(0, 3, 1, 2)"),
    (torch.zeros(1, 8, 9), "image.expand(3, -1, -1)"),
    (torch.zeros(2, 1, 8, 9), "images.expand(-1, 3, -1, -1)"),
])  # fmt: skip
def test_the_hint_on_a_shape_leads_to_one_that_is_accepted(image, tries):
    with pytest.raises(UsageError, match="must be") as caught:
        unpack(image)
    assert tries in caught.value.hint
    if tries.startswith("image"):
        unpack(eval(tries, {"image": image, "images": image}))


@pytest.mark.parametrize("shape", [(8, 9, 2), (0, 9, 1), (8,), (1, 2, 3, 4, 5)])
def test_a_shape_that_fits_no_kind_of_image_has_no_hint(shape):
    with pytest.raises(UsageError, match=r"must be \[h, w, 3\]") as caught:
        unpack(np.zeros(shape, np.uint8))
    assert caught.value.hint is None


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(("layout", "says"), [(torch.strided, "nested"), (torch.jagged, "jagged")])
def test_nested_tensors_are_refused(layout, says):
    images = [torch.zeros(3, 8, 8), torch.zeros(3, 8, 9)]
    with pytest.raises(UsageError, match=rf"must be dense and hold values, got one .*{says}"):
        unpack(torch.nested.nested_tensor(images, layout=layout))


def test_a_pil_image_whose_file_is_damaged_or_closed_is_an_error(tmp_path):
    whole, half = tmp_path / "whole.png", tmp_path / "half.png"
    PIL.Image.fromarray(random_picture(64, 64).pixels).save(whole)
    half.write_bytes(whole.read_bytes()[:3000])
    with PIL.Image.open(half) as image, pytest.raises(DataError, match=r"half\.png: cannot read"):
        unpack(image)
    with PIL.Image.open(whole) as image:
        pass
    with pytest.raises(DataError, match="cannot read the image: its file has been closed"):
        unpack(image)


@pytest.mark.parametrize(("mode", "hint"), [
    ("I", "as a NumPy array"), ("F", "as a NumPy array"), ("I;16B", "as a NumPy array"),
    ("La", 'image.convert("LA")'), ("HSV", 'image.convert("RGB")'),
])  # fmt: skip
def test_the_hint_on_a_mode_keeps_the_values(mode, hint):
    with pytest.raises(UsageError, match=f"mode {mode} is not supported") as caught:
        unpack(PIL.Image.new(mode, (8, 8)))
    assert hint in caught.value.hint


def test_any_sequence_is_a_list_of_images():
    images = [np.zeros((8, 8, 3), np.uint8)] * 2
    assert len(as_list(deque(images))) == len(as_list(tuple(images))) == 2


def test_a_large_number_is_refused_in_one_line():
    with pytest.raises(UsageError, match=r"on the scale 0 to 1, got 1e\+300"):
        unpack(np.full((4, 4), 1e300))
