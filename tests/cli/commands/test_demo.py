"""`c2fdft demo`: its output and its end, with its commands replaced by ones that do nothing."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from c2fdft_cli.cli import console
from c2fdft_cli.cli.commands import demo as module
from c2fdft_cli.cli.commands.demo import demo
from c2fdft_cli.engine.tools import demo as pictures
from c2fdft_cli.errors import DataError, PartialFailure, RecipeError, UsageError
from c2fdft_cli.signals import exit_code
from tests.kit.command import run
from tests.kit.processes import start

ROW = {"name": "chelsea", "psnr": 30.0, "ssim": 0.9}
SCORES = {"protocol": "derain", "mean": {"psnr": 30.0, "ssim": 0.9}, "images": [ROW]}
WORSE = {
    "protocol": "derain",
    "mean": {"psnr": 25.0, "ssim": 0.8},
    "images": [{**ROW, "psnr": 25.0, "ssim": 0.8}],
}
"""The scores of the degraded images."""


class Command:
    """Takes the place of a command: prints a line, or the document of `eval`."""

    called: list[list[str]]
    error: Exception | None = None

    def __init__(self, name: str) -> None:
        self.name = name

    def make_context(self, prog_name: str, words: list[str]) -> AbstractContextManager[list[str]]:
        assert prog_name == f"c2fdft {self.name}"
        return nullcontext(words)

    def invoke(self, words: list[str]) -> None:
        self.called.append([self.name, *words])
        if self.name == "eval":
            console.emit(SCORES if words[0].endswith("restored") else WORSE)
            if self.error is not None:
                raise self.error
        else:
            console.stdout().print(f"{self.name} is done")


@pytest.fixture(autouse=True)
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Replace the commands; return the list of those that have run, with their arguments."""
    called: list[list[str]] = []
    monkeypatch.setattr(Command, "called", called, raising=False)
    monkeypatch.setattr(module, "load_command", Command)
    for name in ("make_pairs", "comparison"):
        monkeypatch.setattr(pictures, name, lambda *_: None)
    return called


