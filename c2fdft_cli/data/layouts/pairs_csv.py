"""A list of pairs written by hand: a CSV file of degraded files, clean files and names."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from c2fdft_cli.data.images.picture import is_image_path
from c2fdft_cli.errors import DataError

_MAX_BYTES = 256 << 20
_SHOWN = 20
_HEADERS = {"lq", "gt", "name", "degraded", "clean", "input", "target"}
_HINT = "each row is: degraded,clean[,name], relative to the CSV file"


def read_pairs_csv(path: Path) -> list[tuple[str, Path, Path]]:
    """(name, degraded, clean) of each row of a CSV file (UTF-8).

    The first row may be the header lq,gt[,name]; without a name it is the degraded path.

    Raises:
        DataError: the file is missing or malformed, lists files that do not exist or are no
            images, uses a name twice, or a name that leads out of a folder.
    """
    rows = list(_rows(path))
    if not rows:
        raise DataError("the list of pairs is empty", where=path, hint=_HINT)
    missing = [str(file) for _, _, *files in rows for file in files if not file.is_file()]
    if missing:
        what = f"the list of pairs names {len(missing)} files that do not exist"
        raise DataError(what, where=path, hint=_HINT, details=missing[:_SHOWN])
    seen: dict[str, int] = {}
    for number, name, _, _ in rows:
        if name in seen:
            what = f"rows {seen[name]} and {number} have the same name, {name!r}"
            raise DataError(what, where=path, hint="give each row its own name in a third column")
        seen[name] = number
    return [(name, lq, gt) for _, name, lq, gt in rows]


def _rows(path: Path) -> Iterator[tuple[int, str, Path, Path]]:
    """(line, name, degraded, clean) of each row."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DataError("the list of pairs is larger than 256 MiB", where=path)
        with path.open(encoding="utf-8-sig", newline="") as file:
            for cells in (reader := csv.reader(file)):
                trimmed = [cell.strip() for cell in cells]
                first_line = reader.line_num == 1
                if any(trimmed) and not (first_line and set(map(str.lower, trimmed)) <= _HEADERS):
                    yield _row(path, reader.line_num, trimmed)
    except FileNotFoundError as error:
        raise DataError("no such list of pairs", where=path, hint=_HINT) from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or "it is not a CSV file in UTF-8"
        raise DataError(f"cannot read the list of pairs: {reason}", where=path) from error


def _row(path: Path, number: int, cells: Sequence[str]) -> tuple[int, str, Path, Path]:
    where = f"{path}, line {number}"
    if len(cells) not in (2, 3) or not all(cells[:2]) or "\0" in "".join(cells):
        raise DataError("this row is not a pair", where=where, hint=_HINT)
    lq, gt = (path.parent / cell for cell in cells[:2])
    if lq == gt:
        raise DataError("the degraded and the clean file are the same", where=where, hint=_HINT)
    for file in (lq, gt):
        if not is_image_path(file):
            raise DataError(
                f"{file.name} does not have the suffix of an image file", where=where, hint=_HINT
            )
    given = cells[2] if len(cells) == 3 else ""
    name = given or _derived_name(cells[0])
    if not _is_safe(name):
        hint = "use a plain name, or folder/name"
        raise DataError(f"the name {name!r} cannot be used", where=where, hint=hint)
    return number, name, lq, gt


def _derived_name(cell: str) -> str:
    """The degraded path without its suffix; its last part alone when it leads elsewhere."""
    name = PurePosixPath(Path(cell).as_posix()).with_suffix("").as_posix()
    return name if _is_safe(name) else PurePosixPath(name).name


def _is_safe(name: str) -> bool:
    """Relative, without dots that lead out, and printable: it may become a file's name."""
    parts = name.split("/")
    return name.isprintable() and "\\" not in name and not {"", ".", ".."} & set(parts)
