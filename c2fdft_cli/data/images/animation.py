"""Frames of animations for several threads: each is decoded once, in the order of its file."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable
from functools import lru_cache
from pathlib import Path

from c2fdft_cli.data.images.picture import FrameReader, Picture, decodes_in_order, read_picture
from c2fdft_cli.errors import DataError
from c2fdft_cli.files import read_error


class _Animation:
    """One file; what is wanted and decoded on the way to a frame waits for who asks for it.

    Each wanted frame is asked for once: one that was asked for before is decoded again, with those
    in front of it.

    Args:
        path: the file.
        wanted: frames that will be asked for.
    """

    def __init__(self, path: Path, wanted: Collection[int]) -> None:
        self._path, self._wanted = path, wanted
        self._lock = threading.Lock()
        self._reader: FrameReader | None = None
        self._next = 0
        self._waiting: dict[int, Picture | DataError] = {}

    def read(self, frame: int) -> Picture:
        with self._lock:
            if frame not in self._waiting:
                for number in range(self._next, frame):
                    if number in self._wanted:
                        self._waiting[number] = self._decode(number)
                self._waiting[frame] = self._decode(frame)
                self._next = frame + 1
            found = self._waiting.pop(frame)
        if isinstance(found, DataError):
            raise found
        return found

    def _decode(self, frame: int) -> Picture | DataError:
        try:
            self._reader = self._reader or FrameReader(self._path)
            return self._reader.read(frame)
        except DataError as error:
            self._reader = None  # Pillow may have lost its way in it
            return error


class FrameCache:
    """Pictures out of files with several; those of an animation are decoded once, in its order.

    Args:
        wanted: the frames that will be asked for, nearly in this order: file, and number from 0.
        room: files that are held open; at least as many as frames are asked for at once.
    """

    def __init__(self, wanted: Iterable[tuple[Path, int]], room: int) -> None:
        frames_of: dict[Path, set[int]] = {}
        for path, frame in wanted:
            frames_of.setdefault(path, set()).add(frame)

        @lru_cache(room)
        def opened(path: Path, *_: int) -> _Animation | None:
            return _Animation(path, frames_of.get(path, ())) if decodes_in_order(path) else None

        self._opened, self._lock = opened, threading.Lock()

    def read(self, path: Path, frame: int) -> Picture:
        """A frame of a file, from 0; DataError as `read_picture`."""
        try:
            status = path.stat()
        except OSError as error:
            raise read_error(error, path) from error
        with self._lock:  # or two threads would open a file at once
            # a file that was replaced is read anew
            animation = self._opened(path, status.st_size, status.st_mtime_ns)
        # None where frames do not need each other, as pages of a TIFF
        return read_picture(path, frame=frame) if animation is None else animation.read(frame)
