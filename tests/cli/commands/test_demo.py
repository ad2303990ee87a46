"""`c2fdft demo`: its output and its end, with its commands replaced by ones that do nothing."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from c2fdft_cli.cli.commands import demo as module
from c2fdft_cli.cli.commands.demo import demo
from c2fdft_cli.engine.tools import demo as pictures
from c2fdft_cli.errors import Interrupted, RecipeError, UsageError
from c2fdft_cli.signals import REPEATED_SECONDS, StopRequest, exit_code
from tests.kit.processes import start

ROW = {"name": "chelsea", "psnr": 30.0, "ssim": 0.9}
SCORES = {"protocol": "derain", "mean": {"psnr": 30.0, "ssim": 0.9}, "images": [ROW]}


@pytest.fixture(autouse=True)
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Replace each command by one that prints a line to its stdout, and `eval` by its document."""
    called: list[list[str]] = []

    def finish(line: Sequence[str], stdout: int | None, _: StopRequest) -> tuple[int, bytes]:
        called.append(list(line[3:]))
        said = json.dumps(SCORES) if "eval" in line else f"{line[3]} is done\n"
        if stdout != subprocess.PIPE:
            os.write(1 if stdout is None else stdout, said.encode())
        return 0, said.encode()

    monkeypatch.setattr(module, "_finish", finish)
    for name in ("make_pairs", "comparison"):
        monkeypatch.setattr(pictures, name, lambda *_: None)
    return called


def test_one_document_on_standard_output(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    demo(None, tmp_path / "demo", json=True)
    said = capfd.readouterr()
    assert json.loads(said.out)["restored"] == SCORES
    assert "prepare is done\n" in said.err


@pytest.mark.parametrize("word", ["photos", "coarse.rate=1"])
def test_a_wrong_override_is_refused_before_anything_is_written(tmp_path: Path, word: str) -> None:
    with pytest.raises(RecipeError, match=word.partition("=")[0]):
        demo([word], tmp_path / "demo")
    assert list(tmp_path.iterdir()) == []


def test_results_on_standard_output(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    demo(None, tmp_path / "demo")
    said = capfd.readouterr()
    assert "prepare is done\n" in said.out
    assert "images not used for training" in said.out


def test_the_commands_shown_are_those_that_run(
    commands: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    demo(None, Path("-x"))
    shown = [line for line in capfd.readouterr().err.splitlines() if line.startswith("$ ")]
    assert [shlex.split(line)[2:] for line in shown] == commands
    assert commands[0] == ["prepare", "./-x/pairs", "--out", "./-x/shards"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file: the output must be a folder, but this is a file"):
        demo(None, tmp_path / "file")
    (tmp_path / "full" / "a").mkdir(parents=True)
    with pytest.raises(UsageError, match="full: the folder is not empty"):
        demo(None, tmp_path / "full")


def test_a_name_that_a_link_takes_is_not_free(
    commands: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c2fdft-demo").symlink_to("nowhere")
    demo(None)
    assert commands[0][:2] == ["prepare", "c2fdft-demo-2/pairs"]


@pytest.mark.parametrize("code", [130, 143])
def test_a_command_that_was_stopped_stops_the_demo(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_finish", lambda *_: (code, b""))
    with pytest.raises(Interrupted, match="the demo was stopped in prepare") as caught:
        demo(None, tmp_path / "demo")
    assert (caught.value.exit_code, caught.value.reported) == (code, True)


def test_a_signal_that_comes_too_late_for_a_command_stops_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finish(_: Sequence[str], __: int | None, stop: StopRequest) -> tuple[int, bytes]:
        stop.signal_number = signal.SIGTERM
        return 0, b""

    monkeypatch.setattr(module, "_finish", finish)
    with pytest.raises(Interrupted, match="the demo was stopped before train-coarse") as caught:
        demo(None, tmp_path / "demo")
    assert (caught.value.exit_code, caught.value.reported) == (143, False)


COMMAND = f"""#!{sys.executable}
import signal, sys, time
got = []
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, _: got.append(number))
open("started", "w").close()
end = time.monotonic() + 60
while len(got) < WANTED and time.monotonic() < end:
    time.sleep(0.01)
time.sleep(0.3)  # saves; the same signal may arrive once more
open("saved", "w").close()
sys.stderr.write("error: stopped, state saved\\n")
sys.exit(130 if got[0] == signal.SIGINT else 143)
"""
"""Stands for a command: saves its state after WANTED signals and ends."""
DEMO = """
import sys, types
from c2fdft_cli.signals import install
install()
from c2fdft_cli.cli.app import app
pictures = types.ModuleType("demo")
pictures.HELD_OUT, pictures.make_pairs, pictures.comparison = (), lambda _: None, lambda *_: None
sys.modules["c2fdft_cli.engine.tools.demo"] = pictures
sys.executable = "./command"
app(["demo", "--json"])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="only its terminals send signals")
@pytest.mark.parametrize(
    ("number", "sent_to_all", "times"),
    [
        (signal.SIGTERM, False, 1),
        pytest.param(signal.SIGHUP, False, 1, marks=pytest.mark.acceptance),
        pytest.param(signal.SIGINT, False, 1, marks=pytest.mark.acceptance),
        (signal.SIGINT, True, 1),  # as from a terminal
        (signal.SIGINT, False, 2),
    ],
)
def test_a_stopped_demo_ends_after_its_command(
    number: signal.Signals, sent_to_all: bool, times: int, tmp_path: Path
) -> None:
    (tmp_path / "command").write_text(COMMAND.replace("WANTED", str(times)))
    (tmp_path / "command").chmod(0o755)
    pipe = subprocess.PIPE
    running = start("-c", DEMO, cwd=tmp_path, stdout=pipe, stderr=pipe, start_new_session=True)
    end = time.monotonic() + 60
    while not (tmp_path / "started").exists() and time.monotonic() < end:
        time.sleep(0.01)
    for _ in range(times):
        (os.killpg if sent_to_all else os.kill)(running.pid, number)
        time.sleep((REPEATED_SECONDS + 0.2) * (times > 1))
    assert running.wait(30) == exit_code(number)
    assert (tmp_path / "saved").exists()
    out, said = running.communicate()
    assert json.loads(out)["error"]["message"] == "the demo was stopped in prepare"
    assert said.count("error: ") == 1
    assert said.splitlines()[-3:] == [
        "error: stopped, state saved",
        "the demo was stopped in prepare",
        f"hint: {module._AGAIN}",
    ]
