"""How jobs, bars and tables look in a terminal and without one."""

from __future__ import annotations

import io
import json
import math
import os
import re
import sys
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from c2fdft_cli.cli import console
from c2fdft_cli.cli.app import report
from c2fdft_cli.data.images.picture import save_rgb8
from c2fdft_cli.errors import DataError
from c2fdft_cli.progress import Job, Meter
from tests.kit.formula import picture
from tests.kit.terminal import in_terminal, open_terminal
from tests.kit.weights import write_random


def work(meter: Meter) -> Generator[int, None, str]:
    for number in (1, 2):
        meter.report(0.2)
        meter.report(0.6)
        meter.report(1.3)  # a part of the following number too
        yield number
    return "done"


def job() -> Job[int, str]:
    meter = Meter()
    return Job(work(meter), total=2, title="count", unit="number", meter=meter)


def test_the_bar_moves_within_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[float] = []
    screen = io.StringIO()
    monkeypatch.setattr(
        console, "stderr", lambda: Console(file=screen, force_terminal=True, width=100)
    )
    made = console.progress_bar

    def watched(to: Console) -> object:
        bar = made(to)
        update = bar.update

        def noted(task: object, **changes: object) -> None:
            moves.append(changes.get("completed"))  # type: ignore[arg-type]
            update(task, **changes)  # type: ignore[arg-type]

        monkeypatch.setattr(bar, "update", noted)
        return bar

    monkeypatch.setattr(console, "progress_bar", watched)
    assert console.draw(job()) == "done"
    assert moves == pytest.approx([0.2, 0.6, 1.3, 1.3, 1.3, 1.6, 2.0, 2.0])
    assert re.search(r"count.*2/2.*100%", screen.getvalue())


