"""Preparing, training, sweeping and scoring from Python run the same jobs as the commands."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import PIL.Image
import pytest
import torch

import c2fdft_cli as c2fdft
from c2fdft_cli.api import jobs
from c2fdft_cli.engine.train.events import StepDone
from c2fdft_cli.engine.weights.checkpoint import load_checkpoint
from tests.kit.command import run as run_command
from tests.kit.images import damage_pixels
from tests.kit.restore import random_picture, save
from tests.kit.training import MINI, request, run, stop_after, weights_that_differ
from tests.kit.weights import write_random


def test_folders_are_scored_as_by_the_command(tmp_path):
    for i in range(3):
        save(tmp_path / "a" / f"{i}.png", random_picture(16, 20, seed=i))
        save(tmp_path / "b" / f"{i}.png", random_picture(16, 20, seed=i + 9))
    result = c2fdft.evaluate(str(tmp_path / "a"), tmp_path / "b", protocol="derain")
    said = run_command("eval", tmp_path / "a", tmp_path / "b", "--protocol", "derain", "--json")
    mean = json.loads(said.stdout)["mean"]
    assert (result.psnr, result.ssim) == (mean["psnr"], mean["ssim"])
    assert [row.name for row in result.rows] == ["0", "1", "2"]


def test_a_pair_that_cannot_be_read_gives_no_mean_over_the_others(tmp_path):
    for i in range(2):
        for side in "ab":
            save(tmp_path / side / f"{i}.png", random_picture(16, 20, seed=i))
    damage_pixels(tmp_path / "a" / "0.png")
    with pytest.raises(c2fdft.DataError, match=r"0\.png: cannot read the image"):
        c2fdft.evaluate(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("protocol", ["derain", "deblur", "denoise", "rgb", "y"])
def test_images_in_memory_score_as_their_files(tmp_path, protocol, depth):
    a, b = (random_picture(16, 20, seed=i, depth=depth) for i in range(2))
    files = [save(tmp_path / name, picture) for name, picture in (("a.png", a), ("b.png", b))]
    of_files = c2fdft.evaluate(*files, protocol=protocol)
    of_arrays = c2fdft.evaluate(a.pixels, b.pixels, protocol=protocol)
    assert of_arrays.psnr == pytest.approx(of_files.psnr, abs=1e-9)
    assert of_arrays.ssim == pytest.approx(of_files.ssim, abs=1e-9)


def test_kinds_of_images_score_alike_and_lists_give_a_row_each():
    a, b = (random_picture(16, 20, seed=i).pixels for i in range(2))
    tensors = [torch.from_numpy(x).permute(2, 0, 1) for x in (a, b)]
    expected = c2fdft.evaluate(a, b).psnr
    assert c2fdft.evaluate(*tensors).psnr == expected
    assert c2fdft.evaluate(*(x.float() / 255 for x in tensors)).psnr == expected
    assert c2fdft.evaluate(PIL.Image.fromarray(a), b).psnr == expected
    rows = c2fdft.evaluate([a, b], [b, a], metrics=["gmsd"]).rows
    assert [row.psnr for row in rows] == [expected, expected]
    assert rows[0].more["gmsd"] > 0


@pytest.mark.parametrize(
    ("protocol", "is_cut"), [("derain", True), ("rgb", True), ("denoise", False)]
)
def test_values_beyond_black_and_white_count_only_where_nothing_is_rounded(protocol, is_cut):
    """A network's own output exceeds the scale; the file that it is saved to does not."""
    target = random_picture(16, 20).pixels / 255
    output = target + 0.3 * (random_picture(16, 20, seed=1).pixels / 255 - 0.5)
    scores = [c2fdft.evaluate(x, target, protocol=protocol) for x in (output, output.clip(0, 1))]
    assert (scores[0].psnr == scores[1].psnr) is is_cut
    assert (scores[0].ssim == scores[1].ssim) is is_cut


