"""Output for the terminal and for scripts: results on stdout, progress and remarks on stderr.

Rich is imported only in the functions that draw, because every command imports this module and many
end without drawing. Markup is disabled: a path such as `[/b]` is printed as text.
"""

from __future__ import annotations

import json
import os
import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, is_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO, TypeVar

from c2fdft_cli.words import finite_or_none, for_shell, many

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.progress import Progress
    from rich.segment import Segment

    from c2fdft_cli.progress import Job, Looked

Event = TypeVar("Event")
Result = TypeVar("Result")

_NAMED = ("--weights", "--recipe", "--from")
"""Options that take a name or a file."""
# Besides control characters, those that change the direction of writing: they can show the parts of
# a line in another order.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_BREAK = re.compile(f"{_CONTROL.pattern}|[\t\n]")
_expected: ContextVar[bool] = ContextVar("_expected", default=False)

PLAIN_LINES = 10
"""The number of progress lines that a job prints in all if stderr is not a terminal."""

_SILENCE = 60.0
"""Seconds after which it prints one more, so that a log shows that it still runs."""

_REDRAWN = 0.1
"""Seconds between two drawings of a count."""

TIME = 12
"""Width of a time in a progress bar, such as `1:02:03 left`, in columns."""

NAME_WIDTH, TEXT_WIDTH, MAX_NUMBER = 24, 12, 20
"""Widths in a table, in columns of the screen: the least width of a column of names and of one of
other text, before they are wrapped, and the longest number."""

NARROW = 60
"""On a screen with fewer columns a progress bar omits the percentage."""


def stderr() -> Console:
    """Return a console for progress and remarks; made on each call, as tests replace the stream."""
    return _console(to_stderr=True)


def stdout() -> Console:
    """Return a console for results."""
    return _console(to_stderr=False)


def _console(*, to_stderr: bool) -> Console:
    """Make a console that wraps lines between words in a terminal, and not at all elsewhere."""
    found = _plain_console(to_stderr=to_stderr)
    found.soft_wrap = not found.is_terminal
    return found


def _plain_console(*, to_stderr: bool) -> Console:
    # Some programs set COLUMNS to 0 where there is no terminal; Rich would print nothing.
    width = 80 if os.environ.get("COLUMNS") == "0" else None
    return _console_class()(stderr=to_stderr, highlight=False, markup=False, width=width)


@cache
def _console_class() -> type[Console]:
    """Return Rich's console class, changed for names that come from others, and for signals.

    It prints no control characters, with which a file's name could control the terminal, and a
    string as one line. It does not hide the cursor, which a stopped process could not show again.
    """
    from rich.console import Console

    class Safe(Console):
        def print(self, *objects: Any, **options: Any) -> None:
            objects = tuple(one_line(one) if isinstance(one, str) else one for one in objects)
            super().print(*objects, **options)

        def show_cursor(self, show: bool = True) -> bool:
            return False

        def render(
            self, renderable: RenderableType, options: ConsoleOptions | None = None
        ) -> Iterator[Segment]:
            for one in super().render(renderable, options):
                yield one if one.control else one._replace(text=printable(one.text))

    return Safe


