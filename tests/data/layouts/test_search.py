"""Searching for pairs: GoPro's two blurs, ambiguous folders, and folders without pairs."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from c2fdft_cli.data.layouts import pairs
from c2fdft_cli.data.layouts.pairs import find_pairs
from c2fdft_cli.data.layouts.search import Tree, search
from c2fdft_cli.errors import DataError
from tests.kit.layouts import draw, gopro


def test_gopro_uses_blur_with_a_notice(tmp_path):
    found = find_pairs(gopro(tmp_path, ["blur", "blur_gamma", "sharp"]))
    assert [pair.name for pair in found.pairs] == [
        "GOPR0372_07_00/000047",
        "GOPR0372_07_00/000048",
        "GOPR0374_11_00/000047",
        "GOPR0374_11_00/000048",
    ]
    assert {pair.lq.parent.name for pair in found.pairs} == {"blur"}
    assert found.unpaired == ()
    assert len(found.notices) == 1
    assert "blur/ is used" in found.notices[0]
    assert "in 2 folders" in found.layout


def test_gopro_with_gamma_uses_the_other_blur(tmp_path):
    found = find_pairs(gopro(tmp_path, ["blur", "blur_gamma", "sharp"]), gamma=True)
    assert {pair.lq.parent.name for pair in found.pairs} == {"blur_gamma"}
    assert found.unpaired == ()
    assert "blur_gamma/ is used" in found.notices[0]


def test_gopro_with_one_of_the_two_blurs(tmp_path):
    alone = find_pairs(gopro(tmp_path / "a", ["blur_gamma", "sharp"]))
    assert len(alone.pairs) == 4
    assert "no blur/" in alone.notices[0]
    assert find_pairs(tmp_path / "a", gamma=True).notices == ()
    with pytest.raises(DataError, match="no blur_gamma/ folder"):
        find_pairs(gopro(tmp_path / "b", ["blur", "sharp"]), gamma=True)


def test_the_blur_of_one_split_does_not_hide_the_other_blur_of_another(tmp_path):
    draw(tmp_path, "train_blur/1.png", "train_sharp/1.png")
    draw(tmp_path, "test_blur_gamma/2.png", "test_sharp/2.png")
    assert [pair.name for pair in find_pairs(tmp_path).pairs] == ["test/2", "train/1"]


def test_a_scene_of_gopro_without_blur_is_named(tmp_path):
    """Its blur_gamma/ is used, although that of all other scenes is skipped."""
    root = gopro(tmp_path, ["blur", "blur_gamma", "sharp"])
    lone = next(root.glob("**/GOPR0372_07_00"))
    shutil.rmtree(lone / "blur")
    found = find_pairs(root)
    assert {pair.lq.parent.name for pair in found.pairs} == {"blur", "blur_gamma"}
    assert "1 folder without blur/" in found.notices[1]
    assert found.notices[1].endswith("GOPR0372_07_00")


def test_gamma_is_refused_for_other_sets(tmp_path):
    draw(tmp_path, "data/1_rain.png", "gt/1_clean.png")
    with pytest.raises(DataError, match="no blur_gamma/ folder") as caught:
        find_pairs(tmp_path, gamma=True)
    assert caught.value.hint == "omit --gamma: the pairs there are data/ + gt/"


def test_several_sets_of_one_layout_are_combined(tmp_path):
    for name in ("Rain100L", "Rain100H"):
        draw(tmp_path, f"{name}/input/1.png", f"{name}/target/1.png")
    assert [pair.name for pair in find_pairs(tmp_path).pairs] == ["Rain100H/1", "Rain100L/1"]


@pytest.mark.parametrize(
    "names",
    [
        ("input/1.png", "target/1.png", "gt/1.png"),
        ("rain/1.png", "rainy/1.png", "clean/1.png"),
        ("rain-1.png", "norain-1.png", "rainy/rain-1.png"),
        ("a/input/1.png", "a/target/1.png", "b/noisy/1.png", "b/clean/1.png"),
        ("lq/1.png", "noisy/1.png", "gt/1.png"),
    ],
)
def test_ambiguous_folders_are_refused_with_the_candidates(tmp_path, names):
    draw(tmp_path, *names)
    with pytest.raises(DataError, match="more than one way to pair the images") as caught:
        find_pairs(tmp_path)
    assert len(caught.value.details) >= 2
    assert caught.value.exit_code == 3
    assert "CSV" in caught.value.hint
    with pytest.raises(DataError, match="more than one way") as caught:
        find_pairs(tmp_path, advice="name one set")
    assert caught.value.hint == "name one set"


def test_the_same_files_twice_are_not_ambiguous(tmp_path):
    draw(tmp_path, "input/1.png", "target/1.png")
    (tmp_path / "gt").mkdir()
    (tmp_path / "gt/1.png").symlink_to(tmp_path / "target/1.png")
    assert len(find_pairs(tmp_path).pairs) == 1


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        (("1.png", "2.png"), "--synthesize rain|noise|blur"),
        (("target/1.png", "target/2.png"), "--synthesize rain|noise|blur"),
        (("train/1.png", "val/2.png"), "--synthesize rain|noise|blur"),
        (("input/a.png", "target/b.png"), "their names do not match; list"),
        (("photo_noisy.png", "other_clean.png"), "their names do not match; list"),
    ],
)
def test_a_folder_without_pairs_is_described_with_a_hint(tmp_path, names, hint):
    draw(tmp_path, *names)
    with pytest.raises(DataError, match="no pairs of degraded and clean images") as caught:
        find_pairs(tmp_path)
    assert hint in caught.value.hint
    assert any(line.startswith("found: ") for line in caught.value.details)
    assert any("input" in line and "target" in line for line in caught.value.details)


@pytest.mark.parametrize(
    ("names", "count"),
    [
        (["input/a.png", "target/a.png", *(f"input/b{n}.png" for n in range(5))], "1 of 6"),
        (["input/9.png", "target/9.png", "input/8_1.png", "target/8.png"], "1 of 2"),
        (["input/9.png", *(f"input/9_{n}.png" for n in range(14)), "target/9.png"], "1 of 15"),
    ],
)
def test_leaving_most_of_a_set_unpaired_is_an_error(tmp_path, names, count):
    draw(tmp_path, *names)
    with pytest.raises(DataError, match=f"only {count} degraded images have a clean") as caught:
        find_pairs(tmp_path)
    assert any("input/" in line for line in caught.value.details)


@pytest.mark.parametrize(
    "names",
    [
        ("x.png", "y.png"),
        ("in put/1.png", "other/1,2.png"),
        ("input/1.png", "gt/1.png", "target/1.png"),
        ("input/9.png", "target/9.png", "input/8_1.png", "target/8.png"),
        ("photo_noisy.png", "other_clean.png"),
    ],
)
def test_every_refusal_shows_a_valid_line_of_a_list(tmp_path, names):
    draw(tmp_path, *names)
    with pytest.raises(DataError) as caught:
        find_pairs(tmp_path)
    assert caught.value.details
    _, _, line = caught.value.hint.partition("--pairs FILE.csv): ")
    (tmp_path / "list.csv").write_text(line)
    assert len(find_pairs(tmp_path, pairs_file=tmp_path / "list.csv").pairs) == 1


def test_the_line_of_a_list_shows_two_files_that_are_named_otherwise(tmp_path):
    """Those of one series are two degraded images, or two clean ones."""
    draw(tmp_path, "im00000.png", "im00001.png", "ref_0.png", "ref_1.png")
    with pytest.raises(DataError) as caught:
        find_pairs(tmp_path)
    assert caught.value.hint.endswith(": im00000.png,ref_0.png")


@pytest.mark.parametrize(
    ("clean", "degraded"),
    [
        ("clean/1.png", "noisy/x.png"),
        ("long/IMG_1.png", "short/0001_noisy.png"),
        ("a_gt.png", "b.png"),
    ],
)
def test_that_line_begins_with_the_degraded_image(tmp_path, clean, degraded):
    draw(tmp_path, clean, degraded)
    with pytest.raises(DataError) as caught:
        find_pairs(tmp_path)
    assert caught.value.hint.endswith(f": {degraded},{clean}")


@pytest.mark.parametrize("side", ["input", "target"])
def test_a_folder_of_one_side_gives_a_hint_to_its_parent(tmp_path, side):
    draw(tmp_path, "input/1.png", "target/1.png")
    with pytest.raises(DataError) as caught:
        find_pairs(tmp_path / side)
    assert str(tmp_path) in caught.value.hint
    assert "above" in caught.value.hint


def test_missing_folders_files_and_folders_without_images_are_refused(tmp_path):
    draw(tmp_path, "a.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("")
    for name, what in [
        ("none", "no such folder"),
        ("a.png", "not a folder"),
        ("empty", "no images"),
        ("texts", "no images"),
    ]:
        with pytest.raises(DataError, match=what):
            find_pairs(tmp_path / name)


@pytest.mark.parametrize("kind", ["masks", "folders"])
def test_the_time_grows_linearly_with_the_number_of_files(monkeypatch, kind):
    root, many = Path("/data"), range(4000 if kind == "folders" else 12000)
    name = "scene{}/1.png" if kind == "folders" else "mask/{}.png"
    images = [root / one for one in ("synthetic/0.png", "gt/0.png", *map(name.format, many))]
    start = time.process_time()
    if kind == "folders":
        (found,), _ = search(Tree(root, images))
        assert len(found.pairs) == 1
    else:
        monkeypatch.setattr(pairs, "some_images", lambda *_, **__: images)
        assert find_pairs(root).notices == ("skipped: 12000 masks",)
    # Comparing all names with one another took half a minute.
    assert time.process_time() - start < 4
