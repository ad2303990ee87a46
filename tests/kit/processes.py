"""Run Python programs in separate processes."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from c2fdft_cli.signals import STOP_SIGNALS


def python(
    *words: object, timeout: float = 240, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run this Python with arguments, to its end."""
    return subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True, text=True, check=False, timeout=timeout, cwd=cwd,
    )  # fmt: skip


def torchrun(*words: object) -> subprocess.CompletedProcess[str]:
    """Run a script or `-m module` in two processes of torchrun."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    return python(*launcher, *words)


def start(*words: object, **streams: Any) -> subprocess.Popen[str]:
    """Start this Python with default signal handlers, as a shell does: pytest may ignore some."""
    command = [sys.executable, *map(str, words)]
    # preexec_fn is safe: the tests that start programs have no threads
    return subprocess.Popen(command, text=True, preexec_fn=_default_signals, **streams)  # noqa: PLW1509


def wait_for_handlers(process: subprocess.Popen[str]) -> None:
    """Return once a started program handles SIGHUP, for which Python itself sets no handler.

    Without /proc the function waits one second.
    """
    status = Path(f"/proc/{process.pid}/status")
    if not status.exists():
        time.sleep(1.0)
        return
    end = time.monotonic() + 60
    while time.monotonic() < end:
        caught = re.search(r"^SigCgt:\s*([0-9a-f]+)$", status.read_text(), re.MULTILINE)
        if caught is not None and int(caught[1], 16) >> (signal.SIGHUP - 1) & 1:
            return
        time.sleep(0.005)
    raise AssertionError("the program handles no SIGHUP after a minute")


def _default_signals() -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
