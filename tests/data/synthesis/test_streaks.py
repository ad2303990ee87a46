"""The bank of streak masks: crops of any size, and files that are not masks."""

from __future__ import annotations

import pickle
import shutil
import struct
import zlib

import cv2
import numpy as np
import pytest
from skimage import data as photos

from c2fdft_cli.data.synthesis import streaks
from c2fdft_cli.data.synthesis.streaks import StreakBank
from c2fdft_cli.errors import DataError
from tests.data.synthesis.conftest import streak_image


def test_a_crop_has_unchanged_pixels_of_one_mask(bank):
    rng = np.random.default_rng(4)
    for _ in range(20):
        cut = bank.sample(rng, 24, 40)
        assert cut.flags.c_contiguous
        assert any(
            (windows == look).all(axis=(2, 3)).any()
            for windows in (
                np.lib.stride_tricks.sliding_window_view(f, (24, 40)) for f in bank.masks
            )
            for look in (cut, cut[:, ::-1])
        )


@pytest.mark.parametrize("turn", [0.0, 30.0])
@pytest.mark.parametrize("size", [(1, 1), (96, 128), (97, 129), (300, 70), (500, 500)])
def test_crops_may_have_any_size(bank, size, turn):
    cuts = [bank.sample(np.random.default_rng(i), *size, turn=turn) for i in range(12)]
    assert all(cut.shape == size and cut.dtype == np.uint8 for cut in cuts)
    means = np.mean([mask.mean() for mask in bank.masks])
    if min(size) > 50:
        assert np.mean([cut.mean() for cut in cuts]) == pytest.approx(means, rel=0.3)


def test_a_stretched_mask_has_longer_and_thinner_streaks(bank):
    """The autocorrelation of S falls off later along the streaks and sooner across them."""

    def lag(layer: np.ndarray, down: int, right: int) -> float:
        first = layer[: layer.shape[0] - down, : layer.shape[1] - right]
        return float(np.corrcoef(first.ravel(), layer[down:, right:].ravel())[0, 1])

    def lags(**stretch: float) -> tuple[float, float]:
        crops = [bank.sample(np.random.default_rng(i), 64, 64, **stretch) for i in range(20)]
        layers = [crop.astype(np.float64) for crop in crops]
        return np.mean([lag(x, 3, 0) for x in layers]), np.mean([lag(x, 0, 1) for x in layers])

    along, across = lags(along=2.0, across=0.6)
    assert along > lags()[0] + 0.05
    assert across < lags(across=1.6)[1] - 0.1


@pytest.mark.parametrize("factor", [0.25, 0.69, 1.3, 4.0])
@pytest.mark.parametrize("size", [(1, 1), (7, 300), (200, 33)])
def test_crops_of_a_stretched_mask_may_have_any_size(bank, size, factor):
    for stretch in ({"across": factor}, {"along": factor}, {"across": factor, "along": 1.5}):
        cut = bank.sample(np.random.default_rng(3), *size, turn=20.0, **stretch)
        assert cut.shape == size
        assert cut.dtype == np.uint8


def test_a_sample_is_a_copy(bank):
    before = [mask.copy() for mask in bank.masks]
    bank.sample(np.random.default_rng(0), 20, 20)[:] = 255
    for mask, kept in zip(bank.masks, before, strict=True):
        np.testing.assert_array_equal(mask, kept)


def test_bank_crops_have_the_statistics_of_whole_masks(tmp_path):
    """The mask is uniform, so that a rotated or straight crop has its mean."""
    y, x = np.mgrid[:256, :256]
    even = np.rint(60 + 60 * np.sin(x * 0.7) * np.sin(y * 0.5)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "even.png"), even)
    bank = StreakBank(tmp_path)
    for turn in (0.0, 20.0):
        crops = [bank.sample(np.random.default_rng(i), 32, 32, turn=turn) for i in range(200)]
        assert np.mean(crops) == pytest.approx(even.mean(), rel=0.02)
        assert np.std(crops) == pytest.approx(even.std(), rel=0.04)


def test_a_bank_can_be_pickled(bank):
    twin = pickle.loads(pickle.dumps(bank))
    a = bank.sample(np.random.default_rng(1), 30, 30, turn=9.0)
    np.testing.assert_array_equal(a, twin.sample(np.random.default_rng(1), 30, 30, turn=9.0))


def test_of_too_many_masks_every_nth_is_used(folder, monkeypatch):
    monkeypatch.setattr(streaks, "MAX_IMAGES", 2)
    few = StreakBank(folder)
    assert len(few.masks) == 2
    np.testing.assert_array_equal(few.masks[1], streak_image(3))


def test_masks_and_layers_have_different_digests(tmp_path):
    for name in ("a/0.png", "a/1.png", "b/0.png", "b/heavy/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / name), streak_image(int(name[-5])))
    a, b = (StreakBank(tmp_path / name) for name in "ab")
    assert a.digest() != b.digest()


def test_a_folder_of_layers_must_not_be_empty(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "streaks")
    (tmp_path / "streaks" / "heavy").mkdir()
    with pytest.raises(DataError, match="holds no PNG"):
        StreakBank(tmp_path / "streaks")


def png(w: int, h: int) -> bytes:
    """A grey PNG without its pixels."""
    head = struct.pack(">IIBBBBB", w, h, 8, 0, 0, 0, 0)
    chunks = [b"IHDR" + head, b"IDAT" + zlib.compress(b""), b"IEND"]
    framed = [
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "cannot read the image"),
        (b"text" * 10, "cannot read the image"),
        (png(8000, 9000), "8000x9000 px"),
        (png(8, 8), "8x8 px"),
        (png(64, 64), "cannot read the image"),
    ],
    ids=["empty", "text", "large", "tiny", "cut off"],
)
def test_hostile_masks_are_named(tmp_path, content, says):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=says) as error:
        StreakBank(tmp_path)
    assert error.value.where == str(tmp_path / "a.png")


def test_a_link_to_a_missing_mask_is_named(tmp_path):
    (tmp_path / "gone.png").symlink_to("nowhere")
    with pytest.raises(DataError, match="no such file") as error:
        StreakBank(tmp_path)
    assert error.value.where == str(tmp_path / "gone.png")


def test_masks_must_fit_in_memory(tmp_path):
    for k in range(9):
        (tmp_path / f"{k}.png").write_bytes(png(8192, 8192))
    with pytest.raises(DataError, match="MiB of memory"):
        StreakBank(tmp_path)


def test_hidden_files_are_no_masks(tmp_path):
    (tmp_path / "._a.png").write_bytes(b"\0\5\x16\7")  # a Mac writes these on other disks
    with pytest.raises(DataError, match="holds no PNG"):
        StreakBank(tmp_path)


def test_a_photo_is_refused_as_a_streak_mask(tmp_path):
    cv2.imwrite(str(tmp_path / "photo.png"), photos.coffee()[:64, :64])
    with pytest.raises(DataError, match="must be grey"):
        StreakBank(tmp_path)


def test_missing_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        StreakBank(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no PNG"):
        StreakBank(tmp_path)
