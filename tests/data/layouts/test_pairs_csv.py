"""Lists of pairs: accepted forms, and an error in one line for anything else."""

from __future__ import annotations

import sys
import unicodedata
from pathlib import Path

import pytest

from c2fdft_cli.data.layouts.pairs_csv import read_meta_info, read_pairs_csv
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
def test_accepted_lists(folder, text, expected):
    assert names(folder, text) == expected
    assert names(folder, text, "utf-8-sig") == expected


def test_paths_are_relative_to_the_list_or_absolute(folder):
    (folder / "sub/list.csv").write_text(f"../b.png,a.png\n{folder}/c.png,a.png\n")
    (b, b_lq, _), (c, c_lq, c_gt) = read_pairs_csv(folder / "sub/list.csv")
    assert (b, b_lq.resolve()) == ("b", folder / "b.png")
    assert (c, c_lq, c_gt) == ("c", folder / "c.png", folder / "sub/a.png")


@pytest.mark.skipif(sys.platform == "win32", reason="there c: is a drive")
def test_a_name_that_begins_as_a_drive_does_is_usable_elsewhere(folder):
    (folder / "c:1.png").write_bytes(b"")
    assert names(folder, "c:1.png,b.png\n") == ["1"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("lq,gt\n", "empty"),
        ("a.png\nb.png\n", "not a pair"),
        ("a.png,\n", "not a pair"),
        ("a.png,b.png,n,more\n", "not a pair"),
        ("a.png,a.png\n", "both files of this pair are the same"),
        ("a.png,list.csv\n", "list.csv does not have the suffix"),
        ("a.png,b.png\na.png,c.png\n", "rows 1 and 2 have the same name, 'a'"),
        ("a.png,b.png,../out\n", "cannot be used"),
        ("a.png,b.png,/etc/out\n", "cannot be used"),
        ("a.png,b.png,c:out\n", "cannot be used"),
        ("a.png,b.png,C:\\out\n", "cannot be used"),
        ("a.png,b.png,..\\y\n", "cannot be used"),
        ("a.png,b.png,x//y\n", "cannot be used"),
        ('a.png,b.png,"x\ny"\n', "cannot be used"),
        ("a.png,b\0.png\n", "not a text file"),
        (f"a.png,b.png,{'q' * 256}\n", "the name 'q{80}' cannot be used"),
        (f"a.png,b.png,x/{'ü' * 128}\n", "cannot be used"),
        (f"a.png,{'x' * 300}.png\n", "cannot be found"),
        (f"a.png,{'a caption ' * 30}\n", "does not have the suffix of an image file"),
    ],
)
def test_refused_lists(folder, text, reason):
    with pytest.raises(DataError, match=reason) as caught:
        names(folder, text)
    assert "list.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_do_not_exist_are_listed(folder):
    with pytest.raises(DataError, match="names 2 files that cannot be found") as caught:
        names(folder, "a.png,none.png\nnope.png,b.png\n")
    assert [Path(line).name for line in caught.value.details] == ["none.png", "nope.png"]


def test_a_single_missing_file_is_named(folder):
    with pytest.raises(DataError, match="names 1 file that cannot be found"):
        names(folder, "a.png,none.png\n")


def test_a_missing_list_a_folder_and_a_binary_file_are_refused(folder):
    with pytest.raises(DataError, match="no such file"):
        read_pairs_csv(folder / "none.csv")
    with pytest.raises(DataError, match="cannot read"):
        read_pairs_csv(folder / "sub")
    (folder / "latin1.csv").write_bytes("é.png,b.png".encode("latin-1"))
    with pytest.raises(DataError, match="is not UTF-8"):
        read_pairs_csv(folder / "latin1.csv")
    (folder / "utf16.csv").write_text("a.png,b.png", encoding="utf-16")
    with pytest.raises(DataError, match="the text is UTF-16"):
        read_pairs_csv(folder / "utf16.csv")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.png;b.png\r\nc.png;b.png;x\r\n", ["a", "x"]),
        ("lq;gt;name\na.png;b.png;\n", ["a"]),
        ("sep=;\r\nlq;gt\r\na.png;b.png\r\n", ["a"]),
        ("a.png\tb.png\nc.png\tb.png\n", ["a", "c"]),
        ("a.png,b.png\rc.png,b.png\r", ["a", "c"]),  # "CSV (Macintosh)"
        ("with, comma.png;b.png\n", ["with, comma"]),
        ("b.png;with, comma.png\n", ["b"]),
        ("a.png b.png\nc.png  b.png\n", ["a", "c"]),
        ("a.png, b.png\nc.png, b.png\n", ["a", "c"]),
        ("sub\\a.png;b.png\n", ["sub/a"]),
        (".\\sub\\a.png,b.png,x\\y\n", ["x/y"]),
    ],
)
def test_lists_of_spreadsheets_and_other_programs_are_read(folder, text, expected, encoding):
    assert names(folder, text, encoding) == expected


