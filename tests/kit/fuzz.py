"""Fuzzing of everything that reads files: each input must be read or refused within limits.

The limits are `MAX_SECONDS` of processor time and `MAX_BYTES` of memory. An area registers its
readers in a module `tests/kit/fuzz_<area>.py` with a list `TARGETS`; `recipes/scripts/fuzz.py`
finds it there, and a quick test calls `try_inputs`. Input `i` is a function of (seed, target, i)
alone, so a defect can be reproduced from its number.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import random
import signal
import struct
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from c2fdft_cli.errors import C2fdftError

MAX_SECONDS = 5.0
MAX_BYTES = 2 << 30
HANG_SECONDS = 120.0
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1)


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """Damage data in one to four places, mostly near its ends: headers and directories."""
    mutated = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        size = len(mutated)
        near = rng.randrange(min(size, 2048) + 1)
        at = rng.choice((near, size - near, rng.randrange(size + 1)))
        length = rng.choice((1, 2, 4, 8, 16, 64, 512))
        match rng.randrange(8):
            case 0 if at < size:
                mutated[at] ^= 1 << rng.randrange(8)
            case 1 if at < size:
                mutated[at] = rng.randrange(256)
            case 2:
                form = rng.choice((">", "<")) + rng.choice("BHIQ")
                room = struct.calcsize(form)
                mutated[at : at + room] = struct.pack(form, rng.choice(NUMBERS) % (1 << 8 * room))
            case 3:
                del mutated[at : at + length]
            case 4:
                mutated[at:at] = mutated[at : at + length] * rng.choice((1, 2, 20))
            case 5:
                mutated[at:at] = rng.randbytes(length)
            case 6:
                mutated[at : at + length] = bytes(min(length, size - at))
            case _:
                if rng.random() < 0.3:
                    del mutated[at:]
    return bytes(mutated)


@dataclass(frozen=True)
class Target:
    """A reader of untrusted files to be fuzzed.

    name: its name on the command line of `recipes/scripts/fuzz.py`.
    suffix: file name suffix of the inputs.
    seeds: returns the contents of valid files; it may use the empty folder that it is given.
    read: the function under test; it may raise `C2fdftError` and nothing else.
    mutate: returns a damaged copy of one valid file.
    """

    name: str
    suffix: str
    seeds: Callable[[Path], list[bytes]]
    read: Callable[[Path], object]
    mutate: Callable[[random.Random, bytes], bytes] = mutate_bytes


@dataclass(frozen=True)
class Outcome:
    """The result of one input.

    what: "read", "refused", or a description of the defect.
    seconds: processor time.
    peak_bytes: peak resident memory above what the process held before.
    """

    number: int
    what: str
    seconds: float
    peak_bytes: int

    def is_defect(self) -> bool:
        """Whether the input was neither read nor refused within the limits."""
        return self.what not in ("read", "refused")


class _TooLongError(BaseException):
    """Raised at the time limit; not an `Exception`, so that the tested code does not catch it."""


def targets() -> dict[str, Target]:
    """All targets of the modules `fuzz_<area>.py` next to this one, by name."""
    found: dict[str, Target] = {}
    for path in sorted(Path(__file__).parent.glob("fuzz_*.py")):
        module = importlib.import_module(f"tests.kit.{path.stem}")
        found.update((target.name, target) for target in module.TARGETS)
    return found


def made_input(target: Target, seeds: list[bytes], seed: int, number: int) -> bytes:
    """Return the bytes of input `number` of a target."""
    rng = random.Random(f"{seed} {target.name} {number}")
    return target.mutate(rng, rng.choice(seeds))


def try_inputs(
    target: Target, numbers: Iterable[int], folder: Path, seed: int = 0
) -> Iterator[Outcome]:
    """Read the inputs in this process, one after another; `folder` must be empty."""
    seeds = target.seeds(folder)
    path = folder / f"input{target.suffix}"
    for number in numbers:
        path.write_bytes(made_input(target, seeds, seed, number))
        yield _try(target, path, number)


def _try(target: Target, path: Path, number: int) -> Outcome:
    _forget_peak()
    held = _bytes_of("VmRSS")
    # processor time: a busy machine is no defect; the parent process notices an endless wait
    before = signal.signal(signal.SIGPROF, _too_long)
    start = time.process_time()
    try:
        signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)
        try:
            target.read(path)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        what = "read"
    except C2fdftError as error:
        what = f"error of several lines: {error}" if "\n" in str(error) else "refused"
    except _TooLongError:
        what = f"longer than {MAX_SECONDS:.0f} s"
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__} in {Path(last.filename).name}:{last.name}"
    signal.signal(signal.SIGPROF, before)
    seconds = time.process_time() - start
    peak = _bytes_of("VmHWM") - held
    if peak > MAX_BYTES:
        what = f"more than {MAX_BYTES >> 30} GiB"
    return Outcome(number, what, seconds, peak)


def _forget_peak() -> None:
    """Reset the peak of resident memory: earlier code in this process may have used far more."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _bytes_of(name: str) -> int:
    """Return this process's resident memory in bytes: "VmRSS" is the current, "VmHWM" the peak."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


def _too_long(*_: object) -> None:
    raise _TooLongError


def fuzz(target: Target, count: int, seed: int = 0) -> Iterator[Outcome]:
    """Read inputs 0 to `count` - 1 in a child process, which is replaced after each defect."""
    number = 0
    while number < count:
        with _worker(target, range(number, count), seed) as (process, connection):
            while number < count:
                outcome = _next(process, connection, number)
                yield outcome
                number += 1
                if outcome.is_defect():
                    break  # the state of this process can no longer be trusted


def _next(process: BaseProcess, connection: Connection, number: int) -> Outcome:
    if not connection.poll(HANG_SECONDS):
        return Outcome(number, "hung in native code", HANG_SECONDS, 0)
    try:
        outcome: Outcome = connection.recv()
    except EOFError:
        process.join()
        return Outcome(number, f"the process died ({process.exitcode})", 0.0, 0)
    return outcome


@contextlib.contextmanager
def _worker(target: Target, numbers: range, seed: int) -> Iterator[tuple[BaseProcess, Connection]]:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(target, numbers, seed, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        yield process, ours
    finally:
        process.kill()
        process.join()
        ours.close()


def _work(target: Target, numbers: range, seed: int, connection: Connection) -> None:
    import resource

    # an allocation far beyond the limit fails here instead of exhausting the machine
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + 2 * MAX_BYTES,) * 2)
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(BrokenPipeError):
        for outcome in try_inputs(target, numbers, Path(folder), seed):
            connection.send(outcome)
