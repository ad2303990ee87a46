"""Restoring from Python gives the command's pixels, for every kind of image and thread."""

from __future__ import annotations

import copy
import io
import os
import pickle
import shutil
import signal
import threading
from collections import UserList, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

import c2fdft_cli as c2fdft
from c2fdft_cli.api.restorer import Restorer
from c2fdft_cli.core.network import DFT
from c2fdft_cli.engine.restore.options import SamplingOptions
from c2fdft_cli.engine.restore.plan import plan_restore
from c2fdft_cli.engine.sampling import executor
from c2fdft_cli.engine.weights.average import average
from c2fdft_cli.engine.weights.checkpoint import load_checkpoint
from c2fdft_cli.execution import device
from c2fdft_cli.recipe.schema import Diffusion
from c2fdft_cli.signals import STOP_SIGNALS
from tests.kit.command import run as run_command
from tests.kit.gpu import pretend_gpu
from tests.kit.processes import python
from tests.kit.restore import (
    overflow_in_half_precision,
    pixels,
    random_picture,
    save,
    write_checkpoint,
)
from tests.kit.weights import write_packed

GRID = (500, 100)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, tiny_net: Callable[..., DFT]) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("weights") / "w.pt", tiny_net())


@pytest.fixture(scope="module")
def restorer(weights: Path) -> Restorer:
    return c2fdft.load(weights, device="cpu", precision="fp32", grid=GRID)


def see_through_16_bit() -> PIL.Image.Image:
    """A 16-bit grey image with a transparent level, as Pillow opens such a PNG."""
    image = PIL.Image.new("I;16", (8, 8))
    image.info["transparency"] = 5
    return image


def by_command(weights: Path, source: Path, out: Path, *more: object) -> np.ndarray:
    """The picture that the command writes for a file."""
    words = ("--weights", weights, "--device", "cpu", "--precision", "fp32", "--grid", "500,100")
    done = run_command("restore", source, out, *words, *more)
    assert done.exit_code == 0, done.output
    return pixels(out)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("grey", [False, True])
def test_arrays_equal_the_files_of_the_command(restorer, weights, tmp_path, depth, grey):
    picture = random_picture(21, 30, depth=depth, grey=grey)
    source = save(tmp_path / "photo.png", picture)
    image = picture.pixels[..., 0] if grey else picture.pixels
    restored = restorer(image, name="photo.png")
    assert (restored.dtype, restored.shape) == (image.dtype, image.shape)
    written = by_command(weights, source, tmp_path / "out.png")
    assert np.array_equal(restored, written[..., 0] if grey else written)
    assert not np.array_equal(restored, image)


@pytest.mark.parametrize(("mode", "options"), [
    ("RGB", {}), ("L", {"grey": True}), ("RGBA", {"alpha": True}),
    ("LA", {"grey": True, "alpha": True}), ("I;16", {"grey": True, "depth": 16}),
])  # fmt: skip
def test_pil_images_equal_the_files_of_the_command(restorer, weights, tmp_path, mode, options):
    source = save(tmp_path / "photo.png", random_picture(16, 24, **options))
    image = PIL.Image.open(source)
    assert image.mode == mode
    restored = restorer(image)  # the image knows the name of its file
    assert (restored.mode, restored.size) == (mode, image.size)
    by_command(weights, source, tmp_path / "out.png")
    assert np.array_equal(np.asarray(restored), np.asarray(PIL.Image.open(tmp_path / "out.png")))


def test_pil_palettes_become_rgb_and_keep_their_transparency(restorer):
    colours = PIL.Image.fromarray(random_picture(16, 16).pixels)
    assert restorer(colours.quantize(16)).mode == "RGB"
    see_through = colours.quantize(16)
    see_through.info["transparency"] = 3
    assert restorer(see_through).mode == "RGBA"
    assert restorer(colours.convert("1")).mode == "L"


@pytest.mark.parametrize(("transparency", "mode"), [(None, "L"), (3, "LA")])
def test_a_palette_of_greys_equals_the_file_of_the_command(
    restorer, weights, tmp_path, transparency, mode
):
    grey = PIL.Image.fromarray(random_picture(16, 24, grey=True).pixels[..., 0])
    more = {} if transparency is None else {"transparency": transparency}
    grey.quantize(20).save(tmp_path / "photo.png", **more)
    restored = restorer(PIL.Image.open(tmp_path / "photo.png"))
    assert restored.mode == mode
    by_command(weights, tmp_path / "photo.png", tmp_path / "out.png")
    assert np.array_equal(np.asarray(restored), np.asarray(PIL.Image.open(tmp_path / "out.png")))


