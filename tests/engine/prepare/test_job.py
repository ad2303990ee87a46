"""prepare: what it finds, what it refuses, and that its output is reproducible byte for byte."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from c2fdft_cli.data.images import picture as picture_module
from c2fdft_cli.data.images.picture import list_images, read_rgb8, save_rgb8
from c2fdft_cli.data.layouts.listing import SeenFiles
from c2fdft_cli.data.layouts.pairs import FilePair
from c2fdft_cli.data.pixels import Pixels
from c2fdft_cli.data.shards.format import MAX_SIDE
from c2fdft_cli.data.shards.reader import ShardSet, verify
from c2fdft_cli.engine.prepare import plan as plan_module
from c2fdft_cli.engine.prepare import source as source_module
from c2fdft_cli.engine.prepare.job import PairWritten, PrepareResult, prepare
from c2fdft_cli.engine.prepare.options import PrepareOptions, Synthesis
from c2fdft_cli.engine.prepare.plan import choice_inputs
from c2fdft_cli.engine.prepare.source import PairReader
from c2fdft_cli.errors import DataError, ResourceError, UsageError
from c2fdft_cli.files.writing import unfinished
from tests.kit.images import EXCHANGED_PROFILE, NO_FILES, no_file


def picture(seed: int, h: int = 12, w: int = 14) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def save(path: Path, pixels: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_rgb8(path, pixels)


def make_pairs(root: Path, count: int, *, first: int = 0) -> Path:
    for i in range(first, first + count):
        save(root / "input" / f"{i}.png", picture(2 * i, 12 + i % 5))
        save(root / "target" / f"{i}.png", picture(2 * i + 1, 12 + i % 5))
    return root


def make_clean(root: Path, count: int) -> Path:
    for i in range(count):
        save(root / f"photo {i}.png", picture(i, 24, 20 + i))
    return root


def run(**options: Any) -> PrepareResult:
    return prepare(PrepareOptions(**options)).run()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_pairs(tmp_path / "rain", 12)


@pytest.mark.parametrize("check_only", [False, True])
def test_files_of_several_pictures_and_of_unlike_colours_are_noted(
    source: Path, tmp_path: Path, check_only: bool
) -> None:
    first = Image.fromarray(picture(1, 12))
    pages = {"save_all": True, "append_images": [first]}
    first.save(source / "input" / "0.tif", icc_profile=EXCHANGED_PROFILE, **pages)
    (source / "input" / "0.png").unlink()
    result = run(source=source, out=tmp_path / "out", check_only=check_only)
    assert "only the first picture is used of 1 of 24 files" in result.notices[-2]
    assert "the colour profiles of 1 of 12 pairs differ" in result.notices[-1]


@pytest.mark.parametrize("degraded", ["left", "right"])
@pytest.mark.parametrize("check_only", [False, True])
def test_pictures_of_two_halves_are_split_into_pairs(
    tmp_path: Path, degraded: str, check_only: bool
) -> None:
    names = [f"{split}/{n}" for split in ("train", "val") for n in range(4)]
    pictures = {name: picture(i, 12, 40) for i, name in enumerate(names)}
    for name, pixels in pictures.items():
        save(tmp_path / "set" / f"{name}.png", pixels)
    options = {"source": tmp_path / "set", "out": tmp_path / "out", "side_by_side": degraded}
    result = run(**options, check_only=check_only)
    assert (result.train, result.val, result.failed) == (4, 4, ())
    if check_only:
        assert result.report is not None
        assert result.report.largest == (12, 20)
        return
    for split in ("train", "val"):
        shards = ShardSet.open(tmp_path / "out", split)
        for i, name in enumerate(shards.names):
            left, right = pictures[name][:, :20], pictures[name][:, 20:]
            lq, gt = (left, right) if degraded == "left" else (right, left)
            np.testing.assert_array_equal(shards.pair(i)[0], lq)
            np.testing.assert_array_equal(shards.pair(i)[1], gt)
    assert run(**options).up_to_date
    options["side_by_side"] = "right" if degraded == "left" else "left"
    with pytest.raises(UsageError, match="holds shards of another set"):
        run(**options)


@pytest.mark.parametrize("degraded", ["left", "right"])
def test_halves_with_one_clean_image_stay_on_one_side(tmp_path: Path, degraded: str) -> None:
    for i in range(12):
        halves = [picture(i), picture(100 + i // 6)]  # two clean images in six pairs each
        save(
            tmp_path / "set" / f"{i}.png", np.hstack(halves if degraded == "left" else halves[::-1])
        )
    options = {"source": tmp_path / "set", "side_by_side": degraded, "val": 6}
    checked = run(**options, out=tmp_path / "out", check_only=True)
    written = run(**options, out=tmp_path / "out")
    assert (written.train, written.val) == (checked.train, checked.val) == (6, 6)
    assert {int(name) // 6 for name in ShardSet.open(tmp_path / "out", "val").names} in ({0}, {1})


def test_a_split_of_whole_pictures_is_not_reused_for_halves(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / "set" / f"{i}.png", picture(i))
    pairs = [FilePair(str(i), *[tmp_path / "set" / f"{i}.png"] * 2) for i in range(4)]
    inputs = {choice_inputs(pairs, 1, half) for half in (None, "left", "right")}
    assert len(inputs) == 3


def test_the_check_for_disk_space_counts_both_halves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(4):
        save(tmp_path / "set" / f"{i}.png", picture(i))
    asked: list[int] = []
    monkeypatch.setattr(source_module, "check_space", lambda _, needed: asked.append(needed))
    run(source=tmp_path / "set", out=tmp_path / "out", side_by_side="left")
    assert asked[0] == 4 * 3 * 12 * 14


def test_pictures_that_are_not_two_halves_are_refused(tmp_path: Path) -> None:
    for i, width in enumerate((40, 41, 1, 42)):
        save(tmp_path / "set" / f"{i}.png", picture(i, 12, width))
    options = {"source": tmp_path / "set", "out": tmp_path / "out", "side_by_side": "left"}
    with pytest.raises(DataError, match="a width of 41 px cannot be halved"):
        run(**options)
    assert [name for name, _ in run(**options, check_only=True).failed] == ["1", "2"]
    with pytest.raises(UsageError, match="--side-by-side cannot be combined"):
        run(**options, gamma=True)


@pytest.mark.parametrize("gamma", [False, True])
def test_the_requested_degraded_images_of_gopro_are_used(tmp_path: Path, gamma: bool) -> None:
    sides = {"blur": 0, "blur_gamma": 10, "sharp": 20}
    for side, first in sides.items():
        for i in range(2):
            save(tmp_path / "set" / "train" / "GOPR1" / side / f"{i}.png", picture(first + i))
    run(source=tmp_path / "set", out=tmp_path / "out", val=0, gamma=gamma)
    shards = ShardSet.open(tmp_path / "out")
    first = sides["blur_gamma" if gamma else "blur"]
    for i in range(2):
        lq, gt = shards.pair(i)
        assert np.array_equal(gt, picture(20 + i))
        assert np.array_equal(lq, picture(first + i))


@pytest.mark.parametrize("halves", [False, True])
def test_images_that_no_shard_can_hold_are_refused_and_found_by_a_check(
    tmp_path: Path, halves: bool
) -> None:
    names = {
        "a\nb": picture(0, 2, 8),
        "large": picture(1, 2, (MAX_SIDE + 1) * (2 if halves else 1)),
    }
    names["longest"] = picture(2, 2, MAX_SIDE * (2 if halves else 1))
    for name, pixels in {**names, "whole": picture(3, 2, 8)}.items():
        for folder in ("set",) if halves else ("set/lq", "set/gt"):
            save(tmp_path / folder / f"{name}.png", pixels)
    options = {"source": tmp_path / "set", "out": tmp_path / "out", "val": 1}
    options |= {"side_by_side": "left"} if halves else {}
    assert [name for name, _ in run(**options, check_only=True).failed] == ["a\nb", "large"]
    with pytest.raises(DataError, match="a name cannot be stored") as caught:
        run(**options)
    assert "large.png: an image of 65536x2 px cannot be stored" in str(caught.value.details)
    for path in (tmp_path / "set").rglob("*.png"):
        if path.stem in ("a\nb", "large"):
            path.unlink()
    assert run(**options).pairs == len(ShardSet.open(tmp_path / "out").names) + 1


# -- what it writes --------------------------------------------------------------


def test_pairs_end_up_in_shards(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    job = prepare(PrepareOptions(source=source, out=out))
    events = list(job)
    result = job.result
    assert len(job) == len(events) == result.pairs == 12
    assert (result.train, result.val) == (11, 1)
    assert [path.name for path in result.shards] == ["val-00000.h5", "train-00000.h5"]
    assert result.bytes == sum(path.stat().st_size for path in result.shards)
    assert not result.up_to_date
    assert all(isinstance(event, PairWritten) and not event.kept for event in events)
    verify(out).run()
    train, val = ShardSet.open(out), ShardSet.open(out, split="val")
    assert sorted(map(int, train.names + val.names)) == list(range(12))
    for shards in (train, val):
        for i, name in enumerate(shards.names):
            lq, gt = shards.pair(i)
            np.testing.assert_array_equal(lq, picture(2 * int(name), 12 + int(name) % 5))
            np.testing.assert_array_equal(gt, picture(2 * int(name) + 1, 12 + int(name) % 5))
    assert train.header.source == "rain"
    assert train.header.patch_cycle == ""
    assert "input" in train.header.layout
    assert str(tmp_path).encode() not in result.shards[1].read_bytes()


def test_workers_and_location_do_not_change_the_bytes(source: Path, tmp_path: Path) -> None:
    run(source=source, out=tmp_path / "a", workers=1, max_shard_bytes=3000)
    moved = shutil.copytree(source, tmp_path / "elsewhere" / "rain")
    run(source=moved, out=tmp_path / "b", workers=4, max_shard_bytes=3000)
    first = files(tmp_path / "a")
    assert len(first) > 4
    assert first == files(tmp_path / "b")


def test_a_size_limit_makes_more_shards(source: Path, tmp_path: Path) -> None:
    one = run(source=source, out=tmp_path / "one")
    many = run(source=source, out=tmp_path / "many", max_shard_bytes=1)
    assert len(one.shards) == 2
    assert len(many.shards) == 12
    a, b = (ShardSet.open(tmp_path / name) for name in ("one", "many"))
    assert a.fingerprint == b.fingerprint


# -- train and val ---------------------------------------------------------------


def test_more_shards_than_can_be_numbered_are_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "MAX_SHARDS", 5)
    with pytest.raises(UsageError, match="train would have 11 shards, more than 5"):
        run(source=source, out=tmp_path / "out", max_shard_bytes=1)
    assert not list((tmp_path / "out").glob("*.h5"))


def test_validation_pairs_by_default_count_folder_or_none(source: Path, tmp_path: Path) -> None:
    other = make_pairs(tmp_path / "other", 3, first=100)
    assert run(source=source, out=tmp_path / "a", val=4).val == 4
    named = run(source=source, out=tmp_path / "b", val=other)
    assert (named.train, named.val) == (12, 3)
    assert ShardSet.open(tmp_path / "b", split="val").names == ["100", "101", "102"]
    none = run(source=source, out=tmp_path / "c", val=0)
    assert (none.train, none.val) == (12, 0)
    assert not list((tmp_path / "c").glob("val-*"))


@pytest.mark.parametrize("both_listed", [False, True])
def test_a_list_names_the_validation_pairs(source: Path, tmp_path: Path, both_listed: bool) -> None:
    """They are not trained on, whether the other pairs are found or listed too."""
    row = "input/{0}.png,target/{0}.png\n"
    listed = tmp_path / "val.csv"
    listed.write_text(row.format(3) + row.format(7))
    everything = tmp_path / "all.csv"
    everything.write_text("".join(map(row.format, range(9))))
    pairs_file = everything if both_listed else None
    out = tmp_path / "out"
    result = run(source=source, out=out, val=listed, pairs_file=pairs_file)
    assert (result.train, result.val) == (7 if both_listed else 10, 2)
    assert [name.rpartition("/")[2] for name in ShardSet.open(out, "val").names] == ["3", "7"]
    trained = {name.rpartition("/")[2] for name in ShardSet.open(out, "train").names}
    assert trained == {str(i) for i in range(9 if both_listed else 12)} - {"3", "7"}


def test_listed_pairs_of_the_own_split_are_not_said_to_be_trained_on(tmp_path: Path) -> None:
    root, listed = tmp_path / "set", tmp_path / "val.csv"
    make_pairs(root / "train", 5)
    make_pairs(root / "val", 3, first=50)
    row = "val/input/{0}.png,val/target/{0}.png\n"
    for count, notices in ((2, ("the set's own val split: 1 pair trained on",)), (3, ())):
        listed.write_text("".join(row.format(i) for i in range(50, 50 + count)))
        result = run(source=root, out=tmp_path / f"out{count}", val=listed)
        assert (result.train, result.val) == (8 - count, count)
        assert result.notices == notices


def test_a_list_of_clean_images_repeats_no_notice(tmp_path: Path) -> None:
    """Both the set and the list, which is applied to the same set, report the test split."""
    root, listed = tmp_path / "set", tmp_path / "val.txt"
    make_pairs(root / "train", 5)
    make_pairs(root / "test", 2, first=50)
    listed.write_text("train/target/3.png (64,64,3)\n")
    result = run(source=root, out=tmp_path / "out", val=listed)
    assert (result.train, result.val) == (4, 1)
    assert result.notices == ("the test split (2 pairs) is skipped; score it with eval",)


def test_options_of_a_degradation_without_effect_are_reported(tmp_path: Path) -> None:
    clean = make_clean(tmp_path / "clean", 2)
    synthesis = Synthesis("noise", {"shot": [0.1, 0.2], "sigma": 5})
    result = run(source=clean, out=tmp_path / "out", synthesize=synthesis, val=0)
    (notice,) = [one for one in result.notices if "effect" in one]
    assert notice.startswith("shot has no effect with the other settings")


def test_validation_that_does_not_exist_is_not_called_a_folder(
    source: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"val\.csv: no such file or folder"):
        run(source=source, out=tmp_path / "out", val=tmp_path / "val.csv")


@pytest.mark.parametrize(
    ("options", "named"),
    [({"synthesize": Synthesis("noise")}, "--synthesize"), ({"side_by_side": "left"}, "--side-by")],
)
def test_pairs_that_are_made_cannot_be_listed(
    source: Path, tmp_path: Path, options: dict[str, Any], named: str
) -> None:
    listed = tmp_path / "val.csv"
    listed.write_text("input/3.png,target/3.png\n")
    clean = source / "target"
    with pytest.raises(UsageError, match=f"cannot be a list of pairs together with {named}"):
        run(source=clean, out=tmp_path / "out", val=listed, **options)


def test_a_list_that_leaves_nothing_to_train_on_is_refused(source: Path, tmp_path: Path) -> None:
    listed = tmp_path / "val.csv"
    listed.write_text("".join(f"input/{i}.png,target/{i}.png\n" for i in range(12)))
    with pytest.raises(DataError, match="no pairs to train on"):
        run(source=source, out=tmp_path / "out", val=listed)


def test_the_own_split_of_a_set_is_used(tmp_path: Path) -> None:
    root = tmp_path / "set"
    make_pairs(root / "train", 5)
    make_pairs(root / "val", 3, first=50)
    result = run(source=root, out=tmp_path / "a")
    assert (result.train, result.val) == (5, 3)
    fewer = run(source=root, out=tmp_path / "b", val=1)
    assert (fewer.train, fewer.val) == (5, 1)
    assert any("skipped" in notice for notice in fewer.notices)


def test_without_validation_no_image_is_decoded_to_choose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "val"):
        make_pairs(tmp_path / "set" / split, 3, first=10 * (split == "val"))
    added: list[int] = []
    real = source_module.DecodedImages.add

    def add(self: source_module.DecodedImages, sizes: dict[Path, int], *, workers: int) -> None:
        added.append(len(sizes))
        real(self, sizes, workers=workers)

    monkeypatch.setattr(source_module.DecodedImages, "add", add)
    result = run(source=tmp_path / "set", out=tmp_path / "out", val=0)
    assert (result.train, result.val, sum(added)) == (3, 0, 0)
    assert "the set's own val split: 3 pairs skipped" in result.notices


def test_validation_of_a_set_can_be_switched_off(tmp_path: Path) -> None:
    root = tmp_path / "set"
    make_pairs(root / "train", 5)
    make_pairs(root / "val", 3, first=50)
    none = run(source=root, out=tmp_path / "out", val=0)
    assert (none.train, none.val) == (5, 0)
    assert none.notices == ("the set's own val split: 3 pairs skipped",)
    assert not list((tmp_path / "out").glob("val-*"))


@pytest.mark.parametrize("val", [None, 3, 9])
def test_more_validation_pairs_than_the_set_has_are_noted(tmp_path: Path, val: int | None) -> None:
    root = tmp_path / "set"
    make_pairs(root / "train", 5)
    make_pairs(root / "val", 3, first=50)
    told = "--val 9: the set's own val split has only 3 pairs, all are used"
    for _ in range(2):  # the second time the shards are already up to date
        result = run(source=root, out=tmp_path / "out", val=val)
        assert (result.train, result.val) == (5, 3)
        assert result.notices == ((told,) if val == 9 else ())


def test_given_validation_pairs_replace_the_split_of_the_set(tmp_path: Path) -> None:
    root = tmp_path / "set"
    make_pairs(root / "train", 5)
    make_pairs(root / "val", 3, first=50)
    other = make_pairs(tmp_path / "other", 2, first=70)
    result = run(source=root, out=tmp_path / "out", val=other)
    assert (result.train, result.val) == (8, 2)
    assert result.notices == ("the set's own val split: 3 pairs trained on",)


def test_a_single_pair_is_for_training(tmp_path: Path) -> None:
    result = run(source=make_pairs(tmp_path / "one", 1), out=tmp_path / "out")
    assert (result.train, result.val) == (1, 0)
    assert any("none is left for validation" in notice for notice in result.notices)


def test_a_published_test_split_is_not_packed(tmp_path: Path) -> None:
    root = tmp_path / "set"
    make_pairs(root / "train", 6)
    make_pairs(root / "test", 3, first=50)
    result = run(source=root, out=tmp_path / "out")
    assert (result.pairs, result.train, result.val) == (6, 5, 1)
    names = [name for s in ("train", "val") for name in ShardSet.open(tmp_path / "out", s).names]
    assert not any("test" in name for name in names)
    assert any("test split (3 pairs) is skipped" in notice for notice in result.notices)
    named = run(source=root, out=tmp_path / "named", val=root / "test")
    assert (named.train, named.val) == (6, 3)


@pytest.mark.parametrize("val", [12, 13, -1])
def test_validation_must_leave_pairs_to_train_on(source: Path, tmp_path: Path, val: int) -> None:
    with pytest.raises(UsageError, match="cannot be used for validation"):
        prepare(PrepareOptions(source=source, out=tmp_path / "out", val=val))


def test_variants_of_one_image_stay_on_one_side(tmp_path: Path) -> None:
    root = tmp_path / "rain1400"
    for i in range(6):
        save(root / "ground_truth" / f"{i}.png", picture(i))
        for j in range(1, 5):
            save(root / "rainy_image" / f"{i}_{j}.png", picture(100 + 10 * i + j))
    run(source=root, out=tmp_path / "out")
    sides = [
        {
            name.rpartition("/")[2].partition("_")[0]
            for name in ShardSet.open(tmp_path / "out", s).names
        }
        for s in ("train", "val")
    ]
    assert sides[1]
    assert not sides[0] & sides[1]


def test_copies_of_a_file_stay_on_one_side(tmp_path: Path) -> None:
    root = make_pairs(tmp_path / "set", 6)
    for i in range(6, 30):
        save(root / "input" / f"{i}.png", picture(1000 + i, 12 + i % 3))
        shutil.copy(root / "target" / f"{i % 3}.png", root / "target" / f"{i}.png")
    result = run(source=root, out=tmp_path / "out", val=3)
    assert 1 <= result.val <= 3


def test_equal_pixels_in_train_and_val_are_refused(source: Path, tmp_path: Path) -> None:
    other = make_pairs(tmp_path / "other", 2, first=70)
    save(other / "target" / "71.png", picture(2 * 5 + 1, 12))
    save(other / "input" / "71.png", picture(4711, 12))
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"in train \(pair 5\) and in val \(pair 71\)"):
        run(source=source, out=out, val=other)
    assert not unfinished(out)
    with pytest.raises(DataError, match=r"in train .* and in val"):
        run(source=source, out=out, val=other, check_only=True)
    for side in ("input", "target"):
        (other / side / "71.png").unlink()
    corrected = run(source=source, out=out, val=other)  # the refused shards are not in the way
    assert (corrected.train, corrected.val) == (12, 1)


def test_shards_of_an_interrupted_run_are_not_in_the_way_of_the_corrected_set(
    source: Path, tmp_path: Path
) -> None:
    other = make_pairs(tmp_path / "other", 2, first=70)
    save(other / "target" / "71.png", picture(2 * 9 + 1, 16))
    save(other / "input" / "71.png", picture(4711, 16))
    options = {"source": source, "out": tmp_path / "out", "val": other, "max_shard_bytes": 3000}
    events = iter(prepare(PrepareOptions(**options)))
    written = {next(events).name for _ in range(7)}
    events.close()
    assert "0" in written
    assert "9" not in written
    with pytest.raises(DataError, match=r"in train \(pair 9\) and in val \(pair 71\)"):
        run(**options)
    for side in ("input", "target"):
        (other / side / "71.png").unlink()
    assert run(**options).val == 1


# -- what it refuses -------------------------------------------------------------


def test_sizes_that_differ_are_named(source: Path, tmp_path: Path) -> None:
    save(source / "input" / "3.png", picture(1, 30, 31))
    save(source / "input" / "4.png", picture(1, 30, 31))
    with pytest.raises(DataError, match=r"3\.png: the sizes differ .* 31 x 30 px, but") as caught:
        run(source=source, out=tmp_path / "out")
    assert any("4.png" in line for line in caught.value.details)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("keep", [0, 20, -8])
def test_unreadable_image_is_named(source: Path, tmp_path: Path, keep: int) -> None:
    path = source / "target" / "7.png"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(
        DataError, match=r"7\.png: cannot read the image: the file is (empty|truncated)"
    ):
        run(source=source, out=tmp_path / "out")
    assert not list(tmp_path.glob("out/.*"))


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("synthesis", [None, Synthesis("noise", {})])
def test_what_is_no_file_is_named_like_an_unreadable_image(
    tmp_path: Path, synthesis: Synthesis | None, kind: str
) -> None:
    folder = make_pairs(tmp_path / "rain", 4)
    for side in ("input", "target"):  # as in a checkout without its data
        no_file(folder / side / "3.png", kind)
    source = folder if synthesis is None else folder / "target"
    with pytest.raises(DataError, match=r"3\.png: (cannot read the image|no such file)"):
        run(source=source, out=tmp_path / "out", synthesize=synthesis)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", NO_FILES)
def test_a_check_lists_what_is_no_file(source: Path, tmp_path: Path, kind: str) -> None:
    for name in ("input/3.png", "input/4.png", "target/5.png"):
        no_file(source / name, kind)
    result = run(source=source, out=tmp_path / "out", check_only=True)
    assert sorted(name for name, _ in result.failed) == ["3", "4", "5"]
    assert "input/4.png" in dict(result.failed)["4"]


def test_a_folder_without_pairs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder"):
        prepare(PrepareOptions(source=tmp_path / "nowhere", out=tmp_path / "out"))
    with pytest.raises(DataError, match="no pairs of degraded and clean images were found"):
        prepare(PrepareOptions(source=make_clean(tmp_path / "clean", 3), out=tmp_path / "out"))


def test_another_set_is_overwritten_only_if_requested(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(source=source, out=out)
    before = files(out)
    other = make_pairs(tmp_path / "other", 3, first=40)
    with pytest.raises(UsageError, match="another set"):
        run(source=other, out=out)
    assert files(out) == before
    result = run(source=other, out=out, overwrite=True)
    assert result.pairs == len(ShardSet.open(out)) + len(ShardSet.open(out, split="val")) == 3


def touch(path: Path) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def test_images_with_other_times_are_compared(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(source=source, out=out)
    times = {path: path.stat().st_mtime_ns for path in out.glob("*.h5")}
    before = (out / "shards.json").read_bytes()
    touch(source / "target" / "3.png")  # as after copying the whole set
    assert run(source=source, out=out).up_to_date
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.h5")} == times
    assert (out / "shards.json").read_bytes() != before


def test_pairs_are_reported_while_images_are_compared(
    source: Path, tmp_path: Path, decoded: Counter[str]
) -> None:
    out = tmp_path / "out"
    run(source=source, out=out)
    touch(source / "target" / "3.png")
    decoded.clear()
    job = prepare(PrepareOptions(source=source, out=out, workers=1))
    number = [len(decoded) for event in job if event.kept]
    assert len(number) == 12
    assert number[1] < number[-1] == 24


def test_images_are_compared_only_once(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run(source=source, out=out)
    touch(source / "target" / "3.png")
    run(source=source, out=out)
    monkeypatch.delattr(PairReader, "read")
    assert run(source=source, out=out).up_to_date


@pytest.mark.parametrize("kind", ["input", "target"])
def test_a_changed_image_is_named(source: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    run(source=source, out=out)
    before = files(out)
    path = source / kind / "3.png"
    save_rgb8(path, 255 - read_rgb8(path))
    with pytest.raises(UsageError, match="differs from the one in the shards") as caught:
        run(source=source, out=out)
    assert caught.value.where == str(path)
    assert files(out) == before


def test_shards_without_a_manifest_are_compared(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(source=source, out=out)
    before = files(out)
    for text in ("", "[1]", '{"plan": 3}', "[" * 100_000):
        (out / "shards.json").write_text(text)
        assert run(source=source, out=out).up_to_date
        assert files(out) == before
    (out / "shards.json").write_text("")
    with pytest.raises(UsageError, match="another set"):
        run(source=make_pairs(tmp_path / "other", 3, first=40), out=out)


def test_missing_shards_are_written_beside_existing_ones(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(source=source, out=out, max_shard_bytes=1)
    before = files(out)
    first, *_, last = sorted(out.glob("train-*.h5"))
    first.unlink()
    last.unlink()
    touch(source / "target" / "3.png")
    result = run(source=source, out=out, max_shard_bytes=1)
    assert not result.up_to_date
    before.pop("shards.json")
    after = files(out)
    after.pop("shards.json")
    assert after == before


def test_a_disk_that_is_too_small_is_reported_first(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run(source=source, out=out)
    before = files(out)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(ResourceError, match="the disk is too small"):
        run(source=source, out=tmp_path / "new")
    make_pairs(source, 30, first=12)
    with pytest.raises(ResourceError, match="the disk is too small"):
        run(source=source, out=out, overwrite=True)
    assert files(out) == before  # existing shards are not deleted for a set that does not fit


def test_shards_that_are_taken_away_at_the_end_are_an_error(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def remarks(seen: SeenFiles, pairs: object) -> list[str]:
        shutil.rmtree(tmp_path / "out")
        return []

    monkeypatch.setattr(SeenFiles, "remarks", remarks)
    with pytest.raises(ResourceError, match=r"00\.h5: cannot write the file") as caught:
        run(source=source, out=tmp_path / "out")
    assert caught.value.hint == "the folder does not exist"


def test_an_output_folder_inside_a_file_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="a part of the output path is a regular file"):
        run(source=source, out=tmp_path / "file" / "out")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_shard_bytes": 0}, "--shard-mib must be a whole number of MiB, at least 1"),
        (
            {"synthesize": Synthesis("rain"), "pairs_file": Path("pairs.csv")},
            "--pairs cannot be combined with",
        ),
        ({"synthesize": Synthesis("snow")}, "no degradation 'snow'"),
        ({"synthesize": Synthesis("rain", {"no such option": 1})}, "unknown key no such option"),
    ],
)
def test_options_that_cannot_be_combined_are_refused(
    source: Path, tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        prepare(PrepareOptions(source=source, out=tmp_path / "out", **options))


# -- output inside the source ------------------------------------------------------


def test_output_inside_the_source_is_ignored(source: Path, tmp_path: Path) -> None:
    out = source / "shards"
    save(out / "input" / "preview.png", picture(900))
    save(out / "target" / "preview.png", picture(901))
    first = run(source=source, out=out)
    assert first.pairs == 12
    assert run(source=source, out=out).up_to_date
    outer = run(source=source, out=source)
    assert outer.pairs == 13


# -- again, and after an interruption ----------------------------------------------


def test_a_finished_set_is_up_to_date(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(source=source, out=out, max_shard_bytes=3000)
    times = {path: path.stat().st_mtime_ns for path in out.glob("*.h5")}
    job = prepare(PrepareOptions(source=source, out=out, max_shard_bytes=3000))
    assert all(event.kept for event in job)
    assert job.result.up_to_date
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.h5")} == times


def test_an_abandoned_job_can_be_continued(source: Path, tmp_path: Path) -> None:
    options = PrepareOptions(source=source, out=tmp_path / "whole", max_shard_bytes=3000)
    prepare(options).run()
    whole = files(options.out)
    for stop in (1, 5, 11):
        options = replace(options, out=tmp_path / f"stopped {stop}")
        events = iter(prepare(options))
        for _ in range(stop):
            next(events)
        events.close()
        assert not unfinished(options.out)
        again = prepare(options)
        kept = sum(event.kept for event in again)
        assert kept < stop
        assert not again.result.up_to_date
        assert files(options.out) == whole


def test_damaged_shard_is_written_again(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(source=source, out=out, max_shard_bytes=3000)
    whole = files(out)
    (out / "train-00001.h5").write_bytes(whole["train-00001.h5"][:300])
    (out / "train-00002.h5").unlink()
    shutil.copy(out / "train-00003.h5", out / "train-00004.h5")
    assert not run(source=source, out=out, max_shard_bytes=3000).up_to_date
    assert files(out) == whole


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from c2fdft_cli.engine.prepare.job import prepare
    from c2fdft_cli.engine.prepare.options import PrepareOptions

    options = PrepareOptions(source=Path(sys.argv[1]), out=Path(sys.argv[2]), max_shard_bytes=3000)
    for number, _ in enumerate(prepare(options), start=1):
        if number == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", [2, 8])
def test_a_killed_command_can_be_continued(source: Path, tmp_path: Path, moment: int) -> None:
    run(source=source, out=tmp_path / "whole", max_shard_bytes=3000)
    out = tmp_path / "killed"
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(source), str(out), str(moment)]
    root = str(Path(__file__).parents[3])
    killed = subprocess.run(command, env={**os.environ, "PYTHONPATH": root}, check=False)
    assert killed.returncode == -9
    assert list(out.glob(".*.tmp.h5"))
    run(source=source, out=out, max_shard_bytes=3000)
    assert files(out) == files(tmp_path / "whole")


# -- each image is decoded once ------------------------------------------------------


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count how often each file is decoded, by the one function that decodes files."""
    counts: Counter[str] = Counter()
    read = picture_module.read_picture

    def counting(path: Path, **options: Any) -> Any:
        counts[str(path)] += 1
        return read(path, **options)

    monkeypatch.setattr(picture_module, "read_picture", counting)
    return counts


