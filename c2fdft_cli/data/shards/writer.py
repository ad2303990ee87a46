"""Writes one shard: streamed, atomic, and byte-identical for identical input."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

import h5py
import numpy as np

from c2fdft_cli.data.pixels import Pixels
from c2fdft_cli.data.shards.format import (
    CHANNELS,
    FORMAT,
    FORMAT_VERSION,
    Entry,
    ShardHeader,
    check_name,
    index_digest,
    offsets_of,
)
from c2fdft_cli.errors import DataError
from c2fdft_cli.files.writing import atomic_path

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer


@contextmanager
def create_shard(
    path: Path, header: ShardHeader, entries: Sequence[Entry], *, has_lq: bool
) -> Iterator[ShardWriter]:
    """Write one shard; the file appears under its name only when the block ends without an error.

    Args:
        path: the shard to write.
        header: its root attributes.
        entries: name and size of every image that will be added.
        has_lq: False for clean-only shards.

    Raises:
        DataError: an image's size differs from that of its entry.
        ResourceError: the file cannot be written.
    """
    with atomic_path(path) as temporary, temporary.open("r+b") as file:
        writer = ShardWriter(path, file, header, entries, has_lq=has_lq)
        yield writer
        # Within the block, so that the file is removed if images are missing or the disk is full.
        writer.finish()


class ShardWriter:
    """Writes a shard's images or pairs in the order of `entries`; made by `create_shard`.

    The sizes are needed in advance because a contiguous dataset is created with its full length.
    """

    def __init__(
        self,
        path: Path,
        file: IO[bytes],
        header: ShardHeader,
        entries: Sequence[Entry],
        *,
        has_lq: bool,
    ) -> None:
        if not entries:
            raise ValueError("a shard must hold at least one image")
        for entry in entries:
            check_name(entry.name)
        self._path = path
        self._file = file
        self._header = header
        self._entries = tuple(entries)
        self._offsets = offsets_of(self._entries)
        kinds = ("lq", "gt") if has_lq else ("gt",)
        self._digests: dict[str, list[str]] = {kind: [] for kind in kinds}
        # The pixels are written before the digests are known, whose values do not change where the
        # pixels are.
        unknown = {kind: [hashlib.sha256().hexdigest()] * len(entries) for kind in kinds}
        self._starts = _structure_of(header, self._entries, unknown).starts

    def add(self, lq: Pixels | None, gt: Pixels) -> tuple[str | None, str]:
        """Append the next pair, uint8 [h, w, 3] each, and return its SHA-256 hex digests."""
        if len(self._digests["gt"]) == len(self._entries):
            raise ValueError("more images than announced")
        if (lq is None) is ("lq" in self._digests):
            raise ValueError("lq must be given if and only if has_lq is set")
        digest_lq = None if lq is None else self._put("lq", lq)
        return digest_lq, self._put("gt", gt)

    def _put(self, kind: str, image: Pixels) -> str:
        number = len(self._digests[kind])
        entry = self._entries[number]
        expected = (entry.height, entry.width, CHANNELS)
        if image.dtype != np.uint8 or image.shape != expected:
            raise DataError(
                f"{kind} of image {entry.name} must be {expected} uint8, "
                f"got {image.shape} {image.dtype}",
                where=self._path,
                hint="the source file changed while it was prepared; run prepare again",
            )
        flat = np.ascontiguousarray(image).reshape(-1)
        self._file.seek(self._starts[kind] + self._offsets[number])
        self._file.write(flat)
        digest = hashlib.sha256(flat).hexdigest()
        self._digests[kind].append(digest)
        return digest

    def finish(self) -> None:
        """Write everything except the pixels; ValueError if images are missing."""
        if any(len(done) != len(self._entries) for done in self._digests.values()):
            raise ValueError("fewer images than announced")
        structure = _structure_of(self._header, self._entries, self._digests)
        if structure.starts != self._starts:
            raise RuntimeError("HDF5 gave the pixels another place than before")
        for start, piece in structure.pieces:
            self._file.seek(start)
            self._file.write(piece)
        self._file.truncate(structure.size)


class _Structure(NamedTuple):
    """A shard without its pixels.

    Args:
        starts: byte offset of each pixel dataset in the file.
        pieces: (byte offset, bytes) of everything else; a later piece replaces an earlier one.
        size: bytes of the whole file.
    """

    starts: Mapping[str, int]
    pieces: Sequence[tuple[int, bytes]]
    size: int


def _structure_of(
    header: ShardHeader, entries: Sequence[Entry], digests: Mapping[str, Sequence[str]]
) -> _Structure:
    """Let HDF5 write a shard without its pixels, in memory.

    It never writes to the disk itself, because h5py (3.16, with HDF5 2.0) reports only some of the
    errors: a full disk could leave a damaged shard without an error, or crash the program later.

    digests: SHA-256 hex digests of the images, by kind.
    """
    # In a thread, because h5py calls the methods of `_Memory`: in the main thread a signal may
    # raise an exception within them, which HDF5 would take for an error of the disk.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(_write_structure, header, entries, digests).result()


def _write_structure(
    header: ShardHeader, entries: Sequence[Entry], digests: Mapping[str, Sequence[str]]
) -> _Structure:
    size = sum(entry.nbytes for entry in entries)
    columns = {
        "offset": np.array(offsets_of(entries), np.int64),
        "height": np.array([entry.height for entry in entries], np.int64),
        "width": np.array([entry.width for entry in entries], np.int64),
        "name": _texts([entry.name for entry in entries]),
    }
    columns |= {f"sha256_{kind}": _texts(digests[kind]) for kind in digests}
    attributes = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **{field.name: getattr(header, field.name) for field in fields(ShardHeader)},
        "sha256_index": index_digest(header, entries, digests["gt"], digests.get("lq")),
    }
    memory = _Memory()
    with _create(memory) as file:
        starts = {kind: _pixel_dataset(file, kind, size) for kind in digests}
        for name, column in columns.items():
            file.create_dataset(name, data=column, track_times=False)
        _write_attributes(file, attributes)
    return _Structure(starts, memory.pieces, memory.size)


class _Memory:
    """A file in memory, with the methods that h5py needs; it has only the bytes that are written.

    The pixels, which HDF5 only reserves, take no memory.
    """

    def __init__(self) -> None:
        self.pieces: list[tuple[int, bytes]] = []
        self.size = 0
        self._at = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (self.size if whence == os.SEEK_END else 0)
        return self._at

    def tell(self) -> int:
        return self._at

    def write(self, data: ReadableBuffer) -> int:
        piece = memoryview(data).tobytes()
        self.pieces.append((self._at, piece))
        self._at += len(piece)
        self.size = max(self.size, self._at)
        return len(piece)

    def readinto(self, buffer: WriteableBuffer) -> int:
        into = memoryview(buffer).cast("B")
        for start, piece in self.pieces:
            first, end = max(start, self._at), min(start + len(piece), self._at + len(into))
            if first < end:
                into[first - self._at : end - self._at] = piece[first - start : end - start]
        return len(into)

    def truncate(self, size: int) -> int:
        self.size = size
        return size

    def flush(self) -> None:
        pass


@contextmanager
def _create(memory: _Memory) -> Iterator[h5py.File]:
    """Create an HDF5 file in the 1.8 format: object headers with checksums, no timestamps."""
    creation = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    creation.set_obj_track_times(False)  # of the root group; datasets have their own switch
    # With more than 8 attributes HDF5 would move them from the header into a heap, which takes
    # 3.5 kB more per shard (measured with 11 attributes).
    creation.set_attr_phase_change(32, 0)
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_libver_bounds(h5py.h5f.LIBVER_V18, h5py.h5f.LIBVER_V18)
    # By default HDF5 keeps a file open while any of its datasets is open.
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    access.set_fileobj_driver(h5py.h5fd.fileobj_driver, memory)
    opened = h5py.h5f.create(b"shard", h5py.h5f.ACC_TRUNC, creation, access)
    # If the traceback of an exception kept it until Python exits, h5py would crash there.
    access.close()
    with h5py.File(opened) as file:
        yield file


def _pixel_dataset(file: h5py.File, name: str, size: int) -> int:
    """Create a contiguous uint8 dataset, allocated immediately; return its offset in the file."""
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_layout(h5py.h5d.CONTIGUOUS)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    # Filling would write the whole dataset; its bytes are those of the images.
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    creation.set_obj_track_times(False)
    space = h5py.h5s.create_simple((size,))
    made = h5py.h5d.create(file.id, name.encode(), h5py.h5t.STD_U8LE, space, creation)
    return int(made.get_offset())


def _texts(texts: Sequence[str]) -> np.ndarray[tuple[int], np.dtype[np.bytes_]]:
    """Make a column of fixed-length UTF-8 strings, padded with NUL."""
    data = [text.encode("utf-8") for text in texts]
    length = max(len(text) for text in data)
    return np.array(data, dtype=h5py.string_dtype("utf-8", length))


def _write_attributes(file: h5py.File, values: dict[str, str | int]) -> None:
    for name, value in values.items():
        if isinstance(value, str):
            text = value.encode("utf-8")
            kind = h5py.string_dtype("utf-8", max(1, len(text)))
            file.attrs.create(name, np.array(text, dtype=kind))
        else:
            file.attrs.create(name, np.int64(value))
