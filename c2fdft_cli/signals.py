"""The signals that end a command: an interrupt, a terminated job, a lost terminal, a preemption.

All commands use one mechanism. `install` sets it up before anything else is imported:

* while nothing is being written, a signal ends the process at once;
* within `unwinding` a signal raises `SignalReceived`, so that unfinished work is cleaned up;
* within `graceful_stop` a signal sets a request that a loop checks; a Ctrl-C a second later raises;
* while the process is already ending, further signals are ignored, and so are all of them once
  Python only tears itself down;
* if Python drops the exception, because it was raised in a destructor, it is raised again a moment
  later.

The exit code is 130 for SIGINT and 143 for all others. A signal that was already ignored when the
process started (`nohup`, a background job of a shell script) stays ignored.
"""

from __future__ import annotations

import atexit
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

_NAMES = ("SIGINT", "SIGTERM", "SIGBREAK", "SIGHUP", "SIGUSR1", "SIGUSR2")
"""SIGBREAK exists only on Windows (Ctrl-Break), and the last three do not exist there."""
STOP_SIGNALS = tuple(signal.Signals[name] for name in _NAMES if hasattr(signal, name))
_OF_PROGRAMS = tuple(number for number in STOP_SIGNALS if number.name in _NAMES[:3])
"""The signals that stop a job in a Python program, which has not called `install`."""

REPEATED_SECONDS = 1.0
"""A Ctrl-C within this time after the first signal counts as the same one.

A launcher passes on the signal that the terminal has already sent to the process itself.
"""
PATIENCE_SECONDS = 10.0
"""Once cleaning up takes longer than this, another Ctrl-C ends the process."""

RAISED_AGAIN_SECONDS = 0.01
"""The time after which an exception that was dropped in a destructor is raised again."""


class StoppedError(Exception):
    """A signal interrupted work; its unfinished result is discarded."""


class SignalReceived(BaseException):
    """Raised when a signal arrives; like KeyboardInterrupt, it is caught only by the top level.

    Args:
        signal_number: the number of the signal.
        hint: how to resume later.
    """

    def __init__(self, signal_number: int, hint: str | None = None) -> None:
        self.signal_number = signal_number
        self.hint = hint
        super().__init__(describe(signal_number))


class _Process:
    """The state that the signal handler of this process uses."""

    def __init__(self) -> None:
        self.pid = 0
        # The hint of each active `unwinding` block. Blocks in several threads may overlap, so each
        # has its own key.
        self.open: dict[object, str | None] = {}
        self.received: SignalReceived | None = None
        self.received_at = 0.0


_process = _Process()


def exit_code(signal_number: int) -> int:
    """Return the exit code: 130 for SIGINT; 143, the code of SIGTERM, for all others."""
    return 128 + (signal.SIGINT if signal_number == signal.SIGINT else signal.SIGTERM)


def describe(signal_number: int) -> str:
    """Describe a signal's effect for the user."""
    if signal_number == signal.SIGINT:
        return "interrupted"
    return f"terminated by {signal.Signals(signal_number).name}"


def install() -> None:
    """Install the handlers in this process until it ends; call this from the main thread."""
    _process.pid = os.getpid()
    for number in _handled():
        signal.signal(number, _handle)
    sys.unraisablehook = _raise_later
    # The first function that is registered is called last, when all threads and processes have been
    # waited for. After it Python gives signals their default effect, which has no message.
    atexit.register(ignore)


def ignore() -> None:
    """Ignore all signals.

    For a process that ends anyway, or whose parent, in the same process group, handles them.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def child_handler_kept() -> Iterator[None]:
    """Restore the handler of SIGCHLD after the block, which calls a library that sets its own.

    Python runs a handler between any two steps of the main thread. If it raises an exception there,
    as torch's does when a data worker has died, half-written files are left behind.
    """
    main = threading.current_thread() is threading.main_thread()
    number = getattr(signal, "SIGCHLD", None)  # Windows has none
    before = signal.getsignal(number) if main and number is not None else None
    try:
        yield
    finally:
        if number is not None and before is not None:
            signal.signal(number, before)


@contextmanager
def unwinding(hint: str | None = None) -> Iterator[None]:
    """Let a signal raise SignalReceived within the block, in which files are being written.

    Args:
        hint: the hint of the exception, how to resume.
    """
    key = object()
    _process.open[key] = hint
    try:
        yield
    except Exception as error:
        # The clean-up of a library may fail because of the interruption: torch's archive, for
        # example, then raises a RuntimeError in place of the signal's exception.
        received = _replaced_by(error)
        if received is None:
            raise
        raise received from None
    finally:
        del _process.open[key]


def _replaced_by(error: BaseException) -> SignalReceived | None:
    """Return the SignalReceived during whose handling an error was raised, if there is one."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, SignalReceived):
        cause = cause.__context__
    return cause


@contextmanager
def ending_after(clean: Callable[[], object]) -> Iterator[None]:
    """Call `clean` before a signal within the block ends a Python program that handles none.

    Outside of the main thread nothing can be done, because Python delivers no signals there.
    """

    def handle(number: int, _: FrameType | None) -> None:
        clean()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    main = threading.current_thread() is threading.main_thread()
    fatal = [n for n in _handled() if main and signal.getsignal(n) is signal.SIG_DFL]
    for number in fatal:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in fatal:
            signal.signal(number, signal.SIG_DFL)


