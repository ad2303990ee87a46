"""Frames of animations equal those read one by one, and each is decoded once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import GifImagePlugin, Image

from c2fdft_cli.data.images.animation import FrameCache
from c2fdft_cli.data.images.picture import read_picture
from c2fdft_cli.data.images.pillow import OpenFrames
from c2fdft_cli.errors import DataError

COUNT = 12


def moving(path: Path, count: int = COUNT) -> Path:
    """A square that moves over stripes; a GIF stores only the changes of each frame."""
    stripes = np.zeros((24, 40, 3), np.uint8)
    stripes[:, ::3] = (20, 90, 60)
    frames = []
    for number in range(count):
        frame = stripes.copy()
        frame[5:12, number % 30 : number % 30 + 7] = (250 - 5 * number, 30, 5 * number)
        frames.append(Image.fromarray(frame))
    more = {"lossless": True} if path.suffix == ".webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=40, **more)
    return path


def cache(path: Path, numbers: range | list[int] = range(COUNT), room: int = 4) -> FrameCache:
    return FrameCache([(path, number) for number in numbers], room)


KINDS = pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tif"])


@KINDS
@pytest.mark.parametrize("order", [range(COUNT), [3, 1, 0, 2, 7, 4, 11, 5], [0, 0, 5, 5, 2]])
def test_frames_are_equal_to_those_read_one_by_one(tmp_path, suffix, order):
    path = moving(tmp_path / f"a{suffix}")
    frames = cache(path, list(order))
    for number in order:
        one, other = frames.read(path, number), read_picture(path, frame=number)
        assert np.array_equal(one.pixels, other.pixels)
        assert (one.grey, one.metadata, one.alpha is None) == (
            other.grey, other.metadata, other.alpha is None)  # fmt: skip


def count_seeks(monkeypatch) -> list[int]:
    """Count the frames of GIFs that Pillow decodes."""
    seen: list[int] = []
    original = GifImagePlugin.GifImageFile._seek

    def seek(self, frame, update_image=True):
        seen.extend([frame] if update_image else [])
        return original(self, frame, update_image)

    monkeypatch.setattr(GifImagePlugin.GifImageFile, "_seek", seek)
    return seen


@pytest.mark.parametrize("wanted", [range(40), range(0, 40, 3)])
def test_each_frame_of_a_gif_is_decoded_once(tmp_path, monkeypatch, wanted):
    path = moving(tmp_path / "a.gif", 40)
    seen, frames = count_seeks(monkeypatch), cache(path, list(wanted))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda number: frames.read(path, number), wanted))
    assert len(found) == len(wanted)
    assert len([number for number in seen if number]) == max(wanted)


def test_frames_are_kept_only_until_they_are_read(tmp_path):
    path = moving(tmp_path / "a.gif")
    frames = cache(path, [2, 5, 11])
    frames.read(path, 11)
    status = path.stat()
    animation = frames._opened(path, status.st_size, status.st_mtime_ns)
    assert set(animation._waiting) == {2, 5}
    frames.read(path, 5)
    frames.read(path, 2)
    assert not animation._waiting


def test_only_a_few_files_stay_open(tmp_path):
    paths = [moving(tmp_path / f"{number}.gif", 2) for number in range(5)]
    frames = FrameCache([(path, number) for path in paths for number in (0, 1)], 2)
    for path in paths:
        for number in (0, 1):
            frames.read(path, number)
        assert frames._opened.cache_info().currsize <= 2


def test_a_file_that_was_replaced_is_read_again(tmp_path):
    path = moving(tmp_path / "a.gif")
    frames = cache(path)
    frames.read(path, 0)
    moving(path, 3)
    with pytest.raises(DataError, match="3 frames"):
        frames.read(path, 5)
    path.unlink()
    with pytest.raises(DataError, match="no such file"):
        frames.read(path, 1)


def test_a_damaged_frame_does_not_affect_the_others(tmp_path, monkeypatch):
    path = moving(tmp_path / "a.gif")
    frames, decode = cache(path), OpenFrames.decode
    lock = threading.Lock()

    def damaged(self, frame):
        with lock:
            if frame == 4:
                raise OSError("broken")
            return decode(self, frame)

    monkeypatch.setattr(OpenFrames, "decode", damaged)
    assert frames.read(path, 6).pixels.shape == (24, 40, 3)
    with pytest.raises(DataError, match=r"a\.gif: cannot read the image: broken"):
        frames.read(path, 4)
    assert np.array_equal(frames.read(path, 5).pixels, read_picture(path, frame=5).pixels)
