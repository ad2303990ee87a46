"""Which file a path means: links, spellings, names."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from c2fdft_cli.errors import UsageError


def real_path(path: Path) -> Path:
    """Resolve the symbolic links in a path; `Path.resolve` fails if a link points to itself."""
    return Path(os.path.realpath(path))


def identity(path: str | Path) -> tuple[int, int] | str:
    """Return a value that is equal for all paths of one file or folder.

    It is the number of the device and that of the inode; for a path that does not exist, its real
    path. Real paths are not compared for existing files because they can differ for one file: a
    file system may ignore case, and a folder may be mounted twice.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # it does not exist, or no file can have this name
        return os.path.realpath(path)
    return status.st_dev, status.st_ino


def same_files(paths: Iterable[Path], others: Iterable[str | Path]) -> list[Path]:
    """Return those of the paths that lead to one of the other files or folders.

    On some file systems that ignore case (exFAT through FUSE, shared folders of virtual machines,
    some network drives) the number of an inode depends on the spelling of the path. So two files or
    folders of the same size and times are taken for one, too, if only the spelling of their real
    paths differs.
    """
    known: set[tuple[int, int] | str] = set()
    alike: dict[tuple[int, ...], list[Path]] = {}
    for other in map(Path, others):
        try:
            status = os.stat(other)
        except (OSError, ValueError):
            known.add(os.path.realpath(other))
        else:
            known.add((status.st_dev, status.st_ino))  # as `identity`, which would ask again
            alike.setdefault(_size_and_times(status), []).append(other)
    any_is_missing = any(isinstance(one, str) for one in known)
    spelling = cache(lambda path: folded(os.path.realpath(path)))

    def is_same(path: Path) -> bool:
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            # What does not exist is no other spelling of what does; resolving its path takes long.
            return any_is_missing and os.path.realpath(path) in known
        return (status.st_dev, status.st_ino) in known or any(
            spelling(path) == spelling(one) for one in alike.get(_size_and_times(status), ())
        )

    return list(filter(is_same, paths))


def _size_and_times(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def folded(name: str) -> str:
    """Return a key that is equal for all names that a file system may take for one another.

    It ignores case, and whether accented letters are composed (NFC) or not (NFD).
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def checked_path(name: str, value: str | Path) -> str:
    """Return a path as text; UsageError if it is empty or no file can have this name."""
    text = os.fspath(value)
    if not text:  # `Path` would take it for the current folder
        raise UsageError(f"{name} is empty", hint="name a file or a folder")
    if "\0" in text:  # a Python program may pass it
        raise UsageError(f"{name} contains a NUL character, got {text!r}")
    return text
