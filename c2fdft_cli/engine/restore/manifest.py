"""Records how the files of an output folder were made, so that a later run can name differences.

`.c2fdft-restore.jsonl` gets one line just before a file is moved into place, so that the file is
recorded even if the program is killed between the two. The line identifies the file that it is
about: a line about a file that never got its name, or that was damaged or replaced later, is not
taken for one about the present file.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

from c2fdft_cli.data.images.formats import JPEG_SUFFIXES
from c2fdft_cli.data.video.probe import VIDEO_SUFFIXES
from c2fdft_cli.errors import ResourceError
from c2fdft_cli.files.failures import read_error, write_error
from c2fdft_cli.files.folders import ensure_folder

MANIFEST_NAME = ".c2fdft-restore.jsonl"
_NAME_OF_USER = re.compile(r"\.c2fdft-restore\.\d{1,10}\.jsonl")
MAX_MANIFEST_BYTES = 1 << 30
"""Size up to which a file of records is read: that of the records of over a million files."""
_MIN_LINE_BYTES, _MAX_LINE_BYTES = 256, 1 << 20
"""Lengths of lines that are kept; longer ones are cut, which damages them. Those of a hostile file
would otherwise take many times its size: short ones when kept, and a long one when parsed."""
_ONLY_FOR = {"quality": JPEG_SUFFIXES, "temporal_noise": VIDEO_SUFFIXES, "crf": VIDEO_SUFFIXES}
"""Settings that change only outputs with these suffixes."""
_WORDS = {"draws": "samples", "grid": "timesteps"}
_AS_IT_IS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
"""If the name is a pipe without a reader or a symbolic link, opening fails instead of waiting or
writing to another file; on Windows, ends of lines are written as they are."""
_MAX_SHOWN = 60
_MAX_LINES = 8
"""Number of lines per output, the newest ones, that are kept in memory. It is more than one because
a line may be about a file that never got its name."""
_PIECES, _PIECE_BYTES = 16, 4096
"""How much of a file identifies it, besides its size and time."""
_COVERED_BYTES = _PIECES * _PIECE_BYTES
"""Files up to this size are covered by their pieces."""


class Manifest:
    """The manifest of one output folder.

    Args:
        folder: the output folder; None for standard output, for which nothing is recorded.
        settings: all settings that decide an output's pixels, besides its input and its file name.
        weights_file: the file name of the weights, for messages.

    Attributes:
        unread: the files of records that are not read, each with the reason: no permission, in a
            folder of several users, or their size.

    Raises:
        DataError: the system does not read the records, for another reason.
    """

    def __init__(
        self, folder: Path | None, settings: Mapping[str, Any], weights_file: str = ""
    ) -> None:
        self._folder = folder
        self._made_with = {**settings, "weights_file": weights_file}
        self._sources: dict[Path, list[int] | None] = {}
        self._known: list[dict[int, tuple[bytes, ...]]] = []
        self.unread: dict[Path, str] = {}
        self.read_again()

    def read_again(self) -> None:
        """Read what other processes have recorded since."""
        self._known, self.unread = [], {}  # emptied first: a million records take 0.6 GiB
        files = [] if self._folder is None else _record_files(self._folder)
        self._known = [self._read(path) for path in files]

    @property
    def has_records(self) -> bool:
        """Whether any output is recorded."""
        return any(self._known)

    def check_writable(self) -> None:
        """Raise ResourceError if no record could be written; nothing is created."""
        if self._folder is not None:
            try:
                _, handle = _open_to_append(self._folder)
                os.close(handle)
            except ResourceError as error:
                if not isinstance(error.__cause__, FileNotFoundError):
                    raise

    def has(self, output: Path) -> bool:
        """Whether an output, as it is now, was written by this program, with any settings."""
        return self._entry(output) is not None

    def was_written(self, output: Path) -> bool:
        """Whether an output of this name is recorded, which may be another file now."""
        return any(self._lines(output))

    def doubt(self, output: Path, source: Path) -> str | None:
        """Return why an existing file may differ from what this run would make; None if not."""
        found = self._entry(output)
        if found is None and self.was_written(output):
            return "this program did not write it, or it was changed since"
        if found is None:
            return "there is no record of how it was made"
        differences = self._differences(found["made_with"], output.suffix.lower())
        if differences is not None:
            return f"made with other settings{differences}"
        if not _is_same_input(found.get("source"), self._state(source)):
            return "its input has changed since, or it was made from another one"
        return None

    def is_made_from(self, output: Path, original: Path) -> bool:
        """Whether an output, as it is now, was made from what a file holds now."""
        found = self._entry(output)
        then = None if found is None else found.get("source")
        now = _state_of(original) if isinstance(then, list) else None
        if not isinstance(then, list) or now is None:
            return False
        return then == now or (len(then) == len(now) == 3 and then[::2] == now[::2])

    def look_at(self, source: Path, data: bytes | None = None) -> None:
        """Remember the state of an input before it is read, as it may change before `record`.

        Args:
            source: a file, identified by size, modification time and pieces of its content.
            data: the bytes of standard input, which are identified by size and digest.
        """
        self._sources[source] = _state_of(source) if data is None else _size_and_digest(data)

    def record(self, output: Path, source: Path, temporary: Path) -> None:
        """Record an output that is about to get its name; ResourceError if that fails.

        Args:
            output: its path, also of a comparison or map.
            source: the input, as for `look_at`.
            temporary: the complete file that will be renamed to `output`, which keeps its time.
        """
        if self._folder is None:
            return
        ensure_folder(self._folder)
        entry = {
            "output": self._key(output),
            "source": self._state(source),
            "written": _state_of(temporary),
            "made_with": self._made_with,
        }
        line = (json.dumps(entry) + "\n").encode("ascii")
        path, handle = _open_to_append(self._folder, os.O_CREAT)
        try:
            try:
                rest = line if _is_at_new_line(handle) else b"\n" + line
                # A single write to a file opened for appending keeps lines of processes apart. Only
                # a disk that becomes full writes less, and then writing the rest fails.
                while rest:
                    rest = rest[os.write(handle, rest) :]
            finally:
                os.close(handle)
        except OSError as error:
            raise write_error(error, path) from error

    def _state(self, source: Path) -> list[int] | None:
        """Return what identifies an input: its state at `look_at`, or its present one."""
        return self._sources.get(source) or _state_of(source)

    def _lines(self, output: Path) -> Iterator[Mapping[str, Any]]:
        """Yield the lines about an output, this user's own first, newest first."""
        start = hash(json.dumps({"output": self._key(output)}).removesuffix('"}').encode("ascii"))
        lines = chain.from_iterable(known.get(start, ()) for known in self._known)
        return filter(None, map(_parsed, lines))

    def _entry(self, output: Path) -> Mapping[str, Any] | None:
        """Return the newest line of an output that is about the present file."""
        return next((line for line in self._lines(output) if _is_about(line, output)), None)

    def _differences(self, made_with: Mapping[str, Any], suffix: str) -> str | None:
        """Return the differences to recorded settings, such as ": seed 0, now 3"; None if equal.

        The text is "" if only settings differ that this version does not know.
        """
        then, now = _effective(made_with, suffix), _effective(self._made_with, suffix)
        if then == now:
            return None
        changed = [
            f"{_WORDS.get(name, name.replace('_', ' '))} {_show(name, made_with)}, "
            f"now {_show(name, self._made_with)}"
            for name in now
            if then.get(name) != now[name]
        ]
        return f": {'; '.join(changed)}" if changed else ""

    def _key(self, output: Path) -> str:
        try:
            return output.relative_to(self._folder or Path()).as_posix()
        except ValueError:  # a comparison or a map, which is in another folder
            return os.path.abspath(output)

    def _read(self, path: Path) -> dict[int, tuple[bytes, ...]]:
        """Read the newest lines of each output, newest first, by the hash of their start, its name.

        To save time and memory, lines are not parsed before they are needed.

        Raises:
            DataError: the system does not read the file, for another reason than those of `unread`.
        """
        known: dict[int, tuple[bytes, ...]] = {}
        try:
            status = path.lstat()
            # Reading a pipe would block, and records are not written through a link either.
            if not stat.S_ISREG(status.st_mode):
                return known
            if status.st_size > MAX_MANIFEST_BYTES:
                self.unread[path] = f"its {status.st_size:,} bytes are over {MAX_MANIFEST_BYTES:,}"
                return known
            with path.open("rb") as file:
                while line := file.readline(_MAX_LINE_BYTES):
                    if len(line) >= _MIN_LINE_BYTES:
                        # It ends here, as quotes within the name follow a backslash.
                        start = hash(line.partition(b'", "')[0])
                        known[start] = (line, *known.get(start, ()))[:_MAX_LINES]
        except (FileNotFoundError, NotADirectoryError):
            pass
        except PermissionError:
            self.unread[path] = "no permission"
        except OSError as error:  # it may say that all outputs are done
            if error.errno == errno.ENAMETOOLONG:  # then no file can have this name
                return known
            raise read_error(error, path) from error
        return known


