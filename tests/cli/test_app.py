"""The command line as a user sees it: help, one-line errors, exit codes, JSON."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from c2fdft_cli.cli import command_list
from c2fdft_cli.cli.app import app
from c2fdft_cli.cli.commands import start
from c2fdft_cli.data.images.picture import save_rgb8
from c2fdft_cli.engine.weights.build import make_network
from c2fdft_cli.engine.weights.checkpoint import Meta, save_checkpoint
from c2fdft_cli.errors import DataError
from c2fdft_cli.execution import device
from c2fdft_cli.files.writing import atomic_path
from c2fdft_cli.recipe.schema import Network
from c2fdft_cli.signals import SignalReceived
from tests.kit.command import refused, run
from tests.kit.formula import picture
from tests.kit.processes import python
from tests.kit.training import MINI

COMMANDS = tuple(entry.name for entry in command_list.COMMANDS)
PIPELINE = ("prepare", "train-coarse", "sweep-steps", "train-fine", "restore", "eval")


@pytest.fixture
def pairs(tmp_path):
    for kind in ("input", "target"):
        (tmp_path / "set" / kind).mkdir(parents=True)
        for number in range(4):
            save_rgb8(tmp_path / "set" / kind / f"{number}.png", picture(24, 32, number))
    return tmp_path / "set"


@pytest.fixture
def text_named_png(tmp_path):
    path = tmp_path / "photo.png"
    path.write_text("I am text")
    return path


def test_every_command_is_listed_and_has_help():
    top = run("--help")
    assert top.exit_code == 0
    for command in COMMANDS:
        assert command in top.stdout
        answer = run(command, "--help")
        assert answer.exit_code == 0
        assert "Usage: c2fdft " + command in answer.stdout


@pytest.mark.parametrize("words", [["restore"], ["recipes", "copy"], []])
def test_the_help_command_prints_the_help(words):
    answer = run("help", *words)
    assert answer.exit_code == 0
    assert answer.stdout == run(*words, "--help").stdout
    assert " ".join(["Usage: c2fdft", *words]) in answer.stdout


def test_help_of_an_unknown_command_is_an_error():
    refused("help", "restor", code=2, says="No such command 'restor'")
    assert "hint: did you mean c2fdft restore?" in run("help", "restor").stderr
    # `c2fdft test` may mean `c2fdft eval`, but a group has no such command
    assert "\nhint: see `c2fdft weights --help`\n" in run("weights", "test").stderr


@pytest.mark.parametrize("user", ["~", "~root"])
def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch, pairs, user):
    monkeypatch.chdir(tmp_path)
    home = re.compile(rf"{user}(?=/|$)")  # as the function requires
    monkeypatch.setattr(
        os.path,
        "expanduser",
        lambda word: f"{pairs}{word[len(user) :]}" if home.match(word) else word,
    )
    words = [f"{user}/input", f"--out={user}/shards", f"--pairs={user}/none.csv"]
    refused("prepare", *words, code=3, says=f"{pairs}/none.csv: no such file")
    assert run("prepare", f"{user}/", f"--out={user}/shards").exit_code == 0
    assert (pairs / "shards" / "train-00000.h5").is_file()
    assert not (tmp_path / user).exists()
    refused(
        "train-coarse", "--recipe", "tiny", f"data.shards={user}/none", code=3, says=f"{pairs}/n"
    )
    refused("restore", f"@{user}/list.txt", "out", code=3, says=f"{pairs}/list.txt")


def test_a_tilde_within_an_argument_is_literal(tmp_path):
    refused("info", tmp_path / "~", code=3, says=f"{tmp_path}/~: no such")
    refused("info", "./~", code=3, says="~: no such")


def test_the_readme_names_every_command():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    for command in COMMANDS:
        assert f"`{command}" in readme or f"c2fdft {command}" in readme, command


def test_the_version_is_printed():
    assert run("--version").stdout.startswith("c2fdft ")
    assert run("version").stdout == run("--version").stdout
    assert f"c2fdft {json.loads(run('version', '--json').stdout)['version']}\n" == (
        run("--version").stdout
    )


@pytest.mark.parametrize("found", [0, 2, 5])
def test_the_program_without_arguments_shows_the_pipeline_on_one_screen(
    tmp_path, monkeypatch, found
):
    monkeypatch.chdir(tmp_path)
    for number in range(found):
        for path in (f"shards/set{number}/train-0.h5", f"runs/derain-{number}/fine.pt"):
            Path(path).parent.mkdir(parents=True)
            Path(path).touch()
            for one in (path, Path(path).parent):
                os.utime(one, (number, number))
    result = run()
    assert result.exit_code == 0
    newest = [f"  shards/set{number}" for number in range(found)][:-3:-1]
    assert [line for line in result.stdout.splitlines() if line.startswith("  shards/")] == newest
    lines = result.stdout.splitlines()
    assert len(lines) <= 23  # 24 lines with the prompt
    assert max(map(len, lines)) <= 80
    steps = [line.split()[1] for line in lines if line.startswith("  c2fdft")]
    assert steps[-6:] == [*PIPELINE]
    assert result.stdout.count("shards/set") == result.stdout.count("  runs/") == min(found, 2)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["restor"], "No such command 'restor'"),
        (["train-coarse", "--nonsense"], "No such option"),
        (["prepare"], "Missing argument"),
        (["train-coarse", "--data", "x", "--max-time", "soon"], "--max-time"),
        (["train-coarse", "--recipe", "tiny"], "--data is missing"),
        (["train-coarse", "--data", "x"], "--recipe"),
        (["train-coarse", "--recipe", "tinny", "--data", "x"], "did you mean tiny?"),
        (["recipes", "show", "tiny", "coarse.lrr=1"], "did you mean coarse.lr?"),
        (["recipes", "show", "tiny", "coarse.lrr=1"], "(given as coarse.lrr=1)"),
        (["train-fine", "coarse.pt"], "--from coarse.pt"),
        (["train-fine", "derain"], "--from derain"),
        (["train-coarse", "coarse.pt"], "--init coarse.pt"),
        (["train-coarse", "tiny"], "--recipe tiny"),
        (["train-coarse", "derain"], "--recipe derain"),  # weights have this name too
        (["train-coarse", "mine.yaml", "--data", "x"], "--recipe mine.yaml"),
        (["train-coarse", "/tmp", "--recipe", "tiny"], "--data /tmp"),
        (["train-coarse", "--recipe", "tiny", "lr"], "has the form KEY=VALUE"),
        (["recipes", "show", "nothing"], "there is no recipe"),
        (["recipes", "validate", "tiny", "network.dim=5"], "network.dim"),
        (["recipes", "validate", "derain", "diffusion.beta_end=0.5"], "at timestep 999"),
        (["recipes", "validate", "tiny", "data.synthesize=blur", "data.streaks=masks"],
         "masks: streak masks can be used only for rain"),
        (["recipes", "validate", "tiny", "data.synthesize=rain", "data.synthesis={heavvy: 7}"],
         "did you mean heavy?"),
        (["recipes", "validate", "tiny", "data.synthesize=rain", "data.synthesis={1: 2}"],
         "unknown key 1"),
        (["prepare", "/tmp", "--synthesize", "noise", "--streaks", "/tmp"], "only for rain"),
        (["train-coarse", "--recipe", "tiny", "--data", "x", "--device", "gpu"], "--device must"),
        (["train-fine", "--from", "a", "--init", "b"], "cannot be combined with --init"),
        (["prepare", ".", "--streaks", "x"], "needs --synthesize"),
        (["prepare", ".", "--synthesize", "snow"], "snow"),
    ],
)  # fmt: skip
def test_usage_and_recipe_errors_are_one_line(words, says):
    refused(*words, code=2, says=says)


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["restore", "a", "b", "--compare"], "c2fdft restore"),
        (["weights", "average", "a", "--out"], "c2fdft weights average"),
        (["nothing", "--out"], "c2fdft"),
    ],
)
def test_an_option_without_its_value_refers_to_the_help_of_its_command(words, command):
    assert f"hint: see `{command} --help`" in run(*words).stderr


@pytest.mark.parametrize(
    ("words", "code", "message", "hint"),
    [
        (["info", "nowhere"], 3, "nowhere: no such file or folder", "check the path"),
        (["restore", "IN", "OUT"], 3, "IN: no such file or folder", "replace IN with"),
        (["restore", "PHOTO.jpg", "a.png"], 3, "PHOTO.jpg: no such", "replace PHOTO.jpg with"),
        (
            ["restore", "https://a.org/b.jpg", "c.png"],
            3,
            "b.jpg: no such file",
            "download it first",
        ),
        (["eval", ".", "TARGET"], 3, "TARGET: no such file or folder", "replace TARGET with"),
        (["eval", "SET", "--weights", "derain"], 3, "SET: no such folder", "replace SET with"),
        (["train-fine"], 4, "--from is missing", "c2fdft train-fine --from"),
        (
            ["train-coarse", "--recipe", "tiny", "--seed", "-1"],
            2,
            "train.seed must be greater than or equal to 0, got -1",
            "recipes show",
        ),
        (
            ["restore", "--stesp", "4"],
            2,
            "No such option: --stesp",
            "did you mean --steps? see `c2",
        ),
        (["restore", "-task", "rain"], 2, "No such option: -t", "did you mean --task? see `c2fdft"),
        (["restore", "a", "--weight=x"], 2, "option: --weight", "did you mean --weights? see `c2"),
        (["restore", "a", "--out", "b"], 2, "option: --out", "write c2fdft restore IN... OUT; see"),
        (["restor"], 2, "No such command 'restor'", "did you mean c2fdft restore? see `c2fdft --h"),
        (
            ["restore", "a.jpg"],
            2,
            "OUT is missing: the only argument is a.jpg",
            "c2fdft restore --help",
        ),
        (["restore", "--task", "derain", "a.jpg"], 2, "argument is a.jpg", "c2fdft restore --help"),
        (["restore"], 2, "Missing argument 'IN'", "write c2fdft restore IN... OUT; see `c2fdft"),
        (["restore", "-o", "a"], 2, "No such option: -o", "write c2fdft restore IN... OUT; see"),
        (["info"], 2, "argument 'PATH'", "write c2fdft info PATH; see `c2fdft info --help`"),
        (["weights", "average", "a"], 2, "option '--out'", "see `c2fdft weights average --help`"),
        (["train-coarse", "--coarse.lr=3"], 2, "No such", "write coarse.lr=VALUE; see `c2fdft"),
        (["train-fine", "--lr", "3"], 2, "No such", "write KEY=VALUE, such as train.seed=1; see"),
        (["eval", "--noise", "1"], 2, "No such option", "see `c2fdft eval --help`"),
        (["eval", "a", "b", "--border", "x"], 2, "--border must be an integer, got 'x'", "see `c"),
        (["restore", "a", "b", "--seed", "1.5"], 2, "--seed must be an integer, got '1.5'", "see"),
        (
            ["restore", "a", "b", "--seed", "it's"],
            2,
            '--seed must be an integer, got "it\'s"',
            "see",
        ),
        (["restore", "a", "b", "--eta", "x"], 2, "--eta must be a number, got 'x'", "see `c2fdft"),
        (["no command", "out"], 2, "No such command 'no command'", "see `c2fdft --help`"),
        (["derain", "a"], 2, "No such command 'derain'", "mean c2fdft restore IN OUT --task der"),
        (["Predict", "a"], 2, "No such command 'Predict'", "mean c2fdft restore IN OUT?"),
        (["evaluate"], 2, "No such command 'evaluate'", "did you mean c2fdft eval? see"),
        (["recipes", "shw"], 2, "No such command 'shw'", "did you mean c2fdft recipes show?"),
        (["weights", "average", "--out", "x"], 2, "argument 'CKPT'", "c2fdft weights average --"),
    ],
)
def test_an_error_is_a_json_document_too(words, code, message, hint):
    line = refused(*words, "--json", code=code, says=message)
    error = json.loads(run(*words, "--json").stdout)["error"]
    assert error.keys() == {"code", "message", "details", "hint"}
    assert error["code"] == code
    assert line == f"error: {error['message']}"
    assert hint in error["hint"]
    assert run(*words).stdout == ""


def test_of_long_details_the_first_are_printed_and_all_are_in_the_document(monkeypatch, capsys):
    from c2fdft_cli.engine.tools import doctor

    details = [f"{i}.png: damaged" for i in range(5000)]

    def failing():
        raise DataError("5000 images failed", details=details)

    monkeypatch.setattr(doctor, "examine", failing)
    with pytest.raises(SystemExit):
        app(["doctor", "--json"])
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert len(lines) == 22
    assert lines[20:] == [
        "  19.png: damaged",
        "  and 4,980 more (with --json all are listed)",
    ]
    assert json.loads(out)["error"]["details"] == details


def test_a_path_in_place_of_a_command_is_to_be_restored(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my photo.png").touch()
    said = run("my photo.png", "out.png").stderr
    assert said.splitlines()[-1] == (
        "hint: name a command first: c2fdft restore 'my photo.png' out.png"
    )


def test_a_result_is_the_only_json_document(pairs, tmp_path):
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "0.png").write_bytes((pairs / "input" / "0.png").read_bytes())
    result = run("eval", tmp_path / "few", pairs / "target", "--json")
    assert result.exit_code == 6
    assert "error" not in json.loads(result.stdout)


def test_a_bug_is_a_json_document_too(monkeypatch, capsys):
    from c2fdft_cli.engine.tools import doctor

    def broken():
        raise KeyError("a bug")

    monkeypatch.setattr(doctor, "examine", broken)
    with pytest.raises(KeyError):
        app(["doctor", "--json"])
    error = json.loads(capsys.readouterr().out)["error"]
    assert error == {"code": 1, "message": "KeyError: 'a bug'", "details": [], "hint": None}


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (
            "CUDA error: an illegal memory access was encountered\nCUDA kernel...",
            "error: the GPU failed: CUDA error: an illegal memory access was enc",
        ),
        ("CUDA error: out of memory\nCUDA kernel...", "error: out of memory\nhint: close other"),
        ("Triton Error [CUDA]: out of memory", "error: out of memory\nhint: close other"),
        ("can't start new thread", "error: the system starts no more threads"),
        ("DefaultCPUAllocator: can't allocate memory", "error: out of memory\nhint: close other"),
        (MemoryError(), "error: out of memory\nhint: close other programs"),
        (
            FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"),
            "error: no folder for temporary files is writable\nhint: set the environment",
        ),
    ],
)
def test_a_fault_of_the_machine_is_an_error_without_a_traceback(monkeypatch, capsys, fault, says):
    from c2fdft_cli.engine.tools import doctor

    def broken():
        raise RuntimeError(fault) if isinstance(fault, str) else fault

    monkeypatch.setattr(doctor, "examine", broken)
    with pytest.raises(SystemExit) as end:
        app(["doctor"])
    assert end.value.code == 5
    shown = capsys.readouterr().err
    assert shown.startswith(says)
    assert "Traceback" not in shown


def test_a_current_folder_that_was_removed_is_an_error(tmp_path, monkeypatch, pairs):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    refused("prepare", pairs, code=3, says="the current folder no longer exists")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there the completion is PowerShell's")
def test_a_completion_that_cannot_be_installed_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "home").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    # otherwise typer takes the shell that runs the tests, and no argument
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    refused("--install-completion", "bash", code=5, says="cannot write the file")


def test_a_signal_leaves_no_temporary_file(tmp_path, monkeypatch):
    """One that arrives while Python enters a `with` block, whose end then never runs."""
    entered = []

    def interrupted() -> None:
        entered.append(atomic_path(tmp_path / "out.png"))
        entered[0].__enter__()
        raise SignalReceived(signal.SIGTERM, "start it again")

    monkeypatch.setattr(start, "show_version", interrupted)
    refused("version", code=143, says="terminated by SIGTERM\nhint: start it again")
    assert list(tmp_path.iterdir()) == []
    entered[0].__exit__(KeyError, KeyError("the end"), None)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (
            ["info", os.fsdecode(b"n\xffwhere")],
            3,
            "error: n\\udcffwhere: no such file or folder\nhint: check the path\n",
        ),
        (
            ["version"],
            5,
            "error: standard output: the disk is full\n"
            "hint: free some space or choose another disk\n",
        ),
    ],
)
def test_a_full_stdout_is_an_error_and_hides_no_other(words, code, says):
    """Python alone would print an ignored exception when it exits, with exit code 120."""
    line = [sys.executable, "-m", "c2fdft_cli", *words, "--json"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, says)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize(("source", "code"), [("input", 0), ("nowhere", 3)])
def test_a_full_disk_under_stderr_costs_only_the_progress(tmp_path, pairs, source, code):
    """The log of an unattended command may be on a full disk, its outputs on another one."""
    line = [sys.executable, "-m", "c2fdft_cli", "prepare", pairs / source, "--synthesize", "noise"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*line, "--out", "shards", "--json"],
            stdout=subprocess.PIPE, stderr=full, cwd=tmp_path, check=False,
        )  # fmt: skip
    assert done.returncode == code
    assert ("error" in json.loads(done.stdout)) is bool(code)
    assert (tmp_path / "shards").exists() is (code == 0)


@pytest.mark.slow
def test_a_line_on_stderr_is_written_at_once():
    """The process may be killed, or be one of a group, which ends without Python's clean-up."""
    code = """
import os, sys
from c2fdft_cli.__main__ import outlive_full_stderr
outlive_full_stderr()
sys.stderr.write("a line\\n")
os._exit(0)
"""
    assert python("-c", code).stderr == "a line\n"


