"""One file under several paths."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from c2fdft_cli.files import paths
from c2fdft_cli.files.paths import same_files
from tests.kit.files import names
from tests.kit.restore import found_under


@pytest.mark.parametrize(
    ("first", "second"),
    [("in", "IN"), ("stra\u00dfe", "STRASSE"), ("caf\u00e9", "CAFE\u0301"), ("A/in", "a/IN")],
)
def test_a_file_is_recognised_if_its_number_depends_on_the_spelling(
    tmp_path, monkeypatch, first, second
):
    """As on exFAT through FUSE."""
    (tmp_path / first).mkdir(parents=True)
    (tmp_path / first / "a.png").write_text("mine")
    other = found_under(monkeypatch, tmp_path / first, tmp_path / second, same_inode=False)
    assert same_files([other], [tmp_path / first]) == [other]
    assert same_files([other / "a.png", other / "b.png"], [tmp_path / first / "a.png"]) == [
        other / "a.png"
    ]
    assert same_files([tmp_path], [other]) == []


def test_paths_are_resolved_only_if_size_and_times_are_equal(tmp_path, monkeypatch):
    """For an output that exists, in a folder without inputs, this took most of the time."""
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
        for number in range(20):
            (tmp_path / name / f"{number}.png").write_text(name)
    monkeypatch.setattr(paths, "folded", None)
    inputs, outputs = (sorted((tmp_path / name).iterdir()) for name in ("in", "out"))
    assert same_files([*outputs, tmp_path / "out" / "new.png"], inputs) == []
    assert same_files([*outputs, inputs[3]], inputs) == [inputs[3]]


def test_a_path_that_does_not_exist_is_the_same_under_other_names(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "out")
    (tmp_path / "there").touch()
    others = [tmp_path / "out" / "a.csv", tmp_path / "there"]
    same = [tmp_path / "link" / "a.csv", tmp_path / "x" / ".." / "out" / "a.csv"]
    assert same_files([*same, tmp_path / "a.csv", tmp_path / "link"], others) == same


def test_files_whose_names_differ_in_case_are_not_one(tmp_path):
    for name in ("in", "IN"):
        (tmp_path / name).mkdir()
    if len(names(tmp_path)) < 2:
        pytest.skip("this file system does not tell cases apart")
    mine, yours = tmp_path / "in" / "a.png", tmp_path / "IN" / "a.png"
    mine.write_text("mine")
    yours.write_text("your")
    os.utime(mine, (1, 1))
    os.utime(yours, (1, 1))
    while yours.stat().st_ctime_ns == mine.stat().st_ctime_ns:  # as copied with their times
        os.utime(yours, (1, 1))
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "IN" / "a.png")
    os.utime(tmp_path / "IN", (1, 1))  # one instant for both would make them one
    assert same_files([tmp_path / "IN", tmp_path / "IN" / "a.png"], [tmp_path / "in"]) == []
    assert same_files([tmp_path / "IN" / "a.png"], [tmp_path / "in" / "a.png"]) == []
    assert same_files([tmp_path / "IN" / "a.png"], [tmp_path / "in" / "link.png"]) != []


def test_the_system_is_asked_once_for_each_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every question takes long on a network disk."""
    files = [tmp_path / f"{k}" for k in range(4)]
    for file in files:
        file.write_text(file.name)
    asked: list[str] = []
    stat = os.stat

    def counted(path: Any, *words: Any, **more: Any) -> os.stat_result:
        asked.append(os.fspath(path))
        return stat(path, *words, **more)

    monkeypatch.setattr(os, "stat", counted)
    assert paths.same_files(files[:2], files[1:]) == [files[1]]
    assert sorted(asked) == sorted(map(str, files[:2] + files[1:]))
