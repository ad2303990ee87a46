"""Speaking to people and to scripts: results on stdout, progress and remarks on stderr.

Rich is imported where it draws: every command imports this module, and most of a command's help is
there before anything is drawn. No console reads markup: a path such as `[/b]` is text.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, is_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from c2fdft_cli.vocabulary import many

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.progress import Progress
    from rich.segment import Segment

    from c2fdft_cli.progress import Job

Event = TypeVar("Event")
Result = TypeVar("Result")

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_expected: ContextVar[bool] = ContextVar("_expected", default=False)

PLAIN_LINES = 10
"""Lines that a job prints over its length where there is no terminal to draw in."""

TIME = 12
"""Columns of a time in a bar, such as `1:02:03 left`."""

NAME_WIDTH, TEXT_WIDTH, MAX_NUMBER = 24, 12, 20
"""Columns of a screen: what names and other text have at least before they are folded, and the
longest number."""

NARROW = 60
"""Columns below which a bar does without the percentage, which its length shows too."""


def stderr() -> Console:
    """The console for progress and remarks; looked up late, because tests replace the stream."""
    return _console(to_stderr=True)


def stdout() -> Console:
    """The console for results."""
    return _console(to_stderr=False)


def _console(*, to_stderr: bool) -> Console:
    """Breaks lines between words in a terminal, which would break them within; else nowhere."""
    found = _console_class()(stderr=to_stderr, highlight=False, markup=False)
    found.soft_wrap = not found.is_terminal
    return found


@cache
def _console_class() -> type[Console]:
    """Rich's console, whose terminal no name of a file can drive."""
    from rich.console import Console

    class Safe(Console):
        def render(
            self, renderable: RenderableType, options: ConsoleOptions | None = None
        ) -> Iterator[Segment]:
            for one in super().render(renderable, options):
                yield one if one.control else one._replace(text=printable(one.text))

    return Safe


def printable(text: str) -> str:
    r"""Text with its control characters but line ends and tabs written out: \x1b."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def remark(text: str) -> None:
    """A line for people, on stderr."""
    from rich.text import Text

    stderr().print(Text(text))


@contextmanager
def loading(words: str = "loading PyTorch...") -> Iterator[None]:
    """Say what takes seconds before the first progress, where somebody looks at it.

    Nothing is said in pipes, nor where a JSON document is expected.
    """
    if _expected.get() or not sys.stderr.isatty() or os.environ.get("RANK", "0") != "0":
        yield
        return
    dumb = os.environ.get("TERM") in ("dumb", "unknown")  # cannot take a line back
    sys.stderr.write(f"{words}\n" if dumb else words)  # without Rich, which has to be loaded too
    sys.stderr.flush()
    try:
        yield
    finally:
        if not dumb:
            sys.stderr.write(f"\r{' ' * len(words)}\r")
            sys.stderr.flush()


def draw(job: Job[Event, Result], show: Callable[[Event], str | None] | None = None) -> Result:
    """Run a job to its end under a progress bar, or with plain lines where there is no terminal.

    Args:
        job: what to run.
        show: what to say of an event beside the bar, or None to say nothing.
    """
    from rich.text import Text

    console = stderr()
    if console.is_interactive:
        return _draw_bar(job, show, console)
    every = max(1, -(-len(job) // PLAIN_LINES))
    for number, event in enumerate(job, start=1):
        text = (show(event) if show else None) or ""
        if number % every == 0 or number == len(job):
            console.print(Text(f"{job.title}: {number}/{len(job)} {job.unit}s {text}".rstrip()))
    return job.result


def _draw_bar(
    job: Job[Event, Result], show: Callable[[Event], str | None] | None, console: Console
) -> Result:
    with progress_bar(console) as progress:
        task = progress.add_task(job.title, total=len(job), note="")
        done, shown = 0, 0.0

        def within(events: float) -> None:
            nonlocal shown
            # results wait to be written: what is in work may be further than the next event
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
    """What is drawn again and again, two columns narrower than the screen.

    They are for the `^C` that a terminal shows where the cursor stands: behind a full line it would
    open a new one, and what is drawn next would not cover what was drawn before.
    """

    def __init__(self, drawn: RenderableType) -> None:
        self._drawn = drawn

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        yield from console.render(self._drawn, options.update_width(max(1, options.max_width - 2)))


def progress_bar(console: Console) -> Progress:
    """The one look of all progress bars: the bar gives way to the numbers, a note lies below.

    Nothing in the bar's line changes its width while the job runs.
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
        """The time that is left, once it is known; else the time that has passed."""

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
                # at the end the last one would stand before the results, as if it were one
                if task.fields["note"] and not task.finished:
                    note = Text(task.fields["note"], style="dim", no_wrap=True, overflow="ellipsis")
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
    """A time as a clock shows it: 0:07, 12:34, 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def duration(seconds: float) -> str:
    """A time as people say it: 40 seconds, 12 minutes, 3.5 hours, 6.2 days."""
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.{0 if unit == 'minute' else 1}f} {unit}s"
    return many(max(1, round(seconds)), "second")


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on stdout: numbers to the right, text to the left.

    Numbers stay whole: columns of them that do not fit go into further tables.
    """
    from rich.table import Table
    from rich.text import Text

    texts = [[show_number(cell) for cell in row] for row in rows]
    numeric = [
        bool(texts) and all(_is_number(row[i]) for row in texts) for i in range(len(columns))
    ]
    screen = _console_class()(highlight=False, markup=False)
    widths = [max(map(len, column)) for column in zip(columns, *texts, strict=True)]
    # a name may begin with a digit too
    whole = [i > 0 and numeric[i] and widths[i] <= MAX_NUMBER for i in range(len(columns))]
    least = [
        width if whole[i] else min(width, NAME_WIDTH if i == 0 else TEXT_WIDTH)
        for i, width in enumerate(widths)
    ]
    for part in _parts(least, whole, screen.width):
        drawn = Table(
            title=Text(title) if title else None, title_justify="left", title_style="bold"
        )
        for i in part:
            justify: Literal["right", "left"] = "right" if numeric[i] else "left"
            drawn.add_column(Text(columns[i]), justify=justify, no_wrap=whole[i], overflow="fold")
        for row in texts:
            drawn.add_row(*(Text(row[i]) for i in part))
        screen.print(drawn)


