"""What an output folder's files were made with, so that a re-run can say what it skips.

`.c2fdft-restore.jsonl` has one line for each finished file, added after the file itself is in
place. It only informs: whether a file is done is decided by its being there.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from c2fdft_cli.engine.restore.outputs import Item
from c2fdft_cli.files import write_error

RECORD_NAME = ".c2fdft-restore.jsonl"
MAX_RECORD_BYTES = 256 << 20


class Record:
    """The record of one output folder.

    Args:
        folder: the output folder, or None to keep no record (single files).
        settings: digest of this run's settings.
    """

    def __init__(self, folder: Path | None, settings: str) -> None:
        self._folder = folder
        self._settings = settings
        self._known = {} if folder is None else _read(folder / RECORD_NAME)

    def doubt(self, item: Item) -> str | None:
        """Why an output that is there may not be what this run would make; None if it is."""
        if item.output is None:
            return None
        found = None if self._folder is None else self._known.get(self._key(item.output))
        if found is None:
            return "no record of how it was made"
        if found.get("settings") != self._settings:
            return "made with other settings"
        if found.get("source") != _stamp(item.source.path):
            return "its input has changed since"
        return None

    def add(self, item: Item) -> None:
        """Note a finished output; ResourceError when that cannot be written."""
        if self._folder is None or item.output is None:
            return
        entry = {
            "output": self._key(item.output),
            "settings": self._settings,
            "source": _stamp(item.source.path),
        }
        path = self._folder / RECORD_NAME
        line = json.dumps(entry, ensure_ascii=True) + "\n"
        try:  # one write to a file opened for appending: processes do not mix their lines
            handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                os.write(handle, line.encode("ascii"))
            finally:
                os.close(handle)
        except OSError as error:
            raise write_error(error, path) from error

    def _key(self, output: Path) -> str:
        return output.relative_to(self._folder or Path()).as_posix()


def _read(path: Path) -> dict[str, dict[str, object]]:
    """The newest line of each output; lines that are damaged are left out."""
    known: dict[str, dict[str, object]] = {}
    try:
        if path.stat().st_size > MAX_RECORD_BYTES:
            return known
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:  # no record, no knowledge
        return known
    for line in lines:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and isinstance(entry.get("output"), str):
            known[entry["output"]] = entry
    return known


def _stamp(path: Path) -> list[int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]
