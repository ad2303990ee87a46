"""Every published layout is recognised; wrong and ambiguous ones are refused."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from c2fdft_cli.data.layouts.pairs import FilePair, check_sizes, find_pairs
from c2fdft_cli.errors import DataError
from tests.kit.layouts import draw, gopro

REAL = os.environ.get("C2FDFT_TEST_DATA")


def as_table(found):
    root = found.root
    return {
        pair.name: (pair.lq.relative_to(root).as_posix(), pair.gt.relative_to(root).as_posix())
        for pair in found.pairs
    }


SIBLINGS = [
    ("input", "target"),
    ("input", "gt"),
    ("inputs", "targets"),
    ("input_crops", "target_crops"),
    ("lq", "gt"),
    ("LQ", "GT"),
    ("degraded", "clean"),
    ("noisy", "clean"),
    ("noisy", "gt"),
    ("hazy", "clear"),
    ("hazy", "GT"),
    ("blurred", "sharp"),
    ("blur", "sharp"),
    ("blur", "gt"),
    ("train_blur", "train_sharp"),
    ("rainy", "clean"),
    ("rain", "norain"),
    ("rainy_image", "ground_truth"),
    ("rainy image", "ground truth"),
    ("real", "mean"),
    ("data", "gt"),
]


@pytest.mark.parametrize(("lq", "gt"), SIBLINGS)
def test_two_sibling_folders_are_paired(tmp_path, lq, gt):
    draw(tmp_path, f"{lq}/1.png", f"{lq}/2.jpg", f"{lq}/10.png", f"{gt}/1.png")
    draw(tmp_path, f"{gt}/2.png", f"{gt}/10.JPG")
    found = find_pairs(tmp_path)
    assert as_table(found) == {
        "1": (f"{lq}/1.png", f"{gt}/1.png"),
        "2": (f"{lq}/2.jpg", f"{gt}/2.png"),
        "10": (f"{lq}/10.png", f"{gt}/10.JPG"),
    }
    assert [pair.name for pair in found.pairs] == ["1", "2", "10"]
    assert found.unpaired == ()
    assert found.notices == ()
    assert found.splits == {"train": found.pairs}
    assert found.layout.startswith(f"{lq}/ + {gt}/")


def test_rain100l_in_one_folder(tmp_path):
    draw(tmp_path, "rain-001.png", "rain-002.png", "norain-001.png", "norain-002.png")
    draw(tmp_path, "rainstreak-001.png")
    found = find_pairs(tmp_path)
    assert as_table(found) == {
        "rain-001": ("rain-001.png", "norain-001.png"),
        "rain-002": ("rain-002.png", "norain-002.png"),
    }
    assert [one.path.name for one in found.unpaired] == ["rainstreak-001.png"]


def test_rain100l_with_a_folder_of_rain(tmp_path):
    draw(tmp_path, "rainy/rain-001.png", "rainy/rain-002.png", "norain-001.png", "norain-002.png")
    assert as_table(find_pairs(tmp_path))["rain-002"] == ("rainy/rain-002.png", "norain-002.png")


def test_rain200h_with_its_scale_in_folder_and_name(tmp_path):
    draw(tmp_path, "rain/X2/1x2.png", "rain/X2/12x2.png", "norain/1.png", "norain/12.png")
    assert as_table(find_pairs(tmp_path)) == {
        "X2/1x2": ("rain/X2/1x2.png", "norain/1.png"),
        "X2/12x2": ("rain/X2/12x2.png", "norain/12.png"),
    }


@pytest.mark.parametrize("sign", ["_", " "])
def test_rain1400_many_to_one(tmp_path, sign):
    lq, gt = f"rainy{sign}image", f"ground{sign}truth"
    draw(tmp_path, *(f"{lq}/{scene}_{k}.jpg" for scene in (9, 90, 901) for k in range(1, 15)))
    draw(tmp_path, *(f"{gt}/{scene}.jpg" for scene in (9, 90, 901)))
    found = find_pairs(tmp_path)
    assert len(found.pairs) == 42
    assert all(pair.lq.stem.split("_")[0] == pair.gt.stem for pair in found.pairs)
    assert found.pairs[-1].name == "901_14"


def test_levin_many_to_one(tmp_path):
    draw(tmp_path, *(f"input/im{i}_k{k}.png" for i in range(1, 5) for k in range(1, 9)))
    draw(tmp_path, *(f"target/im{i}.png" for i in range(1, 5)))
    found = find_pairs(tmp_path)
    assert len(found.pairs) == 32
    assert all(pair.lq.stem.split("_")[0] == pair.gt.stem for pair in found.pairs)


def test_one_gopro_sequence(tmp_path):
    draw(tmp_path, "blur/000001.png", "sharp/000001.png")
    assert [pair.name for pair in find_pairs(tmp_path).pairs] == ["000001"]


def test_realblur_with_names_that_differ(tmp_path):
    for scene in ("scene001", "scene002"):
        draw(
            tmp_path, *(f"{scene}/{side}/{side}_{n}.png" for side in ("blur", "gt") for n in (1, 2))
        )
    found = find_pairs(tmp_path)
    assert as_table(found)["scene002/blur_2"] == (
        "scene002/blur/blur_2.png",
        "scene002/gt/gt_2.png",
    )
    assert len(found.pairs) == 4


def test_sidd(tmp_path):
    for scene in ("0001_001_S6_00100", "0002_001_S6_00100"):
        for frame in ("010", "011"):
            name = f"{scene}/{scene[:4]}_{{}}_SRGB_{frame}.PNG"
            draw(tmp_path, name.format("NOISY"), name.format("GT"))
    found = find_pairs(tmp_path)
    assert len(found.pairs) == 4
    assert found.pairs[0] == FilePair(
        "0001_001_S6_00100/0001_NOISY_SRGB_010",
        tmp_path / "0001_001_S6_00100/0001_NOISY_SRGB_010.PNG",
        tmp_path / "0001_001_S6_00100/0001_GT_SRGB_010.PNG",
    )


def test_raindrop(tmp_path):
    draw(tmp_path, "data/0_rain.png", "data/1_rain.png", "gt/0_clean.png", "gt/1_clean.png")
    assert as_table(find_pairs(tmp_path)) == {
        "0_rain": ("data/0_rain.png", "gt/0_clean.png"),
        "1_rain": ("data/1_rain.png", "gt/1_clean.png"),
    }


def test_polyu_in_one_folder(tmp_path):
    draw(tmp_path, "Canon5D2_chair_5_real.JPG", "Canon5D2_chair_5_mean.JPG")
    draw(tmp_path, "Canon5D2_chair_11_real.JPG", "Canon5D2_chair_11_mean.JPG")
    assert len(find_pairs(tmp_path).pairs) == 2


def test_reside_many_to_one(tmp_path):
    draw(tmp_path, "hazy/0001_0.8_0.2.jpg", "hazy/0001_0.9_0.2.jpg", "clear/0001.png")
    assert {pair.gt.name for pair in find_pairs(tmp_path).pairs} == {"0001.png"}


@pytest.mark.parametrize("gt", ["gt", "GT", "clear", "ground_truth"])
def test_sots_outdoor(tmp_path, gt):
    hazy = [f"SOTS/outdoor/hazy/000{k}_0.8_0.{b}.jpg" for k in (1, 2) for b in (2, 12)]
    draw(tmp_path, *hazy, *(f"SOTS/outdoor/{gt}/000{k}.png" for k in (1, 2)))
    found = find_pairs(tmp_path)
    assert {pair.lq.name: pair.gt.name for pair in found.pairs} == {
        "0001_0.8_0.2.jpg": "0001.png",
        "0001_0.8_0.12.jpg": "0001.png",
        "0002_0.8_0.2.jpg": "0002.png",
        "0002_0.8_0.12.jpg": "0002.png",
    }
    assert len({pair.name for pair in found.pairs}) == 4


@pytest.mark.parametrize(
    ("lq", "gt"),
    [
        ("rain/000.png", "norain/000.png"),
        ("rain/000.png", "gt/000gt.png"),
        ("rain/000_rain.png", "norain/000_norain.png"),
        ("rain/000rain.png", "norain/000.png"),
        ("real_world/051/051_0001.png", "real_world_gt/051.png"),
    ],
)
def test_spa_data(tmp_path, lq, gt):
    found = find_pairs(draw(tmp_path, lq, gt))
    assert list(as_table(found).values()) == [(lq, gt)]
    assert found.task == "derain"


def test_snow100k_skips_its_masks(tmp_path):
    for size in ("L", "S"):
        draw(tmp_path / f"Snow100K-{size}", "synthetic/a_01.jpg", "gt/a_01.jpg", "mask/a_01.jpg")
    found = find_pairs(tmp_path)
    assert [pair.name for pair in found.pairs] == ["Snow100K-L/a_01", "Snow100K-S/a_01"]
    assert found.unpaired == ()
    assert found.notices == ("skipped: 2 masks",)


def test_outdoor_rain_has_fifteen_inputs_per_target(tmp_path):
    draw(tmp_path, *(f"in/im_0001_s80_a{k:02}.png" for k in range(15)), "gt/im_0001.png")
    assert len(find_pairs(tmp_path).pairs) == 15


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("A/1.png", "B/1.png"), {"train": 1}),
        (("A/train/1.png", "B/train/1.png", "A/val/1.png", "B/val/1.png"), {"train": 1, "val": 1}),
        (("trainA/1.png", "trainB/1.png", "valA/1.png", "valB/1.png"), {"train": 1, "val": 1}),
    ],
)
def test_pix2pix_treats_a_as_degraded_with_a_notice(tmp_path, names, splits):
    found = find_pairs(draw(tmp_path, *names))
    assert {split: len(pairs) for split, pairs in found.splits.items()} == splits
    assert all("A" in str(pair.lq.relative_to(tmp_path)) for pair in found.pairs)
    assert found.notices == ("A is taken as the degraded side and B as the clean one",)


@pytest.mark.parametrize("link", ["all", "zoo"])
def test_a_link_to_one_side_does_not_hide_its_folder(tmp_path, link):
    draw(tmp_path, "input/1.png", "target/1.png")
    (tmp_path / link).symlink_to("input")
    assert as_table(find_pairs(tmp_path)) == {"1": ("input/1.png", "target/1.png")}


def test_folders_named_a_and_b_that_hold_pairs_are_scenes(tmp_path):
    names = [f"{scene}/{side}/1.png" for scene in "AB" for side in ("blur", "sharp")]
    found = find_pairs(draw(tmp_path, *names))
    assert [pair.name for pair in found.pairs] == ["A/1", "B/1"]


def test_reds_with_all_its_folders_in_one(tmp_path):
    for split in ("train", "val"):
        draw(tmp_path, *(f"{split}_{side}/000/00.png" for side in ("blur", "sharp")))
    found = find_pairs(tmp_path)
    assert as_table(found)["val/000/00"] == ("val_blur/000/00.png", "val_sharp/000/00.png")
    assert {split: len(pairs) for split, pairs in found.splits.items()} == {"train": 1, "val": 1}


@pytest.mark.parametrize(
    ("lq", "gt", "task"),
    [
        ("IMG_{}.jpg", "IMG_{}-Enhanced-NR.tif", "denoise"),
        ("{}.png", "{}_gt.png", None),
        ("{}_noisy.png", "{}.png", "denoise"),
        ("{}-rain.jpg", "{}.png", "derain"),
    ],
)
def test_pairs_that_differ_by_a_word_at_the_end(tmp_path, lq, gt, task):
    draw(tmp_path, *(name.format(n) for n in (1, 2, 11) for name in (lq, gt)), "cover.png")
    found = find_pairs(tmp_path)
    assert [(pair.lq.name, pair.gt.name) for pair in found.pairs] == [
        (lq.format(n), gt.format(n)) for n in (1, 2, 11)
    ]
    assert found.task == task
    assert [one.path.name for one in found.unpaired] == ["cover.png"]


def test_a_few_such_names_among_others_are_no_pairs(tmp_path):
    draw(tmp_path, "1.png", "1_rain.png", "2.png", "3.png")  # half of them
    with pytest.raises(DataError, match="no pairs"):
        find_pairs(tmp_path)


def test_a_file_is_not_in_two_such_pairs(tmp_path):
    draw(tmp_path, "1.png", "1_gt.png", "1_gt_gt.png")
    with pytest.raises(DataError, match="no pairs"):
        find_pairs(tmp_path)


def test_decomposed_accents_of_a_mac_match_composed_ones(tmp_path):
    names = [unicodedata.normalize(form, "Größe/Füße.png") for form in ("NFC", "NFD")]
    draw(tmp_path, f"input/{names[1]}", f"target/{names[0]}")
    found = find_pairs(tmp_path)
    assert found.pairs[0].lq.relative_to(tmp_path / "input").as_posix() == names[1]
    assert found.pairs[0].gt.relative_to(tmp_path / "target").as_posix() == names[0]


def test_two_files_per_scene(tmp_path):
    draw(tmp_path, "a/noisy.png", "a/clean.png", "b/noisy.png", "b/clean.png")
    assert [pair.name for pair in find_pairs(tmp_path).pairs] == ["a/noisy", "b/noisy"]


@pytest.mark.parametrize("validation", ["val", "valid", "Validation"])
def test_a_set_may_have_its_own_splits(tmp_path, validation):
    for split, count in (("train", 3), (validation, 2)):
        draw(
            tmp_path, *(f"{split}/{side}/{n}.png" for side in ("input", "gt") for n in range(count))
        )
    found = find_pairs(tmp_path)
    assert {name: len(pairs) for name, pairs in found.splits.items()} == {"train": 3, "val": 2}
    assert len(found.pairs) == 5
    assert [pair.name for pair in found.splits["val"]] == [f"{validation}/0", f"{validation}/1"]


def test_splits_inside_the_sides_and_over_sequences(tmp_path):
    sides = ("input", "target")
    draw(tmp_path / "a", *(f"{side}/{split}/1.png" for side in sides for split in ("train", "val")))
    assert [pair.name for pair in find_pairs(tmp_path / "a").splits["val"]] == ["val/1"]
    for split in ("train", "valid"):
        gopro(tmp_path / "b" / split, ["blur", "sharp"])
    assert len(find_pairs(tmp_path / "b").splits["val"]) == 4


def test_a_file_that_is_named_like_a_split_is_in_none(tmp_path):
    draw(tmp_path, *(f"{side}/{name}.png" for side in ("lq", "gt") for name in ("1", "test")))
    assert [pair.name for pair in find_pairs(tmp_path).splits["train"]] == ["1", "test"]


def test_a_test_split_is_skipped_if_there_is_a_validation_split(tmp_path):
    for place in ("train/", "val/", "test/", ""):
        draw(tmp_path, f"{place}lq/1.png", f"{place}gt/1.png")
    found = find_pairs(tmp_path)
    assert [pair.name for pair in found.splits["train"]] == ["1", "train/1"]
    assert [pair.name for pair in found.splits["val"]] == ["val/1"]
    assert [pair.name for pair in found.splits["test"]] == ["test/1"]
    assert len(found.pairs) == 4
    assert found.notices[1] == "trained on too: 1 pair outside the split folders"


@pytest.mark.parametrize(
    ("others", "test"), [("train/", "test"), ("", "testing"), ("val/", "Test")]
)
def test_a_test_split_is_skipped(tmp_path, others, test):
    for side in ("input", "gt"):
        draw(tmp_path, f"{others}{side}/1.png", f"{others}{side}/2.png", f"{test}/{side}/9.png")
    found = find_pairs(tmp_path)
    assert [pair.name for pair in found.splits["train"]] == [f"{others}1", f"{others}2"]
    assert [pair.name for pair in found.splits["test"]] == [f"{test}/9"]
    assert "val" not in found.splits
    assert found.notices == ("the test split (1 pair) is skipped; score it with eval",)


@pytest.mark.parametrize(
    ("folder", "lq", "gt", "task"),
    [
        ("set", "blur", "sharp", "deblur"),
        ("set", "noisy", "clean", "denoise"),
        ("set", "real", "mean", "denoise"),
        ("set", "rainy", "clean", "derain"),
        ("set", "degraded", "clean", None),
        ("set", "input", "target", None),
        ("train", "input", "target", None),
        ("Rain13K", "input", "target", "derain"),
        ("gopro_train12", "input", "target", "deblur"),
        ("SIDD crops", "input", "target", "denoise"),
        ("rain and noise", "input", "target", None),
    ],
)
def test_the_task_is_known_by_the_layout_or_the_folder(tmp_path, folder, lq, gt, task):
    root = draw(tmp_path / folder, f"{lq}/1.png", f"{gt}/1.png")
    assert find_pairs(root).task == task


def test_a_single_split_folder_is_not_a_split(tmp_path):
    draw(tmp_path, "test/lq/1.png", "test/gt/1.png")
    assert list(find_pairs(tmp_path).splits) == ["train"]


def test_unpaired_files_have_reasons(tmp_path):
    draw(tmp_path, "input/1.png", "input/2.png", "target/1.png", "target/3.png", "cover.png")
    draw(tmp_path, "night/input/1.png", "day/train_target/a/1.png")
    found = find_pairs(tmp_path)
    outside = "outside the folders of the pairs"
    told = {
        one.path.relative_to(tmp_path).as_posix(): (one.reason, one.side) for one in found.unpaired
    }
    assert told == {
        "cover.png": (outside, None),
        "day/train_target/a/1.png": (outside, "gt"),
        "input/2.png": ("no clean image has a matching name", "lq"),
        "night/input/1.png": (outside, "lq"),
        "target/3.png": ("no degraded image has a matching name", "gt"),
    }


def test_a_missing_clean_file_is_not_replaced_by_a_name_that_only_begins_alike(tmp_path):
    draw(tmp_path, "input/1.png", "input/1_2.png", "target/1.png")
    found = find_pairs(tmp_path)
    assert list(as_table(found)) == ["1"]
    assert [one.path.name for one in found.unpaired] == ["1_2.png"]


def test_names_that_collide_are_made_unique(tmp_path):
    draw(tmp_path, "input/1.png", "input/1.jpg", "input/2.png", "target/1.png", "target/2.png")
    assert [pair.name for pair in find_pairs(tmp_path).pairs] == ["1.jpg", "1.png", "2"]


def test_of_two_clean_files_with_one_stem_the_same_suffix_decides(tmp_path):
    draw(tmp_path, "input/1.png", "input/2.bmp", "target/1.png", "target/1.jpg")
    draw(tmp_path, "target/2.png", "target/2.jpg")
    found = find_pairs(tmp_path)
    assert as_table(found) == {"1": ("input/1.png", "target/1.png")}
    assert any("several clean images" in one.reason for one in found.unpaired)


def test_links_out_of_the_folder_are_followed(tmp_path):
    draw(tmp_path / "elsewhere", "a/1.png", "b/1.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/input").symlink_to(tmp_path / "elsewhere/a")
    (tmp_path / "set/target").symlink_to(tmp_path / "elsewhere/b")
    assert len(find_pairs(tmp_path / "set").pairs) == 1


def test_a_relative_root_is_allowed(tmp_path, monkeypatch):
    draw(tmp_path, "input/1.png", "target/1.png")
    monkeypatch.chdir(tmp_path)
    assert [pair.name for pair in find_pairs(Path()).pairs] == ["1"]


def test_sizes_that_differ_within_a_pair_are_refused(tmp_path):
    draw(tmp_path, "lq/1.png", "gt/1.png", size=(5, 7))
    pair = find_pairs(tmp_path).pairs[0]
    assert check_sizes(pair) == (5, 7)
    draw(tmp_path, "gt/1.png", size=(7, 5))
    with pytest.raises(
        DataError, match=r"lq/1.png: the sizes .* pair: 7 x 5 px, but .*gt/1.png is 5 x 7 px"
    ):
        check_sizes(pair)


def test_pairs_are_read_from_a_list(tmp_path):
    draw(tmp_path, "x/1.png", "x/2.png", "y/a.png")
    (tmp_path / "list.csv").write_text("lq,gt\nx/1.png,y/a.png\nx/2.png,y/a.png\n")
    found = find_pairs(tmp_path, pairs_file=tmp_path / "list.csv")
    assert [pair.name for pair in found.pairs] == ["x/1", "x/2"]
    assert found.layout == "the list list.csv"
    assert found.unpaired == ()


def test_meta_info_chooses_among_the_pairs_of_a_folder(tmp_path):
    draw(tmp_path, *(f"{side}/{n}.png" for side in ("lq", "gt") for n in ("1", "2", "x/3")))
    path = tmp_path / "meta_info_set_GT.txt"
    path.write_text("2.png (6,8,3)\nx/3.png (6,8,3)\n")
    found = find_pairs(tmp_path, pairs_file=path)
    assert [pair.name for pair in found.pairs] == ["2", "x/3"]
    path.write_text("2.png (6,8,3)\n4.png (6,8,3)\n")
    with pytest.raises(DataError, match="clean image of a pair in 1 line") as caught:
        find_pairs(tmp_path, pairs_file=path)
    assert caught.value.details == ("4.png: not in any pair",)
    draw(tmp_path, "lq/2/2.png", "gt/2/2.png")
    path.write_text("2.png (6,8,3)\n")
    with pytest.raises(DataError, match="clean image of a pair in 1 line") as caught:
        find_pairs(tmp_path, pairs_file=path)
    assert caught.value.details == ("2.png: several clean images have this name",)


@pytest.mark.skipif(not REAL, reason="needs C2FDFT_TEST_DATA")
@pytest.mark.parametrize(
    ("name", "count"), [("rain100l", 60), ("rain100h", 20), ("polyu", 60), ("levin", 32)]
)
def test_real_folders_are_recognised(name, count):
    found = find_pairs(Path(REAL) / name)
    assert len(found.pairs) == count
    assert found.unpaired == ()
    for pair in found.pairs[::9]:
        check_sizes(pair)


@pytest.mark.skipif(not REAL, reason="needs C2FDFT_TEST_DATA")
@pytest.mark.parametrize(
    "name", ["bsds500_clean", "kodak24", "streaks", "real_rain", "blurry_720p"]
)
def test_real_folders_without_pairs_are_refused(name):
    with pytest.raises(DataError, match="no pairs") as caught:
        find_pairs(Path(REAL) / name)
    assert "--synthesize rain|noise|blur" in caught.value.hint


@pytest.mark.skipif(not REAL, reason="needs C2FDFT_TEST_DATA")
def test_all_real_folders_at_once_are_ambiguous():
    with pytest.raises(DataError, match="more than one way"):
        find_pairs(Path(REAL))
