"""Check that memory does not grow and no file stays open in a long restore and a long training.

    python recipes/scripts/soak.py OUT [IMAGES STEPS]

Restores 2,000 pictures with one command and trains for 5,000 steps. Starts the program as a user
does, samples it every half second, and writes OUT/restore.csv and OUT/training.csv (seconds, done,
resident MiB, open files) and OUT/soak.png. Exits with 1 if, from the second fifth of the work (when
caches and pools are full) to the last, memory grows by more than 5 % and more than 16 MiB, or the
number of open files rises. Takes about ten minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import csv
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import matplotlib.pyplot as plt
import numpy as np
import psutil
from PIL import Image

SIDE = 24
TINY = ("network.dim=8", "network.blocks=[1,1,1,1]", "coarse.patches=[16]", "coarse.batches=[4]",
        "coarse.switch_every=1000", "train.save_every=250", "train.validate_every=500",
        "train.validation_images=2", "train.log_every=10")  # fmt: skip
Row = tuple[float, int, float, int]


def main() -> int:
    """Run both, and return 0 if both stay flat, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("images", type=int, nargs="?", default=2000)
    parser.add_argument("steps", type=int, nargs="?", default=5000)
    given = parser.parse_args()
    # Exit by an exception, so that `finally` ends the program.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    return soak(given.out, given.images, given.steps)


def soak(out: Path, images: int, steps: int) -> int:
    """Run both, and return 0 if both stay flat, else 1."""
    out.mkdir(parents=True, exist_ok=True)
    pairs = out / "pairs"
    for kind in ("rainy", "clean"):
        write_pictures(pairs / kind, 12)
    write_pictures(out / "in", images)
    program("prepare", pairs, "--out", out / "shards", "--val", "2").wait()
    restored, run = out / "restored", out / "run"
    restore = watch(
        program("restore", out / "in", restored, "--weights", "derain", "--device", "cpu"),
        lambda: len(list(restored.glob("*.png"))),
    )
    words = (f"coarse.iterations={steps}", f"coarse.periods=[{{length: {steps}, floor: 1.0e-5}}]")
    training = watch(
        program("train-coarse", "--recipe", "tiny", "--data", out / "shards", "--out", run,
                "--device", "cpu", "--precision", "fp32", *TINY, *words),
        lambda: max(0, 10 * (len((run / "metrics.csv").read_text().splitlines()) - 1))
        if (run / "metrics.csv").exists() else 0,
    )  # fmt: skip
    curves = {"restore": (restore, images), "training": (training, steps)}
    draw(out / "soak.png", curves)
    return max([report(out / f"{name}.csv", *curve) for name, curve in curves.items()])


def write_pictures(folder: Path, count: int) -> None:
    """Write PNG files of noise on a ramp, all different."""
    folder.mkdir(parents=True, exist_ok=True)
    ramp = np.linspace(0, 200, SIDE)[:, None, None]
    for number in range(count):
        noise = np.random.default_rng(number).uniform(0, 55, (SIDE, SIDE, 3))
        Image.fromarray((ramp + noise).astype(np.uint8)).save(folder / f"{number:05d}.png")


def program(*words: object) -> subprocess.Popen[bytes]:
    """Start the program, with its output discarded."""
    command = [sys.executable, "-m", "c2fdft_cli", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603


def watch(process: subprocess.Popen[bytes], done: Callable[[], int]) -> list[Row]:
    """Return (seconds, done, resident MiB, open files) every half second until a process ends."""
    rows: list[Row] = []
    start, seen = time.monotonic(), psutil.Process(process.pid)
    try:
        while process.poll() is None:
            try:
                resident, files = seen.memory_info().rss / 2**20, seen.num_fds()
            except psutil.Error:  # the process has just ended
                break
            rows.append((round(time.monotonic() - start, 1), done(), round(resident, 1), files))
            time.sleep(0.5)
        process.wait()
    finally:  # if this script is stopped, the program may not keep running
        process.terminate()
        process.wait()
    if process.returncode:
        raise SystemExit(f"the program ended with {process.returncode}")
    return rows


def report(path: Path, rows: list[Row], total: int) -> int:
    """Write the rows; return 0 if memory and open files are flat, else 1.

    Compares medians of the second and the last fifth of the work.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("seconds", "done", "resident_mib", "open_files"))
        writer.writerows(rows)
    early = [row for row in rows if 0.2 * total <= row[1] < 0.4 * total]
    late = [row for row in rows if 0.8 * total <= row[1] < total]
    (memory, grown), (files, left) = (
        [median(row[column] for row in part) for part in (early, late)] for column in (2, 3)
    )
    flat = grown - memory <= max(16.0, 0.05 * memory) and left <= files
    sys.stdout.write(
        f"{path.stem}: {total} in {rows[-1][0]:.0f} s, resident {memory:.0f} -> {grown:.0f} MiB, "
        f"open files {files:.0f} -> {left:.0f}: {'flat' if flat else 'GROWS'}\n"
    )
    return 0 if flat else 1


def draw(path: Path, curves: dict[str, tuple[list[Row], int]]) -> None:
    """Plot memory and open files over the number of images or steps that are done."""
    figure, axes = plt.subplots(2, len(curves), figsize=(9, 4), layout="constrained")
    for column, (name, (rows, _)) in enumerate(curves.items()):
        for line, (index, label) in enumerate(((2, "resident MiB"), (3, "open files"))):
            axes[line, column].plot([row[1] for row in rows], [row[index] for row in rows])
            axes[line, column].set_ylim(bottom=0)
            axes[line, column].set_ylabel(label)
        axes[0, column].set_title(name)
        axes[1, column].set_xlabel("images" if name == "restore" else "steps")
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    sys.exit(main())
