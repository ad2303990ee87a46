"""Arguments that a Python program gives in several forms."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from c2fdft_cli.errors import UsageError


def name_or_path(value: str | Path) -> str:
    """A text as it is, which may be a name; a Path as what is taken for none."""
    return value if isinstance(value, str) else os.path.join(os.curdir, value)


def texts(name: str, value: object) -> list[str]:
    """One text or path, or several, as a list of texts.

    Raises:
        UsageError: one is neither: a number, say, or bytes, which are a sequence too.
    """
    several = [value] if isinstance(value, str | Path | bytes) else value
    found = []
    for one in several if isinstance(several, Iterable) else [value]:
        if not isinstance(one, str | Path):
            raise UsageError(f"{name} must be a text or a Path, or several, got {one!r}")
        found.append(os.fspath(one))
    return found
