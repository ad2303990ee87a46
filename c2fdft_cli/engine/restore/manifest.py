"""Records how the files of an output folder were made, so that a later run can name differences.

`.c2fdft-restore.jsonl` gets a short line just before a file is moved into place and a full one
after that. So even if the program is killed between the two, the file it was about to write is
recorded. Each line identifies the written file too, so that one that was damaged or replaced later
is not taken for the program's own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from c2fdft_cli.data.images.formats import JPEG_SUFFIXES
from c2fdft_cli.data.video.probe import VIDEO_SUFFIXES
from c2fdft_cli.errors import ResourceError
from c2fdft_cli.files import ensure_folder, read_error, write_error

MANIFEST_NAME = ".c2fdft-restore.jsonl"
_NAME_OF_USER = re.compile(r"\.c2fdft-restore\.\d{1,10}\.jsonl")
MAX_MANIFEST_BYTES, MAX_KEPT_BYTES = 4 << 30, 1 << 30
"""Sizes up to which a file of records is read, and its newest lines are kept in memory."""
_MAX_LINE_BYTES = 1 << 20
_BYTES_BESIDE_LINE = 400
"""Memory that keeping a line takes besides its text and that of the output's name."""
_USUAL = {"temporal_noise": "fixed", "crf": 18}
"""Defaults left out of the digest, so that records made before these settings were stay valid."""
_ONLY_FOR = {"quality": JPEG_SUFFIXES, "temporal_noise": VIDEO_SUFFIXES, "crf": VIDEO_SUFFIXES}
"""Settings that change only outputs with these suffixes; others count as made with the default."""
_DEFAULTS = {**_USUAL, "quality": 95}
_WORDS = {"draws": "samples", "grid": "timesteps"}
_AS_IT_IS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
"""If the name is a pipe without a reader or a symbolic link, opening fails instead of waiting or
writing to another file; on Windows, ends of lines are written as they are."""
_MAX_SHOWN = 60
_MAX_BEGUN = 8
"""Number of lines per output, the newest ones, that are kept in memory."""
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
        self._digest = cache(lambda suffix: settings_digest(_effective(settings, suffix)))
        self._sources: dict[Path, list[int] | None] = {}
        self._written: dict[Path, list[int] | None] = {}
        self._run = secrets.token_hex(4)
        self._known: dict[str, tuple[bytes, ...]] = {}
        self.unread: dict[Path, str] = {}
        self.read_again()

    def read_again(self) -> None:
        """Read what other processes have recorded since."""
        self._known, self.unread = {}, {}
        for path in [] if self._folder is None else _record_files(self._folder):
            try:
                found = _read(path)
            except PermissionError:
                self.unread[path] = "no permission"
                continue
            except _TooLargeError as error:
                self.unread[path] = str(error)
                continue
            for output, lines in found.items():
                self._known[output] = (*lines, *self._known.get(output, ()))

    @property
    def has_records(self) -> bool:
        """Whether any output is recorded."""
        return bool(self._known)

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
        """Whether this program finished an output of this name, which may be another file now."""
        return any("replaces" not in line for line in self._lines(output))

    def doubt(self, output: Path, source: Path) -> str | None:
        """Return why an existing file may differ from what this run would make; None if not."""
        found = self._entry(output)
        if found is None and self.was_written(output):
            return "the file was changed after this program wrote it"
        if found is None:
            return "there is no record of how it was made"
        suffix = output.suffix.lower()
        if found.get("settings") != self._digest(suffix):
            return f"made with other settings{self._differences(found, suffix)}"
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
        """Remember the state of an input before it is read, as it may change before `add`.

        Args:
            source: a file, identified by size, modification time and pieces of its content.
            data: the bytes of standard input, which are identified by size and digest.
        """
        self._sources[source] = _state_of(source) if data is None else _size_and_digest(data)

    def begin(self, output: Path, source: Path, temporary: Path) -> None:
        """Record an output that is about to get its name; ResourceError if that fails.

        Args:
            output: its path, also of a comparison or map.
            source: the input, as for `look_at`.
            temporary: the complete file that will be renamed to `output`.
        """
        if self._folder is not None:
            ensure_folder(self._folder)
            self._written[output] = _state_of(temporary)
            more = {"replaces": _size_and_time(output), "run": self._run}
            self._append(output, source, self._written[output], more)

    def add(self, output: Path, source: Path) -> None:
        """Record an output that has got its name; ResourceError if that fails.

        It is identified as at `begin`, because another program may have replaced it since.
        """
        if self._folder is not None:
            written = self._written.pop(output, None) or _state_of(output)
            self._append(output, source, written, {"made_with": self._made_with})

    def _append(
        self, output: Path, source: Path, written: list[int] | None, more: Mapping[str, Any]
    ) -> None:
        if self._folder is None:
            return
        entry = {
            "output": self._key(output),
            "settings": self._digest(output.suffix.lower()),
            "source": self._state(source),
            "written": written,
            **more,
        }
        line = (json.dumps(entry, ensure_ascii=True) + "\n").encode("ascii")
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
        """Yield the lines about an output, newest first."""
        return filter(None, map(_parsed, self._known.get(self._key(output), ())))

    def _entry(self, output: Path) -> Mapping[str, Any] | None:
        """Return the newest line of an output that tells how the present file was made.

        A `begin` of this run does not, nor a line about a file that is not the present one.
        """
        others = (one for one in self._lines(output) if one.get("run") != self._run)
        return next((one for one in others if _is_about(one, output)), None)

    def _differences(self, found: Mapping[str, Any], suffix: str) -> str:
        """Return the differences to an entry, such as ": seed 0, now 3"; "" if it has none."""
        then = found.get("made_with")
        if not isinstance(then, dict):
            return ""
        then, now = _effective(then, suffix), _effective(self._made_with, suffix)
        changed = [
            f"{_WORDS.get(name, name.replace('_', ' '))} {_show(name, then)}, "
            f"now {_show(name, now)}"
            for name in now
            if name != "weights_file" and then.get(name) != now[name]
        ]
        return f": {'; '.join(changed)}" if changed else ""

    def _key(self, output: Path) -> str:
        try:
            return output.relative_to(self._folder or Path()).as_posix()
        except ValueError:  # a comparison or a map, which is in another folder
            return os.path.abspath(output)