def printable(text: str) -> str:
    r"""Write out control characters, such as \x1b, except line ends and tabs."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(text: str) -> str:
    """As `printable`, with line ends and tabs: they may be part of a name, and forge a message."""
    return _BREAK.sub(lambda found: ascii(found[0])[1:-1], text)


def wrapped(line: str, stream: TextIO) -> str:
    """Break a line between words if it is longer than the terminal is wide.

    A part of a list, which is indented, continues with two more spaces. Nothing is changed if the
    stream is not a terminal, or if the line shows a command, so that it can be pasted.
    """
    if not stream.isatty() or "c2fdft " in line:
        return line
    text = line.lstrip(" ")
    indent = line[: len(line) - len(text)]
    filled = textwrap.fill(
        text.replace(": ", ":\0", 1),  # `error:` and a long path stay on one line
        os.get_terminal_size(stream.fileno()).columns or 80,  # a terminal may not know its size
        initial_indent=indent,
        subsequent_indent=indent and indent + "  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return filled.replace("\0", " ")


def remark(text: str) -> None:
    """Print a line for the user on stderr."""
    stderr().print(text)


@contextmanager
def loading(words: str = "loading PyTorch...") -> Iterator[Callable[[str], None]]:
    """Show a message during work that takes seconds, before the first progress bar.

    The function that it yields adds to the message, in place of what it added before. Nothing is
    shown if stderr is not a terminal, or if a JSON document is expected and stdout is one: it may
    be the same one, and a program that reads what appears there (`docker run -t`) finds only JSON.
    """
    mixed = _expected.get() and sys.stdout.isatty()
    if mixed or not sys.stderr.isatty() or os.environ.get("RANK", "0") != "0":
        yield lambda _: None
        return
    if os.environ.get("TERM") in ("dumb", "unknown"):  # it cannot erase a line
        sys.stderr.write(f"{words}\n")
        sys.stderr.flush()
        yield lambda _: None
        return
    shown = 0

    def show(text: str) -> None:
        nonlocal shown
        # a line that wraps cannot be erased
        line = text[: max(0, (os.get_terminal_size(sys.stderr.fileno()).columns or 80) - 1)]
        start = f"\r{' ' * shown}\r" if shown else ""
        sys.stderr.write(start + line)  # without Rich, which is not loaded yet
        sys.stderr.flush()
        shown = len(line)

    show(words)
    try:
        yield lambda more: show(f"{words} {more}")
    finally:
        show("")


@contextmanager
def looking() -> Iterator[Looked]:
    """Show a message while all images and outputs are checked: minutes on a slow disk.

    The function that it yields shows what is checked too, and how many of how many were.
    """
    with loading("looking at the images...") as show:
        shown, last = time.monotonic(), ""

        def count(what: str, done: int, total: int) -> None:
            nonlocal shown, last
            if time.monotonic() >= shown + _REDRAWN or last not in ("", what):
                shown, last = time.monotonic(), what
                show(f"{what}: {done:,} of {total:,}")

        yield count


def draw(job: Job[Event, Result], show: Callable[[Event], str | None] | None = None) -> Result:
    """Run a job to its end with a progress bar, or with plain lines if stderr is not a terminal.

    `show` returns the note to show for an event, or None for no note.
    """
    console = stderr()
    if console.is_interactive and len(job):  # a bar of nothing would look as if it did not move
        return _draw_bar(job, show, console)
    return _draw_lines(job, show, console)


def _draw_lines(
    job: Job[Event, Result], show: Callable[[Event], str | None] | None, console: Console
) -> Result:
    every = max(1, -(-len(job) // PLAIN_LINES))
    done, last = 0, time.monotonic()

    def within(events: float) -> None:
        nonlocal last
        if len(job) and time.monotonic() >= last + _SILENCE:
            last = time.monotonic()
            share = min(1.0, (done + events) / len(job))
            console.print(f"{job.title}: {int(100 * share)}%")

    job.meter.watch = within
    for event in job:
        text = (show(event) if show else None) or ""
        done += 1
        if done % every == 0 or done == len(job) or time.monotonic() >= last + _SILENCE:
            last = time.monotonic()
            console.print(f"{job.title}: {done}/{len(job)} {job.unit}s {text}".rstrip())
    return job.result


def _draw_bar(
    job: Job[Event, Result], show: Callable[[Event], str | None] | None, console: Console
) -> Result:
    with progress_bar(console) as progress:
        task = progress.add_task(job.title, total=len(job), note="")
        done, shown = 0, 0.0

        def within(events: float) -> None:
            nonlocal shown
            # Events come late, while results wait to be written: the reported progress may already
            # be beyond the next event.
            shown = max(shown, min(done + events, len(job)))
            progress.update(task, completed=shown)

        job.meter.watch = within
        for event in job:
            note = show(event) if show else None
            if note is not None:
                progress.update(task, note=note)
            done += 1
            within(0.0)
    return job.result


class Inset:
    """Something that is redrawn repeatedly, two columns narrower than the screen.

    The two columns are for the `^C` that a terminal shows at the cursor: after a full line it would
    start a new line, and the next drawing would not cover the previous one.
    """

    def __init__(self, drawn: RenderableType) -> None:
        self._drawn = drawn

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        yield from console.render(self._drawn, options.update_width(max(1, options.max_width - 2)))


def progress_bar(console: Console) -> Progress:
    """Make a progress bar; all bars look the same, with a note on the line below.

    If space is short, the bar gets narrower, not the numbers. Nothing in its line changes its width
    while the job runs.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TaskProgressColumn,
        TextColumn,
    )
    from rich.table import Column
    from rich.text import Text

    class Time(ProgressColumn):
        """The remaining time once it is known, otherwise the elapsed time."""

        max_refresh = 0.5

        def render(self, task: Task) -> Text:
            if task.finished:
                return Text(f"{clock(task.finished_time or 0)} total")
            if task.time_remaining is None:
                return Text(f"{clock(task.elapsed or 0)} so far")
            return Text(f"{clock(task.time_remaining)} left")

    class Bars(Progress):
        def get_renderables(self) -> Iterator[RenderableType]:
            yield Inset(self.make_tasks_table(self.tasks))
            for task in self.tasks:
                # Not at the end: the last note would remain above the results, like one of them.
                if task.fields["note"] and not task.finished:
                    note = Text(
                        one_line(task.fields["note"]),
                        style="dim",
                        no_wrap=True,
                        overflow="ellipsis",
                    )
                    yield Inset(note)

    whole = Column(no_wrap=True)
    percentage = () if console.width < NARROW else (TaskProgressColumn(),)
    return Bars(
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(),
        MofNCompleteColumn(table_column=whole),
        *percentage,
        Time(table_column=Column(no_wrap=True, min_width=TIME)),
        console=console,
    )


