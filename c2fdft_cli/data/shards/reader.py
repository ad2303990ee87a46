"""The shard format, and its reader: training images whose crops are memory-mapped slices.

A set is a folder of `train-00000.h5`, ... and `val-00000.h5`, ...; each file is plain HDF5 (1.8
format) with n >= 1 images or pairs:

    gt, lq         uint8 [bytes]  all images back to back, contiguous and uncompressed: image i is
                                  the height[i] x width[i] x 3 bytes (RGB, rows first) from
                                  offset[i]; clean-only shards have no lq
    offset         int64 [n]      offset[0] = 0, offset[i+1] = offset[i] + 3*height[i]*width[i]
    height, width  int64 [n]      1 .. 65535 pixels
    name           UTF-8 [n]      unique in its split, no control characters
    sha256_gt, sha256_lq   [n]    hex digests of each image's bytes

Root attributes: format = "c2fdft-shard", format_version = 1, the fields of
`format.ShardHeader`, and sha256_index over all of these but the pixels. Nothing in the file
depends on a clock, a path or the machine: identical input gives identical bytes. Readers refuse a
newer format_version. `docs/shards.md` has the same in words, with an example in another program.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from c2fdft_cli.data.shards.format import CHANNELS, SPLITS, Pixels, ShardHeader, ShardIndex
from c2fdft_cli.data.shards.index import read_index
from c2fdft_cli.errors import DataError
from c2fdft_cli.progress import Job

Kind = Literal["lq", "gt"]
PREPARE_AGAIN = "run prepare again to complete or replace the set"


@dataclass(frozen=True)
class ImageChecked:
    """One image (pair) of a shard whose bytes match their digests."""

    shard: Path
    name: str


@dataclass(frozen=True)
class VerifyResult:
    """How much `verify` compared."""

    shards: int
    images: int
    bytes: int


class ShardSet:
    """All images of one split, by number; open it with `ShardSet.open`.

    Holds no handle until the first pixel is read, so it can be pickled and forked at any time;
    each process maps the files by itself, and the pages are shared through the system's cache.
    """

    def __init__(self, shards: Sequence[ShardIndex]) -> None:
        self._shards = tuple(shards)
        self._maps: dict[int, mmap.mmap] = {}
        entries = [entry for shard in self._shards for entry in shard.entries]
        self.names: list[str] = [entry.name for entry in entries]
        self.sizes: list[tuple[int, int]] = [(entry.height, entry.width) for entry in entries]
        self.has_lq = self._shards[0].lq_start is not None
        self._home = [
            (number, offset) for number, s in enumerate(self._shards) for offset in s.offsets
        ]

    @classmethod
    def open(cls, path: str | Path, split: str = "train") -> ShardSet:
        """Read and check the index of a folder's split, or of one shard file.

        Args:
            path: a folder of shards, or one shard (which must be of this split).
            split: "train" or "val".

        Raises:
            DataError: no such shards, or one is missing, damaged, or not of this set.
        """
        return cls(open_shards(Path(path), split))

    def __len__(self) -> int:
        return len(self.names)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_maps": {}}

    @property
    def header(self) -> ShardHeader:
        """The root attributes of the first shard."""
        return self._shards[0].header

    @property
    def paths(self) -> list[Path]:
        """The shard files."""
        return [shard.path for shard in self._shards]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the names, sizes and pixel digests of all images, in order."""
        digest = hashlib.sha256()
        for shard in self._shards:
            for entry, *shas in zip(
                shard.entries, shard.sha256_gt, shard.sha256_lq or shard.sha256_gt, strict=True
            ):
                row = [entry.name, entry.height, entry.width, self.has_lq, *shas]
                digest.update(json.dumps(row).encode("ascii"))
        return digest.hexdigest()

    def gt(self, i: int) -> Pixels:
        """Clean image i, a read-only view of the file, uint8 [h, w, 3]."""
        return self.window("gt", i, 0, 0, *self.sizes[i])

    def lq(self, i: int) -> Pixels:
        """Degraded image i, a read-only view of the file; DataError for clean-only shards."""
        return self.window("lq", i, 0, 0, *self.sizes[i])

    def pair(self, i: int) -> tuple[Pixels, Pixels]:
        """(lq, gt) of pair i, read-only views, uint8 [h, w, 3]; DataError for clean-only shards."""
        return self.lq(i), self.gt(i)

    def crop(self, i: int, top: int, left: int, height: int, width: int) -> tuple[Pixels, Pixels]:
        """Copies of the same window of lq and gt, uint8 [height, width, 3].

        Raises:
            IndexError: the window is not inside of the image.
            DataError: clean-only shards.
        """
        lq = self.window("lq", i, top, left, height, width)
        return lq.copy(), self.window("gt", i, top, left, height, width).copy()

    def window(self, kind: Kind, i: int, top: int, left: int, height: int, width: int) -> Pixels:
        """A read-only view of one window, uint8 [height, width, 3]; errors as `crop`."""
        full_height, full_width = self.sizes[i]
        if not (0 <= top <= full_height - height and 0 <= left <= full_width - width):
            raise IndexError(f"window outside of image {self.names[i]}")
        number, offset = self._home[i]
        shard = self._shards[number]
        start = shard.gt_start if kind == "gt" else shard.lq_start
        if start is None:
            raise DataError("clean-only shards hold no lq", where=shard.path)
        stride = full_width * CHANNELS
        return np.ndarray(
            (height, width, CHANNELS),
            np.uint8,
            self._maps.get(number) or self._map(number),
            start + offset + top * stride + left * CHANNELS,
            (stride, CHANNELS, 1),
        )

    def _map(self, number: int) -> mmap.mmap:
        """Map a whole shard, read-only: its pages never count as this process's own memory."""
        shard = self._shards[number]
        try:
            with shard.path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise DataError(
                f"cannot map the shard into memory: {error}", where=shard.path
            ) from error
        if len(mapped) != shard.file_size:
            raise DataError("the shard was changed while in use", where=shard.path)
        self._maps[number] = mapped
        return mapped


