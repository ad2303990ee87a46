"""Writing what was restored: the image itself, and the pictures that explain it."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from torch import Tensor

from c2fdft_cli.data.images.picture import Picture, write_picture
from c2fdft_cli.engine.restore.options import DEEP_SUFFIXES, RestoreOptions
from c2fdft_cli.engine.restore.outputs import Item, output_suffix
from c2fdft_cli.engine.restore.pixels import comparison, heat_map, spread_map, to_picture
from c2fdft_cli.files import ensure_folder

_NO_ALPHA = frozenset({".jpg", ".jpeg", ".bmp"})
_NO_METADATA = frozenset({".bmp"})


def write_files(
    item: Item, picture: Picture, image: Tensor, spread: Tensor | None, options: RestoreOptions
) -> None:
    """Write all files of an item, the restored image last: its being there means all are.

    Args:
        item: where they go.
        picture: the input.
        image: `[3, h, w]` in [0, 1].
        spread: `[1, h, w]`, where several draws were made.
        options: quality, bit depth, and whether files that are there are replaced.

    Raises:
        UsageError: the format cannot hold the picture.
        ResourceError: a file cannot be written.
    """
    if _wanted(item.compare, options):
        _write(item.compare, comparison(picture, image), options)
    if spread is not None and _wanted(item.spread, options):
        _write(item.spread, spread_map(spread), options)
    if spread is not None and _wanted(item.heat, options):
        _write(item.heat, heat_map(image, spread), options)
    restored = to_picture(image, picture, options.bit_depth)
    if item.output is None:
        _to_stdout(restored, output_suffix(item, options), options)
    elif _wanted(item.output, options):
        _write(item.output, restored, options)


def lost(picture: Picture, suffix: str, bit_depth: int | None) -> list[str]:
    """What a format cannot keep of a picture, in words."""
    name, notes = suffix[1:], []
    if picture.alpha is not None and suffix in _NO_ALPHA:
        notes.append(f"alpha dropped: {name} has none")
    if (picture.icc or picture.exif) and suffix in _NO_METADATA:
        notes.append(f"colour profile and EXIF dropped: {name} has none")
    if picture.bit_depth == 16 and bit_depth != 8 and suffix not in DEEP_SUFFIXES:
        notes.append(f"16 bits rounded to 8: {name} holds 8")
    return notes


def kept(item: Item, options: RestoreOptions) -> list[str]:
    """The pictures beside an output that are there already and stay as they are."""
    return [
        f"kept as it was: {path} (--overwrite replaces it)"
        for path in (item.compare, item.spread, item.heat)
        if path is not None and not _wanted(path, options)
    ]


def _wanted(path: Path | None, options: RestoreOptions) -> bool:
    return path is not None and (options.overwrite or not path.exists())


def _write(path: Path | None, picture: Picture, options: RestoreOptions) -> None:
    if path is not None:
        ensure_folder(path.parent)
        write_picture(path, picture, quality=options.quality)


def _to_stdout(picture: Picture, suffix: str, options: RestoreOptions) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"restored{suffix}"
        write_picture(path, picture, quality=options.quality)
        sys.stdout.buffer.write(path.read_bytes())
        sys.stdout.buffer.flush()
