"""A running command loses what it works with: inputs, its output folder, a data worker."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from c2fdft_cli.data.images.picture import save_rgb8
from tests.faults.conftest import TRIES
from tests.kit.faults import Case, Running, World, hidden, run
from tests.kit.formula import picture

pytestmark = pytest.mark.slow

COMMANDS = ("prepare", "restore", "restore-video", "eval", "sweep-steps", "train-coarse")
QUICK = ("prepare", "restore", "eval")
MOMENTS = [0.5, *(number / TRIES for number in range(1, TRIES))]
"""Moments of the fault, as fractions of the number of files that a command opens."""
NAMES = [pytest.param(one, marks=() if one in QUICK else pytest.mark.long) for one in COMMANDS]


def at_open(place: Path, number: int, harm: Callable[[], None]) -> None:
    """In the command's process, call `harm` before it opens a file in `place` the n-th time."""
    counter, inside = itertools.count(1), f"{place}/"

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        named = event == "open" and isinstance(arguments[0], str | os.PathLike)
        if named and f"{arguments[0]!s}/".startswith(inside) and next(counter) == number:
            harm()

    sys.addaudithook(look)


@pytest.fixture(scope="module")
def opened(world: World, tmp_path_factory) -> Callable[[str], tuple[int, object]]:
    """Return how many files an undisturbed command opens, and the content of its output."""
    known: dict[str, tuple[int, object]] = {}

    def count(name: str) -> tuple[int, object]:
        if name not in known:
            folder = tmp_path_factory.mktemp(name)
            case = own_world(world, folder).case(name, folder)
            tally = folder.parent / f"{folder.name}.tally"
            assert run(case.words, folder, partial(_count, folder, tally)) == 0
            known[name] = tally.stat().st_size, case.content(case.out)
        return known[name]

    return count


