"""Files that are written whole or not at all, text that people wrote, and what a disk refuses."""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import re
import secrets
import shutil
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path

from c2fdft_cli.errors import DataError, ResourceError, UsageError
from c2fdft_cli.signals import unwinding

MAX_TEXT_BYTES = 64 << 20
_OTHER_UNICODE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
"""Byte order marks; that of UTF-32 in little endian begins with that of UTF-16."""
LOCK = ".lock"
STAND_INS = frozenset({"IN", "OUT", "TARGET", "SET", "PHOTO.jpg"})
"""What stands in printed commands for paths that only the user knows."""
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
"""Of a file system without locks, where nothing keeps two processes apart."""
_FULL = {errno.ENOSPC, errno.EDQUOT}
_READ_BYTES = 1 << 30
"""At once: Linux and macOS read or refuse what is over 2 GiB."""
_temporaries: set[Path] = set()
"""Those of `atomic_path` that are not renamed or removed yet."""
_HINTS = {
    errno.EACCES: "no permission; choose another folder",
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


class TakenError(UsageError):
    """A file that may not be replaced."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"output file {path} already exists", hint="use --overwrite to replace it")


class HeldError(ResourceError):
    """A folder in which another process works."""


@contextlib.contextmanager
def atomic_path(path: str | Path, *, replace: bool = True) -> Iterator[Path]:
    """Yield a new, empty temporary file beside `path` that becomes `path` on success.

    The temporary name starts with a dot (a listing of images skips it) and keeps the suffix. On
    success the file is synced, renamed over `path`, and its folder is synced; on any error it is
    removed and `path` stays as it was. Without `replace` so does a file that is there at the end.

    Raises:
        TakenError: without `replace`, from the end of the block.
        ResourceError: the disk is full, or the path cannot be written, or is a device's.
    """
    target = Path(path)
    _refuse_special(target)
    # Not made of the target's name, which may have the greatest length already. The suffix stays
    # because writers choose their format by it; those of formats are short.
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp{target.suffix[:32]}")
    with unwinding():
        try:
            # Noted before it exists: a signal between these lines must not leave a file nobody
            # knows of.
            _temporaries.add(temporary)
            # Not by `tempfile`, which gives 0600 whatever the umask says, and the mode stays with
            # the file. O_EXCL opens nothing that lies there already, a symbolic link included.
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            yield temporary
            # Data before the name: a file system may write the rename first, and after a power
            # failure the target would be there, empty.
            _sync(temporary)
            if replace:
                os.replace(temporary, target)
            else:
                _rename_to_new(temporary, target)
            # And the name before the caller goes on: what it writes next may rely on this file.
            _sync_folder(target.parent)
        except OSError as error:
            if _is_about(error, temporary, target):
                raise write_error(error, target) from error
            raise
        finally:
            _remove(temporary)


def _refuse_special(target: Path) -> None:
    """ResourceError for a device, a pipe or an open file's name, which a rename would replace."""
    try:
        mode = os.stat(target).st_mode
    except (OSError, ValueError):  # not there yet, or a name that no file can have
        return
    special = not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
    # `/dev/stdout` may be a file, but what the rename would replace is the link
    folder = os.path.realpath(target.parent)
    if special or folder == "/dev" or folder.startswith("/proc/"):
        what = "a file would take the place of a device or a pipe"
        raise ResourceError(what, where=target, hint="name a file in a folder of yours")


def _rename_to_new(temporary: Path, target: Path) -> None:
    """Rename; TakenError where there is a file by now."""
    try:
        os.link(temporary, target)  # of the calls that replace nothing, the one that Python has
    except OSError as error:
        if os.path.exists(target):
            raise TakenError(target) from error
        os.replace(temporary, target)  # no hard links there, or a symbolic one that leads nowhere


def remove_temporaries() -> None:
    """Remove what `atomic_path` could not: a signal may come before its block has begun.

    Python enters a `with` block in several steps; what is raised between them leaves it unclosed.
    """
    for temporary in tuple(_temporaries):
        _remove(temporary)


def _remove(temporary: Path) -> None:
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)
    _temporaries.discard(temporary)


def unfinished(folder: Path) -> list[Path]:
    """Temporary files of `atomic_path` in the folder, left by killed programs or being written."""
    return [path for path in folder.glob(".*") if re.fullmatch(r"\.[0-9a-f]{16}\.tmp.*", path.name)]


