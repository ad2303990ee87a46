"""Run commands in a terminal of a given width."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def in_terminal(
    *words: object,
    columns: int = 80,
    cwd: Path | None = None,
    raw: bool = False,
    **environment: str,
) -> tuple[int, str]:
    """Run a command whose stdout and stderr are a terminal.

    Returns:
        The exit code, and the output; without colours and cursor movements unless `raw`.
    """
    terminal, end = open_terminal(columns)
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "FORCE_COLOR")}
    said = b""
    with subprocess.Popen(
        [sys.executable, "-m", "c2fdft_cli", *map(str, words)],
        stdin=subprocess.DEVNULL, stdout=end, stderr=end, cwd=cwd,
        env={**kept, "TERM": "xterm", **environment},
    ) as process:  # fmt: skip
        os.close(end)
        while (found := _read(terminal)) != b"":
            said += found
    os.close(terminal)
    text = said.decode().replace("\r\n", "\n")
    return process.returncode, text if raw else _CONTROL.sub("", text)


def open_terminal(columns: int) -> tuple[int, int]:
    """Return both ends of a terminal of 60 rows; skip the test where there are none (Windows)."""
    fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")
    terminal, end = os.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 60, columns, 0, 0))
    return terminal, end


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # Linux reports the end of a terminal as an error
        return b""
