"""Atomic writes, reading of text files, walks through folders, locks on them, and errors."""

from __future__ import annotations

import codecs
import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import IO

from c2fdft_cli.errors import DataError, ResourceError, UsageError, too_many_files
from c2fdft_cli.signals import unwinding
from c2fdft_cli.words import binary_size

MAX_TEXT_BYTES = 64 << 20
_OTHER_UNICODE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
"""Byte order marks; that of little-endian UTF-32 begins with that of UTF-16."""
LOCK = ".lock"
STAND_INS = frozenset({"IN", "OUT", "TARGET", "SET", "PHOTO.jpg"})
"""Placeholders in printed commands for paths that only the user knows."""
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
"""The errors of a file system without locks; there two processes cannot be kept apart."""
_NO_SYNC = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
"""The errors of a file system that cannot sync a file, such as some network drives."""
_OF_SYSTEMS = {
    "@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot",
    "$recycle.bin", "system volume information", "lost+found", "__macosx",
}  # fmt: skip
"""Folders in which storage devices and systems keep thumbnails, deleted files and snapshots."""
_CACHES = {"darwin": "Library/Caches", "win32": "AppData/Local"}
_FULL = {errno.ENOSPC, errno.EDQUOT}
_FAILED = {errno.EIO, *_FULL}
"""The errors of a disk, and never those of a file system that lacks an operation.

Those are many: each system has others for a folder that cannot be synced or a missing hard link.
"""
_READ_BYTES = 1 << 30
"""The most to read in one call: for more than 2 GiB Linux reads less and macOS fails."""
_one_reader = threading.Lock()
"""Held on Windows between moving a file's position and reading there."""
_temporaries: set[Path] = set()
"""Temporary files of `atomic_path` that are not renamed or removed yet."""
_HINTS = {
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


class TakenError(UsageError):
    """An output file already exists and may not be replaced."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"output file {path} already exists", hint="use --overwrite to replace it")


class HeldError(ResourceError):
    """Another process is working in the folder."""


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
        if error.errno in _FAILED:
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
            "cannot write to the folder", where=folder, hint=_HINTS[code]
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
    if data.startswith(_OTHER_UNICODE):
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


def path_hint(path: str | Path) -> str:
    """Return the hint for a path that does not exist; it may be a placeholder or a URL."""
    name = str(path)
    if "://" in name:
        return "download it first; addresses are not read"
    return f"replace {name} with a path of your own" if name in STAND_INS else "check the path"


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


def read_error(error: OSError, path: str | Path) -> DataError | ResourceError:
    """Make the error to report for an OSError that occurred while reading `path`."""
    if lack := too_many_files(error, path):  # which says nothing about this file
        return lack
    if error.errno == errno.ENOENT:
        return DataError("no such file or folder", where=path, hint=path_hint(path))
    # libraries raise an OSError of their own with a text in place of a number
    reason = os.strerror(error.errno) if error.errno else str(error) or os.strerror(errno.EIO)
    return DataError(f"cannot read: {reason}", where=path)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as hexadecimal digits; DataError if it is unreadable."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise read_error(error, path) from error


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


@contextlib.contextmanager
def hold_folder(folder: Path, taken: str, name: str = LOCK) -> Iterator[None]:
    """Lock a folder against other processes; it is created if it does not exist.

    Args:
        folder: the folder in which a lock file is created; the file is not removed.
        taken: the error's sentence if another process holds the lock.
        name: the name of the lock file; different kinds of work in one folder have different names.

    Raises:
        HeldError: another process holds the lock.
        ResourceError: the folder or its lock file cannot be written to.
    """
    from filelock import FileLock, Timeout

    ensure_folder(folder)
    lock = FileLock(folder / name, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        hint = f"wait until it has finished, or stop it{_if_gone(folder / name)}"
        raise HeldError(taken, where=folder, hint=hint) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise _lock_error(error, folder / name) from error
    try:
        yield
    finally:
        # The file is not removed: otherwise one process could hold the lock of the removed file
        # while another locks a new file of the same name.
        lock.release()


def _lock_error(error: OSError, lock: Path) -> ResourceError:
    """Make the error for a lock file that cannot be opened or locked."""
    if not (isinstance(error, PermissionError) and os.path.lexists(lock)):
        return write_error(error, lock.parent)
    return ResourceError(
        "no permission to write to the lock file",
        where=lock,
        hint="if it belongs to another user, ask them for write permission (chmod g+rw), or delete "
        "it while no one works in this folder",
    )


def _if_gone(lock: Path) -> str:
    """Return advice about a lock whose process was killed, on a file system without locks.

    On such a file system the existence of the file is the lock. filelock removes the file if its
    process has ended on this machine, but cannot check processes of other machines.

    Returns:
        The end of a hint; empty if the file system has locks.
    """
    if sys.platform != "win32":  # whose file systems have locks
        import fcntl

        try:
            with lock.open("rb") as file:
                holder = file.read(400).decode("utf-8", "replace").split("\n")
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                named = len(holder) > 1 and holder[0].isdecimal()
                who = f"process {holder[0]} on {holder[1]}" if named else "it"
                return f"; if {who} no longer exists, delete {lock}"
    return ""


def real_path(path: Path) -> Path:
    """Resolve the symbolic links in a path; `Path.resolve` fails if a link points to itself."""
    return Path(os.path.realpath(path))


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
        known.add(identity(other))
        with contextlib.suppress(OSError, ValueError):
            alike.setdefault(_size_and_times(os.stat(other)), []).append(other)
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


def require_existing(*paths: str | Path | None) -> None:
    """Raise DataError for the first of the paths that does not exist; None is skipped."""
    for path in paths:
        if path is None:
            continue
        try:
            os.stat(path)
        except OSError as error:
            raise read_error(error, path) from error


def require_new(path: Path, overwrite: bool) -> None:
    """Raise UsageError if the output is a folder, or exists and may not be replaced."""
    if os.path.isdir(path):
        raise UsageError(f"the output must be a file, but {path} is a folder", hint="name a file")
    _refuse_special(path)
    if os.path.exists(path) and not overwrite:
        raise TakenError(path)


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
    return ResourceError("cannot write the file", where=path, hint=_HINTS.get(code, reason))


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
        if error.errno in _FAILED:
            raise
    finally:
        os.close(handle)