def once(*roots: Path) -> dict[str, int]:
    """Every image below these folders, with a count of one."""
    return {str(path): 1 for root in roots for path in list_images(root, recursive=True)}


def make_variants(root: Path, scenes: int = 4, *, first: int = 0) -> Path:
    """Write a set in Rain1400's layout: several degraded images of each clean one."""
    for i in range(first, first + scenes):
        save(root / "ground_truth" / f"{i}.png", picture(i))
        for j in range(1, 4):
            save(root / "rainy_image" / f"{i}_{j}.png", picture(100 + 10 * i + j))
    return root


def test_decoded_once_without_a_split_of_the_set(
    source: Path, tmp_path: Path, decoded: Counter[str]
) -> None:
    run(source=source, out=tmp_path / "out")
    assert decoded == once(source)
    decoded.clear()
    assert run(source=source, out=tmp_path / "out").up_to_date
    assert decoded == {}


@pytest.mark.parametrize("val", [None, 1])
def test_decoded_once_with_a_split_of_the_set(
    tmp_path: Path, decoded: Counter[str], val: int | None
) -> None:
    root = tmp_path / "set"
    make_pairs(root / "train", 5)
    make_pairs(root / "val", 3, first=50)
    run(source=root, out=tmp_path / "out", val=val)
    skipped = 0 if val is None else 2  # only their clean images are read, for comparison
    assert set(decoded.values()) == {1}
    assert len(decoded) == 16 - skipped