def _count(folder: Path, tally: Path) -> None:
    written = os.open(tally, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    inside = f"{folder}/"

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        named = event == "open" and isinstance(arguments[0], str | os.PathLike)
        if named and os.fspath(arguments[0]).startswith(inside):
            os.write(written, b".")

    sys.addaudithook(look)


def own_world(world: World, folder: Path) -> World:
    """Copy the inputs, with their modification times, so that a test may damage them."""
    shutil.copytree(world.root, folder / "world", copy_function=shutil.copy2)
    return World(folder / "world")


def an_input(world: World, name: str) -> Path:
    """Return the last input that a command reads."""
    if name in ("sweep-steps", "train-coarse"):
        split = "val" if name == "sweep-steps" else "train"
        return sorted(world.shards.glob(f"{split}*.h5"))[-1]
    places = {"restore": world.images / "7.png", "restore-video": world.root / "clip.mp4"}
    return places.get(name, world.pairs / "train/rainy/9.png")


def vanish(path: Path) -> None:
    """Delete the file."""
    path.unlink(missing_ok=True)


def cut(path: Path) -> None:
    """Replace the file by a new one with the first half of its bytes."""
    half = path.read_bytes()[: path.stat().st_size // 2]
    path.unlink()
    path.write_bytes(half)


def shorten(path: Path) -> None:
    """Truncate the file in place, which the command may have open."""
    os.truncate(path, path.stat().st_size // 2)


def resize(path: Path) -> None:
    """Replace a picture by one of another size; cut other files."""
    if path.suffix == ".png":
        save_rgb8(path, picture(40, 56, 99))
    else:
        cut(path)


def run_with_fault_and_again(
    case: Case, folder: Path, before: Callable[[], None], mend: Callable[[], object]
) -> int:
    """Run a command with a fault, repair, run it again; return the first exit code."""
    running = Running(case.words, folder, before)
    code = running.end(120)
    assert code in (0, 3, 4, 5, 6), running.said
    assert "Traceback" not in running.said
    assert code == 0 or "error: " in running.said
    assert not hidden(case.out), running.said
    mend()
    again = Running((*case.words, *(case.again if case.out.exists() else ())), folder)
    ended = again.end(120)
    if ended == 6 and "its input has changed since" in again.said:  # of the damaged input
        again = Running((*case.words, "--overwrite"), folder)
        ended = again.end(120)
    assert ended == 0, (code, running.said, again.said)
    return code


@pytest.mark.parametrize("harm", [vanish, cut, shorten, resize])
@pytest.mark.parametrize("name", NAMES)
def test_an_input_that_vanishes_or_changes(world: World, opened, tmp_path_factory, name, harm):
    """At most one error line; once the input is back, the same command completes as usual.

    The first moment is the opening at which its content is read: for a picture the second one,
    after that of the header.
    """
    count, expected = opened(name)
    for moment in (None, *MOMENTS[1:]):
        folder = tmp_path_factory.mktemp(f"{name}-{harm.__name__}")
        own = own_world(world, folder)
        path, case = an_input(own, name), own.case(name, folder)
        kept = shutil.copy2(path, folder.parent / f"{folder.name}.kept")
        place, number = path, 1 + (path.suffix == ".png")
        if moment is not None:
            place, number = folder, max(1, round(moment * count))
        before = partial(at_open, place, number, partial(harm, path))
        code = run_with_fault_and_again(case, folder, before, partial(shutil.copy2, kept, path))
        # restore accepts a picture whose size differs from that in the header read before
        assert code or moment is not None or (name, harm) == ("restore", resize)
        assert case.content(case.out) == expected, moment


@pytest.mark.parametrize("name", NAMES)
def test_an_output_folder_that_is_taken_away(world: World, opened, tmp_path_factory, name):
    count, expected = opened(name)
    for moment in MOMENTS:
        folder = tmp_path_factory.mktemp(f"{name}-away")
        own = own_world(world, folder)
        case = own.case(name, folder)
        number = max(1, round(moment * count))
        before = partial(at_open, folder, number, partial(_take_away, case.out))
        case.out.mkdir(exist_ok=True)
        run_with_fault_and_again(case, folder, before, lambda: case.out.mkdir(exist_ok=True))  # noqa: B023
        assert case.content(case.out) == expected, moment


def _take_away(out: Path) -> None:
    if out.is_dir():
        out.rename(out.parent / "elsewhere")


@pytest.mark.parametrize("name", NAMES)
def test_an_output_folder_that_turns_read_only(world: World, opened, tmp_path_factory, name):
    """A damaged file system remounts itself read-only; all later writes fail."""
    count, expected = opened(name)
    for moment in MOMENTS:
        folder = tmp_path_factory.mktemp(f"{name}-read-only")
        own = own_world(world, folder)
        case = own.case(name, folder)
        before = partial(at_open, folder, max(1, round(moment * count)), partial(_refuse, case.out))
        run_with_fault_and_again(case, folder, before, lambda: None)
        assert case.content(case.out) == expected, moment


def _refuse(out: Path) -> None:
    """Make creating and renaming files in a folder fail from now on; open files stay writable."""

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        first = arguments[0] if arguments else None
        if not isinstance(first, str | os.PathLike) or out not in (
            Path(first),
            *Path(first).parents,
        ):
            return
        written = event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        if written or event in ("os.rename", "os.mkdir", "os.link"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), os.fspath(first))

    sys.addaudithook(look)


@pytest.mark.acceptance
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_data_worker_that_is_killed(world: World, tmp_path, workers):
    """The kernel kills it when memory runs out: one error line, and a state to resume from."""
    case = world.case("train-coarse", tmp_path)
    words = (*case.words, f"data.workers={workers}", "coarse.iterations=4000",
             "coarse.periods=[{length: 4000, floor: 1.0e-5}]", "coarse.cycles=1000",
             "train.validate_every=4000")  # fmt: skip
    running = Running(words, tmp_path)
    training = psutil.Process(running.process.pid)
    deadline = time.monotonic() + 60
    while "step 2:" not in running.said and time.monotonic() < deadline:
        time.sleep(0.02)
    worker = training.children()[-1]
    worker.send_signal(signal.SIGKILL)
    assert running.end(120) == 5, running.said
    assert "error: a data worker died" in running.said
    assert "Traceback" not in running.said
    assert not hidden(case.out)
    assert (case.out / "state.pt").is_file()
