"""Speaking to people and to scripts: results on stdout, progress and remarks on stderr.

Rich is imported where it draws: every command imports this module, and most of a command's help is
there before anything is drawn. No console reads markup: a path such as `[/b]` is text.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from c2fdft_cli.progress import Job

Event = TypeVar("Event")
Result = TypeVar("Result")

_expected: ContextVar[bool] = ContextVar("_expected", default=False)

PLAIN_LINES = 10
"""Lines that a job prints over its length where there is no terminal to draw in."""


def stderr() -> Console:
    """The console for progress and remarks; looked up late, because tests replace the stream."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True, markup=False)


def stdout() -> Console:
    """The console for results."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True, markup=False)


def remark(text: str) -> None:
    """A line for people, on stderr."""
    from rich.text import Text

    stderr().print(Text(text))


@contextmanager
def loading() -> Iterator[None]:
    """Say that the libraries are being loaded, which takes seconds, where somebody looks at it.

    Nothing is said in pipes and plain terminals, nor where a JSON document is expected.
    """
    plain = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    if plain or _expected.get() or not sys.stderr.isatty() or os.environ.get("RANK", "0") != "0":
        yield
        return
    words = "loading PyTorch..."  # without Rich, which has to be loaded too
    sys.stderr.write(words)
    sys.stderr.flush()
    try:
        yield
    finally:
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
    if console.is_terminal:
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


def progress_bar(console: Console) -> Progress:
    """The one look of all progress bars."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
    )


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on stdout: numbers to the right, text to the left."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    texts = [[show_number(cell) for cell in row] for row in rows]
    drawn = Table(title=Text(title) if title else None, title_justify="left", title_style="bold")
    for i, name in enumerate(columns):
        numeric = bool(texts) and all(_is_number(row[i]) for row in texts)
        drawn.add_column(Text(name), justify="right" if numeric else "left", overflow="fold")
    for row in texts:
        drawn.add_row(*(Text(cell) for cell in row))
    Console(highlight=False, markup=False).print(drawn)


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
    """A command line that can be pasted into a shell."""
    return shlex.join(["c2fdft", *(str(word) for word in words)])


def say_next(line: str) -> None:
    """Tell people what to run next."""
    from rich.text import Text

    stdout().print(Text.assemble(("next: ", "bold"), line))


def megabytes(count: int) -> str:
    """Bytes as people read them."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
