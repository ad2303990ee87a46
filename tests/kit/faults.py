"""Fault injection: real commands in child processes, and a set of inputs to run them on."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest

from c2fdft_cli.files.writing import unfinished
from c2fdft_cli.signals import STOP_SIGNALS, install
from tests.kit.formula import fill, picture
from tests.kit.training import MINI

PRELOADED = ("train", "sweep", "restore", "prepare", "evaluate", "convert")
"""Commands imported once by the fork server, so that each forked command starts without delay."""

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(
    [
        *(f"c2fdft_cli.cli.commands.{name}" for name in PRELOADED),
        "c2fdft_cli.cli.views.train",
        "c2fdft_cli.engine.train.setup",
        "c2fdft_cli.engine.train.job",
        "c2fdft_cli.engine.sweep.job",
        "c2fdft_cli.engine.restore.job",
        "c2fdft_cli.engine.prepare.job",
        "c2fdft_cli.engine.evaluate.job",
        "c2fdft_cli.engine.weights.convert",
        "matplotlib.backends.backend_agg",
        "matplotlib.figure",
        "torch._dynamo",
        "torch._subclasses.fake_tensor",
    ]
)


@dataclass(frozen=True)
class Case:
    """A long command on the inputs of a `World`.

    Args:
        words: the command line, without the program.
        out: the folder that it writes into.
        content: reads the finished output, for comparison.
        again: further arguments that the command needs once its output exists.
    """

    words: Sequence[object]
    out: Path
    content: Callable[[Path], object]
    again: Sequence[object] = ()


class Running:
    """A command that runs in a forked process; its output goes to `said.txt` in `cwd`."""

    def __init__(
        self, words: Sequence[object], cwd: Path, before: Callable[[], None] | None = None
    ):
        self._said = cwd / "said.txt"
        self._said.unlink(missing_ok=True)
        target = (list(map(str, words)), cwd, self._said, before)
        self.process: BaseProcess = _forks.Process(target=_run, args=target)
        self.process.start()
        while not self._said.exists() and self.process.is_alive():  # then it has handlers
            time.sleep(0.002)

    @property
    def said(self) -> str:
        """What it has written to stdout and stderr so far."""
        return self._said.read_text(errors="replace") if self._said.exists() else ""

    def send(self, number: int) -> None:
        """Send a signal if the command still runs."""
        if self.process.is_alive() and self.process.pid is not None:
            with suppress(ProcessLookupError):  # it may have ended since
                os.kill(self.process.pid, number)

    def end(self, patience: float = 600.0) -> int:
        """Wait for the end and return the exit code, negative for a signal."""
        self.process.join(patience)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"it hangs: {self.said[-2000:]}")
        return self.process.exitcode


def run(words: Sequence[object], cwd: Path, before: Callable[[], None] | None = None) -> int:
    """Run a command to its end and return its exit code."""
    return Running(words, cwd, before).end()


def _run(words: list[str], cwd: Path, said: Path, before: Callable[[], None] | None) -> None:
    for one in STOP_SIGNALS:
        signal.signal(one, signal.SIG_DFL)
    install()
    os.chdir(cwd)
    stream = os.open(said, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND)
    for number in (1, 2):
        os.dup2(stream, number)
    if before is not None:
        before()
    from c2fdft_cli.cli.app import app

    sys.argv = ["c2fdft", *words]
    app()


def hidden(folder: Path) -> list[Path]:
    """Temporary files of unfinished writes under a folder."""
    return [path for one in (folder, *folder.rglob("*/")) for path in unfinished(one)]


class World:
    """Inputs for every long command, made once, and the commands that run on them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pairs, self.shards, self.images = root / "pairs", root / "shards", root / "in"
        self.coarse, self.weights = root / "coarse.pt", root / "fine.pt"

    def make(self) -> World:
        """Write all inputs; the weights are set by formula."""
        from c2fdft_cli.data.images.picture import save_rgb8

        for number in range(14):
            split = "val" if number >= 12 else "train"
            clean = picture(48, 64, number)
            rainy = np.clip(clean.astype(int) + 40 * (np.arange(64) % 7 == 1)[:, None], 0, 255)
            for kind, pixels in (("clean", clean), ("rainy", rainy.astype(np.uint8))):
                path = self.pairs / split / kind / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                save_rgb8(path, pixels)
        self.images.mkdir()
        for number in range(8):
            save_rgb8(self.images / f"{number}.png", picture(72, 96, number))
        words = ("prepare", self.pairs, "--out", self.shards)
        assert run(words, self.root) == 0, (self.root / "said.txt").read_text()
        self._write_weights()
        return self

    def _write_weights(self) -> None:
        from c2fdft_cli.core.network import DFT
        from c2fdft_cli.engine.weights.checkpoint import Meta, save_checkpoint
        from c2fdft_cli.recipe.files import load_recipe

        recipe = load_recipe("tiny", MINI)
        net = fill(DFT(dim=8, blocks=(1, 1, 1, 1))).state_dict()
        for path in (self.coarse, self.weights):
            meta = Meta(recipe.network, recipe.diffusion, stage=path.stem, step=1,
                        grid=[999, 500], recipe=recipe.to_dict(), recipe_name="tiny",
                        data=str(self.shards))  # fmt: skip
            save_checkpoint(path, net, net, meta)

    def _training(
        self, stage: str, out: Path, *more: str, start: Path | None = None
    ) -> tuple[object, ...]:
        begin = () if start is None else ("--from", start)
        return (f"train-{stage}", "--recipe", "tiny", "--data", self.shards, *begin, "--out", out,
                "--device", "cpu", "--precision", "fp32", *MINI, *more)  # fmt: skip

    def case(self, name: str, folder: Path) -> Case:
        """Describe a command that has not run yet, with its output under a folder."""
        out = folder / "out"
        cpu = ("--device", "cpu", "--precision", "fp32")
        if name == "prepare":
            words: tuple[object, ...] = ("prepare", self.pairs, "--out", out)
            return Case(words, out, _digests)
        if name in ("train-coarse", "train-fine"):
            stage = name.removeprefix("train-")
            start = self.coarse if stage == "fine" else None
            words = self._training(stage, out, f"{stage}.iterations=8", "train.validate_every=6",
                                   start=start)  # fmt: skip
            return Case((*words, "--resume-auto"), out, lambda path: _weights(path, stage))
        if name == "sweep-steps":
            words = (name, self.coarse, "--data", self.shards, "--steps", "1,2,3", "--no-stamp",
                     "--out", out, *cpu)  # fmt: skip
            return Case(words, out, _scores)
        if name == "restore":
            words = (name, self.images, out, "--weights", self.weights, *cpu)
            return Case(words, out, Pictures)
        if name == "restore-video":
            pytest.importorskip("av")
            clip = self.root / "clip.mp4"
            words = ("restore", clip, out / "clip.mp4", "--weights", self.weights, *cpu)
            return Case(words, out, _digests)
        if name == "eval":
            words = (name, self.pairs / "train/rainy", self.pairs / "train/clean", "--report",
                     out / "report", "--csv", out / "rows.csv", "--protocol", "rgb")  # fmt: skip
            out.mkdir(exist_ok=True)
            return Case(words, out, lambda path: (path / "rows.csv").read_text(), ("--overwrite",))
        if name == "convert":
            words = (name, self.weights, out / "net.pt", "--ema-only")
            return Case(words, out, _digests, ("--overwrite",))
        raise ValueError(name)