@pytest.mark.parametrize(("mode", "becomes"), [("L", "LA"), ("RGB", "RGBA"), ("1", "LA")])
def test_a_transparent_colour_becomes_alpha(restorer, tmp_path, mode, becomes):
    """Restored pixels no longer have exactly that colour."""
    image = PIL.Image.fromarray(random_picture(16, 16).pixels).convert(mode)
    image.info["transparency"] = image.getpixel((3, 2))
    seen = np.asarray(image.convert("RGBA"))[..., 3]
    assert not seen[2, 3]
    restored = restorer(image)
    assert (restored.mode, restored.info) == (becomes, {})
    restored.save(tmp_path / "out.png")
    again = PIL.Image.open(tmp_path / "out.png").convert("RGBA")
    assert np.array_equal(np.asarray(again)[..., 3], seen)


def test_uint8_results_are_the_rounded_float_results(restorer):
    image = random_picture(16, 24).pixels
    for dtype in (np.float32, np.float64):
        restored = restorer((image / 255).astype(dtype))
        assert restored.dtype == dtype
        assert np.abs(restored * 255 - restorer(image)).max() < 0.51
    grey = restorer((image[..., 0] / 255).astype(np.float32))
    assert np.abs(grey * 255 - restorer(np.ascontiguousarray(image[..., 0]))).max() < 0.51


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
def test_tensors_keep_shape_and_type(restorer, dtype):
    arrays = [random_picture(16, 24, seed=i).pixels for i in range(3)]
    batch = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
    white = 1 if dtype == torch.uint8 else 255
    restored = restorer((batch / white).to(dtype))
    assert (restored.dtype, restored.shape) == (dtype, batch.shape)
    expected = torch.from_numpy(np.stack(restorer(arrays))).permute(0, 3, 1, 2)
    assert (restored.double() * white - expected.double()).abs().max() < (
        2 if dtype == torch.float16 else 0.51
    )
    assert restorer((batch[0] / white).to(dtype)).shape == (3, 16, 24)


@pytest.mark.parametrize("steps", [None, 4])
def test_by_default_weights_precision_and_timesteps_are_those_of_the_command(tmp_path, steps):
    source = save(tmp_path / "photo.png", random_picture(40, 48))
    more = () if steps is None else ("--steps", steps)
    done = run_command("restore", source, tmp_path / "out.png", *more)
    assert done.exit_code == 0, done.output
    restored = c2fdft.load(steps=steps)(PIL.Image.open(source))
    assert np.array_equal(np.asarray(restored), pixels(tmp_path / "out.png"))


def test_a_list_equals_its_images_one_by_one(restorer):
    images = [
        random_picture(16, 24, seed=0).pixels,
        torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(0)),
        random_picture(16, 24, seed=1).pixels,
        PIL.Image.fromarray(random_picture(8, 8, seed=2).pixels),
    ]
    names = ["a", "b", "c", "d", "e"]
    together = restorer(images, names)
    alone = [restorer(images[0], "a"), restorer(images[1], ["b", "c"]), restorer(images[2], "d"),
             restorer(images[3], "e")]  # fmt: skip
    for one, other in zip(together, alone, strict=True):
        assert type(one) is type(other)
        a, b = (np.asarray(x).astype(float) for x in (one, other))
        assert np.abs(a - b).max() <= (1 if a.max() > 1 else 1e-5)  # batches differ by rounding


def test_names_and_seeds_determine_the_noise(restorer, weights):
    image = random_picture(16, 16).pixels
    assert np.array_equal(restorer(image, "a.png"), restorer(image, "folder/a.jpg"))
    assert not np.array_equal(restorer(image, "a"), restorer(image, "b"))
    other = c2fdft.load(weights, device="cpu", precision="fp32", grid=GRID, seed=1)
    assert not np.array_equal(restorer(image, "a"), other(image, "a"))
    with pytest.raises(c2fdft.UsageError, match="2 names for 1 image"):
        restorer(image, ["a", "b"])


@pytest.mark.parametrize(("image", "says"), [
    ("photo.png", "must be a NumPy array, a torch tensor or a PIL image"),
    (np.zeros((8, 8, 4), np.uint8), r"must be \[h, w, 3\] or \[h, w\], got \[8, 8, 4\]"),
    (np.zeros((0, 8, 3), np.uint8), "must be"),
    (np.zeros((8, 8, 3), np.int32), "must be uint8, uint16 or floating, got int32"),
    (np.full((8, 8, 3), 200.0), "on the scale 0 to 1, got 200"),
    (np.full((8, 8, 3), np.nan), "the image has NaN or infinite values"),
    (torch.full((3, 8, 8), -torch.inf), "the image has NaN or infinite values"),
    (torch.zeros(1, 1, 8, 8), r"must be \[n, 3, h, w\]"),
    (torch.zeros(1, 3, 8, 8, dtype=torch.int64), "must be uint8 or floating"),
    (torch.zeros(3, 8, 8).to(torch.float8_e4m3fn), "must be uint8 or floating of 16 to 64 bits"),
    (torch.zeros(3, 8, 8).to_sparse(), r"got one of the layout torch\.sparse_coo"),
    (torch.zeros(3, 8, 8, device="meta"), "got one on the meta device"),
    (PIL.Image.new("CMYK", (8, 8)), "mode CMYK is not supported"),
    (see_through_16_bit(), "cannot keep its transparent level"),
])  # fmt: skip
def test_invalid_images_are_refused(restorer, image, says):
    with pytest.raises(c2fdft.UsageError, match=says):
        restorer(image)


