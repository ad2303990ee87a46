"""The signals that end a command: an interrupt, a terminated job, a lost terminal, a preemption.

One mechanism for every command, `install`ed before anything else is imported:

* while nothing is being written a signal ends the process at once;
* within `unwinding` it raises `SignalReceived`, so that what was begun is cleaned up;
* within `graceful_stop` it is a request that a loop looks at; a Ctrl-C a second later raises;
* while the process ends already, further ones are ignored;
* where Python cannot raise, as it destroys an object, it raises again a moment later.

The exit code is 130 for SIGINT and 143 for all others. A signal that the process was started to
ignore (`nohup`, a background job of a shell script) stays ignored.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

REPEATED_SECONDS = 1.0
"""A Ctrl-C sooner after the first signal belongs to it: launchers pass on what a terminal sends."""
PATIENCE_SECONDS = 10.0
"""How long cleaning up may take before another Ctrl-C cuts it short."""

RAISED_AGAIN_SECONDS = 0.01
"""After a signal was lost in a destructor, until it is raised once more."""


class StoppedError(Exception):
    """A signal came in the middle of something: what was begun is thrown away."""


class SignalReceived(BaseException):
    """Raised where a signal came; as with KeyboardInterrupt nothing but the end catches it.

    Args:
        signal_number: of the signal.
        hint: how to go on later.
    """

    def __init__(self, signal_number: int, hint: str | None = None) -> None:
        self.signal_number = signal_number
        self.hint = hint
        super().__init__(describe(signal_number))


class _Process:
    """What the handler of this process looks at."""

    def __init__(self) -> None:
        self.pid = 0
        # The hint of each block of `unwinding`; blocks may overlap in threads, so each has a key of
        # its own.
        self.open: dict[object, str | None] = {}
        self.received: SignalReceived | None = None
        self.received_at = 0.0


_process = _Process()


def exit_code(signal_number: int) -> int:
    """130 for SIGINT; 143, as of SIGTERM, for the others."""
    return 128 + (signal.SIGINT if signal_number == signal.SIGINT else signal.SIGTERM)


def describe(signal_number: int) -> str:
    """What happened, for people."""
    if signal_number == signal.SIGINT:
        return "interrupted"
    return f"terminated by {signal.Signals(signal_number).name}"


def install() -> None:
    """Handle the signals in this process, from its main thread, until it ends."""
    _process.pid = os.getpid()
    for number in _handled():
        signal.signal(number, _handle)
    sys.unraisablehook = _raise_later


def ignore() -> None:
    """Leave all signals to the parent process, which may get them as part of the same group."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def unwinding(hint: str | None = None) -> Iterator[None]:
    """While files are being written: a signal raises SignalReceived, with this hint if any."""
    key = object()
    _process.open[key] = hint
    try:
        yield
    finally:
        del _process.open[key]


class StopRequest:
    """Set by the first signal; a Ctrl-C a second later or more interrupts at once."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._at = 0.0
        self._pid = os.getpid()

    def __bool__(self) -> bool:
        return self.signal_number is not None

    def check(self) -> None:
        """Raise StoppedError if it is set."""
        if self:
            raise StoppedError

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Signal handler."""
        if os.getpid() != self._pid:
            return
        _leave_lost_terminal(number)
        if self.signal_number is None:
            self.signal_number = number
            self._at = time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._at >= REPEATED_SECONDS:
            # A program that imports the package has not called `install`, so that nothing would
            # catch SignalReceived.
            if not _process.pid:
                raise KeyboardInterrupt
            _handle(number, frame)


@contextmanager
def graceful_stop() -> Iterator[StopRequest]:
    """Turn the signals into a request that a loop can look at between two steps.

    Outside of the main thread, where Python delivers no signals, the request is never set.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.handle) for number in _handled()}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _handled() -> list[signal.Signals]:
    # None stands for a handler that a program around Python has installed: it could not be put
    # back.
    alone = (signal.SIG_IGN, None)
    return [number for number in STOP_SIGNALS if signal.getsignal(number) not in alone]


def _handle(number: int, _: FrameType | None) -> None:
    if os.getpid() != _process.pid:  # a fork that has not yet said what it does with signals
        return
    _leave_lost_terminal(number)
    if _process.received is not None:
        late = time.monotonic() - _process.received_at >= PATIENCE_SECONDS
        if number == signal.SIGINT and late:
            _exit(number)
    # The innermost hint that there is: files are written within jobs, and the job knows how to go
    # on.
    elif _process.open:
        # a copy, as other threads may open blocks meanwhile
        hints = [hint for hint in tuple(_process.open.values()) if hint is not None]
        _process.received = SignalReceived(number, hints[-1] if hints else None)
        _process.received_at = time.monotonic()
        raise _process.received
    else:
        _exit(number)


def _raise_later(lost: sys.UnraisableHookArgs) -> None:
    """Python drops what is raised in a destructor or the callback of a weak reference."""
    if not isinstance(lost.exc_value, SignalReceived):
        sys.__unraisablehook__(lost)
        return
    # Cleared, or the handler would take the second one for a signal during the clean-up and ignore
    # it. Raised here it would be dropped again, so a timer calls the handler from ordinary code.
    number, _process.received = lost.exc_value.signal_number, None
    signal.signal(signal.SIGALRM, lambda _, frame: _handle(number, frame))
    signal.setitimer(signal.ITIMER_REAL, RAISED_AGAIN_SECONDS)


def _exit(number: int) -> NoReturn:
    """End the process without unwinding: an import that is cut short ends in any error."""
    # A progress bar may have hidden the cursor, and nothing is unwound that would show it again.
    show_cursor = "\x1b[?25h\n" if sys.stderr is not None and sys.stderr.isatty() else ""
    with suppress(OSError):
        # past Python's buffers: the signal may have come in the middle of writing to them
        os.write(2, f"{show_cursor}error: {describe(number)}\n".encode())
    os._exit(exit_code(number))


def _leave_lost_terminal(number: int) -> None:
    """Write nowhere from now on if the terminal is gone: an error there would cost the save."""
    if number != signal.SIGHUP:
        return
    # By `dup2`, under Python's streams: whatever holds a reference to them, rich and logging
    # included, goes on writing without an error.
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(stream).st_mode):  # isatty no longer says so
                os.dup2(nowhere, stream)
    os.close(nowhere)