class Terminal(io.StringIO):
    """A terminal of a given width, in columns."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self._end = open_terminal(columns)[1]

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._end


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "loading PyTorch...\r                  \r"),
        ({"columns": "8"}, "loading\r       \r"),  # a line that wraps cannot be erased
        ({"NO_COLOR": "1"}, "loading PyTorch...\r                  \r"),
        ({"TERM": "dumb"}, "loading PyTorch...\n"),
        ({"RANK": "1"}, ""),
        ({"json": "yes"}, "loading PyTorch...\r                  \r"),
        ({"json": "to a terminal"}, ""),
        ({"pipe": "yes"}, ""),
    ],
)
def test_loading_is_shown_in_a_terminal(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, str], said: str
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in {"TERM": "xterm", **change}.items():
        monkeypatch.setenv(name, value)
    columns = int(change.get("columns", 80))
    screen = io.StringIO() if "pipe" in change else Terminal(columns)
    monkeypatch.setattr(sys, "stderr", screen)
    if "terminal" in change.get("json", ""):
        monkeypatch.setattr(sys, "stdout", Terminal(columns))
    console.expect(document="json" in change)
    with console.loading():
        pass
    console.expect(document=False)
    assert screen.getvalue() == said


@pytest.mark.parametrize("screen", [{}, {"TERM": "dumb"}, {"RANK": "1"}])
def test_the_images_that_were_looked_at_are_counted_in_a_terminal(
    monkeypatch: pytest.MonkeyPatch, screen: dict[str, str]
) -> None:
    for name, value in {"TERM": "xterm", **screen}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", Terminal(80))
    monkeypatch.setattr(console, "_REDRAWN", 0)
    with console.looking() as looked:
        looked("reading headers", 0, 20_000)
        looked("reading headers", 1_000, 20_000)
        monkeypatch.setattr(console, "_REDRAWN", 3600)
        looked("reading headers", 2_000, 20_000)  # not shown, too soon after the one before
        looked("checking sizes", 0, 20_000)
    said = str(sys.stderr.getvalue())
    if not screen:
        counts = ["headers: 0", "headers: 1,000"]
        lines = [f" reading {count} of 20,000" for count in counts]
        lines = ["", *lines, " checking sizes: 0 of 20,000"]
        words = [f"looking at the images...{line}" for line in lines]
        assert said == "".join(f"{line}\r{' ' * len(line)}\r" for line in words)
    assert said.count("of") == (0 if screen else 3)


@pytest.mark.acceptance
@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_command_reports_at_once_that_it_is_loading(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    (tmp_path / "a.pt").write_text("nothing")
    code, said = in_terminal("info", tmp_path / "a.pt", **environment)
    assert code == 4
    assert said.index("loading PyTorch") < said.index("error: ")


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [pytest.param(("eval", "in", "in"), marks=pytest.mark.acceptance), ("prepare", "in")]
)
def test_a_command_says_that_it_looks_at_the_images(tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "in").mkdir()
    code, said = in_terminal(*words, cwd=tmp_path, PYTHONPATH=str(Path(__file__).parents[2]))
    assert code in (2, 3)
    assert (
        said.index("loading PyTorch") < said.index("looking at the images") < said.index("error:")
    )


# --- the look of a bar ---------------------------------------------------------------------------

NOTES = ("", "a.png", "a very long folder/" * 8 + "photo.jpg")


def drawn(width: int, done: float, note: str) -> list[str]:
    screen = Console(file=io.StringIO(), width=width, force_terminal=True)
    bar = console.progress_bar(screen)
    task = bar.add_task("train-coarse", total=1234, note=note)
    bar.update(task, completed=done)
    with screen.capture() as capture:
        screen.print(bar.get_renderable())
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capture.get()).splitlines()


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_the_numbers_of_a_bar_are_complete_and_do_not_move(width: int) -> None:
    lines = [drawn(width, done, note) for done in (0, 3, 1234) for note in NOTES]
    for first, *rest in lines:
        assert re.search(r"train-coarse .*/1234 .*\d:\d\d (so far|left|total)", first), first
        assert "\u2026" not in first
        # a terminal shows ^C after it
        assert len(first.rstrip()) <= width - 2
        assert [len(line) <= width - 2 for line in rest] in ([], [True])
    assert len({first.index("/1234") for first, *_ in lines}) == 1


def test_the_note_disappears_when_the_bar_is_full() -> None:
    assert [len(drawn(80, done, "a.png")) for done in (0, 3, 1234)] == [2, 2, 1]


def test_a_bar_labels_its_time() -> None:
    assert "0:00 so far" in drawn(80, 0, "")[0]
    assert "0:00 total" in drawn(80, 1234, "")[0]


@pytest.mark.parametrize(
    ("seconds", "clock", "words"),
    [
        (0.2, "0:00", "1 second"),
        (59, "0:59", "59 seconds"),
        (119, "1:59", "119 seconds"),
        (700, "11:40", "12 minutes"),
        (3723, "1:02:03", "62 minutes"),
        (12600, "3:30:00", "3.5 hours"),
        (535680, "148:48:00", "6.2 days"),
    ],
)
def test_times_are_shown_in_suitable_units(seconds: float, clock: str, words: str) -> None:
    assert (console.clock(seconds), console.duration(seconds)) == (clock, words)


ESCAPES = "\x1b]0;title\x07\x1b[2Jred\x9b31m\nhint: x\u202e.png"
ESCAPED = r"\x1b]0;title\x07\x1b[2Jred\x9b31m\nhint: x\u202e.png"


def test_the_name_of_a_file_cannot_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    events: Job[str, None] = Job(iter_of(ESCAPES), total=1, title=ESCAPES, unit="image")
    console.remark(f"note: {ESCAPES}")
    console.stdout().print(f"restored: {ESCAPES}")
    console.table(ESCAPES, ["image", "PSNR"], [(ESCAPES, 30.0)])
    console.say_next(console.command("eval", ESCAPES))
    console.draw(events, str)
    report(DataError("not an image", where=ESCAPES, hint=ESCAPES, details=[ESCAPES]))
    said = capsys.readouterr()
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", said.out + said.err)
    assert not re.search("^ *hint: x", said.out + said.err, re.MULTILINE)
    assert said.err.count(ESCAPED) == 4  # not in the error and its hint, whose words are joined
    assert ESCAPED in said.out
    assert console.printable("a\n\tb") == "a\n\tb"  # text that is not a name


@pytest.mark.slow
@pytest.mark.acceptance
def test_the_cursor_is_never_hidden(tmp_path: Path) -> None:
    """A stopped or killed process could not show it again."""
    (tmp_path / "in").mkdir()
    save_rgb8(tmp_path / "in" / "a.png", picture(8, 8, 1))
    weights = write_random(tmp_path / "small.pt")
    words = ("restore", "in", "out", "--weights", weights)
    code, said = in_terminal(*words, cwd=tmp_path, raw=True)
    assert code == 0
    assert said.index("loading PyTorch") < said.index("looking at the images")
    assert "restore" in said
    assert "\x1b[?25l" not in said


def test_a_printed_command_can_be_pasted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("eval", Path("-out"), Path("/my photos"), "--weights", "a b.pt", "-x")
    line = console.command(*words)
    assert line == "c2fdft eval ./-out '/my photos' --weights 'a b.pt' -x"
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "20")  # a line that is broken would be two commands
    assert console.stdout().is_terminal
    console.say_next(line)
    assert re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out) == f"next: {line}\n"


@pytest.mark.parametrize("option", ["--weights", "--recipe", "--from"])
def test_a_printed_file_is_not_taken_for_a_name(option: str) -> None:
    """`derain` would be packaged weights or a recipe."""
    shown = console.command("x", option, Path("derain"), Path("derain"), "--data", Path("derain"))
    assert shown == f"c2fdft x {option} ./derain derain --data derain"
    for plain in (Path("derain.pt"), Path("runs/derain"), "derain"):
        assert console.command("x", option, plain) == f"c2fdft x {option} {plain}"


@pytest.mark.parametrize("columns", ["0", "80"])
def test_columns_of_zero_hide_nothing(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    console.table("scores", ["image", "PSNR"], [("a.png", 30.0)])
    console.stdout().print("restored: 1 image")
    said = capsys.readouterr().out
    assert "a.png │   30" in said
    assert "restored: 1 image" in said


def test_numbers_that_json_lacks_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    """As the PSNR of a restoration that equals its target."""
    rows = (math.nan, 1.0)
    console.emit({"best_psnr": math.inf, "rows": rows, "result": Result(-math.inf)})
    found = json.loads(capsys.readouterr().out)
    assert found == {"best_psnr": None, "rows": [None, 1.0], "result": {"psnr": None}}


@dataclass
class Result:
    psnr: float


def iter_of(event: str) -> Generator[str, None, None]:
    yield event


@pytest.mark.slow
def test_a_terminal_without_cursor_movement_gets_lines(tmp_path: Path) -> None:
    for side in ("lq", "gt"):
        (tmp_path / "set" / side).mkdir(parents=True)
        for number in (1, 2):
            save_rgb8(tmp_path / "set" / side / f"{number}.png", picture(24, 32, number))
    code, said = in_terminal("prepare", tmp_path / "set", cwd=tmp_path, TERM="dumb")
    assert code == 0
    assert re.search(r"^prepare: 1/2 pairs", said, re.MULTILINE)
    assert "\x1b" not in said


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [(), ("weights", "list"), ("restore", "in", "out", "--task", "snow"), ("prepare", ".")]
)
def test_lines_break_between_words(tmp_path: Path, words: tuple[str, ...]) -> None:
    """A terminal would break them at any character."""
    save_rgb8(tmp_path / "0.png", picture(24, 32, 0))
    narrow, wide = (
        in_terminal(*words, columns=columns, cwd=tmp_path)[1].split("\u250f")[0]  # above a table
        for columns in (40, 400)
    )
    assert max(map(len, narrow.splitlines())) < max(map(len, wide.splitlines()))
    plain = {word for word in wide.split() if word.isalpha()}
    assert plain <= set(narrow.split())


@pytest.mark.parametrize(
    ("columns", "line", "shown"),
    [
        (20, "  name: a long explanation", "  name: a long\n    explanation"),
        (20, "error: a long explanation", "error: a long\nexplanation"),
        (20, "hint: resume with c2fdft train-coarse --resume", None),  # to be pasted
        (20, "error: a-name-that-is-too-long-for-the-line", None),
        (20, "  a-name-that-is-too-long-for-the-line", None),
        (0, "a terminal that does not know its size", None),
    ],
)
def test_a_line_is_folded_to_the_width_of_a_terminal(
    columns: int, line: str, shown: str | None
) -> None:
    master, end = open_terminal(columns)
    with os.fdopen(master, "rb"), os.fdopen(end, "w") as terminal:
        assert console.wrapped(line, terminal) == (shown or line)
    assert console.wrapped(line, io.StringIO()) == line


def test_a_job_without_events_draws_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing() -> Generator[int, None, str]:
        yield from ()
        return "done"

    screen = io.StringIO()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert console.stderr().is_terminal
    assert console.draw(Job(nothing(), total=0, title="count", unit="number")) == "done"
    assert screen.getvalue() == ""


def test_without_a_terminal_lines_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.draw(job(), lambda number: f"saw {number}") == "done"
    streams = capsys.readouterr()
    assert streams.err == "count: 1/2 numbers saw 1\ncount: 2/2 numbers saw 2\n"
    assert streams.out == ""
    console.draw(Job(numbers(23), total=23, title="count", unit="number"))
    shown = [f"count: {n}/23 numbers" for n in (3, 6, 9, 12, 15, 18, 21, 23)]
    assert capsys.readouterr().err.splitlines() == shown


def numbers(count: int) -> Generator[int, None, None]:
    yield from range(count)


def test_without_a_terminal_a_line_shows_after_a_minute_that_a_job_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(console, "PLAIN_LINES", 1)
    meter = Meter()

    def slow() -> Generator[int, None, None]:
        nonlocal now
        for number in range(1, 7):
            now += 40
            meter.report(0.5)
            yield number

    console.draw(Job(slow(), total=6, title="count", unit="number", meter=meter))
    said = capsys.readouterr().err.splitlines()
    assert said == ["count: 25%", "count: 58%", "count: 91%", "count: 6/6 numbers"]
    now = 59.0

    def quick() -> Generator[int, None, None]:
        nonlocal now
        for number in range(1, 5):
            yield number
            now += 30

    console.draw(Job(quick(), total=4, title="count", unit="number", meter=meter))
    said = capsys.readouterr().err.splitlines()
    assert said == ["count: 3/4 numbers", "count: 4/4 numbers"]


HOSTILE = "[/b] [link=x] [red]a.png"


def test_names_are_never_interpreted_as_markup(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """In the title and note of a bar, in a line, and in title, column and cell of a table."""
    screen = io.StringIO()
    with monkeypatch.context() as patch:
        made = console.stderr
        patch.setattr("sys.stderr", screen)
        patch.setenv("FORCE_COLOR", "1")
        patch.setenv("COLUMNS", "120")
        assert made().is_terminal
        bar = Job(work(Meter()), total=2, title=HOSTILE, unit="number")
        console.draw(bar, lambda number: HOSTILE)
        console.stderr().print(HOSTILE)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert plain.count(HOSTILE) >= 3
    console.table(HOSTILE, (HOSTILE,), [(HOSTILE,)])
    console.say_next(HOSTILE)
    console.stdout().print(HOSTILE)
    assert capsys.readouterr().out.count("[/b]") == 5


# --- tables --------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_numbers_in_a_table_are_not_broken(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    columns = [f"METRIC{i}" for i in range(9)]
    numbers = [f"{i}.1234" for i in range(9)]
    console.table("scores", ["image", *columns], [["a long name of a photograph 1", *numbers]])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    said = " ".join(lines).split()
    assert [one for one in said if one in columns] == columns
    assert [one for one in said if one in numbers] == numbers
    assert sum("image" in line for line in lines) == {40: 9, 60: 3, 80: 2, 200: 1}[width]


def test_text_that_begins_with_digits_is_wrapped_not_cut(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    name, value = "1" * 70, "2" * 70
    console.table("", ["image", "value"], [[name, value]])
    drawn = capsys.readouterr().out
    assert (drawn.count("1"), drawn.count("2")) == (70, 70)
