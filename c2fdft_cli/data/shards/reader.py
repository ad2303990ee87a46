"""Reads sets of shards, whose crops are slices of a file; docs/shards.md specifies the format."""

from __future__ import annotations

import hashlib
import io
import json
import os
import weakref
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from c2fdft_cli.data.pixels import Pixels
from c2fdft_cli.data.shards.format import CHANNELS, SPLITS, ShardHeader, ShardIndex
from c2fdft_cli.data.shards.index import read_index
from c2fdft_cli.errors import DataError
from c2fdft_cli.files.failures import read_error
from c2fdft_cli.files.reading import read_at
from c2fdft_cli.progress import Job

Kind = Literal["lq", "gt"]
PREPARE_AGAIN = "run prepare again to complete or replace the set"
_MAX_OPEN = 64
"""Files that a set keeps open: macOS allows a process 256 and Linux 1,024, unless set otherwise."""


@dataclass(frozen=True)
class VerifyResult:
    """The amounts that `verify` compared; `bytes` counts pixels."""

    shards: int
    images: int
    bytes: int


class ShardSet:
    """All images of one split, by number; open it with `ShardSet.open`.

    It opens no file until a pixel is read, and can be pickled and forked at any time. The 64 files
    that were read last stay open: if one of these is deleted, or replaced by renaming, its old
    content is still read. A file that is opened again must have the time that it had when its index
    was read, or an equal index, in which each image has a digest.

    Several threads must not read one set: one could close the file that another reads.
    """

    def __init__(self, shards: Sequence[ShardIndex]) -> None:
        self._shards = list(shards)
        self._files: dict[int, _OpenFile] = {}
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
        return {**self.__dict__, "_files": {}}

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
            # Header, offsets and file names are omitted, so the same images in another number of
            # shards give the same fingerprint. `has_lq` distinguishes a clean-only set from pairs
            # whose two images are equal.
            for entry, *shas in zip(
                shard.entries, shard.sha256_gt, shard.sha256_lq or shard.sha256_gt, strict=True
            ):
                row = [entry.name, entry.height, entry.width, self.has_lq, *shas]
                digest.update(json.dumps(row).encode("ascii"))
        return digest.hexdigest()

    def gt(self, i: int) -> Pixels:
        """Return clean image i, read-only, uint8 [h, w, 3]."""
        return self.window("gt", i, 0, 0, *self.sizes[i])

    def lq(self, i: int) -> Pixels:
        """Return degraded image i, read-only, uint8 [h, w, 3]; DataError for clean-only shards."""
        return self.window("lq", i, 0, 0, *self.sizes[i])

    def pair(self, i: int) -> tuple[Pixels, Pixels]:
        """Return (lq, gt) i, read-only, uint8 [h, w, 3]; DataError for clean-only shards."""
        return self.lq(i), self.gt(i)

    def crop(self, i: int, top: int, left: int, height: int, width: int) -> tuple[Pixels, Pixels]:
        """Copy the same window of lq and gt, uint8 [height, width, 3]; errors as for `window`."""
        lq = self.window("lq", i, top, left, height, width)
        return lq.copy(), self.window("gt", i, top, left, height, width).copy()

    def window(self, kind: Kind, i: int, top: int, left: int, height: int, width: int) -> Pixels:
        """Return one window of an image, read-only, uint8 [height, width, 3].

        Raises:
            IndexError: the window is not inside the image.
            DataError: "lq" of clean-only shards; the file cannot be read or has been changed.
            ResourceError: too many files are open.
        """
        full_height, full_width = self.sizes[i]
        if not (0 <= top <= full_height - height and 0 <= left <= full_width - width):
            raise IndexError(f"window outside of image {self.names[i]}")
        number, offset = self._home[i]
        shard = self._shards[number]
        first = shard.gt_start if kind == "gt" else shard.lq_start
        if first is None:
            raise DataError("clean-only shards hold no lq", where=shard.path)
        stride = full_width * CHANNELS
        # Read in one piece: more bytes than needed, but one call instead of one per row.
        start = first + offset + top * stride + left * CHANNELS
        data = self._read(number, start, (height - 1) * stride + width * CHANNELS)
        # A strided view of the bytes, without a copy; it is read-only because `bytes` are.
        return np.ndarray((height, width, CHANNELS), np.uint8, data, 0, (stride, CHANNELS, 1))

    def _read(self, number: int, start: int, size: int) -> bytes:
        """Read bytes of a shard, which is opened if it is not open."""
        shard = self._shards[number]
        try:
            # Removed and added again, because the first of a dictionary shall be the file whose
            # last read is longest ago.
            opened = self._files.pop(number, None) or self._open(number)
            self._files[number] = opened
            data = read_at(opened.file, start, size)
        except OSError as error:
            raise read_error(error, shard.path) from error
        if len(data) != size:
            raise _changed(shard.path)
        return data

    def _open(self, number: int) -> _OpenFile:
        shard = self._shards[number]
        if len(self._files) >= _MAX_OPEN:
            self._files.pop(next(iter(self._files))).close()
        # Not through h5py, whose handles survive neither fork nor pickle. Unbuffered, because each
        # read states its position: processes that share the file after a fork do not use its common
        # position.
        file = io.FileIO(shard.path)
        opened = _OpenFile(file, weakref.finalize(self, file.close))
        # Since the index was read, another file may have been renamed over this one, and the
        # offsets would not fit it. So the open file is checked, not what the path leads to.
        status = os.fstat(file.fileno())
        if (status.st_size, status.st_mtime_ns) != (shard.file_size, shard.mtime_ns):
            # The time alone changes if the file is copied to another disk and back, say.
            try:
                now = read_index(shard.path)
            except DataError:
                now = None
            here = replace(shard, file_size=status.st_size, mtime_ns=status.st_mtime_ns)
            if now != here:
                opened.close()
                raise _changed(shard.path)
            self._shards[number] = here
        return opened


