"""Listing the images of a folder, refusing videos, and counting files of several pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from c2fdft_cli.data.images.picture import list_images
from c2fdft_cli.data.layouts.listing import (
    beyond_the_first,
    refuse_videos,
    remarks_on_pairs,
    some_images,
    top_images,
)
from c2fdft_cli.errors import DataError
from tests.kit.images import EXCHANGED_PROFILE, SRGB_PROFILE


def test_images_are_listed_in_natural_order(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("10.png", "9.jpg", "clip.mp4", "sub/1.png"):
        (tmp_path / name).touch()
    assert some_images(tmp_path) == [tmp_path / "9.jpg", tmp_path / "10.png"]
    assert tmp_path / "sub" / "1.png" in some_images(tmp_path, recursive=True)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no clean images in the folder") as caught:
        some_images(tmp_path, kind="clean images", hint="look elsewhere")
    assert (caught.value.hint, caught.value.where) == ("look elsewhere", str(tmp_path))
    (tmp_path / "clip.MP4").touch()
    with pytest.raises(DataError, match="no images in the folder, but videos") as caught:
        some_images(tmp_path, hint="look elsewhere")
    assert "ffmpeg -i clip.mp4" in str(caught.value.hint)


def test_images_in_sub_folders_are_counted_if_they_are_not_used(tmp_path: Path) -> None:
    (tmp_path / "sub" / "sub").mkdir(parents=True)
    (tmp_path / "1.png").touch()
    assert top_images(tmp_path) == ([tmp_path / "1.png"], [])
    (tmp_path / "sub" / "2.png").touch()
    assert top_images(tmp_path)[1] == ["1 image in sub-folders is not used"]
    (tmp_path / "sub" / "sub" / "3.png").touch()
    assert top_images(tmp_path)[1] == ["2 images in sub-folders are not used"]
    (tmp_path / "1.png").unlink()
    with pytest.raises(DataError) as caught:
        top_images(tmp_path)
    assert caught.value.hint == "images in sub-folders are not used"


def test_videos_are_refused_as_images(tmp_path: Path) -> None:
    image, video, folder = tmp_path / "a.png", tmp_path / "a.mp4", tmp_path / "folder.mp4"
    image.touch()
    video.touch()
    folder.mkdir()
    refuse_videos(image, folder)
    with pytest.raises(DataError, match="a video, not an image") as caught:
        refuse_videos(image, video)
    assert caught.value.where == str(video)
    assert "ffmpeg" in str(caught.value.hint)


def test_files_of_several_pictures_are_counted(tmp_path: Path) -> None:
    pages = [Image.new("RGB", (4, 4), (k, 0, 0)) for k in range(2)]
    for name in ("1.tif", "2.tif"):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "3.tif")
    (tmp_path / "4.tif").write_bytes(b"damaged")
    files = list_images(tmp_path)
    (told,) = beyond_the_first([*files, files[0]])
    assert told == (
        f"only the first picture is used of 2 of 4 files, such as {files[0]}, which holds 2"
    )
    assert beyond_the_first(files[2:]) == []


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp", ".avif"])
def test_pairs_of_different_colour_profiles_are_reported(tmp_path: Path, suffix: str) -> None:
    def made(name: str, profile: bytes | None) -> Path:
        path = tmp_path / f"{name}{suffix}"
        Image.new("RGB", (8, 8)).save(path, icc_profile=profile)
        return path

    plain, standard = made("plain", None), made("srgb", SRGB_PROFILE)
    other = made("other", EXCHANGED_PROFILE)
    assert remarks_on_pairs([(plain, standard), (other, other), (plain, plain)]) == []
    (told,) = remarks_on_pairs([(plain, standard), (standard, other), (other, plain)])
    assert told.startswith(
        f"the colour profiles of 2 of 3 pairs differ, such as those of {standard} ("
    )
    assert f"{other} (" in told


def test_pairs_that_cannot_be_read_are_not_reported(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"text")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png", icc_profile=EXCHANGED_PROFILE)
    assert remarks_on_pairs([(tmp_path / "a.png", tmp_path / "b.png")]) == []
    assert remarks_on_pairs([(tmp_path / "b.png", tmp_path / "none.png")]) == []


def test_each_file_of_pairs_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a network disk opening a file takes most of the time."""
    files = [tmp_path / f"{k}.png" for k in range(3)]
    for path in files:
        Image.new("RGB", (8, 8)).save(path, icc_profile=SRGB_PROFILE)
    opened, original = [], Path.open

    def count(path: Path, *words: Any, **more: Any) -> Any:
        opened.append(path)
        return original(path, *words, **more)

    monkeypatch.setattr(Path, "open", count)
    assert remarks_on_pairs([(files[0], files[2]), (files[1], files[2]), (files[0],) * 2]) == []
    assert sorted(opened) == files