def test_decoded_once_if_pairs_share_a_clean_image(tmp_path: Path, decoded: Counter[str]) -> None:
    root = make_variants(tmp_path / "rain1400")
    run(source=root, out=tmp_path / "out", max_shard_bytes=3000)
    assert decoded == once(root)
    decoded.clear()
    run(source=root, out=tmp_path / "checked", check_only=True)
    assert decoded == once(root)


def test_decoded_once_if_pairs_share_a_clean_image_with_a_split(
    tmp_path: Path, decoded: Counter[str]
) -> None:
    root = tmp_path / "rain1400"
    make_variants(root / "training")
    for side in ("ground_truth/9", "rainy_image/9_1", "rainy_image/9_2"):
        save(root / "validation" / f"{side}.png", picture(len(side) + 900))
    save(root / "validation" / "rainy_image" / "9_2.png", picture(950))
    run(source=root, out=tmp_path / "out", max_shard_bytes=3000)
    assert decoded == once(root)


@pytest.mark.parametrize("store", [True, False])
def test_decoded_once_with_synthesis(tmp_path: Path, decoded: Counter[str], store: bool) -> None:
    clean = make_clean(tmp_path / "clean", 6)
    run(source=clean, out=tmp_path / "out", synthesize=Synthesis("noise", store=store))
    assert decoded == once(clean)


