"""Reads lists of pairs (degraded file, clean file, name) written by hand or by spreadsheets.

For `eval`, a restored file may stand in the place of the degraded one.

The columns are separated by commas, semicolons, tabs or (if no file name contains one) spaces.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TypeAlias

from c2fdft_cli.data.images.picture import is_image_path
from c2fdft_cli.data.layouts.matching import composed, name_words
from c2fdft_cli.data.layouts.search import LAYOUTS, plain
from c2fdft_cli.errors import DataError
from c2fdft_cli.files.reading import read_text
from c2fdft_cli.words import many

Row: TypeAlias = tuple[int, list[str]]

_MAX_NAME_BYTES = 255
_DELIMITERS = (",", ";", "\t", " ")
_LQ_HEADERS = ("lq", "degraded", "input", "restored", "lq_path")
_GT_HEADERS = ("gt", "clean", "target", "gt_path")
_HEADERS = frozenset({*_LQ_HEADERS, *_GT_HEADERS, "name"})
_LQ = frozenset(name for one in LAYOUTS for name in one.lq)
_GT = frozenset(name for one in LAYOUTS for name in one.gt)
_META_INFO = re.compile(r"(\S.*?\.\w+)(?:\s+\(\d+, ?\d+(?:, ?\d+)?\))?(?:\s+\d+)?")
_HINT = "each row is: degraded (or restored),clean[,name], relative to the list or the folder"


def read_meta_info(path: Path) -> list[str] | None:
    """Read the clean images that a meta-info file of BasicSR names; None for any other list.

    Such a file has one line per image: `0001.png (480,480,3)`, or only the name.

    Raises:
        DataError: the file cannot be read.
    """
    lines = [line.strip() for line in read_text(path).split("\n") if line.strip()]
    found = [_META_INFO.fullmatch(line) for line in lines]
    names = [match[1].replace("\\", "/") for match in found if match]
    whole = len(names) == len(lines) and all(map(is_image_path, names))
    one_column = not any(is_image_path(cell) for name in names for cell in _cut(name)[:-1])
    return names if names and whole and one_column else None


def _cut(line: str) -> list[str]:
    return re.split(r"[,;\t ]+", line)


def read_pairs_csv(path: Path, folder: Path | None = None) -> list[tuple[str, Path, Path]]:
    """Read (name, degraded, clean) of each row of a table in UTF-8.

    The first row may be a header that names the columns, such as lq,gt[,name]. Without a header the
    degraded file is the first column, unless the folders and file names of all rows indicate the
    opposite (lists of GoPro and Real-ESRGAN). A row without a name is named by its degraded path.

    Args:
        path: the list.
        folder: where to look for relative paths that do not exist relative to the list's folder.

    Raises:
        DataError: the file is missing or malformed, lists files that do not exist or are not
            images, or has a name that occurs twice or leads out of a folder.
    """
    files = _Files([path.parent] if folder is None else [path.parent, folder])
    rows = [
        _row(path, number, cells, files) for number, cells in _ordered(path, _table(path, files))
    ]
    if not rows:
        raise DataError("the list of pairs is empty", where=path, hint=_HINT)
    missing = [str(file) for _, _, *files in rows for file in files if not os.path.isfile(file)]
    if missing:
        what = f"the list of pairs names {many(len(missing), 'file')} that cannot be found"
        raise DataError(what, where=path, hint=_HINT, details=missing)
    seen: dict[str, int] = {}
    for number, name, _, _ in rows:
        if name in seen:
            what = f"rows {seen[name]} and {number} have the same name, {name!r}"
            raise DataError(what, where=path, hint="give each row its own name in a third column")
        seen[name] = number
    return [(name, lq, gt) for _, name, lq, gt in rows]


def _table(path: Path, files: _Files) -> list[Row]:
    """Return (line, cells) of the rows that are not empty, cut at the delimiter that fits."""
    text = read_text(path)
    named = re.match(r"sep=(.)\r?\n", text)  # Excel's own
    try:
        delimiters = [named[1]] if named else _DELIMITERS
        tables = {delimiter: list(_rows(text, delimiter)) for delimiter in delimiters}
    except csv.Error as error:
        raise DataError(f"the list of pairs is not a CSV file: {error}", where=path) from error
    pairs = [rows for rows in tables.values() if all(len(cells) in (2, 3) for _, cells in rows)]
    # Names may contain commas and spaces, so several delimiters can turn all lines into pairs; the
    # right one gives a file that exists. The last row is checked, as the first may be a header.
    best = (rows for rows in pairs if rows and os.path.isfile(files(rows[-1][1][0])))
    return next(best, pairs[0] if pairs else next(iter(tables.values())))


def _rows(text: str, delimiter: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    for cells in reader:
        trimmed = [cell.strip() for cell in cells]
        if any(trimmed) and not (reader.line_num == 1 and text.startswith("sep=")):
            yield reader.line_num, trimmed


def _ordered(path: Path, rows: list[Row]) -> list[Row]:
    """Return the rows without a header, with their columns in the order degraded, clean, name.

    Raises:
        DataError: two columns of the header mean the same.
    """
    header = [cell.lower() for cell in rows[0][1]] if rows else []
    if header and set(header) <= _HEADERS:
        line, rows = rows[0][0], rows[1:]
        meant = [
            [i for i, cell in enumerate(header) if cell in known]
            for known in (_LQ_HEADERS, _GT_HEADERS, ("name",))
        ]
        for columns in meant:
            if len(columns) > 1:
                what = f"the columns {header[columns[0]]} and {header[columns[1]]} mean the same"
                raise DataError(what, where=f"{path}, line {line}", hint=_HINT)
        if all(meant[:2]):
            order = [column for columns in meant for column in columns]
            return [(line, [cells[i] for i in order if i < len(cells)]) for line, cells in rows]
    if rows and all([said_side(cell) for cell in cells] == ["gt", "lq"] for _, cells in rows):
        return [(line, cells[::-1]) for line, cells in rows]
    return rows


def said_side(cell: str) -> str | None:
    """Return "lq" or "gt" if the folders and the name of a file indicate one side, else None."""
    path = PurePosixPath(cell.replace("\\", "/"))
    words = {plain(part) for part in path.parent.parts} | set(name_words(path.stem))
    sides = [side for side, names in (("lq", _LQ - _GT), ("gt", _GT - _LQ)) if words & names]
    return sides[0] if len(sides) == 1 else None


def _row(
    path: Path, number: int, cells: Sequence[str], files: _Files
) -> tuple[int, str, Path, Path]:
    where = f"{path}, line {number}"
    if len(cells) not in (2, 3) or not all(cells[:2]):
        raise DataError("this row is not a pair", where=where, hint=_HINT)
    lq, gt = (files(cell) for cell in cells[:2])
    if lq == gt:
        raise DataError("both files of this pair are the same", where=where, hint=_HINT)
    for file in (lq, gt):
        if not is_image_path(file):
            raise DataError(
                f"{file.name} does not have the suffix of an image file", where=where, hint=_HINT
            )
    given = cells[2] if len(cells) == 3 else ""
    name = given.replace("\\", "/") or _derived_name(cells[0])
    if not _is_safe(name):
        hint = f"use a plain name, or folder/name, of at most {_MAX_NAME_BYTES} bytes each"
        raise DataError(f"the name {name[:80]!r} cannot be used", where=where, hint=hint)
    return number, name, lq, gt


class _Files:
    """Finds the file that a cell names, in the first of some folders that contains it."""

    def __init__(self, bases: Sequence[Path]) -> None:
        self._bases = bases
        self._names: dict[Path, dict[str, str]] = {}

    def __call__(self, cell: str) -> Path:
        """Find the path as written, with backslashes as slashes, or in another Unicode form."""
        for text in dict.fromkeys((cell, cell.replace("\\", "/"))):
            for base in self._bases:
                # `Path.is_file` would raise an error if the text is too long for a file name.
                if os.path.isfile(base / text):
                    return base / text
        parts = PurePosixPath(cell.replace("\\", "/")).parts
        found = (self._spelled(base, parts) for base in self._bases)
        return next((one for one in found if one is not None), self._bases[0].joinpath(*parts))

    def _spelled(self, base: Path, parts: Sequence[str]) -> Path | None:
        for part in parts:
            name = part if part in ("/", "..") else self._entries(base).get(composed(part))
            if name is None:
                return None
            base /= name
        return base

    def _entries(self, folder: Path) -> dict[str, str]:
        """Map the composed form of each name in a folder to the name; empty if not listable."""
        if folder not in self._names:
            with suppress(OSError):
                self._names[folder] = {composed(name): name for name in os.listdir(folder)}
        return self._names.get(folder, {})


def _derived_name(cell: str) -> str:
    """Return the degraded path without its suffix, or its last part if the path is not safe."""
    name = PurePosixPath(cell.replace("\\", "/")).with_suffix("").as_posix()
    # the last part of a:b is b, also where a colon is a part of a file's name
    return name if _is_safe(name) else PureWindowsPath(PurePosixPath(name).name).name


def _is_safe(name: str) -> bool:
    """Whether a name is relative, has no "." or "..", is printable and fits into file names.

    A name that begins with a drive, as in C:/photos/1, is not relative on Windows.
    """
    parts = name.split("/")
    plain_parts = name.isprintable() and "\\" not in name and not {"", ".", ".."} & set(parts)
    relative = plain_parts and not PureWindowsPath(name).drive
    return relative and all(len(os.fsencode(part)) <= _MAX_NAME_BYTES for part in parts)
