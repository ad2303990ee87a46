"""The run folder: the files that a training writes, and that it resumes from."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from c2fdft_cli.errors import DataError, RecipeError, UsageError
from c2fdft_cli.files.failures import read_error, write_error
from c2fdft_cli.files.folders import ensure_folder
from c2fdft_cli.files.locks import LOCK, HeldError, hold_folder
from c2fdft_cli.files.reading import is_file
from c2fdft_cli.files.writing import atomic_path, atomic_write_text, unfinished
from c2fdft_cli.recipe.files import load_recipe
from c2fdft_cli.vocabulary import TrainedStage

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
"""The columns of metrics.csv that the program itself reads."""

_BEFORE_STATE = {LOCK, "recipe.yaml", "env.json", "metrics.csv", "samples", "checkpoints"}
"""What a run makes before its first state; if it is killed then, it can start again."""


class RunFolder:
    """`runs/<recipe>-<stage>[-N]/` and the files in it.

    Args:
        path: the folder.
        numbered: use the first free name of `path`, `path-2`, `path-3` and so on instead.

    Attributes:
        number: number of the name, from 1; 0 if the folder is not `numbered`.
    """

    def __init__(self, path: Path, *, numbered: bool = False) -> None:
        self._first = path
        self.number = 0
        self._set_paths(path)
        if numbered:
            self._to_next_free()

    def _set_paths(self, path: Path) -> None:
        self.path = path
        self.state = path / "state.pt"
        self.previous_state = path / "state-previous.pt"
        self.metrics = path / "metrics.csv"
        self.samples = path / "samples"
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"

    def to_number(self, number: int) -> None:
        """Use the name with this number: `path` for 1, `path-N` for others."""
        self.number, first = number, self._first
        self._set_paths(first if number == 1 else first.with_name(f"{first.name}-{number}"))

    def _to_next_free(self) -> None:
        self.to_number(self.number + 1)
        while self.path.exists():
            self.to_number(self.number + 1)

    @contextmanager
    def begun(self, files: Mapping[str, str]) -> Iterator[None]:
        """Create the folder of a new run, and keep it locked against other processes.

        If another process has just taken the name of a numbered folder, the next name is used.

        Args:
            files: text files to write into it, by name.

        Raises:
            UsageError: the folder is not empty.
            ResourceError: another process trains in the folder, or it cannot be written.
        """
        with ExitStack() as stack:
            while True:
                try:
                    self.check_free()  # first, so that no lock file is left in a user's own folder
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
        """Raise UsageError if the folder already holds a run with a state, or other files."""
        names = {path.name for path in self.path.iterdir()} if self.path.is_dir() else set()
        names -= {path.name for path in unfinished(self.path)}
        # A run makes its folders first: a recipe.yaml without them is the user's, and must not be
        # replaced. The first state, that of step 0, has no checkpoint, so a checkpoint means that
        # there was a later state. The lock file proves nothing: some versions of filelock remove
        # it.
        made = names <= {LOCK} or (names <= _BEFORE_STATE and self.checkpoints.name in names)
        begun = made and not any(self.checkpoints.glob("*"))
        if names and not begun:
            raise UsageError(
                "the run folder is not empty",
                where=self.path,
                hint="name another --out, or resume with --resume",
            )

    def create(self, files: Mapping[str, str]) -> None:
        """Create the folder and write these text files into it.

        Raises:
            UsageError: the folder is not empty.
            ResourceError: the folder cannot be written.
        """
        self.check_free()
        for folder in (self.path, self.checkpoints, self.samples):
            ensure_folder(folder)
        self.remove_unfinished()
        self.write_files(files)
        atomic_write_text(self.metrics, ",".join(COLUMNS) + "\n")

    def write_files(self, files: Mapping[str, str]) -> None:
        """Write text files, by name; raise ResourceError if one cannot be written."""
        for name, text in files.items():
            atomic_write_text(self.path / name, text)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the folder, so that no other process trains in it.

        Raises:
            ResourceError: another process trains in it.
        """
        with hold_folder(self.path, "another process trains in this folder"):
            yield

    def has_state(self) -> bool:
        """Whether the run can be resumed: it has a state, even if only the previous one.

        Raises:
            DataError: the system does not tell.
        """
        return is_file(self.state) or is_file(self.previous_state)

    def state_stamp(self) -> tuple[int, int] | None:
        """Return a value that changes with each save of the state; None if there is no state.

        Raises:
            DataError: the system does not tell.
        """
        try:
            status = self.state.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise read_error(error, self.state) from error
        # Neither is enough alone: a clock may stand still or run backwards, and a later save may
        # reuse an inode number.
        return status.st_ino, status.st_mtime_ns

    def keep_state(self) -> None:
        """Keep the newest state as the previous one, before the next one replaces it."""
        # A link instead of a rename, so that a run killed before the save still has its state.pt.
        if self.state.is_file():
            link(self.state, self.previous_state)

    def set_aside_state(self) -> None:
        """Replace the newest state, which is missing or damaged, by the previous one.

        A damaged one is kept as state-damaged.pt.
        """
        # Links, so that there is a state.pt at every moment.
        if self.state.is_file():
            link(self.state, self.path / "state-damaged.pt")
        link(self.previous_state, self.state)

    def is_finished(self, stage: TrainedStage) -> bool:
        """Whether all iterations of the run's recipe have been trained and logged."""
        if not (self.path / f"{stage}.pt").is_file():
            return False
        try:
            recipe = load_recipe(str(self.path / "recipe.yaml"))
        except RecipeError:
            return True
        # The final checkpoint is not enough: it remains when a finished run is extended.
        rows = self.read_metrics()
        return bool(rows) and int(rows[-1]["iteration"]) >= recipe.section(stage).iterations

    def remove_unfinished(self) -> None:
        """Remove the temporary files that a killed run left."""
        for folder in (self.path, self.checkpoints, self.samples):
            for path in unfinished(folder):
                path.unlink(missing_ok=True)

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Append one row to metrics.csv."""
        text = io.StringIO()
        csv.DictWriter(text, COLUMNS, lineterminator="\n").writerow(row)
        try:
            # The file is neither synced nor renamed, because a run does not resume from it. If the
            # run is killed, `read_metrics` drops an incomplete row, and `cut_metrics` the rows
            # after the saved state.
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(text.getvalue())
        except OSError as error:
            raise write_error(error, self.metrics) from error

    def cut_metrics(self, step: int) -> None:
        """Drop the rows after a step, which a killed run logged after its last saved state."""
        kept = [row for row in self.read_metrics() if int(row["iteration"]) <= step]
        text = io.StringIO()
        # Columns that the user or another version has added are dropped: they must not prevent the
        # run from resuming.
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(kept)
        atomic_write_text(self.metrics, text.getvalue())

    def has_metrics(self) -> bool:
        """Whether the folder has a run's metrics.csv; other programs use this file name too."""
        try:
            self.read_metrics()
        except DataError:
            return False
        return self.metrics.is_file()

    def read_metrics(self) -> list[dict[str, str]]:
        """Return the rows of metrics.csv, without incomplete ones; [] if there is no such file.

        Raises:
            DataError: the file cannot be read, is not a table, or lacks columns of a run.
        """
        if not self.metrics.is_file():
            return []
        try:
            # rows are not synced, so after a power failure the file may end in arbitrary bytes
            with self.metrics.open(newline="", encoding="utf-8-sig", errors="replace") as file:
                text = file.read()
            # A last line without a line end is incomplete, even if it has all columns: its last
            # value may be truncated.
            whole = text[: text.rfind("\n") + 1] or text
            reader = csv.DictReader(io.StringIO(whole, newline=""))
            rows = list(reader)
        except OSError as error:
            raise read_error(error, self.metrics) from error
        except csv.Error as error:
            raise DataError(
                f"it is not a table: {error}", where=self.metrics, hint="move the file away"
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
            # DictReader returns None for columns that a line lacks, and "" for empty ones
            if re.fullmatch(r"\d{1,18}", row["iteration"] or "") and row["val_ssim"] is not None
        ]

    def checkpoint_of(self, step: int) -> Path:
        """Return the path of the checkpoint of a step."""
        return self.checkpoints / f"step-{step:09d}.pt"

    def keep_latest(self, keep: int, step: int) -> None:
        """Remove the numbered checkpoints up to `step`, except the newest `keep` of them.

        Checkpoints of later steps, which exist if the run resumed from an earlier state, remain
        and do not count. Otherwise they would displace the checkpoint that was just saved.
        """
        # steps are written with nine digits, so the names sort in the order of the steps
        found = sorted(self.checkpoints.glob("step-*.pt"))
        for path in [one for one in found if one <= self.checkpoint_of(step)][:-keep]:
            path.unlink()

    @contextmanager
    def log(self) -> Iterator[logging.Logger]:
        """Yield a logger that writes to train.log only; the first line it logs opens the file."""
        logger = logging.Logger(f"c2fdft.{self.path.name}")
        # a line may contain a file name that is not valid UTF-8
        handler = logging.FileHandler(
            self.path / "train.log", encoding="utf-8", errors="backslashreplace", delay=True
        )
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        logger.addHandler(handler)
        try:
            yield logger
        finally:
            handler.close()


