"""Settings of other libraries that belong to the whole process, while several threads need them."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def hold_while_forking(lock: threading.Lock) -> None:
    """Let a fork of the process wait for a lock.

    If another thread held the lock during a fork, no one would release it in the new process.
    """
    if sys.platform != "win32":  # which cannot fork
        os.register_at_fork(
            before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release
        )


class ProcessSettings:
    """Settings that all threads share: the first block changes them, the last restores them.

    An exception of a signal's handler may end a block at any moment, so the undoing is registered
    before each change. After a fork, the settings that were made first are restored first.

    Args:
        change: changes the settings, and appends to its argument what undoes each change.
    """

    def __init__(self, change: Callable[[list[Callable[[], object]]], object]) -> None:
        self.lock = threading.Lock()
        self._change = change
        self._blocks: dict[object, int] = {}  # with the thread of each
        self._undo: list[Callable[[], object]] = []
        hold_while_forking(self.lock)
        if sys.platform != "win32":
            os.register_at_fork(after_in_child=self.forget_other_threads)

    @contextmanager
    def changed(self) -> Iterator[None]:
        """Run a block with the changed settings; such blocks may be nested."""
        block = object()
        try:
            with self.lock:
                first = not self._blocks
                self._blocks[block] = threading.get_ident()
                if first:
                    self._change(self._undo)
            yield
        finally:
            with self.lock:
                self._blocks.pop(block, None)
                if not self._blocks:
                    self._restore()

    def change_one(self, change: Callable[[], object], restore: Callable[[], object]) -> None:
        """Change a further setting, which `restore` sets to its present value."""
        with self.lock:
            if self._blocks:
                self._undo.append(restore)
            change()

    def forget_other_threads(self) -> None:
        """In a forked process, end the blocks of the other threads, which do not exist there."""
        own = threading.get_ident()
        self._blocks = {block: thread for block, thread in self._blocks.items() if thread == own}
        if not self._blocks:
            self._restore()

    def _restore(self) -> None:
        # In reverse, because a setting may have been changed several times.
        while self._undo:
            self._undo[-1]()
            self._undo.pop()