def test_the_uncertainty_equals_that_of_the_command(restorer, weights, tmp_path):
    picture = random_picture(16, 24)
    source = save(tmp_path / "photo.png", picture)
    image, deviation = restorer.uncertainty(picture.pixels, samples=3, name="photo")
    written = by_command(
        weights, source, tmp_path / "out.png", "--samples", 3, "--uncertainty", tmp_path / "u"
    )
    assert np.array_equal(image, written)
    (maps,) = [one for one in (tmp_path / "u").iterdir() if pixels(one).dtype == np.uint16]
    assert np.array_equal(np.rint(deviation * 65535), pixels(maps)[..., 0])
    assert deviation.shape == (16, 24)
    batch = torch.zeros(2, 3, 16, 24)
    assert restorer.uncertainty(batch, samples=2).deviation.shape == (2, 1, 16, 24)
    with pytest.raises(c2fdft.UsageError, match="at least 2 samples"):
        restorer.uncertainty(image, samples=1)


def test_threads_and_several_restorers_change_nothing(restorer, weights):
    other = c2fdft.load(weights, device="cpu", precision="fp32", grid=(700,), seed=3)
    images = [random_picture(16 + 8 * (i % 2), 24, seed=i).pixels for i in range(6)]
    expected = {
        (k, i): one(image, str(i))
        for k, one in enumerate((restorer, other))
        for i, image in enumerate(images)
    }
    found: dict[tuple[int, int], np.ndarray] = {}

    def work(k: int, one: Restorer, start: int) -> None:
        for i in range(start, len(images), 2):
            found[k, i] = one(images[i], str(i))

    threads = [
        threading.Thread(target=work, args=(k, one, start))
        for k, one in enumerate((restorer, other))
        for start in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], expected[key]) for key in expected)


def test_a_folder_is_restored_as_by_the_command(restorer, weights, tmp_path, capfd):
    for i in range(3):
        save(tmp_path / "in" / f"{i}.png", random_picture(16, 16, seed=i))
    told: list[tuple[int, int]] = []
    result = restorer.restore_folder(
        tmp_path / "in", tmp_path / "out", progress=lambda *counts: told.append(counts)
    )
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert [image.error for image in result.images] == [None] * 3
    assert capfd.readouterr() == ("", "")
    for i in range(3):
        one = by_command(weights, tmp_path / "in" / f"{i}.png", tmp_path / "one" / f"{i}.png")
        assert np.abs(pixels(tmp_path / "out" / f"{i}.png").astype(int) - one).max() <= 1
    assert len(restorer.restore_folder(tmp_path / "in", tmp_path / "out").skipped) == 3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tile": 32}, ("--tile", 32)),
        ({"self_ensemble": True}, ("--self-ensemble",)),
        ({"eta": 0.5}, ("--eta", 0.5)),
    ],
)
def test_settings_of_loading_are_the_options_of_the_command(
    restorer, weights, tmp_path, settings, words
):
    picture = random_picture(40, 72)
    source = save(tmp_path / "photo.png", picture)
    other = c2fdft.load(weights, device="cpu", precision="fp32", grid=GRID, **settings)
    restored = other(picture.pixels, name="photo.png")
    assert np.array_equal(restored, by_command(weights, source, tmp_path / "out.png", *words))
    assert not np.array_equal(restored, restorer(picture.pixels, name="photo.png"))
    other.restore_folder(source, tmp_path / "again.png")
    assert np.array_equal(restored, pixels(tmp_path / "again.png"))


