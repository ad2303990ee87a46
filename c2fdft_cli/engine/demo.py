"""A small data set made on the spot, for `c2fdft demo`: photos from scikit-image, drawn rain."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from c2fdft_cli.data.atomic import ensure_folder
from c2fdft_cli.data.images import read_rgb8, save_rgb8
from c2fdft_cli.data.synthesis import degrade, parse_model
from c2fdft_cli.errors import DataError, ResourceError

# motorcycle_left and motorcycle_right are two views of one scene: both on one side of the split
TRAIN = ("coffee.png", "rocket.jpg", "motorcycle_left.png", "motorcycle_right.png")
HELD_OUT = ("astronaut.png", "chelsea.png")
SEED = 7


def make_pairs(folder: Path) -> None:
    """Write `<folder>/{train,val}/{rainy,clean}/*.png` with rain of Rain100L's strength.

    Raises:
        ResourceError: scikit-image is not installed, or the folder cannot be written.
        DataError: its photos are not in this installation.
    """
    try:
        import skimage
    except ImportError as error:
        raise ResourceError(
            "the demo's photos come with scikit-image", hint="pip install 'c2fdft[demo]'"
        ) from error
    photos = Path(skimage.__file__).parent / "data"
    model = parse_model("rain", {"heavy": 0.0})
    for split, names in (("train", TRAIN), ("val", HELD_OUT)):
        clean, rainy = (ensure_folder(folder / split / kind) for kind in ("clean", "rainy"))
        for number, name in enumerate(names):
            if not (photos / name).is_file():
                raise DataError("a photo of scikit-image is missing", where=photos / name)
            gt = read_rgb8(photos / name)
            rng = np.random.default_rng([SEED, len(split), number])
            target = Path(name).with_suffix(".png").name
            save_rgb8(clean / target, gt)
            save_rgb8(rainy / target, degrade(gt, model, rng))


def comparison(folders: list[Path], out: Path, names: list[str], height: int = 300) -> None:
    """Write one picture: a row for each image, a column for each folder."""
    rows = []
    for name in names:
        tiles = [read_rgb8(folder / name)[:height] for folder in folders]
        width = min(tile.shape[1] for tile in tiles)
        rows.append(np.concatenate([tile[:, :width] for tile in tiles], axis=1))
    widest = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 0), (0, widest - row.shape[1]), (0, 0))) for row in rows]
    save_rgb8(out, np.ascontiguousarray(np.concatenate(padded, axis=0)))
