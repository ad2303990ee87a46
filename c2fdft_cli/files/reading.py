"""Files that are read as a whole, or a part of them."""

from __future__ import annotations

import codecs
import hashlib
import os
import stat
import sys
import threading
from pathlib import Path
from typing import IO

from c2fdft_cli.errors import DataError
from c2fdft_cli.files.failures import read_error

MAX_TEXT_BYTES = 64 << 20
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
"""Byte order marks."""
_READ_BYTES = 1 << 30
"""The most to read in one call: for more than 2 GiB Linux reads less and macOS fails."""
_one_reader = threading.Lock()
"""Held on Windows between moving a file's position and reading there."""


def read_text(path: str | Path, *, max_bytes: int = MAX_TEXT_BYTES, errors: str = "strict") -> str:
    """Read a UTF-8 text file; a byte order mark is removed.

    Args:
        path: the file.
        max_bytes: the limit of its size.
        errors: how to handle bytes that are not UTF-8, as in `bytes.decode`.

    Raises:
        DataError: the file is missing, unreadable, too large, UTF-16, or not text.
    """
    hint = "save it as UTF-8"
    try:
        with Path(path).open("rb") as file:
            # Limited: a file that was named by mistake may be larger than memory, and a device has
            # no end.
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise read_error(error, path) from error
    if len(data) > max_bytes:
        raise DataError(f"the text file is larger than {max_bytes} bytes", where=path)
    if data.startswith(_UTF_16):
        raise DataError("the text is UTF-16, not UTF-8", where=path, hint=hint)
    # A NUL is valid UTF-8. Without this check UTF-16 without a byte order mark and many binary
    # files would be accepted.
    if b"\0" in data:
        raise DataError("not a text file", where=path, hint=hint)
    try:
        return data.decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        what = f"byte {error.start} of the text is not UTF-8"
        raise DataError(what, where=path, hint=hint) from error


def read_at(file: IO[bytes], start: int, size: int) -> bytes:
    """Read `size` bytes of an unbuffered file from byte `start`, fewer only if it ends before.

    If the file is truncated or the disk fails meanwhile, this raises an OSError or returns fewer
    bytes; with a memory map the process would be killed (SIGBUS). Threads may share the open file,
    and so may processes, which on Windows is impossible. On Windows its position changes.
    """
    parts = []
    # A read may return fewer bytes than requested before the end of the file.
    while size and (part := _read_part(file, start, min(size, _READ_BYTES))):
        parts.append(part)
        start += len(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _read_part(file: IO[bytes], start: int, size: int) -> bytes:
    if sys.platform == "win32":
        with _one_reader:
            file.seek(start)
            return file.read(size)
    else:
        return os.pread(file.fileno(), size, start)


def is_file(path: Path) -> bool:
    """Whether a path is a regular file.

    `Path.is_file` is also False if the system does not tell (no permission, an error of the disk),
    with some versions of Python.

    Raises:
        DataError: the system does not tell.
    """
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise read_error(error, path) from error


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as hexadecimal digits; DataError if it is unreadable."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise read_error(error, path) from error


def require_existing(*paths: str | Path | None) -> None:
    """Raise DataError for the first of the paths that does not exist; None is skipped."""
    for path in paths:
        if path is None:
            continue
        try:
            os.stat(path)
        except OSError as error:
            raise read_error(error, path) from error