COMMANDS = ("prepare", "train-coarse", "train-fine", "sweep-steps", "restore", "restore-video",
            "eval", "convert")  # fmt: skip


class Pictures:
    """Pictures by name, equal within one level: another batch size may round differently."""

    def __init__(self, folder: Path) -> None:
        from c2fdft_cli.data.images.picture import read_rgb8

        self.pixels = {path.name: read_rgb8(path).astype(int) for path in folder.glob("[!.]*.png")}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Pictures) or self.pixels.keys() != other.pixels.keys():
            return False
        return all(np.abs(one - other.pixels[name]).max() <= 1 for name, one in self.pixels.items())

    __hash__ = None  # type: ignore[assignment]  # is mutable


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file by name, without JSON files, which hold times, and temporary files."""
    left = {*hidden(folder)}
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix not in {".json", ".jsonl"} and path not in left
    }


def _weights(run_folder: Path, stage: str) -> object:
    """Raw and averaged weights, and the losses, of a run folder."""
    from c2fdft_cli.engine.weights.checkpoint import load_checkpoint
    from tests.kit.training import losses

    loaded = load_checkpoint(run_folder / f"{stage}.pt")
    states = [
        {name: tensor.numpy().tobytes() for name, tensor in state.items()}
        for state in (loaded.params, loaded.ema)
    ]
    return states, losses(run_folder)


def _scores(folder: Path) -> object:
    """All trials of a sweep without their seconds, and whether it is complete."""
    said = json.loads((folder / "sweep.json").read_text())
    trials = [{**trial, "seconds": None} for trial in said["trials"]]
    return said["complete"], trials
