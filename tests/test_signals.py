"""The signals that end a command: exit codes, clean-up, and messages."""

from __future__ import annotations

import faulthandler
import io
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest
import torch

from c2fdft_cli import signals
from c2fdft_cli.errors import Interrupted
from c2fdft_cli.signals import STOP_SIGNALS, SignalReceived, StoppedError, exit_code, graceful_stop
from tests.kit.processes import start


@pytest.fixture(autouse=True)
def default_handlers():
    """Set default handlers, as in a program started by a shell: pytest may run under nohup."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in STOP_SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


HEAD = """
import os, signal, sys, time
from c2fdft_cli.signals import *
from c2fdft_cli.signals import SignalReceived, _process
install()
"""


def script(
    body: str, *sent: int, between: float = 0.0, answers: bool = False
) -> tuple[int, str, str]:
    """Run a program with our handlers and send it signals; return exit code, stdout, stderr.

    answers: whether the program prints "ready" again on the first signal, and the others are sent
        only then. Of two pending signals the one with the lower number would arrive first.
    """
    ready = "def ready(): print('ready', flush=True)\n"
    process = start("-c", HEAD + ready + body, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for place, number in enumerate(sent):
        process.send_signal(number)
        if answers and place == 0:
            assert process.stdout.readline() == "ready\n"
        time.sleep(between)
    out, said = process.communicate(timeout=30)
    return process.returncode, out, said


@pytest.mark.slow
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_outside_of_a_block_a_signal_ends_the_program_at_once(number):
    code, out, said = script("ready(); time.sleep(20); print('went on')", number)
    assert code == (130 if number == signal.SIGINT else 143)
    assert said.startswith("error: interrupted" if number == signal.SIGINT else "error: terminated")
    assert out == ""
    assert "Traceback" not in said


ENDS = """
class Last:
    def __del__(self, kill=os.kill, pid=os.getpid(), number={number}):
        kill(pid, number)
os.last = Last()
ready()
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_while_python_tears_itself_down_changes_nothing(number):
    code, _, said = script(ENDS.format(number=int(number)))
    assert (code, said) == (0, "")


DESTROYS = """
import threading, weakref
def slowly(call):
    def called(*given):
        call(*given)
        end = time.monotonic() + 0.03
        while time.monotonic() < end: pass
    return called
signal.setitimer = slowly(signal.setitimer)
threading.Thread.start = slowly(threading.Thread.start)
class Thing: pass
def destroyed(_):
    ready()
    while _process.received is None: pass
try:
    with unwinding('try again'):
        thing = Thing()
        reference = weakref.ref(thing, destroyed)
        del thing
        time.sleep(20)
        print('went on')
except SignalReceived as stop:
    print(stop, stop.hint)
    sys.exit(exit_code(stop.signal_number))
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_while_an_object_is_destroyed_is_not_lost(number):
    """Python drops exceptions raised there; the signal takes effect a moment later.

    The machine is so slow that this moment is over before the exception is dropped.
    """
    code, out, said = script(DESTROYS, number)
    assert code == exit_code(number)
    assert out == f"{signals.describe(number)} try again\n"
    assert said == ""


@pytest.mark.slow
def test_on_windows_it_is_not_lost_either():
    """There a thread sends the signal again."""
    short = DESTROYS.replace("time.sleep(20)", "for _ in range(200): time.sleep(0.1)")
    windows = "sys.platform = 'win32'; del signal.setitimer, signal.SIGALRM\nclass Thing"
    code, out, said = script(short.replace("class Thing", windows), signal.SIGTERM)
    assert (code, out, said) == (143, "terminated by SIGTERM try again\n", "")


@pytest.mark.slow
def test_another_error_while_an_object_is_destroyed_is_printed_as_always():
    code, _, said = script("class Thing:\n  def __del__(self): 1 / 0\nready(); Thing()")
    assert code == 0
    assert "ZeroDivisionError" in said


UNWINDS = """
try:
    with unwinding('start anew'), unwinding('try again'), unwinding():
        try:
            ready(); time.sleep(20)
        finally:
            ready(); time.sleep(0.5)  # further signals come here
            print('cleaned up')
except SignalReceived as stop:
    print(stop, stop.hint)
    sys.exit(exit_code(stop.signal_number))
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_within_a_block_everything_is_cleaned_up_despite_further_signals(number):
    code, out, said = script(
        UNWINDS, number, signal.SIGINT, signal.SIGTERM, signal.SIGINT, between=0.05, answers=True
    )
    assert code == exit_code(number)
    assert out.splitlines() == ["cleaned up", f"{signals.describe(number)} try again"]
    assert said == ""