def atomic_write_bytes(path: str | Path, data: bytes, *, replace: bool = True) -> None:
    """Write `data` to `path`, whole or not at all; `replace` and errors as `atomic_path`."""
    with atomic_path(path, replace=replace) as temporary:
        temporary.write_bytes(data)


def atomic_write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8 with the line ends it has; ResourceError as `atomic_write_bytes`."""
    atomic_write_bytes(path, text.encode("utf-8"))


def ensure_folder(path: str | Path) -> Path:
    """Make the folder `path` with its parents and return it.

    Raises:
        ResourceError: a part of the path is a regular file, or the folder cannot be written to.
    """
    folder = Path(path)
    check_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(error, folder) from error
    return folder


def check_folder(path: str | Path) -> None:
    """ResourceError if a folder cannot be made or written to; nothing is made.

    Its cause is the OSError that writing there would end in.
    """
    folder = Path(path)
    there = next(part for part in (folder, *folder.parents) if os.path.lexists(part))
    if not os.path.isdir(there):
        what, of = "a regular file", "a file"
        if not os.path.exists(there):
            what, of = "a broken link", "a link that leads nowhere"
        raise ResourceError(
            f"the output path lies under {what}",
            where=folder,
            hint=f"{there} is {of}; choose another folder",
        ) from NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if not os.access(there, os.W_OK | os.X_OK):
        read_only = os.statvfs(there).f_flag & os.ST_RDONLY
        code = errno.EROFS if read_only else errno.EACCES
        raise ResourceError(
            "cannot write to the folder", where=folder, hint=_HINTS[code]
        ) from OSError(code, os.strerror(code))


def free_disk_bytes(folder: Path) -> int:
    """Free space on the disk that a folder lies on, or will lie on."""
    place = next(path for path in (folder, *real_path(folder).parents) if os.path.exists(path))
    return shutil.disk_usage(place).free


def check_space(folder: Path, needed: int) -> None:
    """ResourceError where `needed` bytes do not fit on the disk of a folder."""
    free = free_disk_bytes(folder)
    if needed > free:
        raise ResourceError(
            f"the disk is too small: {_amount(needed)} are needed, {_amount(free)} are free",
            where=folder,
            hint="free some space or choose another disk",
        )


def _amount(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 1 << 30 else f"{size / 2**20:.2f} MiB"


def read_text(path: str | Path, *, max_bytes: int = MAX_TEXT_BYTES, errors: str = "strict") -> str:
    """The text of a UTF-8 file that a person wrote; a byte order mark is no part of it.

    Args:
        path: the file.
        max_bytes: refuse larger ones.
        errors: what becomes of bytes that are not UTF-8, as in `bytes.decode`.

    Raises:
        DataError: missing, unreadable, too large, UTF-16, or not text.
    """
    hint = "save it as UTF-8"
    try:
        with Path(path).open("rb") as file:
            # No further: a file that was named by mistake may be larger than memory, and a device
            # has no end.
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise read_error(error, path) from error
    if len(data) > max_bytes:
        raise DataError(f"this text is over the limit of {max_bytes} bytes", where=path)
    if data.startswith(_OTHER_UNICODE):
        raise DataError("this text is UTF-16, not UTF-8", where=path, hint=hint)
    # A NUL is valid UTF-8: without this UTF-16 without a byte order mark, and much that is no text,
    # would pass.
    if b"\0" in data:
        raise DataError("not a text file", where=path, hint=hint)
    try:
        return data.decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        what = f"byte {error.start} of this text is not UTF-8"
        raise DataError(what, where=path, hint=hint) from error


def read_at(file: io.FileIO, start: int, size: int) -> bytes:
    """`size` bytes of a file from byte `start`, fewer only where the file ends before.

    Unlike a memory map, whose process is killed (SIGBUS) where the file was cut or the disk fails
    meanwhile; OSError where the file system refuses. Processes and threads may share the open file.
    """
    parts = []
    # A read may return less than it was asked for without being at the end of the file.
    while size and (part := os.pread(file.fileno(), min(size, _READ_BYTES), start)):
        parts.append(part)
        start += len(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def path_hint(path: str | Path) -> str:
    """What to try where a path leads nowhere: it may be copied from a command that we printed."""
    name = str(path)
    return (
        f"put a path of your own in the place of {name}" if name in STAND_INS else "check the path"
    )


def read_error(error: OSError, path: str | Path) -> DataError:
    """The one-line error for an OSError met while reading `path`."""
    if error.errno == errno.ENOENT:
        return DataError("no such file or folder", where=path, hint=path_hint(path))
    return DataError(f"cannot read: {os.strerror(error.errno or errno.EIO)}", where=path)


@contextlib.contextmanager
def hold_folder(folder: Path, taken: str, name: str = LOCK) -> Iterator[None]:
    """Keep other processes from working in a folder meanwhile; it is made where it is not there.

    Args:
        folder: in which a file is locked, and left.
        taken: what is wrong where another process holds it, as a sentence.
        name: of the file; work of another kind in the same folder has another.

    Raises:
        HeldError: one does.
        ResourceError: nothing can be written there.
    """
    from filelock import FileLock, Timeout

    ensure_folder(folder)
    lock = FileLock(folder / name, timeout=0)
    try:
        with warnings.catch_warnings():
            # that the file itself is the lock where the file system has none
            warnings.simplefilter("ignore")
            lock.acquire()
    except Timeout:
        hint = f"wait until it is done, or stop it{_if_gone(folder / name)}"
        raise HeldError(taken, where=folder, hint=hint) from None
    except NotImplementedError:  # of older filelock: there are no locks
        pass
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise write_error(error, folder) from error
    try:
        yield
    finally:
        # The file stays: after a removal one process could hold the lock of the removed file while
        # another locks a new one of the same name.
        lock.release()


def _if_gone(lock: Path) -> str:
    """What to do about a lock whose process was killed, on a file system without locks.

    There the file is the lock. filelock removes it where its process is gone from this machine, and
    cannot know of others.
    """
    try:
        import fcntl

        with lock.open("rb") as file:
            holder = file.read(400).decode("utf-8", "replace").split("\n")
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (ImportError, OSError) as error:
        if getattr(error, "errno", None) not in _NO_LOCKS:
            return ""
        named = len(holder) > 1 and holder[0].isdecimal()
        who = f"process {holder[0]} on {holder[1]}" if named else "it"
        return f"; where {who} is gone, delete {lock}"
    return ""


def real_path(path: Path) -> Path:
    """The path without links; `Path.resolve` raises where one points at itself."""
    return Path(os.path.realpath(path))


def identity(path: str | Path) -> tuple[int, int] | str:
    """What two paths of one file or folder have in common; of one that is not there, its real path.

    By the file system's own number, since a disk may not tell cases apart, and a folder may be
    mounted twice: names without links differ then.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # not there, or a name that no file can have
        return os.path.realpath(path)
    return status.st_dev, status.st_ino


