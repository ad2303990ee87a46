"""A bank of rendered rain-streak fields (grey on black; Garg and Nayar, TOG 2006)."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from c2fdft_cli.errors import DataError

Grey: TypeAlias = NDArray[np.uint8]

MAX_FILE_BYTES = 32 * 2**20
MAX_SIDE = 8192
MIN_SIDE = 32
MAX_BANK_BYTES = 512 * 2**20
COLOUR_TOLERANCE = 16
MAX_FADE = 48
MIN_CUBIC_SHRINK = 0.7
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class StreakBank:
    """Streak fields held in memory as uint8 [h, w]; safe to pickle and to share between workers.

    Args:
        folder: a flat folder of PNG files, grey (or colour with equal channels) on black.
        max_images: at most so many files, evenly spaced over the sorted names.

    Raises:
        DataError: no such folder, no PNG in it, a file that is damaged, coloured or out of size.
    """

    def __init__(self, folder: str | Path, max_images: int = 512) -> None:
        if max_images < 1:
            raise DataError(f"max_images is {max_images}", where=folder, hint="use 1 or more")
        self.masks: tuple[Grey, ...] = tuple(_load(Path(folder), max_images))

    def __len__(self) -> int:
        return len(self.masks)

    def sample(
        self,
        rng: np.random.Generator,
        h: int,
        w: int,
        *,
        turn: float = 0.0,
        across: float = 1.0,
        along: float = 1.0,
    ) -> Grey:
        """Cut one field from a random place, perhaps turned, stretched, flipped left to right.

        A field that is too small goes on periodically, its ends cross-faded: a mirror would
        reverse the lean, a plain repeat would cut streaks off.

        Args:
            rng: the only source of randomness.
            h: height in px.
            w: width in px.
            turn: the field is turned by an angle drawn evenly from
                [-turn, turn] degrees.
            across: factor by which the turned field is stretched horizontally.
            along: factor by which it is stretched vertically. With no turn and both factors 1
                every pixel is as it was rendered.

        Returns:
            uint8 [h, w], C-contiguous, a copy.
        """
        field = self.masks[rng.integers(len(self.masks))]
        angle = float(rng.uniform(-turn, turn)) if turn > 0 else 0.0
        size = max(1, round(h / along)), max(1, round(w / across))
        cut = _turned(field, rng, *size, angle) if angle else _straight(field, rng, *size)
        cut = _stretched(cut, h, w)
        return np.ascontiguousarray(cut[:, ::-1] if rng.random() < 0.5 else cut)


def _straight(field: Grey, rng: np.random.Generator, h: int, w: int) -> Grey:
    """Cut [h, w] out of the field without touching a pixel's value."""
    top, left = _place(rng, field.shape[0], h), _place(rng, field.shape[1], w)
    if top + h <= field.shape[0] and left + w <= field.shape[1]:
        return field[top : top + h, left : left + w]
    tile = _seamless(field)
    rows = np.arange(top, top + h) % tile.shape[0]
    columns = np.arange(left, left + w) % tile.shape[1]
    return np.ascontiguousarray(tile[rows[:, None], columns])