def test_images_that_cannot_be_scored_are_an_error(tmp_path):
    a = random_picture(16, 20).pixels
    with pytest.raises(c2fdft.DataError, match="1 restored images and 2 targets"):
        c2fdft.evaluate(a, [a, a])
    with pytest.raises(c2fdft.DataError, match="sizes of image 0 differ: 20x16 and 16x16"):
        c2fdft.evaluate(a, a[:, :16])
    with pytest.raises(c2fdft.DataError, match="SSIM needs"):
        c2fdft.evaluate(a[:8], a[:8])
    with pytest.raises(c2fdft.UsageError, match="protocol"):
        c2fdft.evaluate(a, a, protocol="best")
    for metrics in (["best"], "best"):
        with pytest.raises(c2fdft.UsageError, match="--metrics best: no such metric"):
            c2fdft.evaluate(a, a, metrics=metrics)
    with pytest.raises(c2fdft.DataError, match="nowhere: no such file or folder"):
        c2fdft.evaluate(tmp_path / "nowhere", tmp_path / "neither")
    with pytest.raises(c2fdft.UsageError, match="both be paths, or both images"):
        c2fdft.evaluate(a, tmp_path)
    with pytest.raises(c2fdft.UsageError, match="must be a NumPy array"):
        c2fdft.evaluate(a, 7)
    with pytest.raises(c2fdft.DataError, match="no images to score"):
        c2fdft.evaluate([], [])
    with pytest.raises(c2fdft.UsageError, match="degraded works with folders only"):
        c2fdft.evaluate(a, a, degraded=tmp_path)


@pytest.mark.acceptance
def test_settings_of_the_program_change_no_training(shard_folder, tmp_path):
    keys = {"coarse.iterations": 2, "coarse.periods": [{"length": 2, "floor": 1e-5}]}
    overrides = [*MINI, *(f"{key}={json.dumps(value)}" for key, value in keys.items())]

    def train(out):
        return c2fdft.train(
            "coarse", recipe="tiny", data=shard_folder, out=tmp_path / out, overrides=overrides,
            device="cpu", precision="fp32",
        ).checkpoint  # fmt: skip

    expected = train("expected")
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), torch.autocast("cpu"), torch.inference_mode():
            found = train("found")
    finally:
        torch.set_default_dtype(torch.float32)
    assert weights_that_differ(expected, found) == []