def require_existing(*paths: str | Path | None) -> None:
    """DataError for the first of the paths that is not there; None stands for no path."""
    for path in paths:
        if path is None:
            continue
        try:
            os.stat(path)
        except OSError as error:
            raise read_error(error, path) from error


def require_new(path: Path, overwrite: bool) -> None:
    """UsageError for an output that is a folder, or a file that may not be replaced."""
    if os.path.isdir(path):
        raise UsageError(f"output file {path} is a folder", hint="give a file in it")
    _refuse_special(path)
    if os.path.exists(path) and not overwrite:
        raise TakenError(path)


def is_disk_full(error: OSError) -> bool:
    """Whether there was no room for what was to be written."""
    return _code(error) in _FULL


def write_error(error: OSError, path: Path) -> ResourceError:
    """The one-line error for an OSError met while writing `path`."""
    code = _code(error)
    if is_disk_full(error):
        hint = "free some space or choose another disk"
        return ResourceError("the disk is full", where=path, hint=hint)
    reason = os.strerror(code) if code else str(error)
    return ResourceError("cannot write the file", where=path, hint=_HINTS.get(code, reason))


def _code(error: OSError) -> int:
    """The errno of an error; HDF5 hides it in the text of its own."""
    hidden = re.search(r"errno = (\d+)", str(error))
    return error.errno or (int(hidden[1]) if hidden else 0)


def _is_about(error: OSError, temporary: Path, target: Path) -> bool:
    """False for an error that names another file, such as an input read inside the block."""
    return error.filename is None or str(error.filename) in {str(temporary), str(target)}


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the file system can sync a folder."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