def _effective(settings: Mapping[str, Any], suffix: str) -> dict[str, Any]:
    """Return the settings that change outputs of a suffix; the name of the weights does not."""
    return {
        name: value
        for name, value in settings.items()
        if name != "weights_file" and suffix in _ONLY_FOR.get(name, (suffix,))
    }


def _show(name: str, settings: Mapping[str, Any]) -> str:
    value = settings.get(name)
    if name == "weights":
        text = f"{settings.get('weights_file', '')} {str(value)[:8]}".strip()
    elif value is None:
        text = "not set"
    elif isinstance(value, bool):
        text = "on" if value else "off"
    else:
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _own_name() -> str:
    """Return the name of the file for this user's records where they may not write to the usual."""
    user = ""
    if sys.platform != "win32":  # which has no numbers of users
        user = f".{os.getuid()}"
    return f".c2fdft-restore{user}.jsonl"


def _record_files(folder: Path) -> list[Path]:
    """Return the files of records of a folder, this user's own first."""
    try:
        names = [name for name in os.listdir(folder) if _NAME_OF_USER.fullmatch(name)]
    except OSError:  # it does not exist, or cannot be listed
        names = []
    return [folder / name for name in (*sorted(names, key=_own_name().__ne__), MANIFEST_NAME)]


def _open_to_append(folder: Path, flags: int = 0) -> tuple[Path, int]:
    """Open the file of records of a folder; return its path and handle.

    If it belongs to another user, who lets no one else write to it, or is a symbolic link, it is a
    file of this user's own.

    Raises:
        ResourceError: neither can be written to; its cause is the OSError.
    """
    for name in dict.fromkeys((MANIFEST_NAME, _own_name())):
        path = folder / name
        try:
            return path, os.open(path, os.O_RDWR | os.O_APPEND | flags | _AS_IT_IS, 0o666)
        except OSError as error:
            failed, cause = write_error(error, path), error
        if not (isinstance(cause, PermissionError) or path.is_symlink()):
            break
    raise failed from cause


