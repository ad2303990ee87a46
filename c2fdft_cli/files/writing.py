"""Files that are written as a whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from c2fdft_cli.errors import ResourceError, UsageError
from c2fdft_cli.files.failures import FAILED, write_error
from c2fdft_cli.signals import unwinding

_NO_SYNC = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
"""The errors of a file system that cannot sync a file, such as some network drives."""
_temporaries: set[Path] = set()
"""Temporary files of `atomic_path` that are not renamed or removed yet."""


class TakenError(UsageError):
    """An output file already exists and may not be replaced."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"output file {path} already exists", hint="use --overwrite to replace it")


@contextlib.contextmanager
def atomic_path(path: str | Path, *, replace: bool = True) -> Iterator[Path]:
    """Yield a new, empty temporary file beside `path` that becomes `path` on success.

    The temporary name starts with a dot (a listing of images skips it) and keeps the suffix. On
    success the file is synced and renamed over `path`, and its folder is synced; on any error it is
    removed and `path` stays unchanged, unless the disk fails while the folder is synced. Without
    `replace`, a file that exists at `path` at the end of the block is not replaced either.

    Raises:
        TakenError: without `replace`, `path` exists at the end of the block.
        ResourceError: the disk is full, the path cannot be written, or it names a device.
    """
    target = Path(path)
    _refuse_special(target)
    # The temporary name does not contain the target's name, which may already have the maximum
    # length. It keeps the suffix because writers choose their format by it; the suffixes of formats
    # are short.
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp{target.suffix[:32]}")
    with unwinding():
        try:
            # Registered before it exists, so that a signal between these lines cannot leave a file
            # that is never removed.
            _temporaries.add(temporary)
            # `tempfile` is not used because it sets mode 0600 regardless of the umask, and the
            # renamed file would keep this mode. O_EXCL never opens an existing file or a symbolic
            # link.
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            yield temporary
            # The data are synced before the rename: a file system may write the rename first, and
            # a power failure would then leave an empty target.
            _sync(temporary)
            if replace:
                os.replace(temporary, target)
            else:
                _rename_to_new(temporary, target)
            # The folder is synced before returning: what the caller writes next may rely on this
            # file.
            _sync_folder(target.parent)
        except OSError as error:
            if _is_about(error, temporary, target):
                raise write_error(error, target) from error
            raise
        finally:
            _remove(temporary)


def _refuse_special(target: Path) -> None:
    """Raise ResourceError for a device, a pipe or a path in /dev or /proc: a rename replaces it."""
    try:
        mode = os.stat(target).st_mode
    except (OSError, ValueError):  # it does not exist yet, or no file can have this name
        return
    special = not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
    # `/dev/stdout` may lead to a regular file, but the rename would replace the link itself.
    folder = os.path.realpath(target.parent)
    if special or folder == "/dev" or folder.startswith("/proc/"):
        what = "the file would replace a device or a pipe"
        raise ResourceError(what, where=target, hint="choose a file in an ordinary folder")


def _rename_to_new(temporary: Path, target: Path) -> None:
    """Rename a file; TakenError if the target exists by now."""
    try:
        # Of the system calls that fail if the target exists, Python offers only `link`.
        os.link(temporary, target)
    except OSError as error:
        if os.path.exists(target):
            raise TakenError(target) from error
        if error.errno in FAILED:
            raise
        # The file system has no hard links, or the target is a broken symbolic link.
        os.replace(temporary, target)


def remove_temporaries() -> None:
    """Remove the temporary files that `atomic_path` could not remove because of a signal.

    Python enters a `with` block in several steps; an exception between them skips the clean-up.
    """
    for temporary in tuple(_temporaries):
        _remove(temporary)


def _remove(temporary: Path) -> None:
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)
    _temporaries.discard(temporary)


def unfinished(folder: Path) -> list[Path]:
    """List the temporary files of `atomic_path` in a folder: in use, or left by killed programs."""
    return [path for path in folder.glob(".*") if re.fullmatch(r"\.[0-9a-f]{16}\.tmp.*", path.name)]


def atomic_write_bytes(path: str | Path, data: bytes, *, replace: bool = True) -> None:
    """Write `data` to `path` atomically; `replace` and errors are those of `atomic_path`."""
    with atomic_path(path, replace=replace) as temporary:
        temporary.write_bytes(data)


def atomic_write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8 with its line ends; errors of `atomic_path`."""
    atomic_write_bytes(path, text.encode("utf-8"))


def require_new(path: Path, overwrite: bool) -> None:
    """Raise UsageError if the output is a folder, or exists and may not be replaced."""
    if os.path.isdir(path):
        raise UsageError(f"the output must be a file, but {path} is a folder", hint="name a file")
    _refuse_special(path)
    if os.path.exists(path) and not overwrite:
        raise TakenError(path)


def _is_about(error: OSError, temporary: Path, target: Path) -> bool:
    """Whether an error is about these files, not about an input that is read inside the block."""
    return error.filename is None or str(error.filename) in {str(temporary), str(target)}


def _sync(path: Path) -> None:
    """Write a file's data to the disk, if its file system can sync; OSError if the disk fails."""
    with path.open("r+b") as file:  # Windows syncs only files that may be written to
        try:
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in _NO_SYNC:
                raise


def _sync_folder(folder: Path) -> None:
    """Make a rename durable, if the file system can sync a folder; OSError if the disk fails."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders, and this one may be writable but not readable
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno in FAILED:
            raise
    finally:
        os.close(handle)