def link(source: Path, target: Path) -> None:
    """Give a file of a run a second name: as a hard link if possible, else as a copy."""
    # Two names for the same file are safe because no file of a run is written in place: a save
    # renames a new file to one of the names, and the other name keeps the old content.
    with atomic_path(target) as temporary:
        # os.link does not replace a file, and an empty one already has the temporary name
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(source, temporary)


def auto_run(out: Path | None, recipe_name: str, stage: TrainedStage) -> RunFolder:
    """Return the folder of a run that the same command line starts and resumes."""
    return RunFolder(out or Path("runs") / f"{recipe_name}-{stage}")


def new_run(
    out: Path | None, recipe_name: str, stage: TrainedStage, root: Path = Path("runs")
) -> RunFolder:
    """Return the folder of a new run: `out`, or the first free `runs/<recipe>-<stage>[-N]`."""
    if out is not None:
        return RunFolder(out)
    return RunFolder(root / f"{recipe_name}-{stage}", numbered=True)


def find_run(
    out: Path | None, recipe_name: str | None, stage: TrainedStage, root: Path = Path("runs")
) -> RunFolder:
    """Return the run to resume: `out`, or the newest unfinished one of this recipe and stage.

    Raises:
        DataError: there is no such run.
    """
    if out is not None:
        if not RunFolder(out).has_state():
            hint = "check --out, or start the run without --resume"
            raise DataError("no run to resume: it has no state.pt", where=out, hint=hint)
        return RunFolder(out)
    saved = {path.parent: path.stat().st_mtime for path in root.glob("*/state-previous.pt")}
    saved |= {path.parent: path.stat().st_mtime for path in root.glob("*/state.pt")}
    found = [path for path in saved if _is_of(path, recipe_name, stage)]
    if not found:
        of = f" of the recipe {recipe_name}" if recipe_name else ""
        hint = f"name the run with --out, or start one: c2fdft train-{stage}"
        raise DataError(f"no {stage} run{of} to resume", where=root, hint=hint)
    found.sort(key=saved.__getitem__, reverse=True)
    interrupted = next((path for path in found if not RunFolder(path).is_finished(stage)), None)
    if interrupted is None:
        what = "no interrupted run to resume: all runs of this stage are finished"
        raise DataError(what, where=root, hint=f"name one with --out, such as {found[0]}")
    return RunFolder(interrupted)


def _is_of(folder: Path, recipe_name: str | None, stage: TrainedStage) -> bool:
    """Whether a run is of this recipe and stage, by its env.json or (older runs) its name."""
    try:
        facts = json.loads((folder / "env.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        facts = None
    if isinstance(facts, dict) and "stage" in facts:
        return facts["stage"] == stage and recipe_name in (None, facts.get("recipe"))
    name = re.escape(recipe_name) if recipe_name else ".+"
    return re.fullmatch(rf"{name}-{stage}(-\d+)?", folder.name) is not None