@pytest.mark.parametrize(
    ("settings", "words", "name"),
    [
        ({"format": "jpg", "quality": 20}, ("--quality", 20), "0.jpg"),
        ({"bit_depth": 16, "suffix": "_x"}, ("--bit-depth", 16), "0_x.png"),
    ],
)
def test_files_of_a_folder_are_written_as_by_the_command(
    restorer, weights, tmp_path, settings, words, name
):
    save(tmp_path / "in" / "0.png", random_picture(16, 16))
    restorer.restore_folder(tmp_path / "in", tmp_path / "out", **settings)
    by_command(weights, tmp_path / "in" / "0.png", tmp_path / "other" / name, *words)
    written, expected = ((tmp_path / out / name).read_bytes() for out in ("out", "other"))
    assert written == expected
    (tmp_path / "out" / name).write_bytes(b"older")
    with pytest.warns(UserWarning, match="this program did not write it, or it was changed since"):
        again = restorer.restore_folder(tmp_path / "in", tmp_path / "out", **settings, check=False)
    assert len(again.skipped) == 1
    restorer.restore_folder(tmp_path / "in", tmp_path / "out", **settings, overwrite=True)
    assert (tmp_path / "out" / name).read_bytes() == expected


def test_a_folder_with_a_damaged_file_raises_after_the_others(restorer, tmp_path):
    save(tmp_path / "in" / "good.png", random_picture(16, 16))
    (tmp_path / "in" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    with pytest.raises(c2fdft.PartialFailure, match="1 of 2 images failed") as caught:
        restorer.restore_folder(tmp_path / "in", tmp_path / "out")
    assert "bad.png" in caught.value.details[0]
    assert (tmp_path / "out" / "good.png").is_file()
    result = restorer.restore_folder(tmp_path / "in", tmp_path / "two", check=False)
    assert isinstance(result.failure, c2fdft.PartialFailure)


def test_packaged_names_and_steps_choose_weights(weights, tmp_path):
    with pytest.raises(c2fdft.CheckpointError, match="no packaged weights 'derrain'") as caught:
        c2fdft.load("derrain")
    assert "did you mean derain" in (caught.value.hint or "")
    with pytest.raises(c2fdft.CheckpointError):
        c2fdft.load(tmp_path / "nowhere.pt")
    with pytest.raises(c2fdft.UsageError, match="cannot be combined"):
        c2fdft.load(weights, steps=2, grid=GRID)
    with pytest.raises(c2fdft.UsageError, match="--device must be"):
        c2fdft.load(weights, device="gpu")
    assert c2fdft.load(weights, steps=2).grid == [999, 0]


@pytest.mark.parametrize("named", ["./derain", Path("derain")])
def test_a_file_named_like_packaged_weights(weights, tmp_path, monkeypatch, named):
    shutil.copy(weights, tmp_path / "derain")
    monkeypatch.chdir(tmp_path)
    restorer = c2fdft.load(named, device="cpu", precision="fp32", grid=GRID)
    save(Path("in", "a.png"), random_picture(16, 16))
    restorer.restore_folder("in", "out")
    expected = by_command(weights, Path("in", "a.png"), Path("one", "a.png"))
    assert np.abs(pixels(Path("out", "a.png")).astype(int) - expected).max() <= 1


def test_steps_may_have_another_spacing(weights):
    assert c2fdft.load(weights, steps=3, spacing="leading").grid == [666, 333, 0]


def test_weights_whose_noise_leaves_nothing_of_the_image_are_refused(tmp_path, tiny_net):
    said = {"diffusion": Diffusion(beta_end=0.5)}
    path = write_packed(tmp_path / "odd.pt", tiny_net(), None, said=said)
    with pytest.raises(c2fdft.UsageError, match="nothing of the image is left at timestep 999"):
        c2fdft.load(path, device="cpu")
    c2fdft.load(path, device="cpu", grid=(50,))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"grid": [1, 500]}, "--grid must be descending timesteps such as 999,500, got 1,500"),
        ({"grid": []}, "--grid must be descending"),
        ({"grid": [500.5]}, "--grid must be a tuple of whole numbers"),
        ({"spacing": "leading"}, "--spacing works only together with --steps"),
        ({"eta": 2}, "--eta must be 0 to 1, got 2"),
        ({"steps": "4"}, "--steps must be a whole number, got '4'"),
        ({"seed": 1.5}, "--seed must be a whole number"),
        ({"max_memory": -3}, "--max-memory must be at least 1 byte, got -3"),
        ({"max_memory": 1.5}, "--max-memory must be a whole number"),
        ({"tile": 64.0}, "--tile must be a whole number"),
        ({"seed": None}, "--seed must be a whole number, got None"),
    ],
)
def test_settings_are_checked_against_the_limits_of_the_options(weights, settings, says):
    with pytest.raises(c2fdft.UsageError) as error:
        c2fdft.load(weights, **settings)
    assert str(error.value).startswith(says)


def test_a_restorer_describes_itself(weights):
    assert repr(c2fdft.load(weights, device="cpu", precision="fp32")).startswith("<Restorer w.pt")