def _seamless(field: Grey) -> Grey:
    """Make the field periodic by cross-fading its ends, so that no row of streaks is cut off."""
    tile = field.astype(np.float32)
    for _ in range(2):
        tile = tile.T
        fade = min(MAX_FADE, tile.shape[0] // 4)
        ramp = ((np.arange(fade, dtype=np.float32) + 0.5) / fade)[:, None]
        mixed = tile[:fade] * ramp + tile[-fade:] * (1 - ramp)
        tile = np.concatenate([mixed, tile[fade:-fade]])
    return np.rint(tile).astype(np.uint8)


def _place(rng: np.random.Generator, side: int, crop: int) -> int:
    """Draw where a crop starts: inside where it fits, anywhere (periodic) where it does not."""
    return int(rng.integers(side - crop + 1 if crop <= side else side))


def _turned(field: Grey, rng: np.random.Generator, h: int, w: int, angle: float) -> Grey:
    """Cut [h, w] out of the field turned by `angle` degrees, cubic so that edges stay sharp."""
    import cv2

    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    span_y = math.ceil(h * cos + w * abs(sin)) + 4
    span_x = math.ceil(w * cos + h * abs(sin)) + 4
    source = _straight(field, rng, span_y, span_x)
    centre_y, centre_x = (span_y - 1) / 2, (span_x - 1) / 2
    to_source = np.array([[cos, -sin, 0.0], [sin, cos, 0.0]])
    to_source[:, 2] = (centre_x, centre_y) - to_source[:, :2] @ ((w - 1) / 2, (h - 1) / 2)
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    turned: Grey = cv2.warpAffine(source, to_source, (w, h), flags=flags)
    return turned


def _stretched(cut: Grey, h: int, w: int) -> Grey:
    """Resize one axis after the other: cubic, or the mean over an area where it shrinks a lot."""
    import cv2

    for size in ((w, cut.shape[0]), (w, h)):
        shrink = min(size[0] / cut.shape[1], size[1] / cut.shape[0])
        if shrink != 1.0 or size != cut.shape[::-1]:
            how = cv2.INTER_AREA if shrink < MIN_CUBIC_SHRINK else cv2.INTER_CUBIC
            cut = cv2.resize(np.ascontiguousarray(cut), size, interpolation=how)
    return cut


def _load(folder: Path, max_images: int) -> list[Grey]:
    """Read the folder's PNG files after checking every header and the sum of their sizes."""
    if not folder.is_dir():
        raise DataError("no such folder of streak fields", where=folder)
    found = (path for path in folder.iterdir() if path.suffix.lower() == ".png" and path.is_file())
    paths = sorted(found, key=lambda path: path.name)
    if not paths:
        raise DataError("no PNG streak field", where=folder, hint="name a flat folder of .png")
    if len(paths) > max_images:
        paths = [paths[i * len(paths) // max_images] for i in range(max_images)]
    total = sum(_pixels(path) for path in paths)
    if total > MAX_BANK_BYTES:
        raise DataError(
            f"streak fields need {total >> 20} MiB of memory, over {MAX_BANK_BYTES >> 20}",
            where=folder,
            hint="use fewer or smaller fields",
        )
    return [_read(path) for path in paths]


def _pixels(path: Path) -> int:
    """Return height * width from the PNG header alone, so that a bomb is never decoded."""
    if path.stat().st_size > MAX_FILE_BYTES:
        raise DataError(f"streak field over {MAX_FILE_BYTES >> 20} MiB", where=path)
    with path.open("rb") as file:
        head = file.read(24)
    if len(head) < 24 or head[:8] != PNG_SIGNATURE or head[12:16] != b"IHDR":
        raise DataError("not a PNG file", where=path, hint="streak fields are grey PNG files")
    w, h = struct.unpack(">II", head[16:24])
    if not (MIN_SIDE <= h <= MAX_SIDE and MIN_SIDE <= w <= MAX_SIDE):
        raise DataError(f"streak field of {w}x{h} px, not {MIN_SIDE}..{MAX_SIDE}", where=path)
    return int(h) * int(w)


def _read(path: Path) -> Grey:
    """Decode one field to uint8 [h, w]; it must be grey."""
    import cv2

    encoded = np.fromfile(path, dtype=np.uint8)
    image: Grey | None = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    if image is None:
        raise DataError("damaged PNG file", where=path, hint="remove or replace it")
    blue, green, red = (np.ascontiguousarray(image[..., k]) for k in range(3))
    channel_pairs = ((blue, green), (green, red), (red, blue))
    if max(int(cv2.absdiff(a, b).max()) for a, b in channel_pairs) > COLOUR_TOLERANCE:
        raise DataError("a streak field must be grey", where=path, hint="is this a photo?")
    return green