class StopRequest:
    """A request that the first signal sets; a Ctrl-C at least a second later interrupts at once."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._at = 0.0
        self._pid = os.getpid()

    def __bool__(self) -> bool:
        return self.signal_number is not None

    def check(self) -> None:
        """Raise StoppedError if the request is set."""
        if self:
            raise StoppedError

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: set the request, or interrupt on a later Ctrl-C."""
        if os.getpid() != self._pid:
            return
        _leave_lost_terminal(number)
        if self.signal_number is None:
            self.signal_number = number
            self._at = time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._at >= REPEATED_SECONDS:
            # A Python program that imports the package has not called `install`: nothing in it
            # would catch SignalReceived.
            if not _process.pid:
                raise KeyboardInterrupt
            _handle(number, frame)


@contextmanager
def graceful_stop() -> Iterator[StopRequest]:
    """Turn signals into a request that a loop can check between two steps.

    In a Python program that has not called `install`, a request that came too late for the loop is
    passed on to the program's own handler after the block, unless the block raises an error that
    reports the signal (`Interrupted`, KeyboardInterrupt).

    Outside of the main thread the request is never set, because Python delivers no signals there.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.handle) for number in _handled()}
    reported = False
    try:
        yield request
    except BaseException as error:
        reported = isinstance(error, KeyboardInterrupt) or hasattr(error, "signal_number")
        raise
    finally:
        if request.signal_number is not None and _process.pid and _process.received is None:
            # The process is ending: `_handle` ignores what arrives again, such as a Ctrl-C that the
            # terminal and the parent process send to this one.
            _process.received = SignalReceived(request.signal_number)
            _process.received_at = time.monotonic()
        for number, handler in before.items():
            signal.signal(number, handler)
        if request.signal_number is not None and not _process.pid and not reported:
            signal.raise_signal(request.signal_number)


def raise_late() -> None:
    """Raise SignalReceived if a signal came too late for the loop of a `graceful_stop` block.

    For a command that continues after such a block; otherwise it would ignore all signals then.
    """
    if _process.received is not None:
        raise _process.received


def _handled() -> list[signal.Signals]:
    """Return the signals whose handlers may be replaced.

    A Python program often has its own use for the others, such as reloading its settings; and a
    handler in C, such as faulthandler's, is reported as SIG_DFL and could not be restored.
    """
    ours = STOP_SIGNALS if _process.pid else _OF_PROGRAMS
    # None means a handler that was not installed from Python; it could not be restored.
    alone = (signal.SIG_IGN, None)
    return [number for number in ours if signal.getsignal(number) not in alone]


def _handle(number: int, _: FrameType | None) -> None:
    if os.getpid() != _process.pid:  # a forked child that has not installed its own handlers yet
        return
    _leave_lost_terminal(number)
    if _process.received is not None:
        late = time.monotonic() - _process.received_at >= PATIENCE_SECONDS
        if number == signal.SIGINT and late:
            _exit(number)
    # The innermost hint is used: blocks that write single files have none, and the job around them
    # tells how to resume.
    elif _process.open:
        # A copy, because other threads may enter or leave blocks meanwhile.
        hints = [hint for hint in tuple(_process.open.values()) if hint is not None]
        _process.received = SignalReceived(number, hints[-1] if hints else None)
        _process.received_at = time.monotonic()
        raise _process.received
    else:
        _exit(number)


def _raise_later(lost: sys.UnraisableHookArgs) -> None:
    """Raise a SignalReceived again that Python dropped in a destructor or a weak reference."""
    if not isinstance(lost.exc_value, SignalReceived):
        sys.__unraisablehook__(lost)
        return
    # An exception raised here would be dropped again, so the handler is called later, from ordinary
    # code, by a timer that repeats until this function has ended, however slow the machine is. It
    # has ended once `received` is None; until then the handler ignores all signals.
    number = lost.exc_value.signal_number
    try:
        if sys.platform == "win32":  # which has no timers that send signals
            threading.Thread(target=_send_again, args=(number,), daemon=True).start()
        else:

            def again(_: int, frame: FrameType | None) -> None:
                if _process.received is None:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    _handle(number, frame)

            signal.signal(signal.SIGALRM, again)
            signal.setitimer(signal.ITIMER_REAL, RAISED_AGAIN_SECONDS, RAISED_AGAIN_SECONDS)
    finally:
        _process.received = None


def _send_again(number: int) -> None:
    while _process.received is not None:
        time.sleep(RAISED_AGAIN_SECONDS)
    signal.raise_signal(number)


def _exit(number: int) -> NoReturn:
    """End the process without unwinding: an interrupted import could raise any error."""
    # A progress bar may have been drawn in the current line.
    start = "\n" if sys.stderr is not None and sys.stderr.isatty() else ""
    with suppress(OSError):
        # Not through Python's buffers: the signal may have arrived during a write to them.
        os.write(2, f"{start}error: {describe(number)}\n".encode())
    os._exit(exit_code(number))


def _leave_lost_terminal(number: int) -> None:
    """After SIGHUP, redirect output from the lost terminal to the null device.

    An error while writing to the terminal would otherwise prevent saving.
    """
    if signal.Signals(number).name != "SIGHUP":  # which Windows does not have
        return
    # `dup2` works below Python's streams: everything that refers to them, rich and logging
    # included, can continue to write without an error.
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(stream).st_mode):  # isatty is False once the terminal is lost
                os.dup2(nowhere, stream)
    os.close(nowhere)
