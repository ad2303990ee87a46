"""Pairs to score weights on: folders in a published layout, clean images with added noise."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from c2fdft_cli.data.images.picture import Picture, read_rgb8, save_rgb8, write_picture
from c2fdft_cli.engine.evaluate.files import evaluate_files
from c2fdft_cli.engine.evaluate.folder import open_folder, open_list
from c2fdft_cli.engine.evaluate.job import EvalOptions
from c2fdft_cli.engine.evaluate.options import WeightsOptions
from c2fdft_cli.engine.evaluate.photos import evaluate_alone
from c2fdft_cli.engine.evaluate.weights import evaluate_weights
from c2fdft_cli.engine.sampling.sampler import noise_generator
from c2fdft_cli.engine.weights.build import make_network
from c2fdft_cli.engine.weights.checkpoint import Meta, save_checkpoint
from c2fdft_cli.errors import DataError, UsageError
from c2fdft_cli.recipe.schema import Network
from tests.kit.evaluate import save
from tests.kit.formula import photo
from tests.kit.images import EXCHANGED_PROFILE, SRGB_PROFILE, damage_pixels
from tests.kit.restore import Request, run

RUNS = WeightsOptions(device="cpu", precision="fp32")
NETWORK = Network(dim=8, blocks=[1, 1, 1, 1], heads=[1, 2, 4, 8])


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    folder = tmp_path / "clean"
    folder.mkdir()
    for k in range(3):
        save_rgb8(folder / f"scene.{k}.png", photo(k, 64, 64))
    return folder


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    state = make_network(NETWORK).state_dict()
    save_checkpoint(tmp_path / "w.pt", state, state, Meta(NETWORK, stage="fine", grid=[500]))
    return tmp_path / "w.pt"


def test_noise_is_white_unclipped_and_has_its_sigma(clean):
    pairs = open_folder(clean, 25.0)
    noisy, gt = pairs.pair(0).lq, pairs.pair(0).gt
    assert noisy.dtype == np.float32
    assert np.array_equal(gt, photo(0, 64, 64))
    noise = noisy - gt
    assert noise.std() == pytest.approx(25, rel=0.03)
    assert abs(noise.mean()) < 1
    assert noisy.min() < 0 or noisy.max() > 255
    neighbours = np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1]
    assert abs(neighbours) < 0.04


def test_noise_is_a_function_of_seed_and_name(clean):
    def noise(sigma: float, seed: int, i: int = 0) -> np.ndarray:
        pair = open_folder(clean, sigma, seed).pair(i)
        return (pair.lq - pair.gt) / sigma

    assert np.allclose(noise(25, 0), noise(50, 0), atol=1e-5)
    assert not np.allclose(noise(25, 0), noise(25, 1), atol=0.1)
    assert not np.allclose(noise(25, 0), noise(25, 0, 1), atol=0.1)


def test_weights_are_scored_on_noisy_images(clean, weights):
    pairs = open_folder(clean, 15.0)
    result = evaluate_weights(weights, RUNS, EvalOptions("rgb"), pairs=pairs).run()
    assert [row.name for row in result.rows] == ["scene.0", "scene.1", "scene.2"]
    assert "sigma 15 (seed 0" in result.notes[-1]
    for row in result.rows:
        # 20 log10(255 / 15)
        assert row.degraded.psnr == pytest.approx(24.61, abs=0.15)
        assert row.psnr != row.degraded.psnr


def test_clean_images_in_sub_folders_are_noted(clean: Path) -> None:
    assert "sub-folders" not in str(open_folder(clean, 15.0).note)
    shutil.copytree(clean, clean / "sub")
    assert "; 3 images in sub-folders are not used" in str(open_folder(clean, 15.0).note)


def test_weights_are_scored_on_pairs_of_files(tmp_path, weights):
    for k in range(2):
        for side, shift in (("input", 20), ("target", 0)):
            (tmp_path / "set" / side).mkdir(parents=True, exist_ok=True)
            pixels = np.minimum(photo(k, 64, 64).astype(int) + shift, 255).astype(np.uint8)
            save_rgb8(tmp_path / "set" / side / f"{k}.png", pixels)
    pairs = open_folder(tmp_path / "set")
    rows = evaluate_weights(weights, RUNS, EvalOptions("rgb"), pairs=pairs).run().rows
    assert [row.degraded.psnr for row in rows] == pytest.approx([22.1, 22.1], abs=0.2)


def test_a_set_with_missing_partners_is_incomplete(tmp_path: Path, weights: Path) -> None:
    folder = tmp_path / "set"
    for side in ("input", "target"):
        for k in range(4):
            save(folder / side / f"{k}.png", photo(k, 64, 64))
    (folder / "target" / "2.png").unlink()
    (folder / "input" / "3.png").unlink()
    save(folder / "cover.png", photo(0))
    save(folder / "masks" / "1.png", photo(0))
    damaged = folder / "input" / "1.png"
    damage_pixels(damaged)
    result = evaluate_weights(weights, RUNS, EvalOptions("rgb"), pairs=open_folder(folder)).run()
    assert [row.name for row in result.rows] == ["0"]
    assert [str(damaged) in one for one in result.unreadable] == [True]
    assert result.without_target == [folder / "input" / "2.png"]
    assert result.without_restored == [folder / "target" / "3.png"]
    assert "scored 1 of 4: the set is incomplete" in str(result.failure)
    told = f"skipped: 1 mask; on neither side of the pairs: 1 image, such as {folder / 'cover.png'}"
    assert told in result.notes[-1]


def test_a_list_pairs_files_of_any_names(tmp_path: Path, clean: Path) -> None:
    one, two, _ = sorted(clean.iterdir())
    (tmp_path / "pairs.csv").write_text(f"{one.name},{two.name},night\n{two.name},{one.name}\n")
    pairs = open_list(tmp_path / "pairs.csv", clean)
    assert pairs.names == ["night", two.stem]
    assert np.array_equal(pairs.pair(0).lq, read_rgb8(one))
    assert np.array_equal(pairs.pair(0).gt, read_rgb8(two))


def test_all_pairs_of_a_list_are_scored_in_its_order_whatever_their_split(tmp_path: Path) -> None:
    for part in ("test", "train"):
        for side in ("input", "target"):
            (tmp_path / part / side).mkdir(parents=True)
            save_rgb8(tmp_path / part / side / "1.png", photo(0, 64, 64))
    rows = [f"{part}/input/1.png,{part}/target/1.png,{part}/1\n" for part in ("train", "test")]
    (tmp_path / "pairs.csv").write_text("".join(rows))
    assert open_list(tmp_path / "pairs.csv").names == ["train/1", "test/1"]


def test_the_start_noise_is_that_of_restore(clean, tmp_path, weights):
    pairs = open_folder(clean, 25.0)
    names = [pairs.pair(i).noise_name for i in range(3)]
    assert names == ["scene.0", "scene.1", "scene.2"]
    starts = [noise_generator(0, name).initial_seed() for name in names]
    assert len(set(starts)) == 3
    target = tmp_path / "set" / "target"
    for side in ("input", "target"):
        shutil.copytree(clean, tmp_path / "set" / side)
    pairs = open_folder(target.parent)
    rows = evaluate_weights(weights, RUNS, EvalOptions("rgb"), pairs=pairs).run().rows
    scores = [row.psnr for row in rows]
    run(Request(clean, tmp_path / "out", weights))
    found = evaluate_files(tmp_path / "out", target, EvalOptions("rgb")).run()
    # restore may batch images of one size, which changes only rounding
    assert scores == pytest.approx([row.psnr for row in found.rows], rel=1e-4)


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("protocol", ["rgb", "denoise"])
def test_scores_are_those_of_the_files_that_restore_writes(
    tmp_path: Path, weights: Path, grey: bool, depth: int, protocol: str
) -> None:
    folder = tmp_path / "set"
    values = np.random.default_rng(depth)
    for k in range(2):
        gt = photo(k, 64, 64).astype(np.int64)[:, :, : 1 if grey else 3] * (2**depth - 1) // 255
        for side, sigma in (("input", 2**depth // 12), ("target", 0)):
            noisy = gt + values.normal(0, sigma + 1e-9, gt.shape)
            pixels = noisy.clip(0, 2**depth - 1).round().astype(f"uint{depth}")
            (folder / side).mkdir(parents=True, exist_ok=True)
            picture = Picture(np.broadcast_to(pixels, (64, 64, 3)).copy(), grey=grey)
            write_picture(folder / side / f"{k}.png", picture)
    options = EvalOptions(protocol)
    ours = evaluate_weights(weights, RUNS, options, pairs=open_folder(folder)).run()
    run(Request(folder / "input", tmp_path / "out", weights))
    files = evaluate_files(tmp_path / "out", folder, options).run()
    # "denoise" scores the output before it is rounded to the bits of a file; and restore batches
    # images of one size, which rounds a few values to another level
    rounding = 2e-3 if (protocol, depth) == ("denoise", 8) else 1e-4
    for one, other in zip(ours.rows, files.rows, strict=True):
        assert one.psnr == pytest.approx(other.psnr, rel=0, abs=rounding)
        assert one.degraded.psnr == pytest.approx(other.degraded.psnr, rel=1e-12)


def test_a_pair_is_as_grey_as_its_input(tmp_path: Path) -> None:
    """The file that `restore` makes of it is, whatever the target is."""
    for side in ("input", "target"):
        (tmp_path / side).mkdir()
        for name, grey in (("1.png", side == "input"), ("2.png", side == "target")):
            write_picture(tmp_path / side / name, Picture(photo(0, 16, 16), grey=grey))
    source = open_folder(tmp_path)
    assert [source.pair(i).grey for i in range(2)] == [True, False]


def test_training_images_are_scored_only_if_requested(tmp_path):
    for part in ("train", "test"):
        for side in ("input", "target"):
            (tmp_path / "set" / part / side).mkdir(parents=True)
            save_rgb8(tmp_path / "set" / part / side / "1.png", photo(0, 64, 64))
    with pytest.raises(DataError, match="contains training images"):
        open_folder(tmp_path / "set")
    assert open_folder(tmp_path / "set" / "test").names == ["1"]


@pytest.mark.parametrize("sigma", [0.0, -5.0, 256.0, float("nan")])
def test_invalid_noise_levels_are_refused(clean, sigma):
    with pytest.raises(UsageError, match=r"--sigma must be in \(0, 255\], got"):
        open_folder(clean, sigma)


def test_folders_without_pairs_are_refused(tmp_path, clean):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images in the folder"):
        open_folder(tmp_path / "empty", 25)
    with pytest.raises(DataError, match="no such"):
        open_folder(tmp_path / "nowhere", 25)
    with pytest.raises(DataError, match="no pairs"):
        open_folder(clean)  # clean images alone are not pairs


def test_without_pairs_the_hint_says_what_eval_can_do(tmp_path, clean):
    for side, name in (("input", "a"), ("target", "b")):
        (tmp_path / "other" / side).mkdir(parents=True)
        save_rgb8(tmp_path / "other" / side / f"{name}.png", photo(0, 64, 64))
    for folder in (clean, tmp_path / "other"):
        with pytest.raises(DataError, match="no pairs") as error:
            open_folder(folder)
        assert error.value.hint.startswith("give both images of a pair the same name; for clean")
        options = set(re.findall(r"--[\w-]+", error.value.hint))
        assert options == {"--sigma", "--no-reference", "--pairs"}
    (tmp_path / "other").rename(tmp_path / "a--b")
    with pytest.raises(DataError, match="no pairs") as error:
        open_folder(tmp_path / "a--b" / "input")
    assert error.value.hint.startswith("this is one side of the pairs")


def test_two_images_of_one_name_are_refused(clean):
    save_rgb8(clean / "scene.1.bmp", photo(5, 64, 64))
    with pytest.raises(DataError, match=r"two images have the name scene\.1"):
        open_folder(clean, 25)


def test_all_unusable_pairs_are_listed_before_the_first_is_restored(
    tmp_path: Path, weights: Path
) -> None:
    folder, border = tmp_path / "set", 3
    sizes = {"good": (64, 64), "other": (64, 56), "small": (16, 40), "text": (64, 64)}
    for name, (height, width) in sizes.items():
        save(folder / "input" / f"{name}.png", photo(0, height, width))
        save(folder / "target" / f"{name}.png", photo(0, height, width))
    save(folder / "target" / "other.png", photo(0, 64, 64))
    (folder / "target" / "text.png").write_text("text")
    lines = [f"input/{name}.png,target/{name}.png\n" for name in sizes]
    (folder / "pairs.csv").write_text("".join(lines))
    for pairs in (open_folder(folder), open_list(folder / "pairs.csv")):
        with pytest.raises(DataError, match="3 of 4 images cannot be scored") as error:
            evaluate_weights(weights, RUNS, EvalOptions("rgb", border), pairs=pairs)
        other, text, small = sorted(error.value.details)
        assert "input/other.png: the sizes differ within a pair" in other
        assert "small: 40 x 16 px, but SSIM needs 11 x 11 inside a border of 3 px" in small
        assert "target/text.png: cannot read the image" in text


def test_clean_images_are_checked_before_the_first_is_restored(clean: Path, weights: Path) -> None:
    save_rgb8(clean / "small.png", photo(0, 10, 64))
    with pytest.raises(DataError, match="small: 64 x 10 px"):
        evaluate_weights(weights, RUNS, EvalOptions(), pairs=open_folder(clean, 15.0))


def test_sizes_that_differ_are_refused(tmp_path):
    for side, size in (("input", 64), ("target", 56)):
        (tmp_path / "set" / side).mkdir(parents=True)
        save_rgb8(tmp_path / "set" / side / "a.png", photo(0, size, size))
    with pytest.raises(DataError, match="sizes differ"):
        open_folder(tmp_path / "set").pair(0)


def test_files_of_several_pictures_and_of_unlike_colours_are_noted(tmp_path: Path) -> None:
    pages = [Image.fromarray(photo(k, 64, 64)) for k in range(2)]
    for side in ("input", "target"):
        (tmp_path / side).mkdir()
        profile = {"input": EXCHANGED_PROFILE, "target": SRGB_PROFILE}[side]
        options = {"save_all": True, "append_images": pages[1:], "icc_profile": profile}
        pages[0].save(tmp_path / side / "a.tif", **options)
    told = "only the first picture is used of 2 of 2 files"
    assert told in str(open_folder(tmp_path).note)
    saved = evaluate_files(tmp_path / "input", tmp_path / "target", EvalOptions()).run()
    assert told in saved.notes[0]
    for text in (str(open_folder(tmp_path).note), saved.notes[1]):
        assert "the colour profiles of 1 of 1 pair differ" in text
    assert "1 of 1 files" in str(open_folder(tmp_path / "target", 25.0).note)
    alone = evaluate_alone(tmp_path / "target", EvalOptions()).run()
    assert "1 of 1 files" in alone.notes[0]