def test_a_clean_up_that_fails_does_not_replace_the_signal():
    sent = SignalReceived(signal.SIGTERM, "resume")

    class Archive(io.BytesIO):
        def write(self, data):
            if self.tell():
                raise sent
            return super().write(data)

    with pytest.raises(SignalReceived) as raised, signals.unwinding(), signals.unwinding():
        torch.save({"a": torch.zeros(1000)}, Archive())
    assert raised.value is sent
    # without the block torch's own error is what remains
    with pytest.raises(RuntimeError):
        torch.save({"a": torch.zeros(1000)}, Archive())


@pytest.mark.slow
def test_a_clean_up_that_takes_too_long_can_be_interrupted():
    body = UNWINDS.replace("time.sleep(0.5)", "_process.received_at -= 60; time.sleep(20)")
    code, out, _ = script(body, signal.SIGTERM, signal.SIGINT, between=0.3, answers=True)
    assert (code, out) == (130, "")


@pytest.mark.slow
def test_signals_that_were_ignored_from_the_start_stay_so():
    body = "import subprocess\nready(); time.sleep(0.5); print('went on')"
    head = "import signal, os, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    program = f"from c2fdft_cli.signals import install; import time\ninstall()\n{body}"
    program = program.replace("ready()", "print('ready', flush=True)")
    process = subprocess.Popen(
        [sys.executable, "-c", head + f"os.execv(sys.executable, ['python', '-c', {program!r}])"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    assert process.communicate(timeout=30)[0] == "went on\n"
    assert process.returncode == 0


@pytest.mark.slow
def test_a_program_that_a_signal_ends_cleans_up_first():
    body = """
import signal
from c2fdft_cli.signals import ending_after
with ending_after(lambda: print("not called")):
    pass
print(signal.getsignal(signal.SIGTERM).name)
with ending_after(lambda: print("cleaned up", flush=True)):
    signal.raise_signal(signal.SIGTERM)
    print("went on", flush=True)
"""
    process = start("-c", body, stdout=subprocess.PIPE)
    assert process.communicate(timeout=60)[0] == "SIG_DFL\ncleaned up\n"
    assert process.returncode == -signal.SIGTERM


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGCHLD")
def test_the_handler_for_children_is_as_before():
    """A library that sets its own would raise errors between any two steps."""
    before = signal.getsignal(signal.SIGCHLD)
    for error in (None, ValueError):
        with suppress(ValueError), signals.child_handler_kept():
            signal.signal(signal.SIGCHLD, lambda *_: None)
            if error is not None:
                raise error
        assert signal.getsignal(signal.SIGCHLD) == before


@pytest.mark.slow
def test_a_fork_leaves_the_signals_to_its_parent():
    body = """
child = os.fork()
if child == 0:
    time.sleep(0.6); os._exit(7)
with graceful_stop() as stop:
    os.kill(child, signal.SIGTERM)
    ready()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), bool(stop))
"""
    assert script(body)[1] == "7 False\n"


STOPS_A_JOB = (signal.SIGINT, signal.SIGTERM)
"""The signals that stop a job in a Python program that imports the package."""


@pytest.fixture
def delivered():
    """The signals that reach the handler of a Python program that imports the package."""
    found: list[int] = []
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, _: found.append(number))
    return found


@pytest.mark.parametrize("number", STOPS_A_JOB)
def test_the_first_signal_is_a_request(number, delivered):
    before = signal.getsignal(number)

    with suppress(Interrupted), graceful_stop() as request:
        assert not request
        request.check()
        os.kill(os.getpid(), number)
        assert request
        assert request.signal_number == number
        with pytest.raises(StoppedError):
            request.check()
        raise Interrupted("stopped", signal_number=number)
    assert signal.getsignal(number) is before
    assert delivered == []  # the error reports it


@pytest.mark.parametrize("number", STOPS_A_JOB)
def test_a_request_that_came_too_late_reaches_the_programs_handler(number, delivered):
    with graceful_stop():
        os.kill(os.getpid(), number)
    assert delivered == [number]
    with suppress(ValueError), graceful_stop():
        os.kill(os.getpid(), number)
        raise ValueError("another")
    assert delivered == [number, number]


def test_other_signals_remain_the_programs(delivered):
    others = [number for number in STOP_SIGNALS if number not in STOPS_A_JOB]
    with graceful_stop() as request:
        for number in others:
            os.kill(os.getpid(), number)
        assert not request
    assert delivered == others


@pytest.mark.parametrize("block", [graceful_stop, lambda: signals.ending_after(lambda: None)])
def test_a_handler_in_c_is_still_there_afterwards(block, tmp_path):
    """Python reports it as SIG_DFL, and setting that would let the signal end the process."""
    with (tmp_path / "stacks").open("w") as file:
        faulthandler.register(signal.SIGUSR1, file)
        try:
            with block():
                pass
            os.kill(os.getpid(), signal.SIGUSR1)
        finally:
            faulthandler.unregister(signal.SIGUSR1)
    assert "test_signals" in (tmp_path / "stacks").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_after_the_loop_has_stopped_the_same_signal_changes_nothing(number):
    """A terminal and a parent process may both send it."""
    body = """
with graceful_stop() as stop:
    ready()
    while not stop: time.sleep(0.01)
with unwinding():
    ready()
    time.sleep(0.5)
print("reported"); sys.exit(130)
"""
    assert script(body, number, number, answers=True) == (130, "reported\n", "")


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_what_comes_with_the_first_signal_belongs_to_it(first, monkeypatch, delivered):
    """A launcher forwards the Ctrl-C that the terminal has sent to all processes already."""
    repeated = False
    with suppress(KeyboardInterrupt), graceful_stop() as request:  # as Python programs expect
        for number in (first, signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert request.signal_number == first
        later = time.monotonic() + signals.REPEATED_SECONDS
        monkeypatch.setattr(time, "monotonic", lambda: later)
        os.kill(os.getpid(), signal.SIGTERM)
        repeated = True
        os.kill(os.getpid(), signal.SIGINT)
        repeated = False
    assert repeated
    assert delivered == []


def test_a_handler_from_outside_of_python_is_not_replaced(monkeypatch):
    monkeypatch.setattr(signals.signal, "getsignal", lambda number: None)
    changed = []
    monkeypatch.setattr(signals.signal, "signal", lambda *given: changed.append(given))
    with graceful_stop() as request:
        assert not request
    assert changed == []


@pytest.mark.slow
def test_a_later_ctrl_c_interrupts_the_command():
    body = """
try:
    with unwinding('resume'), graceful_stop() as stop:
        ready()
        while True:
            time.sleep(0.01)
except SignalReceived as received:
    print(received, received.hint)
    sys.exit(exit_code(received.signal_number))
"""
    code, out, said = script(body, signal.SIGTERM, signal.SIGINT, between=1.1)
    assert (code, out, said) == (130, "interrupted resume\n", "")


def test_no_handlers_are_set_outside_of_the_main_thread():
    seen = []

    def work():
        with graceful_stop() as request:
            seen.append(bool(request))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


@pytest.mark.slow
def test_a_lost_terminal_does_not_cost_what_comes_after(tmp_path):
    """SIGHUP is sent when the terminal is gone; writing to it fails from then on."""
    master, slave = os.openpty()
    body = """
import sys, time
from c2fdft_cli.signals import graceful_stop, install
install()
with graceful_stop() as stop:
    open(sys.argv[1], "w").close()
    while not stop:
        time.sleep(0.01)
    for _ in range(3):
        print("a line", file=sys.stderr, flush=True)
    open(sys.argv[2], "w").close()
"""
    ready, saved = tmp_path / "ready", tmp_path / "saved"
    process = start("-c", body, ready, saved, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    deadline = time.monotonic() + 30
    while not ready.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.close(master)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=30) == 0
    assert saved.exists()


EVERY_MOMENT = """
from pathlib import Path
from c2fdft_cli.files.writing import atomic_write_bytes, remove_temporaries, unfinished
folder, number, steps, left = Path(sys.argv[1]), 0, 0, []
sys._getframe().f_trace_opcodes = True  # Python 3.12 looks at it when tracing begins
def step(frame, event, _):
    global steps
    frame.f_trace_opcodes = True
    steps += event == 'opcode'
    if steps == number:
        sys.settrace(None)
        signal.raise_signal(signal.SIGTERM)
    return step
while number == steps:  # it was hurt: go one step further
    number, steps, _process.received = number + 1, 0, None
    try:
        with unwinding():
            sys.settrace(step)
            try:
                atomic_write_bytes(folder / 'a', b'1')
            finally:
                sys.settrace(None)
    except SignalReceived:
        left += unfinished(folder)
        remove_temporaries()
        assert not unfinished(folder)
print(number, len(left))
"""


@pytest.mark.slow
def test_a_signal_at_any_moment_of_writing_leaves_no_temporary_file(tmp_path):
    """Entering and leaving a `with` block takes several steps, between which nothing cleans up."""
    process = start("-c", HEAD + EVERY_MOMENT, tmp_path, stdout=subprocess.PIPE)
    moments, left = map(int, process.communicate(timeout=60)[0].split())
    assert process.returncode == 0
    assert moments > 500
    assert left > 0  # otherwise the test would show nothing
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