def test_other_timesteps_than_those_of_fine_weights_give_a_warning(tmp_path, tiny_net):
    fine = write_checkpoint(tmp_path / "fine.pt", tiny_net(), stage="fine", grid=[500])
    assert c2fdft.load(fine).grid == [500]
    with pytest.warns(UserWarning, match="trained on the timesteps 500"):
        c2fdft.load(fine, steps=4)


@pytest.mark.parametrize("averaged", [False, True])
def test_timesteps_chosen_by_a_sweep_give_no_warning(tmp_path, tiny_net, averaged):
    """Nor do the timesteps of the training, for which swept fine weights are still suited."""
    said = {"stage": "fine", "grid": [999, 500], "grid_from": "sweep"}
    metrics = {"sweep": {"trained_grid": [500], "psnr": 30.0}}
    swept = write_checkpoint(tmp_path / "fine.pt", tiny_net(), **said, metrics=metrics)
    if averaged:
        other = shutil.copy(swept, tmp_path / "other.pt")
        average([swept, other], tmp_path / "mean.pt")
        swept = tmp_path / "mean.pt"
        assert load_checkpoint(swept).meta.metrics == {"sweep": {"trained_grid": [500]}}
    save(tmp_path / "a.png", random_picture(8, 8))
    for n, times in enumerate([None, (500,), (999, 500)]):
        c2fdft.load(swept, grid=times, device="cpu", precision="fp32")
        sampling, out = SamplingOptions(str(swept), grid=times), tmp_path / f"{n}"
        assert plan_restore(tmp_path / "a.png", out, sampling=sampling).warnings == []
    with pytest.warns(UserWarning, match="trained on the timesteps 500 and are likely"):
        c2fdft.load(swept, steps=4)


def test_settings_of_a_folder_may_be_numpy_numbers(weights, tmp_path):
    """They are recorded in the manifest of the outputs, and compared in the next run."""
    save(tmp_path / "in" / "a.png", random_picture(8, 8))
    of_numpy = c2fdft.load(weights, seed=np.int64(3), grid=np.array(GRID), device="cpu")
    numbers = {"quality": np.int32(90), "bit_depth": np.uint8(8)}
    of_numpy.restore_folder(tmp_path / "in", tmp_path / "out", **numbers)
    same = c2fdft.load(weights, seed=3, grid=GRID, device="cpu")
    again = same.restore_folder(tmp_path / "in", tmp_path / "out", quality=90, bit_depth=8)
    assert [one.doubt for one in again.skipped] == [None]


def test_memory_limits_and_infinite_results_are_errors(weights, tmp_path, tiny_net):
    small = c2fdft.load(weights, device="cpu", precision="fp32", max_memory="1M")
    with pytest.raises(c2fdft.ResourceError, match="may be used"):
        small(np.zeros((512, 512, 3), np.uint8))
    net = tiny_net()
    with torch.no_grad():
        net.output.weight.fill_(3e38)
    broken = c2fdft.load(write_checkpoint(tmp_path / "broken.pt", net), precision="fp32")
    with pytest.raises(c2fdft.CheckpointError, match="NaN or infinite"):
        broken(np.zeros((8, 8, 3), np.uint8))


def test_bf16_on_a_cpu_that_is_slower_in_it_gives_a_warning(weights, monkeypatch):
    monkeypatch.setattr(device, "cpu_bf16_speed", lambda: None)
    with pytest.warns(UserWarning, match="emulates bf16") as caught:
        c2fdft.load(weights, device="cpu", precision="bf16")
    assert [one.filename for one in caught] == [__file__]


def test_an_image_restored_again_in_float32_gives_a_warning(weights, restorer, monkeypatch):
    monkeypatch.setattr(device, "cpu_has_fast_bf16", lambda: True)
    image = random_picture(16, 24).pixels
    want = restorer(image, name="a.png")
    overflow_in_half_precision(monkeypatch)
    half = c2fdft.load(weights, device="cpu", precision="bf16", grid=GRID)
    says = r"a: not finite in bf16, restored again in fp32"
    with pytest.warns(UserWarning, match=says) as caught:
        again = half(image, name="a.png")
    assert np.array_equal(again, want)
    assert caught[0].filename == __file__


