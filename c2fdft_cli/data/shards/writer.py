"""Writes one shard: streamed, atomic, and byte-identical for identical input."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

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
from c2fdft_cli.files import atomic_path


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
    # `atomic_path` is entered first and so exited last: HDF5 flushes everything before the file is
    # synced and renamed.
    with atomic_path(path) as temporary, _create(temporary) as file:
        writer = ShardWriter(path, file, header, entries, has_lq=has_lq)
        yield writer
        # Within the block, so that the file is removed if the index cannot be written.
        writer.finish()


class ShardWriter:
    """Writes a shard's images or pairs in the order of `entries`; made by `create_shard`.

    The sizes are needed in advance because a contiguous dataset is created with its full length.
    """

    def __init__(
        self,
        path: Path,
        file: h5py.File,
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
        size = sum(entry.nbytes for entry in self._entries)
        self._pixels = {kind: _pixel_dataset(file, kind, size) for kind in kinds}
        self._digests: dict[str, list[str]] = {kind: [] for kind in kinds}

    def add(self, lq: Pixels | None, gt: Pixels) -> tuple[str | None, str]:
        """Append the next pair, uint8 [h, w, 3] each, and return its SHA-256 hex digests."""
        if len(self._digests["gt"]) == len(self._entries):
            raise ValueError("more images than announced")
        if (lq is None) is ("lq" in self._pixels):
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
        start = self._offsets[number]
        self._pixels[kind][start : start + entry.nbytes] = flat
        digest = hashlib.sha256(flat).hexdigest()
        self._digests[kind].append(digest)
        return digest

    def finish(self) -> None:
        """Write the index; ValueError if images are missing."""
        if any(len(done) != len(self._entries) for done in self._digests.values()):
            raise ValueError("fewer images than announced")
        columns = {
            "offset": np.array(self._offsets, np.int64),
            "height": np.array([entry.height for entry in self._entries], np.int64),
            "width": np.array([entry.width for entry in self._entries], np.int64),
            "name": _texts([entry.name for entry in self._entries]),
        }
        columns |= {f"sha256_{kind}": _texts(self._digests[kind]) for kind in self._pixels}
        for name, column in columns.items():
            self._file.create_dataset(name, data=column, track_times=False)
        _write_attributes(
            self._file,
            {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                **{field.name: getattr(self._header, field.name) for field in fields(ShardHeader)},
                "sha256_index": index_digest(
                    self._header, self._entries, self._digests["gt"], self._digests.get("lq")
                ),
            },
        )


@contextmanager
def _create(path: Path) -> Iterator[h5py.File]:
    """Create an HDF5 file in the 1.8 format: object headers with checksums, no timestamps."""
    creation = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    creation.set_obj_track_times(False)  # of the root group; datasets have their own switch
    # With more than 8 attributes HDF5 would move them from the header into a heap, which takes
    # 3.5 kB more per shard (measured with 11 attributes).
    creation.set_attr_phase_change(32, 0)
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_libver_bounds(h5py.h5f.LIBVER_V18, h5py.h5f.LIBVER_V18)
    # By default HDF5 keeps a file open while any of its datasets is open. This one must be closed,
    # because it is synced and renamed next.
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    # No other process knows the temporary name, and some network drives have no locks.
    access.set_file_locking(False, True)
    try:
        with h5py.File(
            h5py.h5f.create(os.fsencode(path), h5py.h5f.ACC_TRUNC, creation, access)
        ) as file:
            yield file
    except RuntimeError as error:  # h5py raises this if a flush fails, as on a full disk
        raise OSError(str(error)) from error


def _pixel_dataset(file: h5py.File, name: str, size: int) -> h5py.Dataset:
    """Create a contiguous uint8 dataset, allocated immediately and without a fill value."""
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_layout(h5py.h5d.CONTIGUOUS)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    # Filling is not needed: every byte is written, because `finish` refuses a shard in which images
    # are missing.
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    creation.set_obj_track_times(False)
    space = h5py.h5s.create_simple((size,))
    return h5py.Dataset(h5py.h5d.create(file.id, name.encode(), h5py.h5t.STD_U8LE, space, creation))


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
