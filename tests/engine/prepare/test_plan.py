"""The split stored in the manifest is reused only for the same inputs, after validation."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from c2fdft_cli.data.layouts.pairs import FilePair
from c2fdft_cli.engine.prepare.plan import MANIFEST, ValChoice, choice_inputs, remembered_choice
from c2fdft_cli.errors import DataError


@pytest.fixture
def pairs(tmp_path: Path) -> list[FilePair]:
    found = []
    for i in range(3):
        lq, gt = tmp_path / f"lq{i}", tmp_path / f"gt{i}"
        lq.write_bytes(b"1")
        gt.write_bytes(b"2")
        found.append(FilePair(f"pair {i}", lq, gt))
    return found


def write(folder: Path, val: object) -> None:
    (folder / MANIFEST).write_text(json.dumps({"val": val}))


def test_a_stored_split_is_read_back(tmp_path: Path) -> None:
    choice = ValChoice("abc", ("one", "雨"), ("a notice",))
    write(tmp_path, asdict(choice))
    assert remembered_choice(tmp_path, "abc") == choice
    assert remembered_choice(tmp_path, "abd") is None


@pytest.mark.parametrize(
    "val",
    [
        None,
        [],
        "abc",
        {"inputs": "abc"},
        {"inputs": "abc", "names": "one", "notices": []},
        {"inputs": "abc", "names": [1], "notices": []},
        {"inputs": "abc", "names": ["one"], "notices": [None]},
    ],
)
def test_an_invalid_entry_is_not_used(tmp_path: Path, val: object) -> None:
    write(tmp_path, val)
    assert remembered_choice(tmp_path, "abc") is None


def test_without_a_manifest_there_is_no_stored_split(tmp_path: Path) -> None:
    assert remembered_choice(tmp_path, "abc") is None
    (tmp_path / MANIFEST).write_bytes(b"\xff")
    assert remembered_choice(tmp_path, "abc") is None


def test_a_manifest_that_the_system_does_not_read_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, *_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(Path, "read_text", fail)
    with pytest.raises(DataError, match=rf"{MANIFEST}: cannot read: {os.strerror(errno.EIO)}"):
        remembered_choice(tmp_path, "abc")


def test_inputs_are_identified_by_names_sizes_times_and_the_number(pairs: list[FilePair]) -> None:
    first = choice_inputs(pairs, 1)
    assert first == choice_inputs(pairs, 1)
    others = {choice_inputs(pairs, 2), choice_inputs(pairs[:2], 1)}
    os.utime(pairs[0].gt, ns=(0, 12345))
    others.add(choice_inputs(pairs, 1))
    pairs[1].lq.write_bytes(b"123")
    others.add(choice_inputs(pairs, 1))
    assert len(others | {first}) == 5
    pairs[2].lq.unlink()
    with pytest.raises(DataError, match="no such file or folder") as caught:
        choice_inputs(pairs, 1)
    assert caught.value.where == str(pairs[2].lq)