@pytest.mark.acceptance
def test_both_stages_train_as_by_the_command_and_print_nothing(
    pair_folder, tmp_path, capfd, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    prepared = c2fdft.prepare(str(pair_folder), "shards")
    assert (prepared.train, prepared.val) == (10, 2)
    assert c2fdft.prepare(pair_folder, tmp_path / "shards", val=None).up_to_date
    keys = {"coarse.iterations": 4, "coarse.periods": [{"length": 4, "floor": 1e-5}],
            "fine.iterations": 2, "fine.periods": [{"length": 2, "floor": 0.0}]}  # fmt: skip
    overrides = [*MINI, *(f"{key}={json.dumps(value)}" for key, value in keys.items())]
    events = []
    coarse = c2fdft.train(
        "coarse", recipe="tiny", data="shards", out="coarse", overrides=overrides, device="cpu",
        precision="fp32", on_event=events.append,
    )  # fmt: skip
    assert [event.iteration for event in events if isinstance(event, StepDone)] == [1, 2, 3, 4]
    fine = c2fdft.train("fine", init="coarse/coarse.pt", out="fine", device="cpu", precision="fp32")
    assert (fine.step, fine.checkpoint.name) == (2, "fine.pt")
    assert capfd.readouterr() == ("", "")
    again, _ = run(request("coarse", tmp_path / "shards", tmp_path / "again", *overrides))
    assert weights_that_differ(coarse.checkpoint, again.checkpoint) == []
    image = np.zeros((8, 8, 3), np.uint8)
    assert c2fdft.load(fine.checkpoint)(image).shape == image.shape


def test_clean_images_are_degraded_as_by_the_command(tmp_path):
    clean = tmp_path / "clean"
    for number in range(3):
        save(clean / f"{number}.png", random_picture(24, 32, seed=number))
    words = ["--synthesize", "noise", "--synth", "sigma=[20, 20]", "--clean-only", "--val", "1"]
    done = run_command("prepare", str(clean), "--out", str(tmp_path / "a"), *words)
    assert done.exit_code == 0, done.output
    result = c2fdft.prepare(
        clean, tmp_path / "b", val=1, synthesize="noise", synthesis={"sigma": [20, 20]},
        clean_only=True,
    )  # fmt: skip
    assert (result.train, result.val, result.task) == (2, 1, "denoise")
    for shard in result.shards:
        assert shard.read_bytes() == (tmp_path / "a" / shard.name).read_bytes()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"clean_only": True}, "need synthesize"),
        ({"streaks": "streaks"}, "need synthesize"),
        ({"synthesize": "snow"}, "no degradation 'snow'"),
        ({"synthesize": "noise", "synthesis": {"sigm": 3}}, "unknown key sigm; did you mean sigma"),
    ],
)
def test_impossible_degradations_are_refused(tmp_path, settings, says):
    save(tmp_path / "clean" / "a.png", random_picture(24, 32))
    with pytest.raises(c2fdft.UsageError, match=says):
        c2fdft.prepare(tmp_path / "clean", tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_borders_and_inputs_of_folders_are_scored_as_by_the_command(tmp_path):
    for number, side in enumerate(("restored", "target", "degraded")):
        for i in range(2):
            save(tmp_path / side / f"{i}.png", random_picture(24, 32, seed=2 * number + i))
    folders, degraded = (tmp_path / "restored", tmp_path / "target"), tmp_path / "degraded"
    result = c2fdft.evaluate(*folders, border=4, degraded=degraded)
    done = run_command("eval", *folders, "--border", 4, "--degraded", degraded, "--json")
    said = json.loads(done.stdout)
    assert (result.psnr, result.ssim) == (said["mean"]["psnr"], said["mean"]["ssim"])
    inputs = [{"name": row.name, **asdict(row.degraded)} for row in result.rows]
    assert inputs == said["degraded"]["images"]
    assert result.psnr != c2fdft.evaluate(*folders).psnr


def test_streaks_and_another_set_in_the_folder_are_as_by_the_command(tmp_path):
    for i in range(2):
        save(tmp_path / "clean" / f"{i}.png", random_picture(24, 32, seed=i))
        mask = random_picture(40, 40, seed=10 + i, grey=True)
        save(tmp_path / "masks" / f"{i}.png", replace(mask, pixels=mask.pixels // 4))
    out, masks = tmp_path / "b", tmp_path / "masks"
    c2fdft.prepare(tmp_path / "clean", out, val=1, synthesize="rain")
    without = [shard.read_bytes() for shard in sorted(out.glob("*.h5"))]
    with pytest.raises(c2fdft.UsageError, match="shards of another set"):
        c2fdft.prepare(tmp_path / "clean", out, val=1, synthesize="rain", streaks=masks)
    c2fdft.prepare(tmp_path / "clean", out, val=1, synthesize="rain", streaks=masks, overwrite=True)
    words = ("--val", 1, "--synthesize", "rain", "--streaks", masks)
    assert (
        run_command("prepare", tmp_path / "clean", "--out", tmp_path / "a", *words).exit_code == 0
    )
    packed = [shard.read_bytes() for shard in sorted(out.glob("*.h5"))]
    assert packed == [shard.read_bytes() for shard in sorted((tmp_path / "a").glob("*.h5"))]
    assert packed != without


def test_a_run_is_resumed_as_by_the_command(shard_folder, tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    short = ("coarse.iterations=4", "train.validate_every=100", "train.validation_images=1",
             "train.save_every=2")  # fmt: skip
    stop_after(request("coarse", shard_folder, ours, *short), 3)
    shutil.copytree(ours, theirs)
    machine = ("--device", "cpu", "--precision", "fp32")
    done = run_command("train-coarse", "--resume", "--out", theirs, *machine)
    assert done.exit_code == 0, done.output
    events = []
    result = c2fdft.train(
        "coarse", out=ours, resume=True, device="cpu", precision="fp32", on_event=events.append
    )
    assert [event.iteration for event in events if isinstance(event, StepDone)] == [3, 4]
    assert weights_that_differ(result.checkpoint, theirs / "coarse.pt") == []


CPU = {"device": "cpu", "precision": "fp32"}


@pytest.mark.parametrize(("settings", "words"), [
    ({"steps": "1-2"}, ("--steps", "1-2")),
    (
        {"steps": [2], "spacing": ["leading", "trailing"], "start": [600], "grids": [[500, 9], [7]],
         "images": 1, "seeds": 2, "seed": 3, "choose": "psnr", "protocol": "rgb", "stamp": False},
        ("--steps", 2, "--spacing", "leading,trailing", "--start", 600, "--grid", "500,9", "--grid",
         7, "--images", 1, "--seeds", 2, "--seed", 3, "--choose", "psnr", "--protocol", "rgb",
         "--no-stamp"),
    ),
])  # fmt: skip
def test_steps_are_swept_as_by_the_command(shard_folder, tmp_path, capfd, settings, words):
    meta = {"stage": "fine", "grid": [999, 0], "protocol": "derain"}
    ours = write_random(tmp_path / "ours.pt", **meta)
    theirs = shutil.copy(ours, tmp_path / "theirs.pt")
    told = []
    where = {"data": shard_folder, "out": tmp_path / "ours"}
    result = c2fdft.sweep_steps(
        str(ours), **where, **CPU, **settings, progress=lambda *counts: told.append(counts)
    )
    count = len(result.rows) * result.images * result.seeds
    assert told == [(number, count) for number in range(1, count + 1)]
    assert capfd.readouterr() == ("", "")
    machine = ("--device", "cpu", "--precision", "fp32", "--data", shard_folder)
    done = run_command("sweep-steps", theirs, *words, *machine, "--out", tmp_path / "t", "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert [{**row.as_json(), "seconds": 0} for row in result.rows] == [
        {**row, "seconds": 0} for row in said["rows"]
    ]
    keys = ("stage", "protocol", "images", "seeds", "rule", "trained_grid", "stamped")
    assert [getattr(result, key) for key in keys] == [said[key] for key in keys]
    assert load_checkpoint(ours).meta.grid == load_checkpoint(theirs).meta.grid
    assert (load_checkpoint(ours).meta.grid_from == "sweep") is result.stamped
    assert c2fdft.sweep_steps(ours, **where, **CPU, **settings).calls_spent == 0
    with pytest.raises(c2fdft.DataError, match="a sweep with other settings"):
        c2fdft.sweep_steps(ours, **where, **CPU, **{**settings, "protocol": "y"})
    again = {**settings, "steps": "1", "protocol": "y", "images": 1, "overwrite": True}
    assert c2fdft.sweep_steps(ours, **where, **CPU, **again).calls_spent


def test_overrides_may_be_a_mapping(shard_folder, tmp_path):
    overrides = {
        "network.dim": 8,
        "network.blocks": [1, 1, 1, 1],
        "coarse.patches": [16],
        "coarse.batches": [2],
        "coarse.iterations": 2,
        "coarse.periods": [{"length": 2, "floor": 1e-5}],
        "coarse.lr": 1e-4,
        "coarse.mixup_beta": None,
        "train.ema_warm_up": False,
    }
    done = c2fdft.train(
        "coarse", recipe="tiny", data=shard_folder, out=tmp_path / "run", overrides=overrides,
        device="cpu", precision="fp32",
    )  # fmt: skip
    assert done.step == 2


def test_errors_are_those_of_the_program(shard_folder, tmp_path, monkeypatch):
    with pytest.raises(c2fdft.CheckpointError, match="needs weights to start from"):
        c2fdft.train("fine", data=shard_folder)
    with pytest.raises(c2fdft.UsageError, match="stage must be coarse or fine, got 'medium'"):
        c2fdft.train("medium", data=shard_folder)
    with pytest.raises(c2fdft.RecipeError, match="--recipe is missing"):
        c2fdft.train("coarse", data=shard_folder)
    with pytest.raises(c2fdft.RecipeError, match="there is no recipe 'nope'"):
        c2fdft.train("coarse", recipe="nope", data=shard_folder)
    with pytest.raises(c2fdft.RecipeError, match=r"coarse\.lrr"):
        c2fdft.train("coarse", recipe="tiny", data=shard_folder, overrides={"coarse.lrr": 1})
    with pytest.raises(c2fdft.DataError, match="nowhere: no such folder"):
        c2fdft.prepare(tmp_path / "nowhere", tmp_path / "shards")
    with pytest.raises(c2fdft.CheckpointError, match="no packaged weights 'nope'"):
        c2fdft.sweep_steps("nope")
    with pytest.raises(c2fdft.UsageError, match="packaged weights cannot be written to"):
        c2fdft.sweep_steps("derain", data=shard_folder)
    with pytest.raises(c2fdft.DataError, match="nowhere: no such folder of shards"):
        c2fdft.sweep_steps(write_random(tmp_path / "w.pt"), data=tmp_path / "nowhere")
    with pytest.raises(c2fdft.UsageError, match="steps must be 1 to 1000, got 0"):
        c2fdft.sweep_steps(tmp_path / "w.pt", data=shard_folder, steps=[0])
    left = []
    monkeypatch.setattr(jobs, "destroy_process_group", lambda: left.append(1))
    with pytest.raises(c2fdft.Interrupted, match="state saved"):
        c2fdft.train(
            "coarse", recipe="tiny", data=shard_folder, out=tmp_path / "run", overrides=list(MINI),
            device="cpu", precision="fp32", max_seconds=0,
        )  # fmt: skip
    assert left  # a group of processes would refuse the next training


@pytest.mark.parametrize(("call", "says"), [
    (lambda: c2fdft.evaluate(np.zeros((16, 16)), np.zeros((16, 16)), border=1.5), "border must be"),
    (lambda: c2fdft.evaluate(np.zeros((16, 16)), np.zeros((16, 16)), metrics=5), "metrics must be"),
    (lambda: c2fdft.evaluate("a", "b", degraded=3), "degraded must be a text or a Path, got 3"),
    (lambda: c2fdft.prepare(None), "source must be a text or a Path, got None"),
    (lambda: c2fdft.prepare("in", 3), "out must be a text or a Path, got 3"),
    (lambda: c2fdft.prepare("in", val=1.5), "val must be a whole number or a text or a Path"),
    (lambda: c2fdft.prepare("in", val=True), "val must be"),
    (lambda: c2fdft.prepare("in", synthesize="noise", synthesis="sigma=5"), "must be a mapping"),
    (lambda: c2fdft.prepare("in", synthesize="rain", streaks=3), "streaks must be"),
    (lambda: c2fdft.prepare("in", synthesize="rain", clean_only="no"), "clean_only must be a bool"),
    (lambda: c2fdft.prepare("in", overwrite="no"), "overwrite must be a bool, got 'no'"),
    (lambda: c2fdft.train("coarse", recipe="tiny", resume="x"), "resume must be a bool, got 'x'"),
    (lambda: c2fdft.train("coarse", recipe="tiny", data=3), "data must be a text or a Path, got 3"),
    (lambda: c2fdft.train("coarse", recipe="tiny", overrides=[3]), "overrides must be"),
    (lambda: c2fdft.train("coarse", max_seconds=float("nan")), "must be at least 0, got nan"),
    (lambda: c2fdft.train("coarse", max_seconds=-1), "must be at least 0, got -1"),
    (lambda: c2fdft.train("coarse", recipe="tiny", on_event=5), "on_event must be a function"),
    (lambda: c2fdft.train("coarse", recipe="tiny", device=None), "device must be"),
    (lambda: c2fdft.train("coarse", recipe="tiny", data=""), "data is empty"),
    (lambda: c2fdft.train("coarse", recipe="tiny", out="a\0"), "out contains a NUL character"),
    (lambda: c2fdft.sweep_steps(3), "weights must be a text or a Path, got 3"),
    (lambda: c2fdft.sweep_steps("w.pt", data=3), "data must be a text or a Path, got 3"),
    (lambda: c2fdft.sweep_steps("w.pt", out=""), "out is empty"),
    (lambda: c2fdft.sweep_steps("w.pt", steps=4), "steps must be numbers such as .*, got 4"),
    (lambda: c2fdft.sweep_steps("w.pt", steps="x"), "--steps must be numbers"),
    (lambda: c2fdft.sweep_steps("w.pt", steps=["4"]), "--steps must be a tuple of whole numbers"),
    (lambda: c2fdft.sweep_steps("w.pt", spacing=4), "spacing must be a text"),
    (lambda: c2fdft.sweep_steps("w.pt", spacing="odd"), "--spacing must be linspace"),
    (lambda: c2fdft.sweep_steps("w.pt", start=9), "start must be timesteps such as .*, got 9"),
    (lambda: c2fdft.sweep_steps("w.pt", grids=[9, 5]), "grids must be lists of .*, got 9"),
    (lambda: c2fdft.sweep_steps("w.pt", grids="9,5"), "grids must be lists of .*, got '9,5'"),
    (lambda: c2fdft.sweep_steps("w.pt", choose=5), "choose must be a text, got 5"),
    (lambda: c2fdft.sweep_steps("w.pt", choose="best"), "--choose must be psnr, ssim or within"),
    (lambda: c2fdft.sweep_steps("w.pt", stamp="no"), "stamp must be a bool, got 'no'"),
    (lambda: c2fdft.sweep_steps("w.pt", seeds=0), "--seeds must be 1 to 1000, got 0"),
    (lambda: c2fdft.sweep_steps("w.pt", device=None), "device must be"),
    (lambda: c2fdft.sweep_steps("w.pt", progress=5), "progress must be a function, got 5"),
    (lambda: c2fdft.prepare(""), "source is empty"),
    (lambda: c2fdft.prepare("in", ""), "out is empty"),
    (lambda: c2fdft.prepare("in", val=""), "val is empty"),
    (lambda: c2fdft.prepare("in", streaks=""), "need synthesize"),
    (lambda: c2fdft.prepare("in", synthesize="rain", streaks=""), "streaks is empty"),
    (lambda: c2fdft.prepare("in", synthesize=5), "synthesize must be a text, got 5"),
    (lambda: c2fdft.evaluate("", "b"), "restored is empty"),
    (lambda: c2fdft.evaluate("a", "b\0"), "target contains a NUL character"),
])  # fmt: skip
def test_arguments_of_other_types_are_refused(tmp_path, monkeypatch, call, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(c2fdft.UsageError, match=says):
        call()
    assert not list(tmp_path.iterdir())


def test_a_value_that_no_recipe_holds_is_refused():
    with pytest.raises(c2fdft.RecipeError, match=r"coarse\.lr cannot be 1j"):
        c2fdft.train("coarse", recipe="tiny", data="shards", overrides={"coarse.lr": 1j})
