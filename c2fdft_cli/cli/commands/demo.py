"""`c2fdft demo`: runs the six commands on a small data set that it makes first."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import typer

from c2fdft_cli.cli import console
from c2fdft_cli.cli.options import Json, path_of, refuse_several_processes
from c2fdft_cli.errors import C2fdftError, Interrupted, UsageError
from c2fdft_cli.signals import (
    STOP_SIGNALS,
    SignalReceived,
    StopRequest,
    exit_code,
    graceful_stop,
    unwinding,
)

_STDERR = 2
"""The descriptor of standard error."""
_LOOK_SECONDS = 0.1
"""How often the demo looks for a signal while a command runs."""
_AGAIN = "the demo does not resume; start it again, with another --out if you have named one"


def demo(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Values of recipes/tiny.yaml to change."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            parser=path_of,
            metavar="DIR",
            help="Folder for all files (default: c2fdft-demo, or c2fdft-demo-2, ...).",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Run the whole pipeline in minutes: prepare, train, sweep, fine-tune, restore, score.

    The photos come with scikit-image (the `demo` extra), the rain is synthetic, and the network
    starts from random weights. So the result shows what a few minutes of training can do.
    """
    refuse_several_processes("demo")
    with console.loading():
        from c2fdft_cli.engine.tools.demo import HELD_OUT, comparison, make_pairs
        from c2fdft_cli.recipe.files import load_recipe

    load_recipe("tiny", overrides or [])  # refuses wrong overrides before any file is written
    folder = _free_folder(out)
    started = time.monotonic()
    console.remark(f"making photos with rain in {folder}/pairs")
    picture = folder / "comparison.png"
    with unwinding(_AGAIN):
        make_pairs(folder / "pairs")
        with graceful_stop() as stop:
            scores = _run_pipeline(folder, overrides or [], stop, quiet=json)
        rainy, clean = folder / "pairs" / "val" / "rainy", folder / "pairs" / "val" / "clean"
        names = [Path(name).with_suffix(".png").name for name in HELD_OUT]
        comparison([rainy, folder / "restored", clean], picture, names)
    seconds = time.monotonic() - started
    if json:
        console.emit({"seconds": seconds, "picture": picture, **scores})
        return
    _tell(scores)
    console.stdout().print(f"degraded | restored | target: {picture}")
    console.stdout().print(f"finished in {seconds:.0f} s")
    fine = folder / "fine" / "fine.pt"
    console.say_next(console.command("restore", "PHOTO.jpg", "RESTORED.png", "--weights", fine))


def _free_folder(out: Path | None) -> Path:
    if out is not None:
        if os.path.exists(out) and not os.path.isdir(out):
            what = "the output must be a folder, but this is a file"
            raise UsageError(what, where=out, hint="name another with --out")
        if os.path.isdir(out) and any(out.iterdir()):
            raise UsageError("the folder is not empty", where=out, hint="choose another with --out")
        return out
    names = ("c2fdft-demo" if number == 1 else f"c2fdft-demo-{number}" for number in count(1))
    # A link that leads nowhere takes a name too: no folder can be made there.
    return next(folder for folder in map(Path, names) if not os.path.lexists(folder))


def _run_pipeline(
    folder: Path, overrides: list[str], stop: StopRequest, *, quiet: bool
) -> dict[str, Any]:
    """Run the commands one after another and return the documents of the two `eval` commands.

    quiet: redirect the standard output of the other commands to standard error.
    """
    run = partial(_run, stop, stdout=_STDERR if quiet else None)
    pairs, shards = folder / "pairs", folder / "shards"
    coarse, fine = folder / "coarse", folder / "fine"
    rainy, clean, restored = pairs / "val" / "rainy", pairs / "val" / "clean", folder / "restored"
    settings = ["data.synthesize=rain", "data.synthesis.heavy=0", *overrides]
    run("prepare", pairs, "--out", shards)
    run("train-coarse", "--recipe", "tiny", "--data", shards, "--out", coarse, *settings)
    run("sweep-steps", coarse / "coarse.pt", "--steps", "1,2,4")
    # A short fine stage gains most with one sampling step, whatever is best for the coarse weights.
    one_step = "sampling.grid=[500]"
    run("train-fine", "--from", coarse / "coarse.pt", "--out", fine, one_step, *overrides)
    run("restore", rainy, restored, "--weights", fine / "fine.pt")
    score = ("--protocol", "derain", "--json")
    return {
        "degraded": run("eval", rainy, clean, *score, stdout=subprocess.PIPE),
        "restored": run("eval", restored, clean, *score, stdout=subprocess.PIPE),
    }


