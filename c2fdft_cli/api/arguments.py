"""Arguments that a Python program may pass in several types."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path
from typing import Any

from c2fdft_cli.errors import UsageError
from c2fdft_cli.files.paths import checked_path
from c2fdft_cli.settings import shown


def name_or_path(value: str | Path) -> str:
    """Return a string as it is, as it may be a name; a Path in a form that is never a name."""
    return value if isinstance(value, str) else os.path.join(os.curdir, value)


def check_callable(name: str, value: object) -> None:
    """Raise UsageError unless a value can be called, or is None."""
    if value is not None and not callable(value):
        raise UsageError(f"{name} must be a function, got {shown(value)}")


def counted(progress: Callable[[int, int], object] | None, total: int) -> Callable[[object], None]:
    """Return a function that calls `progress` with the number of its calls so far, and `total`."""
    done = count(1)

    def on_event(_: object) -> None:
        if progress is not None:
            progress(next(done), total)

    return on_event


def as_tuple(name: str, value: object, example: str) -> tuple[Any, ...]:
    """Return a sequence as a tuple; UsageError, which shows an example, if it is none."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise UsageError(f"{name} must be {example}, got {shown(value)}")
    return tuple(value)


def given_path(name: str, value: str | Path) -> Path:
    """Return a path; UsageError if it is empty or no file can have this name."""
    return Path(checked_path(name, value))


def texts(name: str, value: object) -> list[str]:
    """Return one string or path, or several, as a list of strings.

    Raises:
        UsageError: an item is neither, such as a number; or the value is bytes or an open file,
            which can be iterated over too.
    """
    is_one = isinstance(value, str | Path | bytes) or hasattr(value, "read")
    several = [value] if is_one else value
    found = []
    for one in several if isinstance(several, Iterable) else [value]:
        if not isinstance(one, str | Path):
            raise UsageError(f"{name} must be a text or a Path, or several, got {shown(one)}")
        # Only the text "-" stands for standard input.
        found.append(name_or_path(one) if one == Path("-") else os.fspath(one))
    return found
