"""Reads and checks a shard's index; files are untrusted until they are checked."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5l, h5o, h5s
from numpy.typing import NDArray

from c2fdft_cli.data.shards.format import (
    CHANNELS,
    FORMAT,
    FORMAT_VERSION,
    MAX_IMAGES,
    MAX_NAME_BYTES,
    MAX_SIDE,
    Entry,
    ShardHeader,
    ShardIndex,
    index_digest,
    is_clean,
)
from c2fdft_cli.errors import DataError, ResourceError
from c2fdft_cli.files.failures import read_error
from c2fdft_cli.files.reading import is_file
from c2fdft_cli.validation import InvalidValuesError, validate

MAX_ATTRIBUTE_BYTES = 65_536
MAX_COLUMN_BYTES = 1 << 30
_DIGEST = re.compile("[0-9a-f]{64}")
# Exceptions that h5py raises for damaged files, depending on which part of the file is damaged.
_DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError)


def read_index(path: Path) -> ShardIndex:
    """Read and check one shard's index, and close the file again.

    Raises:
        DataError: the file is not HDF5, not a shard, of a newer format version, truncated, or its
            index does not fit its data; or the system does not read it.
        ResourceError: there is no memory for the index.
    """
    if not is_file(path):
        raise DataError("there is no such shard", where=path)
    try:
        path.open("rb").close()
    except OSError as error:  # of the system, not of the content
        raise read_error(error, path) from error
    try:
        # By default HDF5 locks a file even to read it, which fails on file systems without locks.
        with h5py.File(path, "r", locking=False) as file:
            return _Reader(file, path).index()
    except DataError:
        raise
    except MemoryError as error:  # the sizes that a file claims are checked against its bytes first
        raise ResourceError(
            "out of memory reading the shard's index", where=path, hint="close other programs"
        ) from error
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:160]
        raise DataError(
            "this is not a shard, or it is damaged",
            where=path,
            hint="run prepare again",
            details=[f"{type(error).__name__}: {reason}"],
        ) from error


class _Reader:
    """The checks of one open file, in an order in which each one relies on those before it.

    They use HDF5's own functions, as h5py's objects take half of the time for a small shard.
    """

    def __init__(self, file: h5py.File, path: Path) -> None:
        self._file = file
        self._path = path
        status = path.stat()
        self._size, self._mtime_ns = status.st_size, status.st_mtime_ns

    def index(self) -> ShardIndex:
        header = self._header()
        entries, offsets = self._entries()
        total = offsets[-1] + entries[-1].nbytes
        # No other check relies on the digest below, because whoever makes a malicious file can
        # write a digest that matches. It detects accidental damage.
        gt_start = self._pixels("gt", total)
        lq_start = self._pixels("lq", total) if "lq" in self._file else None
        sha256_gt = self._digests("sha256_gt", len(entries))
        sha256_lq = None if lq_start is None else self._digests("sha256_lq", len(entries))
        digest = index_digest(header, entries, sha256_gt, sha256_lq)
        self._need(self._attribute("sha256_index") == digest, "the index is damaged")
        return ShardIndex(
            path=self._path,
            file_size=self._size,
            mtime_ns=self._mtime_ns,
            header=header,
            entries=entries,
            offsets=offsets,
            sha256_gt=sha256_gt,
            sha256_lq=sha256_lq,
            gt_start=gt_start,
            lq_start=lq_start,
        )

    def _need(self, good: object, what: str, hint: str | None = "run prepare again") -> None:
        if not good:
            raise DataError(what, where=self._path, hint=hint)

    # -- attributes -----------------------------------------------------------------------------

    def _header(self) -> ShardHeader:
        is_shard = self._attribute("format") == FORMAT
        self._need(is_shard, "this is not a shard", "make shards with prepare")
        # The version is checked before the other attributes, because a newer one may have others.
        # `type() is int` is used because True and 1.0 equal 1.
        version = self._attribute("format_version")
        self._need(type(version) is int, "attribute format_version must be a whole number")
        self._need(
            version <= FORMAT_VERSION,
            f"shard format version {version} is newer than {FORMAT_VERSION}",
            "update c2fdft",
        )
        self._need(version == FORMAT_VERSION, f"there is no shard format version {version}")
        values = {field.name: self._attribute(field.name) for field in fields(ShardHeader)}
        try:
            return validate(ShardHeader, values)
        except InvalidValuesError as error:
            what = f"the attributes of the shard are invalid: {error}"
            raise DataError(what, where=self._path, hint="run prepare again") from error

    def _attribute(self, name: str) -> Any:
        """Return a single-valued attribute as text or number."""
        root, key = self._file.id, name.encode()
        try:
            stored = h5a.open(root, key)
        except KeyError:
            is_there = h5a.exists(root, key)  # which raises, if the file is damaged
            self._need(is_there, f"this is not a shard: attribute {name} is missing")
            raise
        # Before it is read, because reading it allocates whatever size it claims.
        kind = stored.dtype
        self._need(
            stored.shape == ()
            and kind.subdtype is None
            and stored.get_storage_size() <= MAX_ATTRIBUTE_BYTES,
            f"attribute {name} must be a single value",
        )
        read = np.zeros((), kind)
        stored.read(read)
        value = read.item()
        return value.decode("utf-8") if isinstance(value, bytes) else value

    # -- datasets -------------------------------------------------------------------------------

    def _dataset(self, name: str) -> tuple[h5d.DatasetID, int]:
        """Return a dataset that is stored in this file itself, without filters, and its length."""
        # The link is checked before it is followed: an external link could open any other file of
        # the machine.
        links, link = self._file.id.links, name.encode()
        is_hard = links.exists(link) and links.get_info(link).type == h5l.TYPE_HARD
        self._need(is_hard, f"dataset {name} is missing or a link")
        dataset = h5o.open(self._file.id, link)
        # Chunks may be compressed, so that a few bytes expand to gigabytes. External storage and
        # virtual datasets read their bytes from other files (in the tests, /etc/passwd).
        is_dataset = isinstance(dataset, h5d.DatasetID)
        shape: tuple[int, ...] = (dataset.shape or ()) if is_dataset else ()
        plain = len(shape) == 1
        if plain:
            storage = dataset.get_create_plist()
            is_inside = storage.get_external_count() == 0
            plain = is_inside and storage.get_layout() in (h5d.CONTIGUOUS, h5d.COMPACT)
        self._need(plain, f"{name} is not a plain one-dimensional dataset")
        (length,) = shape
        # A dataset that was never written can claim any size (10^15 bytes in the tests) without
        # occupying any, and reading it would allocate all of it. Variable-length strings are
        # refused here too: the file stores references into a heap, whose size differs from that of
        # h5py's pointers.
        start, size = dataset.get_offset(), length * dataset.dtype.itemsize
        self._need(
            start is not None and size == dataset.get_storage_size(),
            f"dataset {name} has no data",
        )
        self._need(start + size <= self._size, f"dataset {name} reaches past the end of the file")
        return dataset, length

    def _column(self, name: str, n: int | None, kind: str, max_item: int) -> NDArray[Any]:
        dataset, length = self._dataset(name)
        dtype = dataset.dtype
        has_type = dtype.kind == kind and dtype.itemsize <= max_item
        # The name of a type takes longer than any check.
        self._need(has_type, "" if has_type else f"dataset {name} has the wrong type, {dtype}")
        self._need(1 <= length <= MAX_IMAGES, f"dataset {name} has no usable length")
        self._need(n in (None, length), f"dataset {name} has the wrong length")
        # Columns, unlike pixels, are read as a whole, so their size is limited before the read.
        size = length * dtype.itemsize
        self._need(size <= MAX_COLUMN_BYTES, f"dataset {name} is too large for an index")
        column = np.empty(length, dtype)
        dataset.read(h5s.ALL, h5s.ALL, column)
        return column

    def _entries(self) -> tuple[tuple[Entry, ...], tuple[int, ...]]:
        offset = self._column("offset", None, "i", 8)
        n = len(offset)
        height, width = (self._column(name, n, "i", 8) for name in ("height", "width"))
        # Limits are checked before the product: sides of 2^31 or more would overflow it, and
        # offsets could be crafted to match the overflowed sum.
        for name, sides in (("height", height), ("width", width)):
            self._need(
                sides.min() >= 1 and sides.max() <= MAX_SIDE,
                f"{name} must be 1 to {MAX_SIDE}",
            )
        # Cast first, because the columns may have fewer bits than their products need.
        ends = np.cumsum(CHANNELS * height.astype(np.int64) * width.astype(np.int64))
        starts = np.concatenate([[0], ends[:-1]])
        self._need(np.array_equal(offset, starts), "the offsets do not fit the sizes of the images")
        names = self._texts("name", n, MAX_NAME_BYTES)
        self._need(
            all(name and is_clean(name) for name in names),
            "a name cannot be used: it is empty or contains control characters",
        )
        entries = map(Entry, names, height.tolist(), width.tolist())
        return tuple(entries), tuple(offset.tolist())

    def _pixels(self, name: str, total: int) -> int:
        """Return the offset in the file of a pixel dataset, which must have `total` bytes."""
        dataset, length = self._dataset(name)
        self._need(dataset.dtype == np.uint8, f"dataset {name} is not uint8")
        self._need(
            length == total,
            f"dataset {name} holds {length} bytes, but the index needs {total}",
        )
        return int(dataset.get_offset())

    def _texts(self, name: str, n: int, max_bytes: int) -> tuple[str, ...]:
        texts = self._column(name, n, "S", max_bytes).tolist()
        return tuple(text.decode("utf-8") for text in texts)

    def _digests(self, name: str, n: int) -> tuple[str, ...]:
        digests = self._texts(name, n, 64)
        self._need(
            all(_DIGEST.fullmatch(digest) for digest in digests),
            f"dataset {name} must hold SHA-256 digests",
        )
        return digests
