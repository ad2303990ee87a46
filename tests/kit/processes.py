"""Commands in processes of their own, each with one thread."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

from c2fdft_cli.signals import STOP_SIGNALS


def python(*words: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run this Python with some words, to its end."""
    return subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True, text=True, check=False, timeout=timeout,
    )  # fmt: skip


def torchrun(*words: object) -> subprocess.CompletedProcess[str]:
    """Run a script or `-m module` in two processes that find each other."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    return python(*launcher, *words)


def start(*words: object, **streams: Any) -> subprocess.Popen[str]:
    """Start this Python as a shell would, with all signals as usual: pytest may run under nohup."""
    command = [sys.executable, *map(str, words)]
    # the tests that start programs have no threads of their own
    return subprocess.Popen(command, text=True, preexec_fn=_default_signals, **streams)  # noqa: PLW1509


def _default_signals() -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
