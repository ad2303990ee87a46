"""Images survive a round trip: bit depth, grey, alpha, profile, EXIF, orientation."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import warnings
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from c2fdft_cli.data.images.formats import HEAD_BYTES, file_format
from c2fdft_cli.data.images.metadata import Metadata
from c2fdft_cli.data.images.picture import (
    WRITE_SUFFIXES,
    Picture,
    frame_count,
    frames_and_profile,
    image_size,
    is_image_path,
    list_images,
    natural_key,
    read_picture,
    read_rgb8,
    save_rgb8,
    size_and_frames,
    size_frames_and_profile,
    write_picture,
)
from c2fdft_cli.data.images.pillow import OpenFrames
from c2fdft_cli.errors import DataError, ResourceError
from tests.kit.images import (
    NO_FILES,
    SRGB_PROFILE,
    assert_same,
    drawn,
    drawn_picture,
    encoded,
    no_file,
    painters_exif,
)

GREY_ICC = SRGB_PROFILE[:16] + b"GRAY" + SRGB_PROFILE[20:]


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_png_and_tiff_keep_everything(tmp_path, suffix, dtype, grey, alpha):
    icc = GREY_ICC if grey else SRGB_PROFILE
    before = drawn_picture(dtype, grey, alpha, metadata=Metadata(icc=icc, exif=painters_exif()))
    write_picture(tmp_path / f"a{suffix}", before)
    after = read_picture(tmp_path / f"a{suffix}")
    assert_same(after, before)
    assert after.metadata.icc == icc
    assert after.bit_depth == np.dtype(dtype).itemsize * 8
    head = (tmp_path / f"a{suffix}").read_bytes()[:HEAD_BYTES]
    assert file_format(head) == {".png": "PNG", ".tif": "TIFF"}[suffix]
    exif = Image.Exif()
    exif.load(after.metadata.exif)
    assert exif[0x013B] == "A. Painter"


@given(
    height=st.integers(1, 70),
    width=st.integers(1, 9),
    dtype=st.sampled_from([np.uint8, np.uint16]),
    grey=st.booleans(),
    alpha=st.booleans(),
    suffix=st.sampled_from([".png", ".tiff"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_pictures_of_any_size_survive_a_round_trip(
    tmp_path_factory, height, width, dtype, grey, alpha, suffix, seed
):
    values = np.random.default_rng(seed)
    shape = (height, width, 1 if grey else 3)
    pixels = values.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    pixels = np.repeat(pixels, 3, axis=2) if grey else pixels
    before = Picture(pixels, grey=grey, alpha=pixels[..., 0][::-1].copy() if alpha else None)
    path = tmp_path_factory.mktemp("any") / f"a{suffix}"
    write_picture(path, before)
    assert_same(read_picture(path), before)
    assert image_size(path) == (height, width)


def test_read_rgb8_rounds_drops_alpha_and_replicates_grey(tmp_path):
    values = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    pixels = np.repeat(values[..., None], 3, axis=2)
    write_picture(tmp_path / "a.png", Picture(pixels, grey=True, alpha=values.copy()))
    got = read_rgb8(tmp_path / "a.png")
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, np.rint(pixels / 257).astype(np.uint8))


def test_read_rgb8_reads_what_save_rgb8_writes(tmp_path):
    save_rgb8(tmp_path / "a.png", drawn())
    np.testing.assert_array_equal(read_rgb8(str(tmp_path / "a.png")), drawn())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_orientation_is_applied_once_and_set_to_1(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(drawn(8, 16))
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100}
    data = encoded(stored, kind, exif=exif, **({} if kind == "TIFF" else options))
    with Image.open(io.BytesIO(encoded(stored, "PNG", exif=exif))) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    (tmp_path / "a").write_bytes(data)
    got = read_picture(data)
    assert image_size(tmp_path / "a") == got.pixels.shape[:2] == expected.shape[:2]
    if kind != "JPEG":
        np.testing.assert_array_equal(got.pixels, expected)
    write_picture(tmp_path / "b.png", got)
    again = read_picture(tmp_path / "b.png")
    np.testing.assert_array_equal(again.pixels, got.pixels)


def test_a_damaged_exif_block_is_dropped_without_a_warning():
    for block in (b"", b"II*\0", b"II*\0\xff\xff\xff\xff", painters_exif(6)[:20], b"garbage" * 9):
        data = encoded(Image.fromarray(drawn(8, 16)), "JPEG", exif=b"Exif\0\0" + block)
        got = read_picture(data)
        assert got.metadata.exif is None
        assert got.pixels.shape == (8, 16, 3)


def test_pillow_warnings_do_not_escape_even_as_warnings():
    bad = bytearray(encoded(Image.fromarray(drawn()), "TIFF"))
    directory = int.from_bytes(bad[4:8], "little")
    bad[directory + 2 : directory + 14] = b"\x0e\x01\x02\0\xff\0\0\0\xf0\xff\xff\0"
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for data in (bytes(bad), encoded(Image.fromarray(drawn()), "GIF")):
            try:
                read_picture(data)
            except DataError:
                continue
    assert seen == []


def test_global_settings_of_pillow_are_not_changed(tmp_path):
    limit, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    save_rgb8(tmp_path / "a.png", drawn())
    read_picture(tmp_path / "a.png")
    assert limit == Image.MAX_IMAGE_PIXELS
    assert filters == list(warnings.filters)


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("text.png", b"this is no picture, only a text\n" * 9, "not an image"),
        ("empty.png", b"", "empty"),
        ("short.png", b"\x89PNG\r\n\x1a\n", "truncated"),
        ("html.jpg", b"<html>", "not an image"),
        ("cut.jpg", encoded(Image.fromarray(drawn(64, 64)), "JPEG")[:-300], "truncated"),
        ("cut.png", encoded(Image.fromarray(drawn(64, 64)), "PNG")[:-30], "truncated"),
        ("cut.bmp", encoded(Image.fromarray(drawn(64, 64)), "BMP")[:500], "truncated"),
        ("cut.tif", encoded(Image.fromarray(drawn(64, 64)), "TIFF")[:100], "cannot read"),
        ("cut.webp", encoded(Image.fromarray(drawn(64, 64)), "WEBP")[:90], "cannot read"),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path, name, data, reason):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError, match=reason) as caught:
        read_picture(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    "suffix", [".png", ".gif", ".tif", ".webp", ".mpo", ".avif", ".jpg", ".bmp"]
)
def test_one_reading_finds_the_size_and_the_frames(tmp_path, suffix):
    """The last two hold one frame; the JPEG is stored on its side."""
    path, frames = tmp_path / f"a{suffix}", [Image.fromarray(drawn(16, 24)) for _ in range(3)]
    frames[1].putpixel((3, 3), (255, 0, 0))  # equal frames would be merged
    exif = Image.Exif()
    exif[0x0112] = 6
    more = {"exif": exif} if suffix == ".jpg" else {"save_all": True, "append_images": frames[1:]}
    frames[0].save(path, **({} if suffix == ".bmp" else more))
    assert size_and_frames(path) == (*image_size(path), frame_count(path))
    assert frames_and_profile(path) == (frame_count(path), None)
    assert size_frames_and_profile(path) == (image_size(path), frames_and_profile(path))
    assert image_size(path) == ((24, 16) if suffix == ".jpg" else (16, 24))
    assert (frame_count(path) == 1) == (suffix in (".jpg", ".bmp"))


def test_a_size_is_read_also_if_only_the_profile_is_damaged(tmp_path):
    """Pillow, which finds the profile, refuses an empty chunk gAMA; imagecodecs does not."""
    path = tmp_path / "a.png"
    save_rgb8(path, drawn(16, 24))
    data = path.read_bytes()
    empty = b"gAMA"
    path.write_bytes(data[:33] + bytes(4) + empty + crc32(empty).to_bytes(4) + data[33:])
    assert size_frames_and_profile(path) == ((16, 24), None)
    assert read_rgb8(path).shape == (16, 24, 3)
    with pytest.raises(DataError, match="gAMA"):
        frames_and_profile(path)


EVERY_READER = [
    read_picture, read_rgb8, image_size, frame_count, size_and_frames, frames_and_profile,
    size_frames_and_profile,
]  # fmt: skip


@pytest.mark.parametrize("function", EVERY_READER)
def test_missing_folder_pipe_and_text_are_refused_everywhere(tmp_path, function):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "text.png").write_text("text")
    os.mkfifo(tmp_path / "pipe.png")
    for name, reason in [
        ("none.png", "no such file"),
        ("folder.png", "it is a folder"),
        ("pipe.png", "not a regular file"),
        ("text.png", "not an image"),
        ("text.png/a.png", "Not a directory"),
    ]:
        with pytest.raises(DataError, match=reason):
            function(tmp_path / name)


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    save_rgb8(tmp_path / "a.png", np.zeros((40, 50, 3), np.uint8))
    monkeypatch.setattr("c2fdft_cli.data.images.samples.MAX_PIXELS", 2000)
    assert read_picture(tmp_path / "a.png").pixels.shape == (40, 50, 3)
    monkeypatch.setattr("c2fdft_cli.data.images.samples.MAX_PIXELS", 1999)
    for kind in (".png", ".tif", ".jpg", ".webp", ".bmp"):
        save_rgb8(tmp_path / f"b{kind}", np.zeros((40, 50, 3), np.uint8))
        with pytest.raises(DataError, match="50 x 40 px is over the limit of 1999 px"):
            read_picture(tmp_path / f"b{kind}")


def test_a_picture_over_pillows_own_limit_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for suffix in WRITE_SUFFIXES:
        save_rgb8(tmp_path / f"a{suffix}", drawn())
        assert image_size(tmp_path / f"a{suffix}") == read_rgb8(tmp_path / f"a{suffix}").shape[:2]


@pytest.mark.slow
def test_reading_and_writing_load_neither_torch_nor_opencv(tmp_path):
    script = (
        "import sys, numpy as np; from c2fdft_cli.data.images.picture import *\n"
        "for suffix in ('.png', '.tif', '.jpg'):\n"
        "    save_rgb8('a' + suffix, np.zeros((4, 4, 3), np.uint8)); read_rgb8('a' + suffix)\n"
        "sys.exit(bool({'cv2', 'torch'} & {*sys.modules}))"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)


@pytest.mark.parametrize(
    ("pixels", "alpha", "error"),
    [
        (np.zeros((2, 2, 3), np.float32), None, TypeError),
        (np.zeros((2, 2), np.uint8), None, ValueError),
        (np.zeros((0, 2, 3), np.uint8), None, ValueError),
        (np.zeros((2, 2, 3), np.uint8), np.zeros((2, 3), np.uint8), ValueError),
        (np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.uint16), ValueError),
    ],
)
def test_a_picture_checks_its_arrays(pixels, alpha, error):
    with pytest.raises(error):
        Picture(pixels, alpha=alpha)


def test_image_paths_are_recognised_by_their_suffix():
    assert all(is_image_path(f"a{suffix.upper()}") for suffix in WRITE_SUFFIXES)
    assert not any(is_image_path(name) for name in ("a.gif", "a.txt", "png", ".png", "a.png~"))


def test_list_images_in_natural_order_without_hidden_files_and_loops(tmp_path):
    for name in ("10.png", "2.PNG", "1.jpg", ".hidden.png", "notes.txt", "sub/3.png", ".g/4.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "sub" / "up").symlink_to(tmp_path)

    def names(recursive):
        return [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path, recursive)]

    assert names(False) == ["1.jpg", "2.PNG", "10.png"]
    assert names(True) == ["1.jpg", "2.PNG", "10.png", "sub/3.png"]


def test_whatever_has_the_name_of_an_image_is_listed_and_refused_when_it_is_read(tmp_path):
    for number, name in enumerate(NO_FILES):
        no_file(tmp_path / f"{number}.png", name)
    found = list_images(tmp_path, True)
    assert [path.name for path in found] == ["0.png", "1.png", "2.png", "3.png"]
    for path in found:
        with pytest.raises(DataError) as error:
            image_size(path)
        assert error.value.where == str(path)
    with pytest.raises(DataError, match="no such file where the link leads") as error:
        read_picture(found[0])
    assert "git annex get" in error.value.hint


@pytest.mark.parametrize(
    "name", ["@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "__MACOSX"]
)
def test_copies_that_systems_keep_are_not_images_of_the_folder(tmp_path, name):
    for path in ("1.jpg", f"{name}/1.jpg/SYNOFILE_THUMB_M.jpg", f"{name}/2.jpg", "sub/3.jpg"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"")
    found = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path, True)]
    assert found == ["1.jpg", "sub/3.jpg"]
    assert len(list_images(tmp_path / name, True)) == 2  # given by the user


def test_list_images_sorts_names_with_digits_of_other_scripts(tmp_path):
    for name in ("a².png", "a10.png", "a٣.png", "10a.png"):
        (tmp_path / name).write_bytes(b"")
    assert len(list_images(tmp_path)) == 4


def test_list_images_names_the_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if os.path.basename(path) == "sub":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    (tmp_path / "sub").mkdir()
    monkeypatch.setattr(os, "scandir", refuse)
    assert list_images(tmp_path) == []
    for folder in (tmp_path, tmp_path / "sub"):
        with pytest.raises(DataError, match="cannot list the folder") as error:
            list_images(folder, True)
        assert (error.value.where, error.value.hint) == (str(tmp_path / "sub"), "Permission denied")


def test_list_images_refuses_a_missing_folder_and_a_file(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match="no such folder"):
        list_images(tmp_path / "none")
    with pytest.raises(DataError, match="not a folder"):
        list_images(tmp_path / "a.png")


def test_numbers_in_names_are_ordered_by_value_however_long():
    names = ["0", "01", "1", "2", "010", "10", "9" * 5000, "1" + "0" * 5000, "a2", "a10"]
    mixed = names[::-1]
    assert sorted(mixed, key=natural_key) == names


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("grey", [False, True])
def test_a_profile_for_other_colours_is_dropped_with_a_note(kind, grey):
    image = Image.fromarray(drawn(channels=1)[..., 0] if grey else drawn())
    if kind == "WEBP" and grey:
        pytest.skip("it has no grey")
    data = encoded(image, kind, icc_profile=SRGB_PROFILE if grey else GREY_ICC)
    found = read_picture(data)
    assert found.grey == grey
    assert found.metadata.icc is None
    assert found.metadata.lost == (
        f"the colour profile, which is not for {'grey' if grey else 'colour'} pictures"
    )
    right = GREY_ICC if grey else SRGB_PROFILE
    assert read_picture(encoded(image, kind, icc_profile=right)).metadata.icc == right


@pytest.mark.parametrize(
    "profile",
    [SRGB_PROFILE.replace(b"RGB ", b"CMYK"), SRGB_PROFILE.replace(b"RGB ", b"Lab "), b"x"],
)
def test_a_profile_of_other_colours_or_none_is_dropped_with_a_note(profile):
    found = read_picture(encoded(Image.fromarray(drawn()), "PNG", icc_profile=profile))
    assert found.metadata.icc is None
    assert found.metadata.lost == "the colour profile, which is not for colour pictures"


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_palette_of_greys_with_a_profile_keeps_both(tmp_path, kind):
    image = Image.fromarray(drawn(channels=1)[..., 0]).convert("P")
    found = read_picture(encoded(image, kind, icc_profile=SRGB_PROFILE))
    assert (found.grey, found.metadata.icc) == (False, SRGB_PROFILE)
    write_picture(tmp_path / "a.png", found)
    with Image.open(tmp_path / "a.png") as written:
        assert (written.mode, written.info["icc_profile"]) == ("RGB", SRGB_PROFILE)


def test_a_decoders_error_without_a_message_is_named_by_its_type(tmp_path, monkeypatch):
    def fail(*_args, **_more):
        raise AssertionError

    write_picture(tmp_path / "a.jpg", Picture(drawn()))
    monkeypatch.setattr(OpenFrames, "decode", fail)
    with pytest.raises(DataError, match="cannot read the image: AssertionError"):
        read_picture(tmp_path / "a.jpg")


@pytest.mark.parametrize("opening", [False, True])
def test_running_out_of_memory_is_not_reported_as_damage(tmp_path, monkeypatch, opening):
    def fail(*_args, **_more):
        raise MemoryError

    write_picture(tmp_path / "a.jpg", Picture(drawn()))
    if opening:
        monkeypatch.setattr(Image, "open", fail)
    else:
        monkeypatch.setattr(OpenFrames, "decode", fail)
    with pytest.raises(ResourceError, match=r"a\.jpg: out of memory reading the image"):
        read_picture(tmp_path / "a.jpg")
