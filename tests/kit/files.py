"""What tests of files and folders share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn


def names(folder: Path) -> list[str]:
    """Return the names of what a folder contains, sorted."""
    return sorted(path.name for path in folder.iterdir())


def failing(code: int, filename: str | None = None) -> Callable[..., NoReturn]:
    """Return a function that raises the OSError of a code, whatever it is called with."""

    def fail(*_args: Any, **_kwargs: Any) -> NoReturn:
        raise OSError(code, os.strerror(code), filename)

    return fail
