"""Folders: created, checked before work begins, and searched."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path

from c2fdft_cli.errors import ResourceError
from c2fdft_cli.files.failures import HINTS, write_error
from c2fdft_cli.files.paths import real_path
from c2fdft_cli.words import binary_size

_OF_SYSTEMS = {
    "@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot",
    "$recycle.bin", "system volume information", "lost+found", "__macosx",
}  # fmt: skip
"""Folders in which storage devices and systems keep thumbnails, deleted files and snapshots."""
_CACHES = {"darwin": "Library/Caches", "win32": "AppData/Local"}


def ensure_folder(path: str | Path) -> Path:
    """Create the folder `path` with its parents and return it.

    Raises:
        ResourceError: a part of the path is a regular file, or the folder cannot be written to.
    """
    folder = Path(path)
    check_folder(folder)
    try:
        # Not by `parents`, as Python calls itself for each of them, and fails for about 1,000.
        missing = list(takewhile(lambda part: not part.is_dir(), (folder, *folder.parents)))
        for part in reversed(missing):
            part.mkdir(exist_ok=True)
    except OSError as error:
        raise write_error(error, folder) from error
    return folder


def check_folder(path: str | Path) -> None:
    """Raise ResourceError if a folder cannot be created or written to; nothing is created.

    The error's cause is the OSError that writing there would raise.
    """
    folder = Path(path)
    # Not even "." exists for a user who may not enter the current folder.
    there = next((part for part in (folder, *folder.parents) if os.path.lexists(part)), None)
    if there is not None and not os.path.isdir(there):
        what, of = "a regular file", "a file"
        if not os.path.exists(there):
            what, of = "a broken link", "a link that leads nowhere"
        elif not os.path.isfile(there):
            what, of = "a special file", "a pipe or a device"
        raise ResourceError(
            f"a part of the output path is {what}",
            where=folder,
            hint=f"{there} is {of}; choose another folder",
        ) from NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if there is None or not os.access(there, os.W_OK | os.X_OK):
        code = errno.EROFS if there is not None and _is_read_only(there) else errno.EACCES
        raise ResourceError(
            "cannot write to the folder", where=folder, hint=HINTS[code]
        ) from OSError(code, os.strerror(code))


def _is_read_only(folder: Path) -> bool:
    """Whether a folder's file system is read-only, as far as the system tells."""
    return sys.platform != "win32" and bool(os.statvfs(folder).f_flag & os.ST_RDONLY)


def free_disk_bytes(folder: Path) -> int:
    """Return the free bytes on the disk of a folder, which need not exist yet."""
    place = next(path for path in (folder, *real_path(folder).parents) if os.path.exists(path))
    return shutil.disk_usage(place).free


def check_space(folder: Path, needed: int) -> None:
    """Raise ResourceError if `needed` bytes do not fit on the disk of a folder."""
    free = free_disk_bytes(folder)
    if needed > free:
        what = f"{binary_size(needed)} are needed, {binary_size(free)} are free"
        hint = "free some space or choose another disk"
        raise ResourceError(f"the disk is too small: {what}", where=folder, hint=hint)


def private_cache_folder() -> Path:
    """Return the user's cache folder, to which no one else may write; it is created if necessary.

    Raises:
        OSError: it cannot be created, others can write to it, or the home folder has no full path.
        RuntimeError: the user has no home folder.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not caches.is_absolute():  # then it is to be ignored, says the XDG specification
        caches = Path.home() / _CACHES.get(sys.platform, ".cache")
    if not caches.is_absolute():  # a folder would appear wherever the program is called
        raise OSError(f"the home folder must be an absolute path, got {Path.home()}")
    folder = caches / "c2fdft"
    # Files in this folder are loaded as code. `mkdir` accepts an existing folder whoever made it,
    # so its owner and mode are checked afterwards, with `lstat` because a link could point
    # elsewhere later.
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if sys.platform != "win32":  # where only the user, and administrators, may write to AppData
        found = folder.lstat()
        private = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o022
        if not private or found.st_uid != os.getuid():
            raise OSError(f"{folder} is not a folder that only its owner can write to")
    return folder


def is_hidden(name: str) -> bool:
    """Whether a file or folder does not belong to what a user keeps in a folder, by its name.

    True if it begins with a dot, or if it is where systems keep copies of the user's pictures
    without being asked: thumbnails (`@eaDir` on a Synology), deleted files, snapshots.
    """
    return name.startswith(".") or name.casefold() in _OF_SYSTEMS


MAX_LEVELS = 256
"""Number of levels of folders below one that are searched. `os.walk` of Python 3.11 fails for about
1,000, and the time that the system takes to resolve their paths grows with the cube of it."""


def walk_folders(
    top: str | Path, on_error: Callable[[OSError], None]
) -> Iterator[tuple[str, list[str]]]:
    """Yield a folder and all folders below it, each with the names of its files.

    What is hidden is skipped. Each real folder is visited once, so that loops of links end: by its
    path without links if there is one, because all links are followed last.

    Args:
        top: the folder.
        on_error: called with the error of each folder that cannot be listed, or that is more than
            `MAX_LEVELS` levels below `top` or a link; it may raise it.
    """
    seen: set[str] = set()

    def is_new(path: str) -> bool:
        real, count = os.path.realpath(path), len(seen)
        seen.add(real)
        return len(seen) > count

    starts = [os.fspath(top)]
    for start in starts:  # it grows by the links that are found
        if not is_new(start):
            continue
        for base, folders, names in os.walk(start, onerror=on_error):
            if base.count(os.sep) - start.count(os.sep) > MAX_LEVELS:
                folders.clear()
                reason = f"it is over {MAX_LEVELS} levels of folders below {start}"
                on_error(OSError(errno.ENAMETOOLONG, reason, base))
                continue
            shown = sorted(name for name in folders if not is_hidden(name))
            paths = {name: os.path.join(base, name) for name in shown}
            starts += filter(os.path.islink, paths.values())
            folders[:] = [
                name for name, path in paths.items() if not os.path.islink(path) and is_new(path)
            ]
            yield base, [name for name in names if not is_hidden(name)]
