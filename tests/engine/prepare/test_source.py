"""Images are decoded once into a temporary file, from which many threads may read them."""

from __future__ import annotations

import errno
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from c2fdft_cli.data.images.picture import save_rgb8
from c2fdft_cli.data.pixels import Pixels
from c2fdft_cli.data.synthesis.streaks import StreakBank
from c2fdft_cli.engine.prepare.options import Synthesis
from c2fdft_cli.engine.prepare.source import DecodedImages, PairReader
from c2fdft_cli.errors import DataError, ResourceError


def picture(seed: int, h: int = 9, w: int = 11) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


@pytest.fixture
def images(tmp_path: Path) -> dict[Path, int]:
    """Image files of different sizes, with the bytes of their pixels."""
    (tmp_path / "in").mkdir()
    paths = [tmp_path / "in" / f"{i}.png" for i in range(6)]
    for i, path in enumerate(paths):
        save_rgb8(path, picture(i, 9 + i))
    return {path: 3 * (9 + i) * 11 for i, path in enumerate(paths)}


def test_many_threads_read_the_stored_pixels(tmp_path: Path, images: dict[Path, int]) -> None:
    with closing(DecodedImages(tmp_path)) as decoded, ThreadPoolExecutor(8) as pool:
        decoded.add(images, workers=3)
        for path in images:
            path.unlink()  # from here on pixels can only come from the temporary file
        order = [i for _ in range(20) for i in range(6)]
        paths = list(images)
        for i, pixels in zip(order, pool.map(lambda i: decoded.read(paths[i]), order), strict=True):
            np.testing.assert_array_equal(pixels, picture(i, 9 + i))
        assert list(tmp_path.iterdir()) == [tmp_path / "in"]


def test_images_that_were_not_added_are_decoded(tmp_path: Path, images: dict[Path, int]) -> None:
    path = next(iter(images))
    with closing(DecodedImages(tmp_path)) as decoded:
        np.testing.assert_array_equal(decoded.read(path), picture(0))
        path.unlink()
        with pytest.raises(DataError, match="no such file"):
            decoded.read(path)


def test_keys_depend_only_on_pixels(tmp_path: Path) -> None:
    flat = np.full((4, 6, 3), 7, np.uint8)
    same = {"a.png": flat, "b.bmp": flat, "turned.png": flat.reshape(6, 4, 3), "c.png": flat + 1}
    for name, pixels in same.items():
        save_rgb8(tmp_path / name, pixels)
    with closing(DecodedImages(tmp_path)) as decoded:
        decoded.add({tmp_path / name: 72 for name in same}, workers=1)
        a, b, turned, c = (decoded.key(tmp_path / name) for name in same)
    assert a == b
    assert len({a, turned, c}) == 3


def test_an_unreadable_image_is_named(tmp_path: Path, images: dict[Path, int]) -> None:
    path = list(images)[2]
    path.write_bytes(b"text")
    with closing(DecodedImages(tmp_path)) as decoded, pytest.raises(DataError) as caught:
        decoded.add(images, workers=2)
    assert caught.value.where == str(path)


def test_a_disk_that_fills_up_is_an_error(
    tmp_path: Path, images: dict[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def seek(self, position: int) -> int:
            return position

        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            pass

    with closing(DecodedImages(tmp_path)) as decoded:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
        with pytest.raises(ResourceError, match="the disk is too small"):
            decoded.add(images, workers=1)
        monkeypatch.undo()
        decoded._file.close()
        monkeypatch.setattr(decoded, "_file", Full())
        with pytest.raises(ResourceError, match="the disk is full"):
            decoded.add(images, workers=1)


def test_what_concerns_training_patches_alone_does_not_change_the_degradation() -> None:
    """Otherwise shards that are older than such an option would count as made differently."""

    def of(**options: Any) -> str:
        return PairReader(Synthesis("noise", options), 0).degradation

    assert of(unclipped_share=0.5) == of()
    assert of(camera_share=0.1) != of()


def test_rain_as_in_photographs_is_part_of_the_degradation_only_if_it_occurs() -> None:
    """Shards that are older than the option state the others, and must be recognised."""

    def options(**changed: Any) -> set[str]:
        text = PairReader(Synthesis("rain", changed), 0).degradation
        return set(json.loads(text)["options"])

    old = "strength heavy heavy_fields turn across along lean cover layers veil veil_share"
    assert options() == set(old.split())
    assert options(camera_share=0.1) == {*old.split(), "camera_share"}


def test_a_mask_that_becomes_a_layer_changes_the_degradation(tmp_path: Path) -> None:
    for folder, layers in (("masks", ""), ("layers", "heavy")):
        for i in range(3):
            path = tmp_path / folder / (layers if i == 2 else "") / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            save_rgb8(path, np.repeat(picture(i, 40, 40)[:, :, :1], 3, axis=2))
    banks = [StreakBank(tmp_path / name) for name in ("masks", "layers")]
    assert [len(bank.layers) for bank in banks] == [0, 1]
    texts = {
        PairReader(Synthesis("rain", {}, tmp_path / name), 0).degradation
        for name in ("masks", "layers")
    }
    assert len(texts) == 2