def _run(stop: StopRequest, *words: object, stdout: int | None) -> Any:
    """Run a command of this program; if it fails, the demo ends with the same exit code.

    stdout: the `stdout` of `subprocess.Popen`; with PIPE the JSON document is parsed and returned.
    """
    if stop:  # while no command ran, or too late to stop the last one
        raise _stopped(f"the demo was stopped before {words[0]}", stop)
    # not wrapped, so that it can be pasted
    console.stderr().print(f"$ {console.command(*words)}", soft_wrap=True)
    line = [sys.executable, "-m", "c2fdft_cli", *map(console.word_of, words)]
    code, said = _finish(line, stdout, stop)
    if code == 0:
        return json.loads(said) if stdout == subprocess.PIPE else None
    by_signal = code in map(exit_code, STOP_SIGNALS)
    if stop or by_signal:
        stopped = _stopped(f"the demo was stopped in {words[0]}", stop, code)
        stopped.reported = by_signal
        raise stopped
    failed = C2fdftError(f"the demo stopped: {words[0]} failed", hint="see the error above")
    failed.exit_code = code if code > 0 else 128 - code
    raise failed


def _finish(line: Sequence[str], stdout: int | None, stop: StopRequest) -> tuple[int, bytes]:
    """Run a program to its end, and pass the signals that arrive meanwhile on to it.

    A signal to this process alone does not reach the program. One from the terminal reaches both;
    the program takes the second one, which comes a moment later, for the same.

    Returns:
        The exit code, and the standard output if `stdout` is PIPE.
    """
    first = None
    with subprocess.Popen(line, stdout=stdout) as process:  # noqa: S603 - our own program
        while True:
            try:
                said, _ = process.communicate(timeout=_LOOK_SECONDS)
            except subprocess.TimeoutExpired:
                if first is None and stop.signal_number is not None:
                    first = stop.signal_number
                    _pass_on(process, first)
            except SignalReceived as again:  # a second Ctrl-C
                _pass_on(process, again.signal_number)
            else:
                return process.returncode, said or b""


def _pass_on(process: subprocess.Popen[bytes], number: int) -> None:
    if sys.platform != "win32":  # whose terminals alone send signals, to all programs in them
        process.send_signal(number)


def _stopped(what: str, stop: StopRequest, code: int = 0) -> Interrupted:
    """Make the error of a stopped demo; `code` is the exit code of a command that was stopped."""
    number = stop.signal_number
    if number is None:  # only the command received it
        number = signal.SIGINT if code == exit_code(signal.SIGINT) else signal.SIGTERM
    return Interrupted(what, signal_number=number, hint=_AGAIN)


def _tell(scores: dict[str, Any]) -> None:
    before, after = scores["degraded"], scores["restored"]
    by_name = {Path(row["name"]).stem: row for row in before["images"]}
    rows = []
    for row in after["images"]:
        was = by_name[Path(row["name"]).stem]
        rows.append((row["name"], was["psnr"], row["psnr"], was["ssim"], row["ssim"]))
    means = [side["mean"][key] for key in ("psnr", "ssim") for side in (before, after)]
    rows.append(("mean", *means))
    columns = ("image", "PSNR degraded", "PSNR restored", "SSIM degraded", "SSIM restored")
    console.table(f"images not used for training ({after['protocol']})", columns, rows)
    if means[1] <= means[0]:
        console.remark(
            "the restored images do not score higher than the degraded ones: too few iterations"
        )