def _effective(settings: Mapping[str, Any], suffix: str) -> dict[str, Any]:
    """Return the settings, with the default of those that do not change outputs of a suffix."""
    usual = {name: _DEFAULTS[name] for name, whose in _ONLY_FOR.items() if suffix not in whose}
    return {**settings, **usual}


def settings_digest(settings: Mapping[str, Any]) -> str:
    """Return a short digest that identifies settings."""
    facts = {k: v for k, v in settings.items() if k not in _USUAL or _USUAL[k] != v}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


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
    """Return the files of records of a folder, this user's own last."""
    try:
        names = [name for name in os.listdir(folder) if _NAME_OF_USER.fullmatch(name)]
    except OSError:  # it does not exist, or cannot be listed
        names = []
    return [folder / name for name in (MANIFEST_NAME, *sorted(names, key=_own_name().__eq__))]


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


class _TooLargeError(Exception):
    """A file of records would take too much time or memory; the text says how large it is."""


def _read(path: Path) -> dict[str, tuple[bytes, ...]]:
    """Read the newest lines of each output, newest first, back to that of its last finished file.

    Damaged lines are skipped. The lines are kept as they are: parsed, they take several times the
    memory, and a hostile one any number of times.

    Raises:
        PermissionError: the user may not read the file.
        _TooLargeError: it is larger than a file of records can reasonably be.
        DataError: the system does not read it, for another reason.
    """
    known: dict[str, tuple[bytes, ...]] = {}
    kept = 0
    try:
        status = path.lstat()
        # Reading a pipe would block, and a link is not followed when records are written either.
        if not stat.S_ISREG(status.st_mode):
            return known
        size = f"its {status.st_size:,} bytes"
        if status.st_size > MAX_MANIFEST_BYTES:
            raise _TooLargeError(f"{size} are over {MAX_MANIFEST_BYTES:,}")
        with path.open("rb") as file:
            for line in _whole_lines(file):
                entry = _parsed(line)
                if entry is None:
                    continue
                name = entry["output"]
                before = known.get(name, ())
                lines = (line, *(before if "replaces" in entry else ()))[:_MAX_BEGUN]
                kept += _memory(name, lines) - _memory(name, before)
                if kept > MAX_KEPT_BYTES:
                    raise _TooLargeError(f"{size} hold records of too many files")
                known[name] = lines
    except (FileNotFoundError, NotADirectoryError):
        return known
    except PermissionError:
        raise
    except OSError as error:  # it may say that all outputs are done
        raise read_error(error, path) from error
    return known


def _whole_lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a file except those of over `_MAX_LINE_BYTES`."""
    is_rest = False
    while piece := file.readline(_MAX_LINE_BYTES):
        if not is_rest and (piece.endswith(b"\n") or len(piece) < _MAX_LINE_BYTES):
            yield piece
        is_rest = not piece.endswith(b"\n")


@lru_cache(maxsize=4 * _MAX_BEGUN)  # the lines about one output are looked at several times
def _parsed(line: bytes) -> Mapping[str, Any] | None:
    """Parse a line; None if it is damaged."""
    try:
        entry = json.loads(line.decode("ascii", "replace"))
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("output"), str) else None


def _memory(name: str, lines: Sequence[bytes]) -> int:
    """Estimate the bytes that the lines about an output take in memory."""
    return sum(len(line) + _BYTES_BESIDE_LINE for line in lines) + bool(lines) * 4 * len(name)


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
    """Whether the present file is the one whose writing a line records.

    Lines of earlier versions lack `written`: a finished one counts as being about any file, and one
    from before the renaming as being about any but the one that existed then.
    """
    now = _size_and_time(output)
    if "written" not in line:
        # The default is not None, because `replaces` is None if no file existed before.
        return bool(line.get("replaces", ()) != now)
    then = line["written"]
    if now is None or not isinstance(then, list):
        return bool(then == now)
    if then[:2] == now:
        return True
    # Copying a folder gives its files other times. Only then is the content read.
    return len(then) > 2 and then[0] == now[0] and then[2:] == (_state_of(output) or now)[2:]


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
    """Compare two states of an input; those that earlier versions recorded lack the digest.

    An input of another time is the same one if the digest covers all of it. In a large one, an
    uncompressed picture say, something may have been changed between the pieces.
    """
    if isinstance(then, list) and now is not None:
        if len(then) == len(now) == 3 and then[0] == now[0] <= _COVERED_BYTES:
            return bool(then[2] == now[2])
        known = min(len(then), len(now))
        return known > 1 and then[:known] == now[:known]
    return then == now


def _size_and_digest(data: bytes) -> list[int]:
    return [len(data), int.from_bytes(hashlib.sha256(data).digest()[:8], "big")]
