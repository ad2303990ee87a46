"""Locks that keep other processes out of a folder."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from c2fdft_cli.errors import ResourceError
from c2fdft_cli.files.failures import write_error
from c2fdft_cli.files.folders import ensure_folder

LOCK = ".lock"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
"""The errors of a file system without locks; there two processes cannot be kept apart."""


class HeldError(ResourceError):
    """Another process is working in the folder."""


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
