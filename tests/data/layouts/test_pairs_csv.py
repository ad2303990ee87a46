"""Lists of pairs: what is accepted, and one line for everything that is not."""

from __future__ import annotations

import pytest

from c2fdft_cli.data.layouts.pairs_csv import read_pairs_csv
from c2fdft_cli.errors import DataError


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "b.png", "c.png", "sub/a.png", "with, comma.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def names(folder, text, encoding="utf-8"):
    (folder / "list.csv").write_bytes(text.encode(encoding))
    return [name for name, _, _ in read_pairs_csv(folder / "list.csv")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.png,b.png\n", ["a"]),
        ("lq,gt\na.png,b.png\n", ["a"]),
        ("LQ, GT, Name\r\na.png, b.png, one\r\n", ["one"]),
        ("a.png,b.png\n\nsub/a.png,b.png\n", ["a", "sub/a"]),
        ("a.png,b.png,x/y\nc.png,b.png,\n", ["x/y", "c"]),
        ('"with, comma.png",b.png', ["with, comma"]),
    ],
)
def test_accepted(folder, text, expected):
    assert names(folder, text) == expected
    assert names(folder, text, "utf-8-sig") == expected


def test_paths_are_relative_to_the_list_or_absolute(folder):
    (folder / "sub/list.csv").write_text(f"../b.png,a.png\n{folder}/c.png,a.png\n")
    (b, b_lq, _), (c, c_lq, c_gt) = read_pairs_csv(folder / "sub/list.csv")
    assert (b, b_lq.resolve()) == ("b", folder / "b.png")
    assert (c, c_lq, c_gt) == ("c", folder / "c.png", folder / "sub/a.png")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("lq,gt\n", "empty"),
        ("a.png\n", "not a pair"),
        ("a.png,\n", "not a pair"),
        ("a.png,b.png,n,more\n", "not a pair"),
        ("a.png,a.png\n", "degraded and the clean file are the same"),
        ("a.png,list.csv\n", "list.csv does not have the suffix"),
        ("a.png,b.png\na.png,c.png\n", "rows 1 and 2 have the same name, 'a'"),
        ("a.png,b.png,../out\n", "cannot be used"),
        ("a.png,b.png,/etc/out\n", "cannot be used"),
        ("a.png,b.png,x\\y\n", "cannot be used"),
        ("a.png,b.png,x//y\n", "cannot be used"),
        ('a.png,b.png,"x\ny"\n', "cannot be used"),
        ("a.png,b\0.png\n", "not a pair"),
    ],
)
def test_refused(folder, text, reason):
    with pytest.raises(DataError, match=reason) as caught:
        names(folder, text)
    assert "list.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_do_not_exist_are_listed(folder):
    with pytest.raises(DataError, match="names 2 files that do not exist") as caught:
        names(folder, "a.png,none.png\nnope.png,b.png\n")
    assert [line.rsplit("/", 1)[-1] for line in caught.value.details] == ["none.png", "nope.png"]


def test_missing_list_folder_and_binary(folder):
    with pytest.raises(DataError, match="no such list"):
        read_pairs_csv(folder / "none.csv")
    with pytest.raises(DataError, match="cannot read the list"):
        read_pairs_csv(folder / "sub")
    (folder / "binary.csv").write_bytes(b"\xff\xfe\0\1")
    with pytest.raises(DataError, match="not a CSV file in UTF-8"):
        read_pairs_csv(folder / "binary.csv")
