"""Folders of tiny images with the folder and file names of published data sets."""

from __future__ import annotations

import numpy as np

from c2fdft_cli.data.images.picture import save_rgb8


def draw(root, *names, size=(6, 8)):
    """Write tiny image files, each in a different grey."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save_rgb8(root / "drawn.bmp", np.full((*size, 3), number % 256, np.uint8))
        (root / "drawn.bmp").rename(path)
    return root


def gopro(root, folders):
    """Write GoPro's folder tree: two sequences of two frames each."""
    for sequence in ("GOPR0372_07_00", "GOPR0374_11_00"):
        draw(root, *(f"{sequence}/{folder}/{n:06}.png" for folder in folders for n in (47, 48)))
    return root