@pytest.mark.parametrize("shared", [False, True])
def test_decoded_once_after_a_resume(tmp_path: Path, decoded: Counter[str], shared: bool) -> None:
    root = (make_variants if shared else make_pairs)(tmp_path / "set", 12)
    options = PrepareOptions(source=root, out=tmp_path / "out", max_shard_bytes=3000)
    events = iter(prepare(options))
    for _ in range(7):
        next(events)
    events.close()
    decoded.clear()
    job = prepare(options)
    kept = [event.name for event in job if event.kept]
    assert 1 <= len(kept) < 7
    assert set(decoded.values()) == {1}
    assert not {Path(path).stem for path in decoded if "rainy" in path or "input" in path} & set(
        kept
    )
    if not shared:
        assert len(decoded) == 2 * (job.result.pairs - len(kept))


def test_decoded_once_if_times_changed(tmp_path: Path, decoded: Counter[str]) -> None:
    root = make_variants(tmp_path / "rain1400")
    run(source=root, out=tmp_path / "out", max_shard_bytes=3000)
    touch(root / "ground_truth" / "1.png")
    decoded.clear()
    assert run(source=root, out=tmp_path / "out", max_shard_bytes=3000).up_to_date
    assert decoded == once(root)


def test_a_split_is_reused_only_for_the_same_number(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(source=source, out=out, val=2)
    assert run(source=source, out=out, val=2).up_to_date
    with pytest.raises(UsageError, match="another set"):
        run(source=source, out=out, val=3)


def test_no_temporary_file_stays_open(source: Path, tmp_path: Path) -> None:
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("needs /proc")
    before = len(list(descriptors.iterdir()))
    events = iter(prepare(PrepareOptions(source=source, out=tmp_path / "out")))
    next(events)
    events.close()
    assert len(list(descriptors.iterdir())) == before


def test_a_disk_without_room_for_decoded_images_is_reported(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(ResourceError, match="the disk is too small"):
        run(source=source, out=tmp_path / "out")


# -- progress ------------------------------------------------------------------------


@pytest.mark.parametrize("make", [make_pairs, make_variants])
@pytest.mark.parametrize("split", [False, True])
def test_images_that_are_decoded_before_their_pairs_count_as_progress(
    tmp_path: Path, make: Callable[..., Path], split: bool
) -> None:
    root = tmp_path / "set"
    make(root / "train" if split else root, 4)
    if split:
        make(root / "val", 2, first=50)
    job = prepare(PrepareOptions(source=root, out=tmp_path / "out"))
    places, done = [0.0], 0

    def watch(events: float) -> None:
        places.append(done + events)

    job.meter.watch = watch
    for done, _ in enumerate(job, start=1):
        assert places[-1] >= done
    assert places == sorted(places)
    assert max(b - a for a, b in pairwise(places)) <= 1
    assert places[-1] == len(job)
    ahead = split is False or make is make_variants
    assert places[1] == (0.5 if ahead else 1)


def test_half_of_the_progress_is_reported_before_the_first_pair(
    source: Path, tmp_path: Path
) -> None:
    job = prepare(PrepareOptions(source=source, out=tmp_path / "out"))
    reported: list[float] = []
    job.meter.watch = reported.append
    next(iter(job))
    assert reported == [*(k / 2 for k in range(1, 13)), 1 + 11 / 2]


@pytest.mark.parametrize("check_only", [False, True])
def test_no_image_is_opened_after_the_last_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check_only: bool
) -> None:
    source = tmp_path / "mine"
    for i in range(6):  # of different sizes in bytes: degraded files of equal ones are compared
        save(source / "input" / f"{i}.png", picture(i, 12 + i))
        save(source / "target" / f"{i}.png", picture(100 + i, 12 + i))
    opened: list[str] = []
    looked: list[tuple[int, ...]] = []
    original = Path.open

    def count(path: Path, *words: Any, **more: Any) -> Any:
        opened.append(str(path))
        return original(path, *words, **more)

    monkeypatch.setattr(Path, "open", count)
    options = PrepareOptions(source=source, out=tmp_path / "out", check_only=check_only)
    job = prepare(options, lambda _, *count: looked.append(count))
    if not check_only:
        assert sorted(opened) == sorted(once(source))
        assert looked == [(k, 12) for k in range(12)]
    for number, _ in enumerate(job, start=1):
        if number == len(job):
            opened.clear()
    assert not set(opened) & set(once(source))


# -- what is loaded ------------------------------------------------------------------


@pytest.mark.acceptance
def test_heavy_modules_are_loaded_only_when_needed(source: Path, tmp_path: Path) -> None:
    code = """
        import runpy, sys
        sys.argv = ["c2fdft", *sys.argv[1:]]
        try:
            runpy.run_module("c2fdft_cli", run_name="__main__")
        except SystemExit as error:
            print(error.code, sorted({"torch", "cv2"} & {*sys.modules}), file=sys.stderr)
    """
    root = str(Path(__file__).parents[3])

    def last_line(*words: object) -> str:
        command = [sys.executable, "-c", textwrap.dedent(code), "prepare", *map(str, words)]
        environment = {**os.environ, "PYTHONPATH": root}
        done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
        return done.stderr.splitlines()[-1]

    assert last_line(tmp_path / "nowhere") == "3 []"
    assert "torch" not in last_line(source, "--out", tmp_path / "out")


# -- a check alone ------------------------------------------------------------------


def test_a_check_reports_and_writes_nothing(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    save(source / "input" / "2.png", picture(2 * 2 + 1, 14))
    result = run(source=source, out=out, check_only=True)
    assert not out.exists()
    assert result.report is not None
    assert result.report.smallest == (12, 14)
    assert result.report.median == (14, 14)
    assert result.report.largest == (16, 14)
    assert result.report.psnr_y is not None
    assert 5 < result.report.psnr_y < 15  # two unrelated images of noise
    assert result.report.bytes_needed == 2 * 3 * 14 * sum(12 + i % 5 for i in range(12))
    assert result.report.bytes_free > 0
    assert any("in 1 pair the degraded image equals" in notice for notice in result.notices)
    assert result.shards == ()


def test_a_check_lists_all_failures(source: Path, tmp_path: Path) -> None:
    (source / "target" / "7.png").write_bytes(b"no image")
    save(source / "input" / "3.png", picture(1, 30, 31))
    result = run(source=source, out=tmp_path / "out", check_only=True)
    assert sorted(name for name, _ in result.failed) == ["3", "7"]
    assert "31x30" in dict(result.failed)["3"]
    assert "7.png" in dict(result.failed)["7"]


# -- synthesis ---------------------------------------------------------------------


def test_synthetic_pairs_depend_only_on_seed_and_name(tmp_path: Path) -> None:
    clean = make_clean(tmp_path / "clean", 6)
    noise = Synthesis("noise")
    run(source=clean, out=tmp_path / "a", synthesize=noise, seed=5, workers=3)
    (clean / "photo 0.png").unlink()
    run(source=clean, out=tmp_path / "b", synthesize=noise, seed=5, workers=1)
    run(source=clean, out=tmp_path / "c", synthesize=noise, seed=6)

    def by_name(out: str) -> dict[str, Pixels]:
        sets = [ShardSet.open(tmp_path / out, split) for split in ("train", "val")]
        return {name: s.lq(i) for s in sets for i, name in enumerate(s.names)}

    a, b, c = map(by_name, "abc")
    assert len(a) == len(b) + 1
    for name, lq in b.items():
        np.testing.assert_array_equal(lq, a[name])
        assert not np.array_equal(lq, c[name])
    header = ShardSet.open(tmp_path / "a").header
    assert '"kind": "noise"' in header.degradation
    assert '"seed": 5' in header.degradation


def test_shards_of_a_version_with_fewer_options_of_a_degradation_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean, out = make_clean(tmp_path / "clean", 4), tmp_path / "out"
    with monkeypatch.context() as patch:
        old = {"kind": "noise", "options": {"sigma": [5.0, 50.0]}, "seed": 0, "streaks": None}
        patch.setattr(PairReader, "degradation", json.dumps(old))
        run(source=clean, out=out, synthesize=Synthesis("noise"), val=1)
    before = (out / "train-00000.h5").read_bytes()
    assert run(source=clean, out=out, synthesize=Synthesis("noise"), val=1).up_to_date
    assert (out / "train-00000.h5").read_bytes() == before
    with pytest.raises(UsageError, match="shards of another set"):
        run(source=clean, out=out, synthesize=Synthesis("noise", {"sigma": 20}), val=1)


def test_a_file_name_may_equal_the_stem_of_another(tmp_path: Path) -> None:
    names = ["a.png", "a.bmp", "a.png.bmp", "b.png", "c.png.bmp"]
    for i, name in enumerate(names):
        save(tmp_path / "clean" / name, picture(i))
    out = tmp_path / "out"
    run(source=tmp_path / "clean", out=out, synthesize=Synthesis("noise"), val=0)
    assert sorted(ShardSet.open(out).names) == ["a.bmp", "a.png", "a.png.bmp", "b", "c.png"]


def test_clean_images_in_sub_folders_are_noted(tmp_path: Path) -> None:
    clean = make_clean(tmp_path / "clean", 3)
    save(clean / "sub" / "a.png", picture(9))
    result = run(source=clean, out=tmp_path / "out", synthesize=Synthesis("noise"), val=0)
    assert "1 image in sub-folders is not used" in result.notices


def test_clean_images_make_shards_without_degraded_ones(tmp_path: Path) -> None:
    clean = make_clean(tmp_path / "clean", 4)
    save(clean / "photo 1.bmp", picture(77, 20, 20))
    out = tmp_path / "out"
    result = run(source=clean, out=out, synthesize=Synthesis("noise", store=False))
    assert result.layout == "clean images"
    shards = ShardSet.open(out)
    assert not shards.has_lq
    names = set(shards.names) | set(ShardSet.open(out, split="val").names)
    assert names == {"photo 0", "photo 1.png", "photo 1.bmp", "photo 2", "photo 3"}
    assert run(source=clean, out=out, synthesize=Synthesis("noise", store=False)).up_to_date
    report = run(
        source=clean, out=out, synthesize=Synthesis("noise", store=False), check_only=True
    ).report
    assert report is not None
    assert report.psnr_y is None


# -- real data -----------------------------------------------------------------------


def test_a_real_set_is_packed(tmp_path: Path) -> None:
    root = os.environ.get("C2FDFT_TEST_DATA")
    if not root:
        pytest.skip("C2FDFT_TEST_DATA is not set")
    out = tmp_path / "out"
    result = run(source=Path(root) / "rain100l", out=out)
    assert (result.pairs, result.val) == (60, 3)
    assert verify(out).run().images == 60
    report = run(source=Path(root) / "rain100l", out=out, check_only=True).report
    assert report is not None
    assert report.psnr_y == pytest.approx(26.44, abs=0.01)
