"""Listing the images of a folder, refusing videos, and counting files of several pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from c2fdft_cli.data.images.picture import list_images
from c2fdft_cli.data.layouts.listing import beyond_the_first, refuse_videos, some_images
from c2fdft_cli.errors import DataError


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
