"""The validation split: its share, its stability, and the pairs that stay on one side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from c2fdft_cli.data.layouts.pairs import FilePair
from c2fdft_cli.engine.prepare.split import SplitGuard, choose_val, content_keys, val_size
from c2fdft_cli.errors import DataError, UsageError


def named(count: int) -> list[FilePair]:
    return [FilePair(f"image {i}", Path(f"lq/{i}"), Path(f"gt/{i}")) for i in range(count)]


def chosen(pairs: Sequence[FilePair]) -> set[str]:
    """Choose the default number of validation pairs, out of pairs with distinct contents."""
    contents = {path: path for pair in pairs for path in (pair.lq, pair.gt)}
    return choose_val(pairs, val_size(len(pairs), None), contents)[0]


def test_the_share_is_between_one_and_fifty_pairs() -> None:
    assert {count: len(chosen(named(count))) for count in (1, 2, 20, 60, 1200)} == {
        1: 0, 2: 1, 20: 1, 60: 3, 1200: 50,
    }  # fmt: skip


def test_the_split_depends_only_on_names_and_changes_little_with_more_pairs() -> None:
    names = chosen(named(400))
    assert names == chosen(list(reversed(named(400))))
    assert len(names & chosen(named(420))) >= 18


@pytest.mark.parametrize("wanted", [12, 13, -1])
def test_validation_must_leave_pairs_to_train_on(wanted: int) -> None:
    with pytest.raises(UsageError, match=f"^{wanted} of 12 pairs cannot"):
        val_size(12, wanted)
    assert val_size(12, 11) == 11
    assert val_size(30, None) == 2  # 5 % are 1.5


def test_scenes_stay_on_one_side_if_they_fit() -> None:
    pairs = [FilePair(f"scene {i // 5}/{i}", Path(f"lq/{i}"), Path(f"gt/{i}")) for i in range(40)]
    contents = {path: path for pair in pairs for path in (pair.lq, pair.gt)}
    names, notices = choose_val(pairs, 5, contents)
    assert len(names) == 5
    assert len({name.partition("/")[0] for name in names}) == 1
    assert notices == []
    fewer, notices = choose_val(pairs, 4, contents)
    assert len(fewer) == 4
    assert notices == [
        "train and val contain images of the same folder; to avoid this, name a folder of other "
        "pairs with --val"
    ]


def test_pairs_that_share_an_image_through_others_stay_together() -> None:
    pairs = named(6)
    contents = {path: path for pair in pairs for path in (pair.lq, pair.gt)}
    contents[Path("gt/1")] = contents[Path("gt/0")]  # 0 - 1 by gt, 1 - 2 by lq
    contents[Path("lq/2")] = contents[Path("lq/1")]
    for size in range(1, 6):
        names, _ = choose_val(pairs, size, contents)
        assert len(names & {"image 0", "image 1", "image 2"}) in (0, 3)


def test_pairs_that_cannot_be_split_are_noted() -> None:
    for pairs, says in (
        (named(1), "one pair cannot be split"),
        ([FilePair(str(i), Path(f"lq/{i}"), Path("gt")) for i in range(3)], "all pairs share one"),
    ):
        contents = {path: path for pair in pairs for path in (pair.lq, pair.gt)}
        names, (told,) = choose_val(pairs, 1, contents)
        assert names == set()
        assert told.startswith(says)
        assert told.endswith("none is left for validation; name a folder of other pairs with --val")


def test_degraded_files_are_compared_by_their_bytes(tmp_path: Path) -> None:
    for name, data in {"a": b"12", "b": b"12", "c": b"34", "d": b"567"}.items():
        (tmp_path / name).write_bytes(data)
    pairs = [FilePair(name, tmp_path / name, Path("gt")) for name in "abcd"]
    keys = content_keys(pairs, lambda path: "pixels")
    lq = [keys[pair.lq] for pair in pairs]
    assert lq[0] == lq[1]
    assert len(set(lq)) == 3
    assert keys[Path("gt")] == "pixels"


def test_the_guard_names_both_pairs() -> None:
    guard = SplitGuard()
    guard.add("val", "v", None, "1")
    guard.add("train", "a", None, "2")
    guard.add("train", "b", "1", "2")  # a degraded image, not a target
    with pytest.raises(
        DataError, match=r"same gt image is in train \(pair c\) and in val \(pair v\)"
    ):
        guard.add("train", "c", None, "1")
