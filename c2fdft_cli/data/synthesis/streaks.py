"""A bank of rendered rain-streak masks (grey on black; Garg and Nayar, TOG 2006)."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from c2fdft_cli.data.images.picture import image_size, read_rgb8
from c2fdft_cli.errors import DataError
from c2fdft_cli.files.folders import is_hidden
from c2fdft_cli.pipeline import in_order

Grey: TypeAlias = NDArray[np.uint8]

MAX_FILE_BYTES = 32 * 2**20
MAX_SIDE = 8192
MIN_SIDE = 32
MAX_IMAGES = 512
MAX_BANK_BYTES = 512 * 2**20
TOLERANCE = 16
MAX_FADE = 48
MIN_CUBIC_SHRINK = 0.7
LAYERS = "heavy"
"""Sub-folder of a bank with whole layers of heavy rain."""


class StreakBank:
    """Streak masks held in memory as uint8 [h, w]; safe to pickle and to share between workers.

    Args:
        folder: a flat folder of PNG files, grey (or colour with equal channels) on black; its
            sub-folder `heavy`, if it exists, contains whole layers of heavy rain. At most
            `MAX_IMAGES` of each are read, evenly spaced over the sorted names.

    Attributes:
        masks: each has streaks of one direction and scale.
        layers: each has all the streaks of a picture, such as recipes/scripts/rain_layers.py
            extracts from pairs.

    Raises:
        DataError: the folder does not exist or has no PNG file, or a file is damaged, coloured, too
            small or too large.
    """

    def __init__(self, folder: str | Path) -> None:
        self.masks: tuple[Grey, ...] = tuple(_load(Path(folder)))
        layers = Path(folder) / LAYERS
        self.layers = tuple(_load(layers)) if layers.is_dir() else ()

    def digest(self) -> str:
        """Return the SHA-256 of the content of all masks and layers."""
        digest = hashlib.sha256()
        for group, word in ((self.masks, b""), (self.layers, b"layers")):
            # Without layers nothing is added, so the digest is the same as before layers existed,
            # and shards made then are still up to date.
            digest.update(word if group else b"")
            for mask in group:
                digest.update(repr(mask.shape).encode())
                digest.update(mask)
        return digest.hexdigest()

    def sample(
        self,
        rng: np.random.Generator,
        h: int,
        w: int,
        *,
        turn: float = 0.0,
        across: float = 1.0,
        along: float = 1.0,
        layer: bool = False,
    ) -> Grey:
        """Cut a crop from one mask at a random position, perhaps rotated, stretched or mirrored.

        A mask that is too small is repeated with cross-faded ends: mirrored copies would have the
        opposite tilt, and plain copies would cut streaks off.

        Args:
            rng: the only source of randomness.
            h: height in px.
            w: width in px.
            turn: the mask is rotated by an angle sampled uniformly from
                [-turn, turn] degrees.
            across: factor by which the rotated mask is stretched horizontally.
            along: factor by which it is stretched vertically. With no turn and both factors 1
                every pixel is as it was rendered.
            layer: use one of the layers instead of a mask.

        Returns:
            uint8 [h, w], C-contiguous, a copy.
        """
        masks = self.layers if layer else self.masks
        mask = masks[rng.integers(len(masks))]
        angle = float(rng.uniform(-turn, turn)) if turn > 0 else 0.0
        size = max(1, round(h / along)), max(1, round(w / across))
        cut = _rotated(mask, rng, *size, angle) if angle else _straight(mask, rng, *size)
        cut = _stretched(cut, h, w)
        return np.ascontiguousarray(cut[:, ::-1] if rng.random() < 0.5 else cut)


def _straight(mask: Grey, rng: np.random.Generator, h: int, w: int) -> Grey:
    """Cut [h, w] out of the mask without resampling; a mask that is too small is repeated."""
    top, left = _place(rng, mask.shape[0], h), _place(rng, mask.shape[1], w)
    if top + h <= mask.shape[0] and left + w <= mask.shape[1]:
        return mask[top : top + h, left : left + w]
    tile = _seamless(mask)
    rows = np.arange(top, top + h) % tile.shape[0]
    columns = np.arange(left, left + w) % tile.shape[1]
    return tile[np.ix_(rows, columns)]


def _seamless(mask: Grey) -> Grey:
    """Make the mask periodic by cross-fading its ends, so that repeating it cuts off no streak."""
    tile = mask.astype(np.float32)
    for _ in range(2):
        tile = tile.T
        fade = min(MAX_FADE, tile.shape[0] // 4)
        ramp = ((np.arange(fade, dtype=np.float32) + 0.5) / fade)[:, None]
        mixed = tile[:fade] * ramp + tile[-fade:] * (1 - ramp)
        tile = np.concatenate([mixed, tile[fade:-fade]])
    return np.rint(tile).astype(np.uint8)


def _place(rng: np.random.Generator, side: int, crop: int) -> int:
    """Sample where a crop starts: inside if it fits, anywhere (periodic) if it does not."""
    return int(rng.integers(side - crop + 1 if crop <= side else side))


def _rotated(mask: Grey, rng: np.random.Generator, h: int, w: int, angle: float) -> Grey:
    """Cut [h, w] out of the mask rotated by `angle` degrees; cubic, so that edges stay sharp."""
    import cv2

    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    # Four px more, because cubic interpolation reads two pixels beyond on each side.
    span_y = math.ceil(h * cos + w * abs(sin)) + 4
    span_x = math.ceil(w * cos + h * abs(sin)) + 4
    source = _straight(mask, rng, span_y, span_x)
    centre_y, centre_x = (span_y - 1) / 2, (span_x - 1) / 2
    to_source = np.array([[cos, -sin, 0.0], [sin, cos, 0.0]])
    to_source[:, 2] = (centre_x, centre_y) - to_source[:, :2] @ ((w - 1) / 2, (h - 1) / 2)
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    turned: Grey = cv2.warpAffine(source, to_source, (w, h), flags=flags)
    return turned


def _stretched(cut: Grey, h: int, w: int) -> Grey:
    """Resize one axis after the other: cubic, or by area averaging if an axis shrinks a lot."""
    import cv2

    # OpenCV takes one interpolation for both axes, and a mask may shrink along one while it
    # grows along the other.
    for size in ((w, cut.shape[0]), (w, h)):
        shrink = min(size[0] / cut.shape[1], size[1] / cut.shape[0])
        if shrink != 1.0 or size != cut.shape[::-1]:
            how = cv2.INTER_AREA if shrink < MIN_CUBIC_SHRINK else cv2.INTER_CUBIC
            cut = cv2.resize(cut, size, interpolation=how)
    return cut


def _load(folder: Path) -> list[Grey]:
    """Read the folder's PNG files after checking every header and the sum of their sizes."""
    if not folder.is_dir():
        hint = "name the folder with --streaks (prepare) or data.streaks=FOLDER (training)"
        raise DataError("no such folder of streak masks", where=folder, hint=hint)
    found = (
        path for path in folder.iterdir() if path.suffix.lower() == ".png" and not path.is_dir()
    )
    paths = sorted((path for path in found if not is_hidden(path.name)), key=lambda path: path.name)
    if not paths:
        raise DataError("the folder holds no PNG files of streak masks", where=folder)
    if len(paths) > MAX_IMAGES:
        paths = [paths[i * len(paths) // MAX_IMAGES] for i in range(MAX_IMAGES)]
    total = sum(_pixels(path) for path in paths)
    if total > MAX_BANK_BYTES:
        raise DataError(
            f"the streak masks need {total >> 20} MiB of memory, more than {MAX_BANK_BYTES >> 20}",
            where=folder,
            hint="use fewer or smaller masks",
        )
    return list(in_order(_read, paths))


def _pixels(path: Path) -> int:
    """Return height * width from the header alone, so that no decompression bomb is decoded."""
    h, w = image_size(path)
    if path.stat().st_size > MAX_FILE_BYTES:
        raise DataError(f"the file is larger than {MAX_FILE_BYTES >> 20} MiB", where=path)
    if not (MIN_SIDE <= h <= MAX_SIDE and MIN_SIDE <= w <= MAX_SIDE):
        what = f"a streak mask must have sides of {MIN_SIDE} to {MAX_SIDE} px, got {w}x{h} px"
        raise DataError(what, where=path)
    return h * w


def _read(path: Path) -> Grey:
    """Decode one mask to uint8 [h, w]; it must be grey."""
    image = read_rgb8(path)
    # Channel by channel: NumPy takes 15 times as long to reduce an axis of three values.
    channels = np.ascontiguousarray(image.transpose(2, 0, 1))
    if int(np.ptp(channels, axis=0).max()) > TOLERANCE:
        raise DataError("a streak mask must be grey", where=path, hint="is this a photo?")
    return np.array(channels[1])  # a copy, which does not keep the other two in memory