@dataclass(frozen=True)
class _OpenFile:
    """An open shard, and the function that closes it, also if the set is deleted before."""

    file: io.FileIO
    close: Callable[[], object]


def _changed(path: Path) -> DataError:
    return DataError("the shard was changed while in use", where=path, hint=PREPARE_AGAIN)


def open_shards(path: Path, split: str) -> list[ShardIndex]:
    """Read and check the indices of a folder's split or of one file; see `ShardSet.open`."""
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
            f"the folder contains no {split}-*.h5", where=path, hint="make it with prepare"
        )
    shards = [read_index(file) for file in files]
    _check_set(path, split, shards)
    return shards


def _check_set(folder: Path, split: str, shards: Sequence[ShardIndex]) -> None:
    """Check that all shards of the split exist, in order, and belong together."""
    first = shards[0]
    for number, shard in enumerate(shards):
        # Comparing all attributes detects a shard left from an earlier `prepare` with other
        # options, and `number` detects a gap, because the files are sorted by name.
        expected = {**vars(first.header), "split": split, "shard": number}
        if vars(shard.header) != expected or (shard.lq_start is None) != (first.lq_start is None):
            raise DataError("the shards are not of one set", where=shard.path, hint=PREPARE_AGAIN)
    if len(shards) != first.header.shards:
        raise DataError(
            f"only {len(shards)} of {first.header.shards} {split} shards are present",
            where=folder,
            hint=PREPARE_AGAIN,
        )
    names: set[str] = set()
    for shard in shards:
        for entry in shard.entries:
            if entry.name in names:
                raise DataError(f"the name {entry.name} occurs twice in the set", where=shard.path)
            names.add(entry.name)


def verify(path: str | Path) -> Job[str, VerifyResult]:
    """Compare every image of a shard, or of all shards in a folder, with its digest.

    Each event is the name of an image or pair. The indices are read and checked immediately, the
    pixels while the job runs.

    Raises:
        DataError: no shards, a damaged one, or an image whose bytes differ from its digest; the
            error names it.
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


def _verify(shards: Sequence[ShardIndex]) -> Generator[str, None, VerifyResult]:
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
            yield name
    return VerifyResult(shards=len(shards), images=images, bytes=size)
