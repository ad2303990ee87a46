"""The errors to report for what the file system refuses, each with a hint."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

from c2fdft_cli.errors import DataError, ResourceError, too_many_files

STAND_INS = frozenset({"IN", "OUT", "TARGET", "SET", "PHOTO.jpg"})
"""Placeholders in printed commands for paths that only the user knows."""
_FULL = {errno.ENOSPC, errno.EDQUOT}
FAILED = {errno.EIO, *_FULL}
"""The errors of a disk, and never those of a file system that lacks an operation.

Those are many: each system has others for a folder that cannot be synced or a missing hard link.
"""
HINTS = {
    errno.EACCES: "no permission; choose another folder"
    if sys.platform != "win32"  # which refuses to replace an open file in the same words
    else "no permission, or another program has the file open",
    errno.EPERM: "no permission; choose another folder",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENOTDIR: "a part of this path is a regular file; choose another folder",
    errno.EEXIST: "a part of this path is a regular file; choose another folder",
    errno.EISDIR: "a folder has this name; choose another name",
    errno.ENOENT: "the folder does not exist",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ELOOP: "a symbolic link points at itself",
    errno.EFBIG: "the file is larger than the file system allows",
    errno.EIO: "the disk reports an input/output error",
}


def path_hint(path: str | Path) -> str:
    """Return the hint for a path that does not exist; it may be a placeholder or a URL."""
    name = str(path)
    if "://" in name:
        return "download it first; addresses are not read"
    return f"replace {name} with a path of your own" if name in STAND_INS else "check the path"


def read_error(error: OSError, path: str | Path) -> DataError | ResourceError:
    """Make the error to report for an OSError that occurred while reading `path`."""
    if lack := too_many_files(error, path):  # which says nothing about this file
        return lack
    if error.errno == errno.ENOENT:
        return DataError("no such file or folder", where=path, hint=path_hint(path))
    # libraries raise an OSError of their own with a text in place of a number
    reason = os.strerror(error.errno) if error.errno else str(error) or os.strerror(errno.EIO)
    return DataError(f"cannot read: {reason}", where=path)


def is_disk_full(error: OSError) -> bool:
    """Whether the error is a full disk or an exceeded quota."""
    return error.errno in _FULL


def write_error(error: OSError, path: Path) -> ResourceError:
    """Make the error to report for an OSError that occurred while writing `path`."""
    if lack := too_many_files(error, path):
        return lack
    if is_disk_full(error):
        hint = "free some space or choose another disk"
        return ResourceError("the disk is full", where=path, hint=hint)
    code = error.errno or 0
    reason = os.strerror(code) if code else str(error)
    return ResourceError("cannot write the file", where=path, hint=HINTS.get(code, reason))