@pytest.mark.parametrize(
    "text",
    [
        "gt,lq\nb.png,a.png\n",
        "name;gt;lq\na;b.png;a.png\n",
        "gt_path, lq_path\nb.png, a.png\n",
        "sharp/1.png blur/1.png\nsharp/2.png blur/2.png\n",  # DeblurGAN's list of GoPro
        "gt\\1.png;rain\\1.png\n",
    ],
)
def test_the_degraded_side_is_recognised_by_header_or_names(folder, text):
    for side in ("sharp", "blur", "gt", "rain"):
        (folder / side).mkdir()
        for k in (1, 2):
            (folder / side / f"{k}.png").write_bytes(b"")
    (folder / "list.txt").write_text(text)
    for _, lq, gt in read_pairs_csv(folder / "list.txt"):
        assert lq.name == "a.png" or lq.parent.name in ("blur", "rain")
        assert gt.name == "b.png" or gt.parent.name in ("sharp", "gt")


def test_the_first_column_is_degraded_unless_all_rows_say_otherwise(folder):
    for name in ("gt.png", "blur.png"):
        (folder / name).write_bytes(b"")
    assert names(folder, "a.png,b.png\ngt.png,blur.png\n") == ["a", "gt"]
    assert names(folder, "gt.png,blur.png\n") == ["blur"]


@pytest.mark.parametrize("header", ["lq,gt,restored", "target,lq,gt", "lq,gt,name,name"])
def test_a_header_that_names_a_side_twice_is_refused(folder, header):
    (folder / "list.csv").write_text(f"{header}\na.png,b.png,sub/a.png\n")
    with pytest.raises(DataError, match=r"list\.csv, line 1: the columns .* mean the same"):
        read_pairs_csv(folder / "list.csv")


def test_paths_may_be_relative_to_the_folder_of_images(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("lists") / "list.csv"
    elsewhere.write_text("sub/a.png,b.png\n")
    assert read_pairs_csv(elsewhere, folder)[0] == ("sub/a", folder / "sub/a.png", folder / "b.png")
    with pytest.raises(DataError, match="cannot be found"):
        read_pairs_csv(elsewhere)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_accents_in_another_form_match_and_keep_the_name_of_the_file(folder, form):
    written = unicodedata.normalize({"NFC": "NFD", "NFD": "NFC"}[form], "Füße/é.png")
    stored = folder / unicodedata.normalize(form, "Füße/é.png")
    stored.parent.mkdir()
    stored.write_bytes(b"")
    (folder / "list.csv").write_text(f"{written},b.png\n{folder}/{written},b.png,x\n")
    (_, one, _), (_, other, _) = read_pairs_csv(folder / "list.csv")
    assert one == other == stored


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0001.png (480,480,3)\n0002.png (480,480,3)\n", ["0001.png", "0002.png"]),
        ("0001.png\r\n", ["0001.png"]),
        ("a b (1).png (48, 48)\n", ["a b (1).png"]),
        ("baboon.png (120,125,3) 1\n", ["baboon.png"]),
        ("000/1.png 100 (720,1280,3)\n", None),
        ("0001.png (480,480,3)\nREADME\n", None),
        ("a.png,b.png\n", None),
        ("a.png b.png\n", None),
        ("lq,gt\n", None),
        ("", None),
    ],
)
def test_a_meta_info_file_is_read(folder, text, expected):
    (folder / "meta_info.txt").write_text(text, encoding="utf-8-sig")
    assert read_meta_info(folder / "meta_info.txt") == expected
