"""What jobs look like in a terminal and without one."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from rich.console import Console

from c2fdft_cli.cli import console
from c2fdft_cli.progress import Job, Meter


def work(meter: Meter) -> Generator[int, None, str]:
    for number in (1, 2):
        meter.tell(0.2)
        meter.tell(0.6)
        yield number
    return "done"


def job() -> Job[int, str]:
    meter = Meter()
    return Job(work(meter), total=2, title="count", unit="number", meter=meter)


def test_the_bar_moves_within_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[float] = []
    screen = io.StringIO()
    monkeypatch.setattr(
        console, "stderr", lambda: Console(file=screen, force_terminal=True, width=100)
    )
    made = console.progress_bar

    def watched(to: Console) -> object:
        bar = made(to)
        update = bar.update

        def noted(task: object, **changes: object) -> None:
            moves.append(changes.get("completed"))  # type: ignore[arg-type]
            update(task, **changes)  # type: ignore[arg-type]

        monkeypatch.setattr(bar, "update", noted)
        return bar

    monkeypatch.setattr(console, "progress_bar", watched)
    assert console.draw(job()) == "done"
    assert moves == pytest.approx([0.2, 0.6, 1.0, 1.2, 1.6, 2.0])
    assert re.search(r"count.*2/2.*100%", screen.getvalue())


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, True),
        ({"NO_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
        ({"RANK": "1"}, False),
        ({"json": "yes"}, False),
        ({"pipe": "yes"}, False),
    ],
)
def test_loading_is_said_to_people(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, str], said: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in {"TERM": "xterm", **change}.items():
        monkeypatch.setenv(name, value)
    screen = io.StringIO() if "pipe" in change else Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    console.expect(document="json" in change)
    with console.loading():
        pass
    console.expect(document=False)
    assert ("loading PyTorch" in screen.getvalue()) == said
    assert not screen.getvalue().split("\r")[-1]  # nothing stays
    assert said or screen.getvalue() == ""


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals")
def test_a_command_says_at_once_that_it_loads(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_text("nothing")
    terminal, end = os.openpty()
    environment = {**os.environ, "TERM": "xterm"}
    environment.pop("NO_COLOR", None)
    words = [sys.executable, "-m", "c2fdft_cli", "info", str(tmp_path / "a.pt")]
    with subprocess.Popen(words, stdout=end, stderr=end, env=environment) as process:
        os.close(end)
        said = b""
        while (found := _read(terminal)) != b"":
            said += found
    os.close(terminal)
    assert process.returncode == 4
    assert said.index(b"loading PyTorch") < said.index(b"error: ")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # how a terminal ends on Linux
        return b""


def test_without_a_terminal_there_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.draw(job(), lambda number: f"saw {number}") == "done"
    streams = capsys.readouterr()
    assert streams.err == "count: 1/2 numbers saw 1\ncount: 2/2 numbers saw 2\n"
    assert streams.out == ""


HOSTILE = "[/b] [link=x] [red]a.png"


def test_no_name_is_read_as_markup(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """In a bar's title and note, a line, a table's title, column and cell."""
    screen = io.StringIO()
    with monkeypatch.context() as patch:
        made = console.stderr
        patch.setattr("sys.stderr", screen)
        patch.setenv("FORCE_COLOR", "1")
        patch.setenv("COLUMNS", "120")
        assert made().is_terminal
        bar = Job(work(Meter()), total=2, title=HOSTILE, unit="number")
        console.draw(bar, lambda number: HOSTILE)
        console.stderr().print(HOSTILE)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert plain.count(HOSTILE) >= 3
    console.table(HOSTILE, (HOSTILE,), [(HOSTILE,)])
    console.say_next(HOSTILE)
    console.stdout().print(HOSTILE)
    assert capsys.readouterr().out.count("[/b]") == 5
