"""eval: how restored images are paired with their targets."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from c2fdft_cli.engine.evaluate.compare import (
    paired_comparison,
)
from c2fdft_cli.engine.evaluate.files import evaluate_files
from c2fdft_cli.engine.evaluate.job import EvalOptions
from c2fdft_cli.engine.evaluate.pairing import degraded_beside, listed_pairs, pair_files
from c2fdft_cli.errors import DataError
from tests.kit.evaluate import degraded, run, save
from tests.kit.formula import photo
from tests.kit.images import NO_FILES, no_file


def names_of(restored: Path, target: Path) -> dict[str, str]:
    found = pair_files(restored, target)
    root = target if target.is_dir() else target.parent
    return {pair.name: pair.gt.relative_to(root).as_posix() for pair in found.pairs}


def test_equal_names_are_paired(folders: tuple[Path, Path]) -> None:
    assert names_of(*folders) == {"9": "9.png", "10": "10.png", "11": "11.png"}
    assert [pair.name for pair in pair_files(*folders).pairs] == ["9", "10", "11"]


def test_the_position_in_a_listing_never_counts(tmp_path: Path) -> None:
    for name in ("b", "c"):
        save(tmp_path / "out" / f"{name}.png", photo(0))
    for name in ("a", "b"):
        save(tmp_path / "target" / f"{name}.png", photo(0))
    found = pair_files(tmp_path / "out", tmp_path / "target")
    assert [(pair.lq.name, pair.gt.name) for pair in found.pairs] == [("b.png", "b.png")]
    assert [path.name for path in found.without_target] == ["c.png"]
    assert [path.name for path in found.without_restored] == ["a.png"]


def test_rain_is_paired_with_norain_in_a_folder_with_other_files(tmp_path: Path) -> None:
    for k in (1, 2):
        save(tmp_path / "out" / f"rain-00{k}.png", photo(k))
        save(tmp_path / "set" / f"norain-00{k}.png", photo(k))
    save(tmp_path / "set" / "poster.png", photo(5))
    (tmp_path / "set" / "notes.txt").write_text("x")
    want = {"rain-001": "norain-001.png", "rain-002": "norain-002.png"}
    assert names_of(tmp_path / "out", tmp_path / "set") == want


def test_a_set_with_its_rainy_folder_stands_for_its_clean_side(tmp_path: Path) -> None:
    for k in (1, 2):
        save(tmp_path / "out" / f"rain-00{k}.jpg", photo(k))
        save(tmp_path / "set" / f"norain-00{k}.png", photo(k))
        save(tmp_path / "set" / "rainy" / f"rain-00{k}.png", degraded(k))
    want = {"rain-001": "norain-001.png", "rain-002": "norain-002.png"}
    assert names_of(tmp_path / "out", tmp_path / "set") == want
    found = pair_files(tmp_path / "out", tmp_path / "set")
    inputs = {restored.name: degraded.name for restored, degraded in found.degraded.items()}
    assert inputs == {"rain-001.jpg": "rain-001.png", "rain-002.jpg": "rain-002.png"}
    # the inputs themselves, which are inside the target folder
    assert names_of(tmp_path / "set" / "rainy", tmp_path / "set") == want


@pytest.mark.parametrize("side", ["", "target"])
def test_folders_input_and_target_are_paired(tmp_path: Path, side: str) -> None:
    for k in (1, 12):
        save(tmp_path / "out" / f"{k}.png", photo(k))
        save(tmp_path / "set" / "input" / f"{k}.png", degraded(k))
        save(tmp_path / "set" / "target" / f"{k}.png", photo(k))
    found = names_of(tmp_path / "out", tmp_path / "set" / side)
    assert {name: Path(target).name for name, target in found.items()} == {
        "1": "1.png",
        "12": "12.png",
    }
    assert not any("input" in target for target in found.values())


def test_several_inputs_may_share_a_target(tmp_path: Path) -> None:
    for k in (1, 2):
        save(tmp_path / "out" / f"901_{k}.png", photo(0))
        save(tmp_path / "set" / "rainy_image" / f"901_{k}.jpg", photo(0))
    save(tmp_path / "set" / "ground_truth" / "901.jpg", photo(0))
    for target in (tmp_path / "set", tmp_path / "set" / "ground_truth"):
        assert len(names_of(tmp_path / "out", target)) == 2
    (tmp_path / "out" / "901_2.png").unlink()
    assert pair_files(tmp_path / "out", tmp_path / "set").without_restored == []


@pytest.mark.parametrize("restored", ["{seq}/00.png", "{seq}/blur/00.png"])
def test_sequences_with_the_same_file_names_are_kept_apart(tmp_path: Path, restored: str) -> None:
    for k, seq in enumerate(("A", "B")):
        save(tmp_path / "out" / restored.format(seq=seq), photo(k))
        save(tmp_path / "set" / seq / "blur" / "00.png", degraded(k))
        save(tmp_path / "set" / seq / "sharp" / "00.png", photo(k))
    found = names_of(tmp_path / "out", tmp_path / "set")
    assert sorted(found.values()) == ["A/sharp/00.png", "B/sharp/00.png"]
    assert all(row.psnr == math.inf for row in run(tmp_path / "out", tmp_path / "set").rows)


def test_results_that_differ_only_in_their_suffix_are_compared_with_their_own(
    tmp_path: Path,
) -> None:
    for side, more in (("a", 0), ("b", 3)):
        for k, suffix in ((0, ".png"), (1, ".bmp")):
            save(tmp_path / side / f"0{suffix}", degraded(0, 10 + 10 * k + more))
    save(tmp_path / "target" / "0.png", photo(0))
    a, b = (run(tmp_path / side, tmp_path / "target") for side in "ab")
    assert [row.name for row in a.rows] == ["0.bmp", "0.png"]
    found = paired_comparison(a, b).scores["psnr"]
    assert found is not None
    assert found.mean == pytest.approx(a.psnr - b.psnr)
    sides = [tmp_path / side for side in ("a", "target", "b")]
    beside = evaluate_files(*sides[:2], EvalOptions(), sides[2]).run()
    assert [row.degraded and row.degraded.psnr for row in beside.rows] == [
        row.psnr for row in b.rows
    ]


def test_results_inside_the_target_folder_are_not_targets(folders: tuple[Path, Path]) -> None:
    _, target = folders
    for k in range(3):
        save(target / "mine" / f"{k + 9}.png", degraded(k))
    assert names_of(target / "mine", target) == {"9": "9.png", "10": "10.png", "11": "11.png"}
    assert run(target / "mine", target).rows[0].psnr < math.inf


def test_two_files_or_a_file_and_a_folder_can_be_paired(folders: tuple[Path, Path]) -> None:
    out, target = folders
    assert run(out / "9.png", target / "10.png").rows[0].name == "9"
    assert names_of(out / "10.png", target) == {"10": "10.png"}


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("missing", "no such file or folder"),
        ("empty", "no images in the folder"),
        ("other names", "no restored image has a target of a matching name"),
    ],
)
def test_folders_without_a_pair_are_refused(
    folders: tuple[Path, Path], case: str, message: str
) -> None:
    out, _ = folders
    target = out.parent / "other"
    if case != "missing":
        target.mkdir()
    if case == "other names":
        save(target / "x.png", photo(0))
    with pytest.raises(DataError, match=message) as error:
        run(out, target)
    assert error.value.exit_code == 3
    with pytest.raises(DataError):
        run(target, out)


def test_degraded_inputs_are_found_by_name(folders: tuple[Path, Path], tmp_path: Path) -> None:
    pairs, inputs = pair_files(*folders), tmp_path / "in"
    for name in ("10.jpg", "9.png", "other.png"):
        save(inputs / name, photo(0))
    found = degraded_beside(pairs, inputs).degraded
    expected = {"10.png": inputs / "10.jpg", "9.png": inputs / "9.png"}
    assert {restored.name: path for restored, path in found.items()} == expected
    (one,) = degraded_beside(pairs, inputs / "10.jpg").degraded.items()
    assert (one[0].name, one[1]) == ("10.png", inputs / "10.jpg")
    (tmp_path / "empty").mkdir()
    for wrong in (inputs / "other.png", tmp_path / "empty"):
        with pytest.raises(DataError, match="no degraded image has a matching name"):
            degraded_beside(pairs, wrong)
    with pytest.raises(DataError, match="no such file or folder"):
        degraded_beside(pairs, tmp_path / "typo")


def test_inputs_that_are_named_replace_those_of_the_layout(tmp_path: Path) -> None:
    for name in ("out/1.png", "set/input/1.png", "set/target/1.png", "in/1.png"):
        save(tmp_path / name, photo(0))
    pairs = pair_files(tmp_path / "out", tmp_path / "set")
    assert list(pairs.degraded.values()) == [tmp_path / "set" / "input" / "1.png"]
    pairs = degraded_beside(pairs, tmp_path / "in")
    assert list(pairs.degraded.values()) == [tmp_path / "in" / "1.png"]


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("side", [0, 1])
def test_what_is_no_file_is_named_like_an_unreadable_image(
    folders: tuple[Path, Path], side: int, kind: str
) -> None:
    no_file(folders[side] / "10.png", kind)
    with pytest.raises(DataError, match=r"10\.png: (cannot read the image|no such file)"):
        run(*folders)


def test_the_folder_of_a_list_must_exist(tmp_path: Path) -> None:
    for side in ("out", "target"):
        save(tmp_path / side / "1.png", photo(0))
    (tmp_path / "pairs.csv").write_text("out/1.png,target/1.png\n")
    assert len(listed_pairs(tmp_path / "pairs.csv", tmp_path).pairs) == 1
    with pytest.raises(DataError, match=r"typo: no such file or folder"):
        listed_pairs(tmp_path / "pairs.csv", tmp_path / "typo")
