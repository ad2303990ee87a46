"""Make the pictures of the documents: scikit-image's photographs, degraded and restored.

    python recipes/scripts/pictures.py docs/images

writes `rain.jpg` (weights derain), `noise.jpg` (denoise) and `blur.jpg` (deblur), each with the
degraded photographs above and the restored ones below. The rain is synthetic, by formula; the noise
is white Gaussian of sigma 25 and 50, and a camera's noise; the blur is that of a hand-held camera
that shakes during the exposure. `overview.jpg` shows one photograph of each.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import imageio.v3 as iio
import numpy as np
import skimage

from c2fdft_cli.data.images.picture import read_rgb8, save_rgb8
from c2fdft_cli.data.synthesis.degrade import parse_model

PHOTOS = Path(skimage.__file__).parent / "data"
SHOWN: dict[str, list[tuple[str, dict[str, object]]]] = {
    "rain": [
        ("chelsea.png", {"heavy": 0.0}),
        ("coffee.png", {"heavy": 0.0}),
        ("astronaut.png", {"heavy": 1.0}),
    ],
    "noise": [
        ("coffee.png", {"sigma": 25.0}),
        ("chelsea.png", {"sigma": 50.0}),
        ("astronaut.png", {"kind": "camera", "shot": 1e-2}),
    ],
    "blur": [
        ("chelsea.png", {"kind": "exposure", "size": [9, 11], "noise": [0, 1]}),
        ("coffee.png", {"kind": "exposure", "size": [13, 15], "noise": [0, 1]}),
        ("astronaut.png", {"kind": "exposure", "size": [18, 20], "noise": [0, 1]}),
    ],
}
"""Photographs and options, by kind of degradation."""
WEIGHTS = {"rain": "derain", "noise": "denoise", "blur": "deblur"}
OVERVIEW = {"rain": 0, "noise": 0, "blur": 2}
HEIGHT, GAP, QUALITY = 300, 6, 88


def main() -> None:
    """Write all pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    # Exit by an exception, so that a running command is ended too.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    out.mkdir(parents=True, exist_ok=True)
    columns = {}
    for name in SHOWN:
        with tempfile.TemporaryDirectory() as folder:
            columns[name] = _columns(name, Path(folder))
        iio.imwrite(out / f"{name}.jpg", _joined(columns[name], axis=1), quality=QUALITY)
    chosen = [columns[name][i] for name, i in OVERVIEW.items()]
    iio.imwrite(out / "overview.jpg", _joined(chosen, axis=1), quality=QUALITY)


def _columns(name: str, folder: Path) -> list[np.ndarray]:
    """Return each degraded photograph above its restoration, uint8 `[h, w, 3]`."""
    for i, (photo, options) in enumerate(SHOWN[name]):
        lq = parse_model(name, options).degrade(_fitted(photo), np.random.default_rng([7, i]))
        (folder / "in").mkdir(exist_ok=True)
        save_rgb8(folder / "in" / f"{i}.png", lq)
    restore = [sys.executable, "-m", "c2fdft_cli", "restore", folder / "in", folder / "out"]
    line = [*map(str, restore), "--weights", WEIGHTS[name]]
    subprocess.run(line, check=True)  # noqa: S603
    return [
        _joined([read_rgb8(folder / row / f"{i}.png") for row in ("in", "out")], axis=0)
        for i in range(len(SHOWN[name]))
    ]


def _fitted(photo: str) -> np.ndarray:
    image = read_rgb8(PHOTOS / photo)
    h, w = image.shape[:2]
    size = round(w * HEIGHT / h), HEIGHT
    fitted: np.ndarray = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return fitted


def _joined(images: list[np.ndarray], axis: int) -> np.ndarray:
    """Join images side by side (axis 1) or one below the other (axis 0), with white gaps."""
    shape = list(images[0].shape)
    shape[axis] = GAP
    gap = np.full(shape, 255, np.uint8)
    return np.concatenate([x for image in images for x in (gap, image)][1:], axis=axis)


if __name__ == "__main__":
    main()
