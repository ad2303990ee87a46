"""Read frames of animations from several threads; each is decoded once, in file order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable
from functools import lru_cache
from pathlib import Path

from c2fdft_cli.data.images.picture import Picture, decodes_in_order, frame_reader, read_picture
from c2fdft_cli.errors import DataError
from c2fdft_cli.files import read_error


class _Animation:
    """One file; wanted frames that are decoded on the way to another are kept until requested.

    A frame is kept for one request: if it is requested again, it and all frames before it are
    decoded again.

    Args:
        path: the file.
        wanted: frames that will be requested.
    """

    def __init__(self, path: Path, wanted: Collection[int]) -> None:
        self._path, self._wanted = path, wanted
        self._lock = threading.Lock()
        self._read: Callable[[int], Picture] | None = None
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
            self._read = self._read or frame_reader(self._path)
            return self._read(frame)
        except DataError as error:
            self._read = None  # after an error Pillow's position in the file is undefined
            return error


class FrameCache:
    """Read frames and pages from files with several; frames of an animation are decoded once.

    Args:
        wanted: the frames that will be requested, as (file, number from 0), roughly in this order.
        room: number of files that are kept open; at least the number of simultaneous requests.
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
        """Read a frame of a file, counted from 0; raises DataError as `read_picture` does."""
        try:
            status = path.stat()
        except OSError as error:
            raise read_error(error, path) from error
        with self._lock:  # without it two threads could open the same file
            # size and time are part of the key, so that a replaced file is read again
            animation = self._opened(path, status.st_size, status.st_mtime_ns)
        # None if frames do not build on each other, like the pages of a TIFF
        return read_picture(path, frame=frame) if animation is None else animation.read(frame)
