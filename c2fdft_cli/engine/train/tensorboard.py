"""TensorBoard event files of a training: the rows of metrics.csv and the sample restorations."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from c2fdft_cli.data.pixels import Pixels
from c2fdft_cli.errors import UsageError
from c2fdft_cli.files.failures import write_error

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

TAGS = {
    "loss": "train/loss",
    "lr": "train/lr",
    "skipped": "train/skipped",
    "images_per_second": "speed/images_per_second",
    "waited": "speed/waited",
    "val_psnr": "validation/psnr",
    "val_ssim": "validation/ssim",
}
"""TensorBoard's tag for each column of metrics.csv."""
MEMORY_TAG = "speed/memory_bytes"


class TensorBoard:
    """Writes event files in RUN/tensorboard/; does nothing if it is off or not opened.

    Args:
        folder: folder of the event files; may be changed until `open` is called.
        setting: "true", "false", or "auto" (on if TensorBoard is installed).
        is_main: whether this is the process that writes.

    Raises:
        UsageError: `setting` is "true", but TensorBoard is not installed; or it cannot write to the
            folder.
    """

    def __init__(self, folder: Path, setting: str, is_main: bool = True) -> None:
        installed = importlib.util.find_spec("tensorboard") is not None
        if setting == "true" and not installed:
            raise UsageError(
                "train.tensorboard=true needs TensorBoard, which is not installed",
                hint="pip install 'c2fdft[logs]'",
            )
        self.folder = folder
        self._on = installed and setting != "false" and is_main
        if self._on:
            try:
                str(folder).encode()
            except UnicodeEncodeError:
                what = "TensorBoard cannot write to a folder whose name is not UTF-8"
                hint = "name another --out, or use train.tensorboard=false"
                raise UsageError(what, where=folder, hint=hint) from None
        self._writer: SummaryWriter | None = None

    def open(self, step: int) -> None:
        """Start writing after `step`; TensorBoard then ignores later steps of a killed run."""
        if not self._on:
            return
        from torch.utils.tensorboard import SummaryWriter

        with self._writing():
            purge = step + 1 if self.folder.is_dir() else None
            self._writer = SummaryWriter(str(self.folder), purge_step=purge)

    def row(self, row: Mapping[str, Any], memory: int) -> None:
        """Write a row of metrics.csv, and the peak memory so far in bytes."""
        if self._writer is None:
            return
        step = int(row["iteration"])
        values = {tag: row[name] for name, tag in TAGS.items() if row.get(name, "") != ""}
        with self._writing():
            for tag, value in {**values, MEMORY_TAG: memory}.items():
                self._writer.add_scalar(tag, float(value), step)

    def sample(self, name: str, step: int, pixels: Pixels) -> None:
        """Write a sample picture: uint8 `[h, w, 3]`."""
        if self._writer is not None:
            with self._writing():
                self._writer.add_image(f"samples/{name}", pixels, step, dataformats="HWC")

    def flush(self) -> None:
        """Write buffered events to disk, so that the files reach as far as the saved state."""
        if self._writer is not None:
            with self._writing():
                self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            with self._writing():
                self._writer.close()
            self._writer = None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise write_error(error, self.folder) from error
