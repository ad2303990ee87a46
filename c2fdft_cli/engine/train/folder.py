"""The run folder: what a training leaves behind, and what it resumes from."""

from __future__ import annotations

import csv
import gc
import io
import json
import logging
import math
import os
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from c2fdft_cli.errors import DataError, RecipeError, UsageError
from c2fdft_cli.files import (
    LOCK,
    HeldError,
    atomic_path,
    atomic_write_text,
    ensure_folder,
    hold_folder,
    read_error,
    unfinished,
    write_error,
)
from c2fdft_cli.recipe.files import load_recipe

COLUMNS = (
    "iteration",
    "patch",
    "batch",
    "lr",
    "loss",
    "skipped",
    "images_per_second",
    "waited",
    "val_psnr",
    "val_ssim",
)

_READ = {"iteration", "loss", "val_psnr", "val_ssim"}
"""The columns that are read again."""

_BEFORE_STATE = {LOCK, "recipe.yaml", "env.json", "metrics.csv", "samples", "checkpoints"}
"""What a run makes before it has a state, the lock first: one that was killed then begins anew."""


class RunFolder:
    """`runs/<recipe>-<stage>[-N]/` and the files in it.

    Args:
        path: as asked; `numbered`, the first that is free of `path`, `path-2`, `path-3` and so on.

    Attributes:
        number: of the name, from 1; 0 for one that was asked for.
    """

    def __init__(self, path: Path, *, numbered: bool = False) -> None:
        self._first = path
        self.number = 0
        self._lie_at(path)
        if numbered:
            self._to_next_free()

    def _lie_at(self, path: Path) -> None:
        self.path = path
        self.state = path / "state.pt"
        self.previous_state = path / "state-previous.pt"
        self.metrics = path / "metrics.csv"
        self.samples = path / "samples"
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"

    def to_number(self, number: int) -> None:
        """Lie under the name of a number."""
        self.number, first = number, self._first
        self._lie_at(first if number == 1 else first.with_name(f"{first.name}-{number}"))

    def _to_next_free(self) -> None:
        self.to_number(self.number + 1)
        while self.path.exists():
            self.to_number(self.number + 1)

    @contextmanager
    def begun(self, files: Mapping[str, str]) -> Iterator[None]:
        """Make the folder of a new run, and keep other processes from training in it meanwhile.

        A numbered one takes the next name where another process has taken its own just now.

        Args:
            files: text files to write into it, by name.

        Raises:
            UsageError: it holds a run.
            ResourceError: another process trains in it, or it cannot be written.
        """
        with ExitStack() as stack:
            while True:
                try:
                    self.check_free()  # before there is a lock in somebody's folder
                    stack.enter_context(self.held())
                    self.create(files)
                    break
                except (UsageError, HeldError):
                    if not self.number:
                        raise
                    stack.close()
                    self._to_next_free()
            yield

    def check_free(self) -> None:
        """Raise UsageError when the folder already holds something of a run, or of others."""
        names = {path.name for path in self.path.iterdir()} if self.path.is_dir() else set()
        names -= {path.name for path in unfinished(self.path)}
        # Without a lock it is a folder that somebody made: a recipe.yaml in it is theirs, not ours
        # to replace. The first state, of step 0, leaves no checkpoint, so one tells of a later
        # state.
        begun = LOCK in names and names <= _BEFORE_STATE and not any(self.checkpoints.glob("*"))
        if names and not begun:
            raise UsageError(
                "the run folder is not empty",
                where=self.path,
                hint="name another --out, or resume with --resume",
            )

    def create(self, files: Mapping[str, str]) -> None:
        """Make the folder with these text files in it.

        Raises:
            UsageError: the folder already holds a run.
            ResourceError: it cannot be written.
        """
        self.check_free()
        for folder in (self.path, self.samples, self.checkpoints):
            ensure_folder(folder)
        self.remove_unfinished()
        self.write_files(files)
        atomic_write_text(self.metrics, ",".join(COLUMNS) + "\n")

    def write_files(self, files: Mapping[str, str]) -> None:
        """Write text files, by name; ResourceError when they cannot be written."""
        for name, text in files.items():
            atomic_write_text(self.path / name, text)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from training in this folder meanwhile.

        Raises:
            ResourceError: one does.
        """
        with hold_folder(self.path, "another process trains in this folder"):
            yield

    def state_stamp(self) -> tuple[int, int] | None:
        """Something that changes with each save; None where there is no state."""
        try:
            status = self.state.stat()
        except OSError:
            return None
        # Neither is enough alone: a clock may stand still or run backwards, and the number of an
        # inode may come back with a later save.
        return status.st_ino, status.st_mtime_ns

    def keep_state(self) -> None:
        """Keep the newest state under a second name, before the next one takes its own."""
        # A link, not a rename: a run that is killed between this and the save still has state.pt.
        if self.state.is_file():
            _link(self.state, self.previous_state)

    def set_aside_state(self) -> None:
        """Put the previous state in the place of the newest, which is damaged and kept beside."""
        # links, so that there is a state.pt at each moment: a run without one cannot be resumed
        _link(self.state, self.path / "state-damaged.pt")
        _link(self.previous_state, self.state)

    def is_finished(self, stage: str) -> bool:
        """Whether all iterations of the run's recipe have been trained and logged."""
        if not (self.path / f"{stage}.pt").is_file():
            return False
        try:
            recipe = load_recipe(str(self.path / "recipe.yaml"))
        except RecipeError:
            return True
        # The finished checkpoint alone does not tell: it stays where a finished run is extended.
        iterations = recipe.coarse.iterations if stage == "coarse" else recipe.fine.iterations
        rows = self.read_metrics()
        return bool(rows) and int(rows[-1]["iteration"]) >= iterations

    def remove_unfinished(self) -> None:
        """Remove what a killed run was writing."""
        for folder in (self.path, self.checkpoints, self.samples):
            for path in unfinished(folder):
                path.unlink(missing_ok=True)

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add one row to metrics.csv."""
        text = io.StringIO()
        csv.DictWriter(text, COLUMNS, lineterminator="\n").writerow(row)
        try:
            # Neither synced nor renamed: the row is no part of what a run resumes from. What a kill
            # leaves of it, or of rows past the state, `read_metrics` and `cut_metrics` drop.
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(text.getvalue())
        except OSError as error:
            raise write_error(error, self.metrics) from error

    def cut_metrics(self, step: int) -> None:
        """Drop the rows after a step: what a killed run logged past its last saved state."""
        kept = [row for row in self.read_metrics() if int(row["iteration"]) <= step]
        text = io.StringIO()
        # without columns that a person or another version has added, which must not keep it from
        # going on
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(kept)
        atomic_write_text(self.metrics, text.getvalue())

    def has_metrics(self) -> bool:
        """Whether there is a metrics.csv of a run; other programs write files of this name too."""
        try:
            self.read_metrics()
        except DataError:
            return False
        return self.metrics.is_file()

    def read_metrics(self) -> list[dict[str, str]]:
        """The rows of metrics.csv, none without one; a last line that was cut short is left out.

        Raises:
            DataError: it cannot be read, or has other columns, or none.
        """
        if not self.metrics.is_file():
            return []
        try:
            # what a power failure leaves of rows that were not synced may be any bytes
            with self.metrics.open(newline="", encoding="utf-8-sig", errors="replace") as file:
                text = file.read()
            # a last line without its end was cut short, be it within the last column
            whole = text[: text.rfind("\n") + 1] or text
            reader = csv.DictReader(io.StringIO(whole, newline=""))
            rows = list(reader)
        except OSError as error:
            raise read_error(error, self.metrics) from error
        except csv.Error as error:
            raise DataError(
                f"it is no table: {error}", where=self.metrics, hint="move the file away"
            ) from error
        if not _READ.issubset(reader.fieldnames or COLUMNS):
            raise DataError(
                "its first line does not name the columns of a run",
                where=self.metrics,
                hint=f"restore that line, {','.join(COLUMNS)}, or move the file away",
            )
        return [
            row
            for row in rows
            # DictReader has None for a column that the line does not reach, "" for an empty one
            if re.fullmatch(r"\d{1,18}", row["iteration"] or "") and row["val_ssim"] is not None
        ]

    def numbered(self, step: int) -> Path:
        """The checkpoint of a step."""
        return self.checkpoints / f"step-{step:09d}.pt"

    def keep_latest(self, keep: int, step: int) -> None:
        """Remove all but the newest numbered checkpoints up to a step.

        Those ahead of it, of a run that resumed from an earlier state, stay and do not count:
        removing by number alone would remove what was just saved.
        """
        # as text they sort like their steps, which are written with nine digits
        found = sorted(self.checkpoints.glob("step-*.pt"))
        for path in [one for one in found if one <= self.numbered(step)][:-keep]:
            path.unlink()

    def link(self, source: Path, name: str) -> None:
        """A second name in checkpoints/ for a file, without its bytes twice where that works."""
        _link(source, self.checkpoints / name)

    @contextmanager
    def log(self) -> Iterator[logging.Logger]:
        """A logger into train.log, apart from other logs; its first line opens the file."""
        logger = logging.Logger(f"c2fdft.{self.path.name}")
        # names of files need not be UTF-8
        handler = logging.FileHandler(
            self.path / "train.log", encoding="utf-8", errors="backslashreplace", delay=True
        )
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        logger.addHandler(handler)
        try:
            yield logger
        finally:
            handler.close()


def _link(source: Path, target: Path) -> None:
    # Two names for the same bytes are safe because no file of a run is written in place: a save
    # renames a new file over one name and leaves the other what it had.
    with atomic_path(target) as temporary:
        # link replaces nothing, and the temporary name is taken by an empty file
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(source, temporary)


def auto_run(
    out: Path | None, recipe_name: str, stage: str, root: Path = Path("runs")
) -> RunFolder:
    """The folder of a run that one and the same line begins and resumes."""
    return RunFolder(out or root / f"{recipe_name}-{stage}")


def new_run(out: Path | None, recipe_name: str, stage: str, root: Path = Path("runs")) -> RunFolder:
    """The folder of a new run: as asked, else the first free `runs/<recipe>-<stage>[-N]`."""
    if out is not None:
        return RunFolder(out)
    return RunFolder(root / f"{recipe_name}-{stage}", numbered=True)


def find_run(
    out: Path | None, recipe_name: str | None, stage: str, root: Path = Path("runs")
) -> RunFolder:
    """The run to resume: as asked, else the newest of that recipe and stage that is not finished.

    Raises:
        DataError: there is none.
    """
    if out is not None:
        if not (out / "state.pt").is_file():
            hint = "check --out, or begin the run without --resume"
            raise DataError("no run to resume: it has no state.pt", where=out, hint=hint)
        return RunFolder(out)
    found = [
        path.parent for path in root.glob("*/state.pt") if _is_of(path.parent, recipe_name, stage)
    ]
    if not found:
        of = f" of the recipe {recipe_name}" if recipe_name else ""
        hint = f"name the run with --out, or begin one: c2fdft train-{stage}"
        raise DataError(f"no {stage} run{of} to resume", where=root, hint=hint)
    found.sort(key=lambda path: (path / "state.pt").stat().st_mtime, reverse=True)
    interrupted = next((path for path in found if not RunFolder(path).is_finished(stage)), None)
    if interrupted is None:
        what = "no interrupted run to resume: all of this stage are finished"
        raise DataError(what, where=root, hint=f"name one with --out, such as {found[0]}")
    return RunFolder(interrupted)


def _is_of(folder: Path, recipe_name: str | None, stage: str) -> bool:
    """Whether a run is of this recipe and stage: by its env.json, of older runs by its name."""
    try:
        facts = json.loads((folder / "env.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        facts = None
    if isinstance(facts, dict) and "stage" in facts:
        return facts["stage"] == stage and recipe_name in (None, facts.get("recipe"))
    name = re.escape(recipe_name) if recipe_name else ".+"
    return re.fullmatch(rf"{name}-{stage}(-\d+)?", folder.name) is not None


def draw_curves(run: RunFolder) -> bool:
    """Write curves.png from metrics.csv; False where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    rows = run.read_metrics()
    figure = Figure(figsize=(9, 6), layout="constrained")
    loss_axes, score_axes = figure.subplots(2, 1, sharex=True)
    _plot(loss_axes, rows, "loss", "training loss")
    loss_axes.set_yscale("log")
    _plot(score_axes, rows, "val_psnr", "validation PSNR, dB", marker="o")
    score_axes.set_xlabel("iteration")
    # A name may hold anything: bytes that are no UTF-8, dollar signs, which would begin a formula,
    # and letters that the font has not, about which matplotlib warns.
    name = run.path.name.encode("utf-8", "backslashreplace").decode()
    figure.suptitle(name, parse_math=False)
    with atomic_path(run.path / "curves.png") as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing")
        figure.savefig(temporary, dpi=110)
    # a figure is a cycle of some megabytes, and steps make too few objects for Python to look for
    # it: without this, a training grows by tens of megabytes between looks
    del figure, loss_axes, score_axes
    gc.collect()
    return True


def _number(text: str) -> float:
    """The number in a cell; NaN, which leaves a gap, for other text that a person put there."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _plot(
    axes: Any, rows: Iterable[Mapping[str, str]], column: str, label: str, **style: Any
) -> None:
    points = [(int(r["iteration"]), _number(r[column])) for r in rows if r[column]]
    axes.plot([x for x, _ in points], [y for _, y in points], **style)
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
