"""Signals turned into a request that a loop looks at between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StoppedError(Exception):
    """A signal came in the middle of something: what was begun is thrown away."""


class StopRequest:
    """Set by the first SIGINT or SIGTERM; the second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def __bool__(self) -> bool:
        return self.signal_number is not None

    def check(self) -> None:
        """Raise StoppedError if it is set."""
        if self:
            raise StoppedError

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Signal handler."""
        if self.signal_number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_number = number


@contextmanager
def graceful_stop() -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a request that a loop can look at between two steps.

    Outside of the main thread, where Python delivers no signals, the request is never set.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {n: signal.signal(n, request.handle) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
