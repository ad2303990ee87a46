"""The small data set of `c2fdft demo`: photos from scikit-image with synthetic rain."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from c2fdft_cli.data.images.picture import read_rgb8, save_rgb8
from c2fdft_cli.data.images.tensors import as_tensor
from c2fdft_cli.data.pixels import Pixels
from c2fdft_cli.data.synthesis.degrade import parse_model
from c2fdft_cli.data.synthesis.model import Model
from c2fdft_cli.errors import DataError, ResourceError
from c2fdft_cli.files.folders import ensure_folder
from c2fdft_cli.metrics.protocols import PROTOCOLS, score

# motorcycle_left and motorcycle_right show the same scene, so both are in the same split
TRAIN = ("coffee.png", "rocket.jpg", "motorcycle_left.png", "motorcycle_right.png")
HELD_OUT = ("astronaut.png", "chelsea.png")
SEED = 7
BAND = (26.0, 28.0)
"""Range of PSNR-Y of the rainy photos in dB; Rain100L's mean is 26.9."""
MOST_DRAWS = 200


def make_pairs(folder: Path) -> None:
    """Write `<folder>/{train,val}/{rainy,clean}/*.png` with rain of Rain100L's strength.

    Raises:
        ResourceError: scikit-image is not installed, or the folder cannot be written.
        DataError: this installation of scikit-image lacks one of the photos.
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
            target = Path(name).with_suffix(".png").name
            save_rgb8(clean / target, gt)
            save_rgb8(rainy / target, _rain_of_usual_strength(gt, model, number))


def _rain_of_usual_strength(gt: Pixels, model: Model, number: int) -> Pixels:
    """Add rain, sampled again until PSNR-Y is in `BAND`; images of Rain100L vary by 4 dB."""
    rng = np.random.default_rng([SEED, number])
    target = as_tensor(gt)
    for _ in range(MOST_DRAWS):
        rainy = model.degrade(gt, rng)
        if BAND[0] <= score(as_tensor(rainy), target, PROTOCOLS["derain"])[0].psnr <= BAND[1]:
            return rainy
    raise RuntimeError(f"no rain within {BAND} dB in {MOST_DRAWS} draws")


def comparison(folders: list[Path], out: Path, names: list[str], height: int = 300) -> None:
    """Write one picture to `out`, with a row for each image and a column for each folder."""
    rows = []
    for name in names:
        tiles = [read_rgb8(folder / name)[:height] for folder in folders]
        width = min(tile.shape[1] for tile in tiles)
        rows.append(np.concatenate([tile[:, :width] for tile in tiles], axis=1))
    widest = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 0), (0, widest - row.shape[1]), (0, 0))) for row in rows]
    save_rgb8(out, np.ascontiguousarray(np.concatenate(padded, axis=0)))