@pytest.mark.slow
def test_a_reader_of_stderr_that_has_gone_ends_the_command(tmp_path, pairs):
    reads, writes = os.pipe()
    os.close(reads)
    line = [sys.executable, "-m", "c2fdft_cli", "prepare", pairs, "--out", tmp_path / "shards"]
    done = subprocess.run(line, stdout=subprocess.PIPE, stderr=writes, check=False)
    os.close(writes)
    assert (done.returncode, done.stdout) == (1, b"")


@pytest.mark.slow
@pytest.mark.parametrize(
    "closed",
    [
        *(pytest.param(one, marks=pytest.mark.acceptance) for one in ("<&-", ">&-", "2>&-")),
        "<&- >&- 2>&-",
    ],
)
def test_closed_standard_streams_are_harmless(tmp_path, pairs, closed):
    """Some services close them; output must neither fail nor end up in the next file opened."""
    line = f'"$0" -m c2fdft_cli prepare "$1" --out shards --json {closed}'
    done = subprocess.run(
        ["sh", "-c", line, sys.executable, pairs], capture_output=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert bool(done.stdout) == (">&-" not in closed.split())
    assert bool(done.stderr) == ("2>&-" not in closed.split())
    assert run("prepare", "--verify", tmp_path / "shards").exit_code == 0


@pytest.mark.parametrize("closed", ["2>&-", "<&- 2>&-"])
def test_no_file_gets_the_number_of_a_closed_stderr(closed):
    """A program that a command starts inherits the null device there. Some warnings are ignored."""
    code = """
import os, warnings
from c2fdft_cli import __main__
from c2fdft_cli.cli import app
def command():
    warnings.simplefilter("error", append=True)
    warnings.warn("flock not supported; falling back")
    assert os.get_inheritable(2)
    print(open(__main__.__file__).fileno())
app.app = command
__main__.main()
"""
    line = f'"$0" -c "$1" {closed}'
    done = subprocess.run(["sh", "-c", line, sys.executable, code], capture_output=True, check=True)
    assert int(done.stdout) > 2


@pytest.mark.parametrize(
    ("encoding", "name", "shown"),
    [
        ("latin-1", "雨.yaml".encode(), rb"\u96e8.yaml"),
        ("utf-8", "雨.yaml".encode(), "雨.yaml".encode()),
        ("euc_jp", b"\xff.yaml", b"\xff.yaml"),
        ("utf-8", b"\xff.yaml", b"\xff.yaml"),
    ],
)
def test_a_name_is_printed_in_any_encoding(tmp_path, encoding, name, shown):
    """The encoding of a pipe on Windows, or in an old locale, lacks most characters."""
    done = subprocess.run(
        [sys.executable, "-m", "c2fdft_cli", "recipes", "copy", "tiny", name],
        capture_output=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"written: " + shown)


def test_one_process_of_several_prints_the_json_document(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert run("train-fine", "--json").stdout == ""


def test_an_empty_folder_is_an_error(tmp_path):
    refused(
        "prepare",
        tmp_path,
        "--out",
        tmp_path / "s",
        code=3,
        says=f"{tmp_path}: no images in the folder",
    )


def test_a_missing_folder_is_an_error(tmp_path):
    refused("prepare", tmp_path / "none", code=3, says=f"{tmp_path}/none: no such file or folder")


def test_unpaired_files_are_an_error(tmp_path):
    for name in ("input/a.png", "input/b.png", "target/z.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save_rgb8(tmp_path / name, picture(16, 16, 1))
    says = f"{tmp_path}: no pairs of degraded and clean images were found"
    refused("prepare", tmp_path, "--out", tmp_path / "s", code=3, says=says)


def test_a_text_file_named_png_is_an_error(pairs):
    (pairs / "input" / "1.png").write_text("I am text")
    says = f"{pairs}/input/1.png: cannot read the image: not an image"
    refused("prepare", pairs, "--out", pairs.parent / "s", code=3, says=says)


def test_sizes_that_differ_within_a_pair_are_an_error(pairs):
    save_rgb8(pairs / "input" / "1.png", picture(24, 40, 1))
    says = "input/1.png: the sizes differ within a pair: 40 x 24 px, but "
    refused("prepare", pairs, "--out", pairs.parent / "s", code=3, says=says)


def test_a_file_that_is_not_a_checkpoint_is_an_error(tmp_path, text_named_png, shard_folder):
    fake = tmp_path / "fake.pt"
    fake.write_text("nothing")
    refused("info", fake, code=4, says="not a checkpoint")
    refused("train-fine", "--from", fake, "--data", shard_folder, code=4, says="not a checkpoint")
    refused("sweep-steps", fake, code=4, says="not a checkpoint")
    refused(
        "restore", text_named_png, tmp_path / "o.png", "--weights", fake, code=4, says="fake.pt"
    )
    refused("train-fine", "--from", tmp_path / "none.pt", code=4, says="no such checkpoint")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_an_error(shard_folder, tmp_path):
    refused("train-coarse", "--recipe", "tiny", "--data", shard_folder, "--device", "cuda",
            code=5, says="no CUDA device")  # fmt: skip


def test_an_output_inside_a_regular_file_is_an_error(pairs, tmp_path, shard_folder):
    blocker = tmp_path / "file"
    blocker.write_text("x")
    says = "a part of the output path is a regular file"
    refused("prepare", pairs, "--out", blocker / "s", code=5, says=f"{blocker}/s: {says}")
    refused("train-coarse", "--recipe", "tiny", "--data", shard_folder, "--device", "cpu",
            "--out", blocker / "run", *MINI, code=5, says=f"{blocker}/run: {says}")  # fmt: skip


def test_shards_at_a_link_to_itself_are_an_error(pairs, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    says = "link that leads nowhere"
    refused("prepare", pairs, "--out", tmp_path / "loop", code=5, says=says)
    words = ("--out", tmp_path / "shards", "--preview", tmp_path / "loop" / "a.png")
    refused("prepare", pairs, *words, code=5, says=says)


def test_info_prints_an_infinite_score_as_valid_json(tmp_path):
    """A restoration that equals its target in validation has an infinite PSNR."""
    network = Network(dim=8, blocks=[1, 1, 1, 1])
    state = make_network(network).state_dict()
    metrics = {"psnr": math.inf, "ssim": 1.0, "sweep": {"rows": [math.nan]}}
    path = tmp_path / "best.pt"
    save_checkpoint(path, state, state, Meta(network, stage="coarse", metrics=metrics))
    said = json.loads(run("info", path, "--json").stdout)["metrics"]
    assert said == {"psnr": None, "ssim": 1.0, "sweep": {"rows": [None]}}
    assert "psnr inf" in run("info", path).stdout


def test_info_of_a_missing_path_is_an_error(tmp_path):
    refused("info", tmp_path / "none", code=3, says="no such file or folder")
    refused("info", tmp_path, code=3, says="not a checkpoint, shard folder or run folder")


def test_prepare_prints_json(pairs, tmp_path):
    (pairs / "input" / "lonely.png").write_bytes((pairs / "input" / "0.png").read_bytes())
    for number in range(4):  # four different pictures, as equal ones would form one group
        save_rgb8(pairs / "target" / f"{number}.png", picture(24, 32, number + 50))
    result = run("prepare", pairs, "--out", tmp_path / "s", "--val", "1", "--json")
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    assert (said["pairs"], said["train"], said["val"]) == (4, 3, 1)
    assert [Path(item["path"]).name for item in said["leftovers"]] == ["lonely.png"]
    assert said["next"] is None  # the task is not known from the folder
    assert said["bytes"] == sum((tmp_path / "s" / name).stat().st_size for name in said["shards"])
    assert said["up_to_date"] is False
    again = run("prepare", pairs, "--out", tmp_path / "s", "--val", "1")
    assert "up to date" in again.stdout
    again = run("prepare", pairs, "--out", tmp_path / "s", "--val", "1", "--json")
    assert json.loads(again.stdout)["up_to_date"] is True
    checked = run("prepare", pairs, "--out", tmp_path / "none", "--check", "--json")
    assert json.loads(checked.stdout)["check"]["psnr_y"] > 0
    assert not (tmp_path / "none").exists()
    verified = run("prepare", tmp_path / "s", "--verify")
    assert verified.exit_code == 0
    verified = json.loads(run("prepare", tmp_path / "s", "--verify", "--json").stdout)
    assert (verified["shards"], verified["images"]) == (2, 4)
    shard = tmp_path / "s" / "train-00000.h5"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    refused("prepare", tmp_path / "s", "--verify", code=3, says=f"{shard}: ")


def test_recipes_are_listed_shown_and_copied(tmp_path):
    assert "tiny" in run("recipes", "list").stdout
    rows = json.loads(run("recipes", "list", "--json").stdout)
    purposes = {row["name"]: row["purpose"] for row in rows}
    assert purposes["deblur-small"].startswith("Blind deblurring with a small network")
    assert all(20 < len(purpose) < 110 for purpose in purposes.values()), purposes
    shown = run("recipes", "show", "tiny", "coarse.lr=0.5")
    assert "lr: 0.5" in shown.stdout
    shown = run("recipes", "show", "tiny", "coarse.lr=0.5", "--json")
    assert json.loads(shown.stdout)["coarse"]["lr"] == 0.5
    refused("recipes", "copy", "tiny", "-", code=2, says="print it with c2fdft recipes show tiny")
    target = tmp_path / "mine.yaml"
    assert run("recipes", "copy", "tiny", target).exit_code == 0
    assert run("recipes", "validate", target).exit_code == 0
    refused("recipes", "copy", "tiny", target, code=2, says="exists")
    refused("recipes", "copy", "tiyn", tmp_path / "new" / "a.yaml", code=2, says="mean tiny?")
    assert not (tmp_path / "new").exists()
    assert run("recipes", "copy", "tiny", tmp_path / "new" / "sub" / "a.yaml").exit_code == 0
    assert (tmp_path / "new" / "sub" / "a.yaml").read_bytes() == target.read_bytes()
    assert run("recipes", "copy", "tiny", target, "--overwrite").exit_code == 0
    words = ("recipes", "copy", target, target, "--overwrite")
    refused(*words, code=2, says="would replace the recipe")
    (tmp_path / "base.yaml").write_text("# why\nextends: tiny\n")
    target.write_text("extends: base.yaml\n")
    words = ("recipes", "copy", target, tmp_path / "base.yaml", "--overwrite")
    refused(*words, code=2, says="or one that it extends")


def test_an_empty_recipe_is_valid_but_noted(tmp_path):
    for name, text, noted in (("a", "# nothing\n", True), ("b", "extends: tiny\n", False)):
        (tmp_path / f"{name}.yaml").write_text(text)
        said = run("recipes", "validate", tmp_path / f"{name}.yaml")
        assert (said.exit_code, said.stdout) == (0, f"{tmp_path}/{name}.yaml: valid\n")
        assert ("the file sets nothing" in said.stderr) == noted


def test_a_valid_recipe_with_settings_without_effect_is_noted():
    words = ("recipes", "validate", "denoise-real", "data.synthesis.sigma=5")
    said = run(*words)
    assert (said.exit_code, said.stdout) == (0, "denoise-real: valid\n")
    assert "note: sigma has no effect with the other settings" in said.stderr
    (notice,) = json.loads(run(*words, "--json").stdout)["notices"]
    assert notice in said.stderr


def test_doctor_reports_the_machine():
    assert "torch" in run("doctor").stdout
    keys = {"topic", "good", "found", "hint", "required"}
    assert keys == set(json.loads(run("doctor", "--json").stdout)[0])


def test_doctor_fails_only_if_something_required_is_missing(monkeypatch):
    from c2fdft_cli.engine.tools import doctor

    video = doctor.Finding("av", False, "videos", "pip install av")
    opencv = doctor.Finding("opencv", False, "no libGL", "pip install headless", required=True)
    monkeypatch.setattr(doctor, "examine", lambda: [video])
    assert run("doctor").exit_code == 0
    monkeypatch.setattr(doctor, "examine", lambda: [video, opencv])
    said = run("doctor")
    assert said.exit_code == 5
    assert said.stderr == "error: opencv is required: no libGL\nhint: pip install headless\n"
    states = [line.split("\u2502")[2].strip() for line in said.stdout.splitlines() if "pip" in line]
    assert states == ["-", "not ok"]
    assert [one["good"] for one in json.loads(run("doctor", "--json").stdout)] == [False, False]


@pytest.mark.acceptance
def test_without_libgl_the_hint_names_the_package(tmp_path, pairs, shard_folder):
    """On a server OpenCV may be installed without this library."""
    (tmp_path / "cv2").mkdir()
    what = "libGL.so.1: cannot open shared object file: No such file or directory"
    (tmp_path / "cv2" / "__init__.py").write_text(f"raise ImportError({what!r}, name='cv2')\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])

    def call(*words):
        line = [sys.executable, "-m", "c2fdft_cli", *map(str, words)]
        return subprocess.run(
            line,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": path},
        )

    train = call("train-coarse", "--recipe", "tiny", "--data", shard_folder, "--dry-run", *MINI)
    assert (train.returncode, train.stdout) == (5, "")
    assert train.stderr.splitlines() == [
        f"error: OpenCV cannot be loaded: {what}",
        "hint: pip install opencv-python-headless",
    ]
    doctor = call("doctor", "--json")
    assert doctor.returncode == 5
    assert doctor.stderr.startswith(f"error: opencv is required: {what}\nhint: pip install")
    (found,) = [one for one in json.loads(doctor.stdout) if one["topic"] == "opencv"]
    assert (found["good"], found["required"]) == (False, True)


def test_info_describes_shards(shard_folder):
    said = json.loads(run("info", shard_folder, "--json").stdout)
    assert (said["kind"], said["train"]["images"], said["val"]["images"]) == ("shards", 10, 2)
    assert "train" in run("info", shard_folder).stdout


def test_the_six_commands_run_in_sequence(pairs, tmp_path, shard_folder, monkeypatch):
    """The real commands, from shards to scores, in seconds."""
    cpu = ("--device", "cpu", "--precision", "fp32")
    coarse, fine = tmp_path / "coarse", tmp_path / "fine"
    data = ("--recipe", "tiny", "--data", shard_folder)
    monkeypatch.setattr(device, "cpu_bf16_speed", lambda: None)
    slow = ("--device", "cpu", "--precision", "bf16")
    planned = run("train-coarse", *data, *slow, "--out", coarse, "--dry-run", *MINI)
    assert "total: 12 iterations" in planned.stdout, planned.stderr
    assert "note: this CPU emulates bf16" in planned.stderr
    short = (*MINI, "coarse.iterations=4", "fine.iterations=2")
    done = run("train-coarse", *data, *cpu, "--out", coarse, "--json", *short)
    assert done.exit_code == 0, done.stderr
    trained = json.loads(done.stdout)
    assert trained["step"] == 4
    assert trained["next"] == f"c2fdft sweep-steps {coarse / 'coarse.pt'}"
    assert "step 4" in (coarse / "train.log").read_text()
    told = run("info", coarse, "--json").stdout
    assert run("info", coarse / "state.pt", "--json").stdout == told
    facts = json.loads(told)
    assert (facts["kind"], facts["stage"], facts["step"]) == ("run", "coarse", 4)
    assert facts["best_psnr"] == trained["best_psnr"] > 0
    assert facts["last_row"]["iteration"] == "4"
    swept = run("sweep-steps", coarse / "coarse.pt", *cpu, "--steps", "1-2", "--json")
    assert swept.exit_code == 0, swept.stderr
    stamped = json.loads(run("info", coarse / "coarse.pt", "--json").stdout)
    assert stamped["grid_from"] == "sweep"
    done = run("train-fine", "--from", coarse / "coarse.pt", *cpu, "--out", fine)
    assert done.exit_code == 0, done.stderr
    assert "next: c2fdft restore" in done.stdout
    assert json.loads(run("info", fine, "--json").stdout)["kind"] == "run"
    out = tmp_path / "out"
    done = run("restore", pairs / "input", out, "--weights", fine / "fine.pt", *cpu)
    assert done.exit_code == 0, done.stderr
    assert sorted(path.name for path in out.glob("*.png")) == [f"{n}.png" for n in range(4)]
    scored = run("eval", out, pairs / "target", "--protocol", "derain", "--json")
    assert scored.exit_code == 0, scored.stderr
    said = json.loads(scored.stdout)
    assert said["protocol"] == "derain"
    assert {"psnr", "ssim"} <= set(said["mean"])
    assert [Path(row["name"]).stem for row in said["images"]] == ["0", "1", "2", "3"]
    assert 0 < said["mean"]["psnr"] < 60


@pytest.mark.acceptance
def test_demo_runs_the_pipeline(tmp_path, monkeypatch):
    """With one photo to train on and one held out."""
    pytest.importorskip("skimage")
    from c2fdft_cli.engine.tools import demo

    monkeypatch.setattr(demo, "TRAIN", demo.TRAIN[:1])
    monkeypatch.setattr(demo, "HELD_OUT", demo.HELD_OUT[1:])
    short = (*MINI, "train.validation_images=1", "coarse.iterations=2", "fine.iterations=2")
    done = run("demo", "--out", tmp_path / "demo", "--json", *short)
    assert done.exit_code == 0, done.stderr
    said = json.loads(done.stdout)
    assert 26 <= said["degraded"]["mean"]["psnr"] <= 28
    assert said["restored"]["images"][0]["name"] == said["degraded"]["images"][0]["name"]
    assert re.findall(r"^\$ c2fdft (\S+)", done.stderr, re.MULTILINE) == [*PIPELINE, "eval"]
    assert (tmp_path / "demo" / "comparison.png").is_file()
    refused("demo", "--out", tmp_path / "demo", code=2, says="not empty")


def test_demo_ends_with_the_error_of_its_command(tmp_path, monkeypatch):
    from c2fdft_cli.engine.tools import demo

    monkeypatch.setattr(demo, "make_pairs", lambda folder: folder.mkdir(parents=True))
    said = refused("demo", "--out", tmp_path / "demo", code=3, says="hint: ")
    assert str(tmp_path / "demo" / "pairs") in said


def test_the_photos_of_the_demo_are_in_scikit_image():
    skimage = pytest.importorskip("skimage")
    from c2fdft_cli.engine.tools import demo

    folder = Path(skimage.__file__).parent / "data"
    assert all((folder / name).is_file() for name in (*demo.TRAIN, *demo.HELD_OUT))


def test_given_weights_provide_their_recipe(tmp_path):
    """With --init no recipe is required, so the error is about the missing weights."""
    words = ["train-coarse", "--data", tmp_path, "--init", tmp_path / "missing.pt"]
    refused(*words, code=4, says="no such checkpoint")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["forward", "--steps", "2"], "it is for: c2fdft bench restore"),
        (["train-step", "--data", "shards"], "--data cannot be used with train-step"),
        (["loader", "--compile"], "--compile cannot be used with loader"),
        (["restore", "--steps", "1001"], "--steps must be 1 to 1000, got 1001"),
    ],
)
def test_bench_refuses_invalid_options(words, says):
    refused("bench", *words, "--recipe", "tiny", "--size", 16, code=2, says=says)


def test_a_preview_replaces_no_file(pairs, tmp_path):
    photo = next(pairs.rglob("*.png"))
    before = photo.read_bytes()
    for words in (["--preview", photo], ["--preview", photo, "--overwrite"]):
        result = run("prepare", pairs, "--out", tmp_path / "shards", *words)
        assert result.exit_code == 2, result.output
        assert photo.read_bytes() == before
    assert not (tmp_path / "shards").exists()
    sheet = tmp_path / "sheet.png"
    for words, code in (([], 0), ([], 2), (["--overwrite"], 0)):
        result = run("prepare", pairs, "--out", tmp_path / "shards", "--preview", sheet, *words)
        assert result.exit_code == code, result.output


@pytest.mark.parametrize("bug", [False, True])
def test_a_failed_process_of_a_group_ends_at_once(monkeypatch, capsys, tmp_path, bug):
    """Python's regular exit may wait for all processes of a group."""
    from c2fdft_cli.cli import app as module
    from c2fdft_cli.engine.restore import plan as restore_plan

    class Ended(BaseException):
        pass

    def end(code):
        raise Ended(code)

    def broken(*_, **settings):
        raise KeyError("a bug")

    monkeypatch.setattr(module, "_is_awaited", lambda: True)
    monkeypatch.setattr(os, "_exit", end)
    if bug:
        monkeypatch.setattr(restore_plan, "plan_restore", broken)
    with pytest.raises(Ended) as caught:
        app(["restore", str(tmp_path), "out", "--weights", "nowhere.pt"])
    said = capsys.readouterr().err
    assert caught.value.args == (1 if bug else 4,)
    assert ("KeyError: 'a bug'" in said) if bug else said.startswith("error: nowhere.pt: ")


def test_a_successful_process_of_a_group_ends_regularly(monkeypatch):
    from c2fdft_cli.cli import app as module

    def end(code):
        raise AssertionError(f"ended at once with {code}")

    monkeypatch.setattr(module, "_is_awaited", lambda: True)
    monkeypatch.setattr(os, "_exit", end)
    assert run("recipes", "list").exit_code == 0