def test_a_missing_compiler_gives_a_warning(weights, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.warns(UserWarning, match=r"torch\.compile needs a C\+\+ compiler"):
        slow = c2fdft.load(weights, device="cpu", precision="fp32", compile="on")
    assert slow(np.zeros((8, 8, 3), np.uint8)).shape == (8, 8, 3)


def test_a_gpu_that_is_not_used_gives_a_warning(weights, monkeypatch, tmp_path):
    pretend_gpu(monkeypatch, (6, 1), ["sm_80", "sm_90"], "GTX 1080")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    says = "running on the CPU: torch .* has no kernels for the GTX 1080"
    with pytest.warns(UserWarning, match=says) as caught:
        old = c2fdft.load(weights, precision="fp32")
    assert caught[0].filename == __file__
    source = save(tmp_path / "a.png", random_picture(8, 8))
    with pytest.warns(UserWarning, match=says) as caught:
        old.restore_folder(source, tmp_path / "out")
    assert caught[0].filename == __file__


def test_a_restorer_can_be_copied_and_pickled(restorer):
    """A pool of processes needs this."""
    image = random_picture(16, 24).pixels
    expected = restorer(image)  # a restorer that was used holds more state
    pickled = pickle.dumps(restorer)
    for other in (copy.deepcopy(restorer), pickle.loads(pickled)):
        assert repr(other) == repr(restorer)
        assert np.array_equal(other(image), expected)
    weights = 4 * sum(one.numel() for one in restorer.module().parameters())
    assert len(pickled) < 1.5 * weights  # without the raw weights


@pytest.mark.parametrize(("call", "says"), [
    (lambda r: r(np.zeros((8, 8, 3), np.uint8), name=3), "name must be a text or a Path"),
    (lambda r: r.uncertainty(np.zeros((8, 8, 3), np.uint8), "3"), "samples must be a whole number"),
    (lambda r: r.uncertainty(np.zeros((8, 8, 3), np.uint8), 10**20), "--samples must be 1 to 1000"),
    (lambda r: r.restore_folder("in", None), "out must be a text or a Path, got None"),
    (lambda r: r.restore_folder(b"in", "out"), "source must be a text or a Path"),
    (lambda r: r.restore_folder([], "out"), "nothing to restore"),
    (lambda r: r.restore_folder("in", "out", progress=5), "progress must be a function, got 5"),
    (lambda r: r.restore_folder("in", "out", suffix=None), "--suffix must be a text, got None"),
    (lambda r: r.restore_folder("\0", "out"), "IN contains a NUL character"),
    (lambda r: r.restore_folder("in", "o\0"), "OUT contains a NUL character"),
    (lambda r: c2fdft.load(r.weights, grid=500), "grid must be descending timesteps"),
    (lambda r: r.restore_folder(io.StringIO("a.png\nb.png"), "out"), "or several, got <_io.String"),
    (lambda r: c2fdft.load(bytes(r.weights)), "weights must be a text or a Path, got b'"),
])  # fmt: skip
def test_arguments_of_other_types_are_refused(restorer, tmp_path, monkeypatch, call, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(c2fdft.UsageError, match=says):
        call(restorer)
    assert not list(tmp_path.iterdir())


def test_counts_of_samples_may_be_numpy_numbers(restorer):
    """A small type would overflow where the work is counted."""
    image = random_picture(40, 48).pixels
    expected = restorer.uncertainty(image, 2)
    assert np.array_equal(restorer.uncertainty(image, np.int8(2)).image, expected.image)
    assert np.array_equal(restorer.uncertainty(image, 2).image, expected.image)


def test_a_folder_is_restored_with_the_weights_that_were_loaded(tmp_path, tiny_net, monkeypatch):
    save(tmp_path / "in" / "a.png", random_picture(16, 16))
    (tmp_path / "elsewhere").mkdir()
    path = write_checkpoint(tmp_path / "w.pt", tiny_net())
    monkeypatch.chdir(tmp_path)
    restorer = c2fdft.load("w.pt", device="cpu", precision="fp32", grid=GRID)
    monkeypatch.chdir(tmp_path / "elsewhere")
    with monkeypatch.context() as loaded_once:
        loaded_once.delattr("c2fdft_cli.engine.restore.plan.load_checkpoint")
        assert restorer.restore_folder(tmp_path / "in", tmp_path / "out").failure is None
    net = tiny_net()
    net.output.weight.data.mul_(2)
    write_checkpoint(path, net)
    with pytest.raises(c2fdft.CheckpointError, match="have changed since they were loaded"):
        restorer.restore_folder(tmp_path / "in", tmp_path / "other")
    path.unlink()
    with pytest.raises(c2fdft.CheckpointError, match=r"w\.pt: there is no such checkpoint"):
        restorer.restore_folder(tmp_path / "in", tmp_path / "other")


def test_a_signal_is_not_lost(restorer, tmp_path, monkeypatch):
    """Nothing is left to do, or another error ends the call: the program's handler gets it."""
    got = []
    before = {one: signal.signal(one, lambda number, _: got.append(number)) for one in STOP_SIGNALS}
    for name in "ab":
        save(tmp_path / "in" / f"{name}.png", random_picture(16, 16))

    def restore(out: str, after: int, error: Exception | None = None) -> None:
        def progress(done: int, _: int) -> None:
            if done == after:
                os.kill(os.getpid(), signal.SIGTERM)
                if error is not None:
                    raise error

        restorer.restore_folder(tmp_path / "in", tmp_path / out, progress=progress)

    try:
        restore("one", after=2)
        assert got == [signal.SIGTERM]
        with pytest.raises(ValueError, match="another"):
            restore("two", after=1, error=ValueError("another"))
        assert got == [signal.SIGTERM] * 2
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_path_that_is_a_hyphen_is_a_file(restorer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a.png", random_picture(16, 16)).rename(tmp_path / "-")
    assert restorer.restore_folder(Path("-"), "out").failure is None
    restorer.restore_folder(Path("-"), Path("-2"))
    assert (tmp_path / "out" / "-.png").exists()


def test_a_name_may_be_a_path(restorer):
    image = random_picture(16, 24).pixels
    expected = restorer(image, "a.png")
    assert np.array_equal(restorer(image, Path("photos/a.png")), expected)
    assert np.array_equal(restorer([image], [Path("photos/a.png")])[0], expected)


@pytest.mark.parametrize("kind", [tuple, deque, UserList])
def test_any_sequence_of_images_is_restored_to_a_list(restorer, kind):
    images = [random_picture(8, 12).pixels, random_picture(12, 8).pixels]
    found = restorer(kind(images))
    assert isinstance(found, list)
    assert all(np.array_equal(a, b) for a, b in zip(found, restorer(images), strict=True))
    assert restorer(kind()) == []


@pytest.mark.parametrize("text", ["photo.png", b"photo.png"])
def test_a_text_is_no_sequence_of_images(restorer, text):
    with pytest.raises(c2fdft.UsageError, match="an image must be"):
        restorer(text)
    with pytest.raises(c2fdft.UsageError, match=r"must both be paths|an image must be"):
        c2fdft.evaluate(text, random_picture(8, 12).pixels)


def test_a_call_reports_its_progress_and_can_be_cancelled(restorer):
    images = [random_picture(*size).pixels for size in ((16, 24), (24, 40), (8, 16))]
    shares: list[float] = []
    expected = restorer(images, progress=shares.append)
    assert shares == sorted(shares)
    assert shares[0] > 0
    assert shares[-1] == pytest.approx(1)
    uncertain = restorer.uncertainty(images[0], 2, progress=shares.append)

    def cancel(share: float) -> None:
        if share > 0.3:
            raise TimeoutError(f"{share} done")

    with pytest.raises(TimeoutError, match="done"):
        restorer(images, progress=cancel)
    with pytest.raises(TimeoutError, match="done"):
        restorer.uncertainty(images[0], 2, progress=cancel)
    for one, again in zip(expected, restorer(images), strict=True):
        assert np.array_equal(one, again)
    assert np.array_equal(restorer.uncertainty(images[0], 2).deviation, uncertain.deviation)
    with pytest.raises(c2fdft.UsageError, match="progress must be a function, got 5"):
        restorer(images, progress=5)


def test_each_call_may_use_the_memory_that_is_free_then(weights, monkeypatch):
    """Not only what was free at the first call, which decides the strips but no pixel."""
    restorer = c2fdft.load(weights, device="cpu", precision="fp32", grid=GRID)
    free = 40 << 20
    monkeypatch.setattr(executor, "free_bytes", lambda _: free)
    monkeypatch.setattr(executor, "MEASURED_SECONDS", 0)
    image = random_picture(200, 160).pixels
    in_strips = restorer(image)
    free = 0
    with pytest.raises(c2fdft.ResourceError, match="px needs"):
        restorer(image)
    free = 8 << 30
    assert np.array_equal(restorer(image), in_strips)


def test_an_image_that_does_not_fit_is_refused_before_it_is_converted(weights, monkeypatch):
    restorer = c2fdft.load(weights, device="cpu", precision="fp32", max_memory="8M")
    huge = np.broadcast_to(np.uint8(7), (60000, 60000, 3))
    tensor = torch.zeros(1, dtype=torch.uint8).expand(3, 60000, 60000)
    for image in (huge, tensor, huge[..., 0], [huge]):
        with pytest.raises(c2fdft.ResourceError, match="60000x60000 px needs"):
            restorer(image)
    with pytest.raises(c2fdft.ResourceError, match="60000x60000 px needs"):
        restorer.uncertainty(huge)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_no_memory_for_converting_an_image_is_an_error_of_the_program(restorer, monkeypatch, error):
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr("c2fdft_cli.api.restorer.unpack", fail)
    with pytest.raises(c2fdft.ResourceError, match="out of memory converting the image"):
        restorer(random_picture(8, 12).pixels)


@contextmanager
def by_default(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "setting",
    [
        lambda: by_default(torch.float64),
        lambda: by_default(torch.bfloat16),
        lambda: torch.device("meta"),
        lambda: torch.autocast("cpu"),
        torch.inference_mode,
        lambda: np.errstate(all="raise"),
    ],
    ids=["float64", "bfloat16", "device", "autocast", "inference", "numpy"],
)
def test_settings_of_the_program_change_no_result(restorer, weights, setting):
    image = random_picture(24, 40).pixels
    faint = np.full((8, 8, 3), 1e-300)  # underflows when it is converted to float32
    lq = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
    expected = restorer(image), restorer.uncertainty(image, samples=2)
    by_module = restorer.module()(lq)
    with setting():
        again = c2fdft.load(weights, device="cpu", precision="fp32", grid=GRID)
        assert np.array_equal(again(image), expected[0])
        sampled = again.uncertainty(image, samples=2)
        assert np.array_equal(again(faint), again(0 * faint))
        again.uncertainty(faint, samples=2)
        module = again.module()
        assert torch.get_default_dtype() == torch.tensor(1.0).dtype
    assert np.array_equal(sampled.image, expected[1].image)
    assert np.array_equal(sampled.deviation, expected[1].deviation)
    # Weights that were loaded in inference mode could not be trained.
    restored = module(lq)
    assert torch.equal(restored, by_module)
    restored.mean().backward()


@pytest.mark.filterwarnings("ignore:.*bf16")  # a note on CPUs on which it is slow
@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({"tile": 32}, torch.float64),
        pytest.param({"self_ensemble": True}, torch.bfloat16, marks=pytest.mark.acceptance),
        ({"precision": "bf16"}, torch.float64),
        ({"compile": "off"}, torch.float64),
        ({"compile": "off"}, torch.bfloat16),
    ],
    ids=str,
)
def test_restoring_on_a_cpu_neither_uses_nor_changes_the_default_dtype(
    weights, tmp_path, monkeypatch, options, dtype
):
    """It belongs to all threads of the program, which may compute meanwhile."""
    monkeypatch.setattr(torch, "set_default_dtype", torch.set_default_dtype)
    picture = random_picture(24, 40)
    save(tmp_path / "in" / "image.png", picture)
    restorer = c2fdft.load(weights, **{"device": "cpu", "precision": "fp32", **options})
    lq = torch.from_numpy(picture.pixels).permute(2, 0, 1) / 255

    def restored(out: str) -> list[np.ndarray]:
        restorer.restore_folder(tmp_path / "in", tmp_path / out)
        several = () if options.get("self_ensemble") else restorer.uncertainty(picture.pixels, 2)
        one, by_file = restorer(picture.pixels), pixels(tmp_path / out / "image.png")
        return [one, by_file, restorer(lq).numpy(), *several]

    expected = restored("first")
    with by_default(dtype):
        set_to: list[torch.dtype] = []
        monkeypatch.setattr(torch, "set_default_dtype", set_to.append)
        found = restored("second")
        monkeypatch.undo()
    assert set_to == []
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.acceptance
def test_a_forked_process_can_use_a_restorer_of_its_parent(weights, tmp_path):
    """On several threads it would wait for those of the parent, which it does not have."""
    script = tmp_path / "script.py"
    script.write_text(FORKS)
    done = python(script, weights, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "the same\n" * 6


FORKS = """
import os, signal, sys, threading, time
import numpy as np, torch
import c2fdft_cli as c2fdft
from c2fdft_cli.data.images.pillow import quiet_pillow
from c2fdft_cli.execution import surroundings
torch.set_num_threads(2)
dtype = torch.float32
restorer = c2fdft.load(sys.argv[1], device="cpu", precision="fp32")
image = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
expected = restorer(image)

def child():
    if not os.fork():
        signal.alarm(60)
        with quiet_pillow(), surroundings.seeded(0):
            same = (restorer(image) == expected).all() and torch.get_default_dtype() == dtype
            print("the same" if same else "another", flush=True)
        os._exit(0)
    assert os.wait()[1] == 0

child()
with restorer._lock:  # as if another thread were restoring
    child()
def call():
    with surroundings.usual_settings():
        held.set()
        done.wait()
held, done = threading.Event(), threading.Event()
torch.set_default_dtype(dtype := torch.float64)
threading.Thread(target=call).start()
held.wait()
child()
done.set()
def hold(lock):
    with lock:
        held.set()
        time.sleep(1)
for lock in (surroundings._always.lock, surroundings._beyond_cpu.lock, surroundings._seeding):
    held = threading.Event()
    threading.Thread(target=hold, args=(lock,)).start()
    held.wait()
    child()
"""
