"""Commands in processes of their own, each with one thread."""

from __future__ import annotations

import subprocess
import sys


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
