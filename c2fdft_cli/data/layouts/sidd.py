"""Reads the blocks of SIDD's sRGB validation set, as published: MATLAB files of uint8.

A file holds an array `[scenes, blocks, h, w, 3]` whose name states its side; the published ones
have 40 x 32 blocks of 256 x 256 px. Results in the same format are read too. Files are untrusted:
the header is checked before any pixel is loaded.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from c2fdft_cli.data.layouts import matlab
from c2fdft_cli.data.pixels import Pixels
from c2fdft_cli.errors import DataError, ResourceError

NOISY = "ValidationNoisyBlocksSrgb"
TARGET = "ValidationGtBlocksSrgb"
RESULTS = "results"
SUFFIX = ".mat"

MAX_BYTES = 1 << 30
"""Largest size of a variable and of a file; the published files have 240 MiB."""
_DAMAGE = (
    OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, IndexError,
    AttributeError, struct.error, zlib.error,
)  # fmt: skip
"""Exceptions that reading a damaged file may raise, depending on which part is damaged."""

_Header = tuple[tuple[int, ...], str]


@dataclass(frozen=True)
class Blocks:
    """The blocks of one file.

    Args:
        path: the file.
        variable: the name of the variable that holds them.
        pixels: uint8 `[scenes, blocks, h, w, 3]`.
    """

    path: Path
    variable: str
    pixels: Pixels

    def __len__(self) -> int:
        scenes, blocks = self.pixels.shape[:2]
        return int(scenes * blocks)

    @property
    def names(self) -> list[str]:
        """The block names `scene-03_block-17`, counted from 1 as in MATLAB, in order of `block`."""
        blocks = self.pixels.shape[1]
        return [f"scene-{i // blocks + 1:02d}_block-{i % blocks + 1:02d}" for i in range(len(self))]

    def block(self, i: int) -> Pixels:
        """Return block i as C-contiguous uint8 `[h, w, 3]`."""
        scene, block = divmod(i, self.pixels.shape[1])
        return np.ascontiguousarray(self.pixels[scene, block])


def block_files(folder: Path) -> tuple[Path | None, Path | None]:
    """Return the noisy file and the target file of a folder, each None if it does not exist."""
    noisy, target = (folder / f"{name}{SUFFIX}" for name in (NOISY, TARGET))
    return (noisy if noisy.is_file() else None), (target if target.is_file() else None)


def are_blocks(path: Path) -> bool:
    """Whether a path is a MATLAB file, or a folder with one of SIDD's files in it."""
    return path.suffix.lower() == SUFFIX or (path.is_dir() and any(block_files(path)))


def read_blocks(path: Path, variables: Sequence[str]) -> Blocks:
    """Read the first of these variables that a MATLAB file contains.

    Args:
        path: a file of MATLAB v5 to v7, or v7.3.
        variables: names to look for, in order of preference.

    Raises:
        DataError: the file does not exist, is not a MATLAB file, is damaged, has none of the
            variables, or its variable has another type or size.
        ResourceError: out of memory.
    """
    if not path.is_file():
        raise DataError("no such file", where=path, hint="check the path")
    if path.stat().st_size > MAX_BYTES:
        raise DataError(
            f"larger than {MAX_BYTES >> 20} MiB",
            where=path,
            hint="files of SIDD blocks are smaller",
        )
    try:
        new = h5py.is_hdf5(path)
        pixels, name = (_read_hdf5 if new else _read_matlab5)(path, variables)
    except MemoryError as error:
        hint = f"close other programs; it takes up to {MAX_BYTES >> 20} MiB"
        raise ResourceError("out of memory reading the file", where=path, hint=hint) from error
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:160]
        raise DataError(
            "not a MATLAB file, or damaged",
            where=path,
            hint="download it again",
            details=[f"{type(error).__name__}: {reason}"],
        ) from error
    return Blocks(path, name, pixels)


def _read_matlab5(path: Path, names: Sequence[str]) -> tuple[Pixels, str]:
    with path.open("rb") as file:
        order, found = matlab.variables(file)
        name = _choose(path, {one.name: (one.shape, one.kind) for one in found}, names)
        # if a name occurs twice, the last one, as in the dictionary above
        chosen = next(one for one in reversed(found) if one.name == name)
        return matlab.read_uint8(file, order, chosen), name


def _read_hdf5(path: Path, variables: Sequence[str]) -> tuple[Pixels, str]:
    """Read a file of MATLAB v7.3, which is HDF5 with the axes in reverse order."""
    with h5py.File(path, "r", locking=False) as file:
        # only hard links: other kinds may lead out of the file
        inside = [k for k in file if isinstance(file.get(k, getlink=True), h5py.HardLink)]
        found = {k: file[k] for k in inside if file.get(k, getclass=True) is h5py.Dataset}
        headers = {k: (tuple(one.shape or ())[::-1], one.dtype.name) for k, one in found.items()}
        name = _choose(path, headers, variables)
        data = found[name]
        # dtype=object computes with Python's integers, which do not overflow. HDF5 allocates a
        # whole chunk to read any part of it, so the chunk's size is checked too.
        chunk = int(np.prod(data.chunks or (0,), dtype=object))
        if data.external or data.is_virtual or chunk > MAX_BYTES:
            raise DataError("its pixels are stored in other files, or in huge chunks", where=path)
        return np.asarray(data[()]).T, name


def _choose(path: Path, headers: dict[str, _Header], variables: Sequence[str]) -> str:
    """Return the name of the variable to load; DataError if its header is not that of blocks."""
    name = next((one for one in variables if one in headers), None)
    if name is None:
        wanted = " or ".join(variables)
        has = ", ".join(f"{one[:40]!a}" for one in list(headers)[:5]) or "none"
        raise DataError(f"no variable {wanted}", where=path, hint=f"it holds {has}")
    shape, kind = headers[name]
    what = f"{name} is {kind} {list(shape)}"
    hint = "it must be uint8 [scenes, blocks, height, width, 3]"
    if kind != "uint8" or len(shape) != 5 or shape[-1] != 3 or min(shape) < 1:
        raise DataError(what, where=path, hint=hint)
    if int(np.prod(shape, dtype=object)) > MAX_BYTES:
        raise DataError(what, where=path, hint=f"it must hold at most {MAX_BYTES >> 20} MiB")
    return name