def _parts(widths: Sequence[int], whole: Sequence[bool], available: int) -> list[list[int]]:
    """Which columns go into which table; the first one, of names, goes into each."""
    frame = 3  # of a column: a line and a blank on both sides
    parts: list[list[int]] = [[0]]
    for i in range(1, len(widths)):
        taken = 1 + sum(widths[j] + frame for j in [*parts[-1], i])
        if whole[i] and taken > available and len(parts[-1]) > 1:
            parts.append([0])
        parts[-1].append(i)
    return parts


def show_number(value: object) -> str:
    """A number as people read it; a dash for nothing."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_number(text: str) -> bool:
    return bool(text) and (text in {"-", "inf"} or text[0].isdigit() or text[0] in "+-")


def expect(*, document: bool) -> None:
    """Begin a command: whether one JSON document must come out of it, as with --json."""
    _expected.set(document)


def emit(document: Any) -> None:
    """One JSON document on stdout."""
    _expected.set(False)
    sys.stdout.write(json.dumps(document, indent=1, default=_plain, allow_nan=False) + "\n")


def emit_error(code: int, message: str, hint: str | None) -> None:
    """An error in place of the JSON document that is still expected; of several processes' one."""
    if _expected.get() and os.environ.get("RANK", "0") == "0":
        emit({"error": {"code": code, "message": message, "hint": hint}})


def _plain(value: object) -> Any:
    if isinstance(value, Path):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"no JSON for {type(value).__name__}")


def command(*words: object) -> str:
    """A command line of `word_of`s that can be pasted into a shell."""
    return shlex.join(["c2fdft", *map(word_of, words)])


def word_of(word: object) -> str:
    """A word of a command line; a path in it is never taken for an option."""
    text = str(word)
    return f"./{text}" if isinstance(word, Path) and text.startswith("-") else text


def say_next(line: str) -> None:
    """Tell people what to run next."""
    from rich.text import Text

    stdout().print(Text.assemble(("next: ", "bold"), line), soft_wrap=True)  # to be pasted


def megabytes(count: int) -> str:
    """Bytes as people read them."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