@lru_cache(maxsize=4 * _MAX_LINES)  # the lines about one output are looked at several times
def _parsed(line: bytes) -> Mapping[str, Any] | None:
    """Parse a line; None if it is damaged, or of version 0.1.0, which did not identify the file."""
    try:
        entry = json.loads(line.decode("ascii", "replace"))
    except (ValueError, RecursionError):
        return None
    kinds = {"output": str, "written": list, "made_with": dict}
    if not isinstance(entry, dict):
        return None
    return entry if all(isinstance(entry.get(key), kinds[key]) for key in kinds) else None


def _is_at_new_line(handle: int) -> bool:
    """Whether a file is empty or ends with a line break; a full disk may have cut its last line."""
    size = os.lseek(handle, 0, os.SEEK_END)
    if not size:
        return True
    os.lseek(handle, size - 1, os.SEEK_SET)
    return os.read(handle, 1) == b"\n"


def _size_and_time(path: Path) -> list[int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _is_about(line: Mapping[str, Any], output: Path) -> bool:
    """Whether the present file is the one whose writing a line records."""
    now, then = _size_and_time(output), line["written"]
    if now is None:
        return False
    if then[:2] == now:
        return True
    # Copying a folder gives its files other times. Only then is the content read.
    return len(then) == 3 and then[0] == now[0] and then[2:] == (_state_of(output) or now)[2:]


def _state_of(path: Path) -> list[int] | None:
    """Return what identifies a file: size, time, and a digest of pieces of its content.

    Archives give all their files one time, and uncompressed pictures of one size are equally long,
    so size and time alone do not tell two inputs apart. Reading whole files would take too long.
    """
    try:
        status = path.stat()
    except OSError:
        return None
    state, size = [status.st_size, status.st_mtime_ns], status.st_size
    if not stat.S_ISREG(status.st_mode):  # a pipe would block
        return state
    starts = [number * max(size - _PIECE_BYTES, 0) // (_PIECES - 1) for number in range(_PIECES)]
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            whole = file.read(size) if size <= _COVERED_BYTES else b""
            for start in starts:
                if whole:
                    digest.update(whole[start : start + _PIECE_BYTES])
                else:
                    file.seek(start)
                    digest.update(file.read(_PIECE_BYTES))
    except OSError:
        return state
    return [*state, int.from_bytes(digest.digest()[:8], "big")]


def _is_same_input(then: object, now: list[int] | None) -> bool:
    """Compare two states of an input.

    An input of another time is the same one if the digest covers all of it. In a large one, an
    uncompressed picture say, something may have been changed between the pieces.
    """
    if not isinstance(then, list) or now is None or not len(then) == len(now) == 3:
        return then == now
    return then[::2] == now[::2] and (then[1] == now[1] or now[0] <= _COVERED_BYTES)


def _size_and_digest(data: bytes) -> list[int]:
    return [len(data), int.from_bytes(hashlib.sha256(data).digest()[:8], "big")]
