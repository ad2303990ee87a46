"""How values are written: numbers, sizes and choices in sentences, commands, and JSON."""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any

_SHOWN = 20


def many(count: int, noun: str) -> str:
    """Return a number with its noun in singular or plural: 1 image, 2 images."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def first_of(lines: Sequence[str]) -> list[str]:
    """Return what a command prints of a list that --json contains: 20 lines, and what is left."""
    if len(lines) <= _SHOWN + 1:  # instead of a single one, its number would be shown
        return list(lines)
    return [*lines[:_SHOWN], f"and {len(lines) - _SHOWN:,} more (with --json all are listed)"]


def binary_size(count: int) -> str:
    """Return a number of bytes in KiB, MiB or GiB."""
    if count >= 2**30:
        return f"{count / 2**30:.2f} GiB"
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"


def one_of(choices: Sequence[str]) -> str:
    """Return choices as words in a sentence: "a", "a or b", "a, b or c"."""
    return " or ".join(filter(None, (", ".join(choices[:-1]), choices[-1])))


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """Return "did you mean ...?" with the known word nearest to `word`; None if none is near."""
    close = difflib.get_close_matches(word.lower(), list(known), n=1)
    return f"did you mean {close[0]}?" if close else None


def for_shell(*words: str) -> str:
    """Join words with quotes where a shell needs them, so that they can be pasted into it."""
    if sys.platform == "win32":
        # cmd.exe does not know single quotes, and a backslash is an ordinary character.
        from subprocess import list2cmdline as join
    else:
        from shlex import join
    return join(words)


def finite_or_none(value: Any) -> Any:
    """Replace numbers that are not finite, also in dictionaries and lists, by None, for JSON."""
    if isinstance(value, dict):
        return {key: finite_or_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = map(finite_or_none, value)
        return list(items) if isinstance(value, list) else tuple(items)
    return None if isinstance(value, float) and not math.isfinite(value) else value