def open_shards(path: Path, split: str) -> list[ShardIndex]:
    """The checked indices of a folder's split or of one file; errors as `ShardSet.open`."""
    if split not in SPLITS:
        raise ValueError(f"no such split: {split}")
    if path.is_file():
        shards = [read_index(path)]
        if shards[0].header.split != split:
            raise DataError(f"this shard is not of the {split} split", where=path)
        return shards
    if not path.is_dir():
        raise DataError("no such folder of shards", where=path, hint="make it with prepare")
    files = sorted(path.glob(f"{split}-*.h5"))
    if not files:
        raise DataError(
            f"the folder holds no {split}-*.h5", where=path, hint="make it with prepare"
        )
    shards = [read_index(file) for file in files]
    _check_set(path, split, shards)
    return shards


def _check_set(folder: Path, split: str, shards: Sequence[ShardIndex]) -> None:
    """All shards of the set are here, in order, and belong together."""
    first = shards[0]
    for number, shard in enumerate(shards):
        expected = {**asdict(first.header), "split": split, "shard": number}
        if asdict(shard.header) != expected or (shard.lq_start is None) != (first.lq_start is None):
            raise DataError("the shards are not of one set", where=shard.path, hint=PREPARE_AGAIN)
    if len(shards) != first.header.shards:
        raise DataError(
            f"{len(shards)} of {first.header.shards} {split} shards are here",
            where=folder,
            hint=PREPARE_AGAIN,
        )
    names: set[str] = set()
    for shard in shards:
        for entry in shard.entries:
            if entry.name in names:
                raise DataError(f"the name {entry.name} occurs twice in the set", where=shard.path)
            names.add(entry.name)


def verify(path: str | Path) -> Job[ImageChecked, VerifyResult]:
    """Compare every image of a shard, or of all shards in a folder, with its digest.

    Yields one event per image (pair). The index is read and checked at once.

    Raises:
        DataError: no shards, a damaged one, or an image whose bytes changed, named.
    """
    path = Path(path)
    if path.is_file():
        shards = [read_index(path)]
    else:
        shards = [
            shard
            for split in SPLITS
            if split == "train" or any(path.glob(f"{split}-*.h5"))
            for shard in open_shards(path, split)
        ]
    total = sum(len(shard.entries) for shard in shards)
    return Job(_verify(shards), total=total, title="verify", unit="image")


def _verify(shards: Sequence[ShardIndex]) -> Generator[ImageChecked, None, VerifyResult]:
    images = size = 0
    for shard in shards:
        one = ShardSet([shard])
        for i, name in enumerate(one.names):
            for kind, stored in (("gt", shard.sha256_gt), ("lq", shard.sha256_lq)):
                if stored is None:
                    continue
                pixels = one.gt(i) if kind == "gt" else one.lq(i)
                if hashlib.sha256(pixels).hexdigest() != stored[i]:
                    raise DataError(
                        f"{kind} of image {name} is damaged", where=shard.path, hint=PREPARE_AGAIN
                    )
                size += pixels.nbytes
            images += 1
            yield ImageChecked(shard.path, name)
    return VerifyResult(shards=len(shards), images=images, bytes=size)