def clock(seconds: float) -> str:
    """Format a time like a clock: 0:07, 12:34, 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def duration(seconds: float) -> str:
    """Format a time in words: 40 seconds, 12 minutes, 3.5 hours, 6.2 days."""
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.{0 if unit == 'minute' else 1}f} {unit}s"
    return many(max(1, round(seconds)), "second")


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table on stdout, with numbers aligned to the right and text to the left.

    Numbers are never wrapped: columns of numbers that do not fit are printed in further tables.
    """
    from rich.table import Table
    from rich.text import Text

    texts = [[one_line(show_number(cell)) for cell in row] for row in rows]
    numeric = [
        bool(texts) and all(_is_number(row[i]) for row in texts) for i in range(len(columns))
    ]
    screen = _plain_console(to_stderr=False)
    widths = [max(map(len, column)) for column in zip(columns, *texts, strict=True)]
    # Not the first column, of names, which may begin with a digit too.
    whole = [i > 0 and numeric[i] and widths[i] <= MAX_NUMBER for i in range(len(columns))]
    least = [
        width if whole[i] else min(width, NAME_WIDTH if i == 0 else TEXT_WIDTH)
        for i, width in enumerate(widths)
    ]
    for part in _parts(least, whole, screen.width):
        drawn = Table(
            title=Text(one_line(title)) if title else None,
            title_justify="left",
            title_style="bold",
        )
        for i in part:
            justify: Literal["right", "left"] = "right" if numeric[i] else "left"
            drawn.add_column(Text(columns[i]), justify=justify, no_wrap=whole[i], overflow="fold")
        for row in texts:
            drawn.add_row(*(Text(row[i]) for i in part))
        screen.print(drawn)


def _parts(widths: Sequence[int], whole: Sequence[bool], available: int) -> list[list[int]]:
    """Distribute the columns over tables; each has the first column, which holds the names."""
    frame = 3  # for each column: a line, and a space on both sides
    parts: list[list[int]] = [[0]]
    for i in range(1, len(widths)):
        taken = 1 + sum(widths[j] + frame for j in [*parts[-1], i])
        if whole[i] and taken > available and len(parts[-1]) > 1:
            parts.append([0])
        parts[-1].append(i)
    return parts


def show_number(value: object) -> str:
    """Format a value: a float with four significant digits, None as a dash."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_number(text: str) -> bool:
    return bool(text) and (text in {"-", "inf"} or text[0].isdigit() or text[0] in "+-")


def expect(*, document: bool) -> None:
    """Set at the start of a command whether it must print one JSON document (--json)."""
    _expected.set(document)


def emit(document: Any) -> None:
    """Print a JSON document on stdout; numbers that JSON lacks (infinity, NaN) become null."""
    _expected.set(False)
    text = json.dumps(finite_or_none(document), indent=1, default=_plain, allow_nan=False)
    sys.stdout.write(text + "\n")


def emit_error(code: int, message: str, hint: str | None, details: Sequence[str]) -> None:
    """Print an error as the JSON document if one is still expected; only on rank 0."""
    if _expected.get() and os.environ.get("RANK", "0") == "0":
        error = {"code": code, "message": message, "details": details, "hint": hint}
        emit({"error": error})


def _plain(value: object) -> Any:
    if isinstance(value, Path):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return finite_or_none(asdict(value))
    raise TypeError(f"no JSON for {type(value).__name__}")


def command(*words: object) -> str:
    """Return a `c2fdft` command line that can be pasted into a shell; see `word_of`."""
    after = zip(words, ("", *words), strict=False)
    return for_shell("c2fdft", *(word_of(word, named=left in _NAMED) for word, left in after))


def word_of(word: object, *, named: bool = False) -> str:
    """Return an argument of a command line; a path that could be read as something else gets `./`.

    Args:
        word: the argument; a path that starts with a hyphen could be an option.
        named: whether the argument may be the name of packaged weights or of a recipe, as a path
            without a folder and a suffix could be.
    """
    text = str(word)
    if isinstance(word, Path) and (text.startswith("-") or (named and text == word.stem)):
        return f"./{text}"
    return text


def say_next(line: str) -> None:
    """Print the command to run next."""
    from rich.text import Text

    # not wrapped, so that it can be pasted
    stdout().print(Text.assemble(("next: ", "bold"), one_line(line)), soft_wrap=True)
