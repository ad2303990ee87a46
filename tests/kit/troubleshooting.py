"""Update the errors in docs/troubleshooting.md (`tests.kit.pages`).

The commands of each block `$ c2fdft ...` are run in a folder made here, and the error that the last
one prints replaces the one below it in the page; a test compares the page with the result.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from c2fdft_cli.core.network import DFT
from c2fdft_cli.data.images.picture import save_rgb8
from c2fdft_cli.engine.prepare.job import prepare
from c2fdft_cli.engine.prepare.options import PrepareOptions
from tests.kit.command import run
from tests.kit.formula import fill, picture
from tests.kit.restore import write_checkpoint

FILE = Path(__file__).parents[2] / "docs" / "troubleshooting.md"
SHOWN = 3
"""How many details of an error the page shows."""
BLOCK = re.compile(r"^```text\n((?:\$ c2fdft [^\n]*\n)+)(.*?)^```", re.DOTALL | re.MULTILINE)


def reference() -> str:
    """Return the page with the current output in each block."""
    page = FILE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder, _inside(Path(folder)):
        _make_files()
        return BLOCK.sub(_executed_block, page)


def _executed_block(found: re.Match[str]) -> str:
    """Run all commands of a block; the last must fail, and the others must succeed."""
    *first, last = found[1].splitlines()
    for line in first:
        done = run(*shlex.split(line)[2:])
        assert done.exit_code == 0, f"{line}\n{done.output}"
    done = run(*shlex.split(last)[2:])
    assert done.exit_code not in (0, 1), f"{last}\n{done.output}"
    start = done.stderr.index("error: ")
    lines = [line.rstrip() for line in done.stderr[start:].splitlines()]
    details = [line for line in lines if line.startswith("  ")]
    if len(details) > SHOWN:
        first = lines.index(details[SHOWN])
        lines[first : first + len(details) - SHOWN] = ["  ..."]
    return f"```text\n{found[1]}" + "\n".join(lines) + "\n```"


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Work in a folder, and let torch report that there is no GPU."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        with mock.patch.object(torch.cuda, "is_available", return_value=False):
            yield
    finally:
        os.chdir(before)


def _make_files() -> None:
    """Write photos (one damaged), pairs (some of unequal size), shards, weights, a run folder."""
    for number in range(2):
        _save(f"photos/{number}.png", picture(32, 40, number))
        _save(f"mixed/{number}.png", picture(32, 40, number))
        _save(f"lists/lq/{number}.png", picture(32, 40, number))
        _save(f"lists/gt/{number}.png", picture(32, 40 + 8 * number, number))
        _save(f"set/lq/{number}.png", picture(32, 40, number))
        _save(f"set/gt/{number}.png", picture(32, 40, number + 9))
        _save(f"tiny/{number}.png", picture(8, 8, number))
    Path("mixed/damaged.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    _save("large.png", np.zeros((2000, 3000, 3), np.uint8))
    Path("notes.pt").write_text("these are no weights")
    write_checkpoint(Path("mine.pt"), fill(DFT(dim=8, blocks=(1, 1, 1, 1))), grid=[500])
    prepare(PrepareOptions(source=Path("set"), out=Path("shards/set"), val=1)).run()
    Path("runs/old").mkdir(parents=True)
    Path("runs/old/recipe.yaml").write_text("task: derain\n")


def _save(name: str, pixels: np.ndarray) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    save_rgb8(name, pixels)