def test_one_document_on_standard_output(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    demo(None, tmp_path / "demo", json=True)
    said = capfd.readouterr()
    document = json.loads(said.out)
    assert (document["degraded"], document["restored"]) == (WORSE, SCORES)
    assert "prepare is done\n" in said.err


@pytest.mark.parametrize("word", ["photos", "coarse.rate=1"])
def test_a_wrong_override_is_refused_before_anything_is_written(tmp_path: Path, word: str) -> None:
    with pytest.raises(RecipeError, match=word.partition("=")[0]):
        demo([word], tmp_path / "demo")
    assert list(tmp_path.iterdir()) == []


def test_results_on_standard_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shown: list[list[Path]] = []
    monkeypatch.setattr(pictures, "comparison", lambda folders, *_: shown.append(folders))
    demo(None, tmp_path / "demo")
    said = capfd.readouterr()
    assert "prepare is done\n" in said.out
    assert "images not used for training" in said.out
    row = next(line for line in said.out.splitlines() if "chelsea" in line)
    assert [float(cell) for cell in row.split("\u2502")[2:-1]] == [25, 30, 0.8, 0.9]
    assert [[path.name for path in folders] for folders in shown] == [
        ["rainy", "restored", "clean"]
    ]
    weights = tmp_path / "demo" / "fine" / "fine.pt"
    following = f"next: c2fdft restore PHOTO.jpg RESTORED.png --weights {weights}\n"
    assert said.out.endswith(following)
    assert "too few iterations" not in said.err
    monkeypatch.setitem(globals(), "SCORES", WORSE)
    demo(None, tmp_path / "again")
    assert "too few iterations" in capfd.readouterr().err


def test_overrides_are_for_both_trainings(commands: list[list[str]], tmp_path: Path) -> None:
    demo(["train.seed=3"], tmp_path / "demo")
    changed = [words[0] for words in commands if "train.seed=3" in words]
    assert changed == ["train-coarse", "train-fine"]


def test_the_commands_shown_are_those_that_run(
    commands: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "20")  # a terminal in which a command does not fit into a line
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


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_an_error_of_a_command_is_the_only_one(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after `eval` has emitted its document, which is not that of the demo."""
    error = PartialFailure("2 images could not be scored", hint="see the list")
    monkeypatch.setattr(Command, "error", error)
    ended = run("demo", "--out", tmp_path / "demo", *words)
    assert ended.exit_code == 6
    lines = ["error: 2 images could not be scored", "hint: see the list"]
    assert ended.stderr.splitlines()[-2:] == lines
    if words:
        assert json.loads(ended.stdout)["error"]["code"] == 6
    else:
        assert "images" not in ended.stdout


def test_settings_of_a_command_are_undone_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as the memory that a training on a CPU keeps for its next step."""
    from c2fdft_cli.execution.surroundings import change_until_return

    state: list[str] = []

    def invoke(self: Command, words: list[str]) -> None:
        state.append(self.name)
        change_until_return(lambda: None, lambda: state.append("undone"))
        if self.name == "train-fine":
            raise DataError("no")

    monkeypatch.setattr(Command, "invoke", invoke)
    with pytest.raises(DataError):
        demo(None, tmp_path / "demo")
    names = ("prepare", "train-coarse", "sweep-steps", "train-fine")
    assert state == [one for name in names for one in (name, "undone")]


DEMO = """
import contextlib, sys, time, types
from c2fdft_cli.signals import graceful_stop, install
install()
from c2fdft_cli.cli.app import app
from c2fdft_cli.cli.commands import demo
from c2fdft_cli.errors import Interrupted
import c2fdft_cli.execution.surroundings
pictures = types.ModuleType("demo")
pictures.HELD_OUT, pictures.make_pairs, pictures.comparison = (), lambda _: None, lambda *_: None
sys.modules["c2fdft_cli.engine.tools.demo"] = pictures

def saving():
    with graceful_stop() as stop:
        while not stop: time.sleep(0.01)
        open("saved", "w").close()
        raise Interrupted("state saved", signal_number=stop.signal_number, hint="resume with ...")

def unwinding():
    try:
        while True: time.sleep(0.01)
    finally:
        open("saved", "w").close()

def too_late():
    with graceful_stop() as stop:
        while not stop: time.sleep(0.01)
    open("saved", "w").close()

class Command:
    make_context = staticmethod(lambda name, words: contextlib.nullcontext())
    def __init__(self, name):
        assert name == "prepare", name
    def invoke(self, _):
        open("started", "w").close()
        HOW()

demo.load_command = Command
app(["demo", "--json"])
"""
"""A demo whose first command runs until a signal, and ends in one of three ways."""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="only its terminals send signals")
@pytest.mark.parametrize(
    ("how", "number"),
    [
        ("saving", signal.SIGINT),
        pytest.param("saving", signal.SIGTERM, marks=pytest.mark.acceptance),
        pytest.param("unwinding", signal.SIGTERM, marks=pytest.mark.acceptance),
        pytest.param("unwinding", signal.SIGHUP, marks=pytest.mark.acceptance),
        pytest.param("too_late", signal.SIGINT, marks=pytest.mark.acceptance),
    ],
)
def test_a_signal_stops_the_demo_in_its_command(
    how: str, number: signal.Signals, tmp_path: Path
) -> None:
    pipe = subprocess.PIPE
    running = start("-c", DEMO.replace("HOW", how), cwd=tmp_path, stdout=pipe, stderr=pipe)
    end = time.monotonic() + 300  # it imports torch
    while not (tmp_path / "started").exists() and time.monotonic() < end:
        time.sleep(0.01)
    running.send_signal(number)
    out, said = running.communicate(timeout=300)
    assert running.returncode == exit_code(number), said
    assert (tmp_path / "saved").exists()
    message = json.loads(out)["error"]["message"]
    if how == "saving":
        assert message == "the demo was stopped in prepare"
    assert said.splitlines()[-2:] == [f"error: {message}", f"hint: {module._AGAIN}"]
    assert said.count("error: ") == 1
