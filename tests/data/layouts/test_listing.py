"""Listing the images of a folder, and refusing videos."""

from __future__ import annotations

from pathlib import Path

import pytest

from c2fdft_cli.data.layouts.listing import refuse_videos, some_images
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
