"""Reads untrusted files of tensors: torch's zip format and safetensors.

A file is read in two steps. First its description is read (names, types, shapes); this imports and
calls nothing, and allocates no tensors. Then `StoredFile.load` reads the requested tensors, after
comparing the sizes that the file claims with the bytes that it has.

Source: torch/serialization.py; https://github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import io
import json
import math
import stat
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from c2fdft_cli.engine.weights import pickles
from c2fdft_cli.engine.weights.identify import (
    CONVERT,
    GET_AGAIN,
    HEAD_BYTES,
    OTHER,
    PICKLE,
    ZIP,
    cut_short,
    not_a_checkpoint,
    other_archive,
    refuse_other_files,
    unknown_file,
    unreadable,
)
from c2fdft_cli.engine.weights.pickles import Opaque, StoredTensor, UnusableError, read_pickle
from c2fdft_cli.errors import C2fdftError, CheckpointError, ResourceError
from c2fdft_cli.execution.memory import is_out_of_memory

MAX_FILE_BYTES = 8 << 30
MAX_HEADER_BYTES = 32 << 20
MAX_DIRECTORY_BYTES = 64 << 20
_MAX_END_BYTES = 22 + 65535
"""The last record of a zip archive with the longest comment that it can have."""
MAX_PLACES = 1 << 60
"""Limit of a shape's product with zeros counted as ones; torch computes strides from it."""
METADATA = "__metadata__"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class StoredFile:
    """An open file of tensors.

    content: plain values, dictionaries, `StoredTensor`s and `Opaque`s.
    is_safetensors: whether it is a safetensors file; `content` is then flat and includes
        `METADATA`.
    read: returns the bytes of a storage, given its key and the least number of bytes needed.
    """

    path: Path
    content: Any
    is_safetensors: bool
    read: Callable[[str, int], bytes]

    def load(self, tree: Any) -> Any:
        """Read the tensors in a part of `content`, in the dtypes that they are stored in.

        Args:
            tree: a tensor, or nested containers.

        Returns:
            The same structure with tensors in memory.

        Raises:
            CheckpointError: tensors reach beyond their bytes or are larger than the file.
            UnreadableError: as `open_stored`.
            ResourceError: out of memory.
        """
        with _explained(self.path):
            _check_claims(tree, max_unpacked_bytes(self.path))
            return _Loader(self).load(tree)


class _Loader:
    """Reads tensors; each storage and each container is read once, so that sharing is preserved."""

    def __init__(self, file: StoredFile) -> None:
        self._file = file
        self._bases: dict[tuple[str, torch.dtype], Tensor] = {}
        self._made: dict[int, Any] = {}

    def load(self, value: Any) -> Any:
        if isinstance(value, StoredTensor):
            return self._base(value).as_strided(value.shape, value.stride, value.offset)
        if not isinstance(value, dict | list | tuple):
            return value
        # Deep nesting may cause a RecursionError, which `_explained` turns into a CheckpointError.
        if id(value) in self._made:
            return self._made[id(value)]
        if isinstance(value, dict):
            made = self._made[id(value)] = {}
            made.update((key, self.load(item)) for key, item in value.items())
            return made
        # A list is registered before it is filled, because it may contain itself.
        items: list[Any] = []
        if isinstance(value, list):
            self._made[id(value)] = items
        items.extend(self.load(item) for item in value)
        return self._made.setdefault(id(value), tuple(items))

    def _base(self, tensor: StoredTensor) -> Tensor:
        key = (tensor.storage, tensor.dtype)
        if key not in self._bases:
            data = self._file.read(tensor.storage, tensor.storage_bytes)
            # The record in the archive may be longer than the pickle states.
            data = data[: tensor.storage_bytes]
            self._bases[key] = _flat(data, tensor.dtype)
        return self._bases[key]


def _flat(data: bytes, dtype: torch.dtype) -> Tensor:
    raw = torch.empty(len(data), dtype=torch.uint8)  # in memory that torch aligns
    # Copied without torch, which would wait for its threads at every tensor if the cores are busy.
    raw.numpy().data[:] = data
    return raw.view(dtype)


def tensors_in(tree: Any) -> Iterator[StoredTensor | Opaque]:
    """Yield every tensor and opaque object in nested containers, shared ones once."""
    # No recursion, and each container only once: it may contain itself, or be nested to any depth.
    waiting, seen = [tree], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, list | tuple):
            waiting.extend(value)
        elif isinstance(value, StoredTensor | Opaque):
            yield value


def containers_of(tree: Any, test: Callable[[Any], bool]) -> set[int]:
    """Return the ids of the containers that hold, at any depth, a value for which `test` is true.

    Takes linear time: a container that is in many others is looked at once.
    """
    waiting, inside, found = [tree], dict[int, list[int]](), list[int]()
    while waiting:
        outer = waiting.pop()
        for value in outer.values() if isinstance(outer, dict) else outer:
            if isinstance(value, dict | list | tuple):
                if id(value) not in inside:
                    waiting.append(value)
                inside.setdefault(id(value), []).append(id(outer))
            elif test(value):
                found.append(id(outer))
    reached = set[int]()
    while found:
        number = found.pop()
        if number not in reached:
            reached.add(number)
            found += inside.get(number, [])
    return reached


def _check_claims(tree: Any, limit: int) -> None:
    """Raise UnusableError if tensors reach beyond their storage, or are larger than the file."""
    unpacked = 0
    storages: dict[str, int] = {}
    for tensor in tensors_in(tree):
        if isinstance(tensor, Opaque):
            continue
        # A shape with a 0 has no elements, but its strides can be too large for torch.
        if math.prod(max(size, 1) for size in tensor.shape) > MAX_PLACES:
            raise UnusableError("a tensor in it has an impossible shape")
        # An expanded tensor (stride 0) of a few bytes could unpack to any size.
        unpacked += tensor.nbytes()
        claimed = storages.get(tensor.storage, 0)
        storages[tensor.storage] = max(claimed, tensor.storage_bytes)
        reach = tensor.offset + sum(
            (size - 1) * step for size, step in zip(tensor.shape, tensor.stride, strict=True)
        )
        # Strides are never negative (`are_counts`), so the last element has the largest offset.
        if tensor.numel() and (reach + 1) * tensor.dtype.itemsize > tensor.storage_bytes:
            raise UnusableError("a tensor in it reaches beyond its bytes")
    # Whole storages are read and only the views are kept: both sizes must be plausible.
    if max(unpacked, sum(storages.values())) > limit:
        raise UnusableError("the tensors are larger than the file")


def max_unpacked_bytes(path: Path) -> int:
    """Return the limit for the tensors of a file; double, as two sets can share their bytes."""
    return 2 * path.stat().st_size + (1 << 20)


@contextmanager
def open_stored(path: Path) -> Iterator[StoredFile]:
    """Open an untrusted file of tensors; its format is recognised by its content.

    Raises:
        CheckpointError: the file is missing, damaged, truncated or something else; the message
            says which, and the hint what to try.
        UnreadableError: the system does not read it: no permission, an error of the disk, or too
            many open files.
        ResourceError: out of memory.
    """
    refuse_missing(path)
    with ExitStack() as stack:
        with _explained(path):
            file = stack.enter_context(path.open("rb"))
            stored = _open(path, file)
        # Outside of `_explained`: an error in the caller's block is not an error of the file.
        yield stored


def _open(path: Path, file: IO[bytes]) -> StoredFile:
    head = file.read(HEAD_BYTES)
    file.seek(0)
    refuse_other_files(path, head)
    if head.startswith(ZIP):
        return _open_zip(path, file)
    # The highest byte of the header's length, and the start of the JSON after it. This is tested
    # before pickles: they are recognised by one byte, which may also be the lowest of a length.
    if head[7:9] == b"\0{":
        return _open_safetensors(path, file)
    if head.startswith(PICKLE):
        what = "it is in torch's format before 1.6, or a pickle of Python objects"
        raise not_a_checkpoint(path, what, CONVERT)
    raise unknown_file(path, head)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn any error while reading a file into one of those that `open_stored` raises."""
    try:
        with enough_memory(path):
            yield
    except C2fdftError:
        raise
    except UnusableError as error:
        raise not_a_checkpoint(path, str(error)) from error
    except EOFError as error:
        raise cut_short(path) from error
    except zipfile.BadZipFile as error:
        # zipfile reports an error of the disk in the table of contents as one of the archive.
        if isinstance(error.__context__, OSError):
            raise unreadable(path, error.__context__) from error
        raise not_a_checkpoint(path, f"the archive is damaged ({error})", GET_AGAIN) from error
    except OSError as error:
        raise unreadable(path, error) from error
    except Exception as error:
        raise not_a_checkpoint(path, "the file is damaged", GET_AGAIN) from error


@contextmanager
def enough_memory(path: Path) -> Iterator[None]:
    """Turn an out-of-memory error about the content of a file into a ResourceError."""
    try:
        yield
    except C2fdftError:
        raise
    except Exception as error:  # torch reports it with several classes of errors
        if not is_out_of_memory(error):
            raise
        raise ResourceError(
            "out of memory reading the file", where=path, hint="close other programs"
        ) from error


def _open_zip(path: Path, file: IO[bytes]) -> StoredFile:
    # The table of contents of an archive is at its end, before a last record. `is_zipfile` is not
    # used: in newer versions of Python it also returns False if that record is damaged.
    file.seek(max(0, path.stat().st_size - _MAX_END_BYTES))
    if b"PK\x05\x06" not in file.read():
        raise cut_short(path)
    # Checked before ZipFile reads the whole table.
    _check_directory(file)
    archive = zipfile.ZipFile(file)
    names = archive.namelist()
    roots = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")]
    if len(roots) != 1 or f"{roots[0]}constants.pkl" in names:
        raise other_archive(path, names)
    root = roots[0]
    limit = max_unpacked_bytes(path)

    def record(name: str) -> bytes:
        entry = archive.getinfo(root + name)
        # Checked before unpacking: a megabyte of compressed zeros unpacks to a gigabyte.
        if entry.file_size > limit:
            raise UnusableError("the archive is compressed, and unpacks to far more than its size")
        return _checked(archive, entry)

    def read(key: str, size: int) -> bytes:
        data = record(f"data/{key}")
        if len(data) < size:
            raise UnusableError("a tensor in it has fewer bytes than its shape needs")
        return data

    if f"{root}byteorder" in names and record("byteorder") != b"little":
        raise UnusableError("it was saved on a machine with the other order of bytes (big-endian)")
    content = read_pickle(record("data.pkl"))
    return StoredFile(path, content, False, read)


def _checked(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """Read a record and compare its checksum, without unpacking more than the size that it states.

    `ZipFile.read` unpacks up to a gigabyte first. Other methods than deflate cannot be limited at
    all: 800 bytes of bzip2 unpack to a gigabyte.
    """
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UnusableError("the archive is compressed by another method than deflate")
    with archive.open(entry) as record:
        return record.read(entry.file_size)


def _check_directory(file: IO[bytes]) -> None:
    """Raise UnusableError if the table of contents of a zip archive is absurdly large.

    zipfile reads the whole table, which takes about ten times its size in memory. The size is in
    the last record of the file, which has 22 bytes because torch writes no comment. In a large file
    it is in the zip64 record instead; the 20 bytes before the last record (the locator) point to
    it, and it must be the 56 bytes before the locator.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - 98))
    tail = file.read().rjust(98, b"\0")
    record, locator, end = tail[:56], tail[56:76], tail[76:]
    directory = struct.unpack("<L", end[12:16])[0]
    is_odd = end[:4] != b"PK\x05\x06"
    # Depending on Python's version, zipfile reads the record before the locator or the one that the
    # locator points to. They must be the same, otherwise zipfile might use one that is not checked
    # here.
    if locator[:4] == b"PK\x06\x07":
        directory = struct.unpack("<Q", record[40:48])[0]
        is_odd = is_odd or struct.unpack("<Q", locator[8:16])[0] != size - 98
    if is_odd:
        raise UnusableError("the archive is damaged, or torch.save did not write it")
    if directory > MAX_DIRECTORY_BYTES:
        raise UnusableError("the archive's table of contents is absurdly large")


def _open_safetensors(path: Path, file: IO[bytes]) -> StoredFile:
    """Open a safetensors file.

    It consists of the header's length (8 bytes), the header, which is a JSON table that maps each
    name to dtype, shape and byte range, and the bytes of the tensors.
    """
    length = int.from_bytes(_exactly(file, 8), "little")
    if length > MAX_HEADER_BYTES:
        raise UnusableError(f"its safetensors header is larger than {MAX_HEADER_BYTES >> 20} MiB")
    table = json.loads(_exactly(file, length))
    start, size = 8 + length, path.stat().st_size
    content: dict[str, Any] = {}
    places: dict[str, int] = {}
    for name, entry in table.items():
        if name == METADATA:
            content[name] = entry
            continue
        content[name] = _described(name, entry)
        places[name] = start + entry["data_offsets"][0]
        if start + entry["data_offsets"][1] > size:
            raise cut_short(path)

    def read(key: str, count: int) -> bytes:
        file.seek(places[key])
        return _exactly(file, count)

    return StoredFile(path, content, True, read)


def _described(name: str, entry: Mapping[str, Any]) -> StoredTensor | Opaque:
    """Describe a tensor of a safetensors table; it is opaque if its dtype is not supported."""
    first, last = entry["data_offsets"]
    shape = entry["shape"]
    dtype = _DTYPES.get(entry["dtype"])
    if not pickles.are_counts((first, last)) or not pickles.are_counts(shape):
        raise UnusableError(f"{name:.60} has an impossible shape")
    if dtype is None:
        return Opaque(str(entry["dtype"]))
    stride = [1]
    for length in reversed(shape[1:]):
        stride.insert(0, stride[0] * length)
    tensor = StoredTensor(name, last - first, dtype, 0, tuple(shape), tuple(stride[: len(shape)]))
    if tensor.nbytes() != tensor.storage_bytes:
        raise UnusableError(f"the number of bytes of {name:.60} does not match its shape")
    return tensor


def _exactly(file: IO[bytes], size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise EOFError
    return data


def refuse_missing(path: Path) -> None:
    """Raise CheckpointError unless the path is a file of at most `MAX_FILE_BYTES`.

    It is an UnreadableError if the system does not tell.
    """
    # Not `Path.is_file`: whether an error of the disk means False depends on Python's version.
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise CheckpointError("there is no such checkpoint", where=path, hint=OTHER) from error
    except OSError as error:
        raise unreadable(path, error) from error
    if stat.S_ISDIR(status.st_mode):
        inside = next((p for p in (path / "fine.pt", path / "coarse.pt") if p.is_file()), None)
        raise CheckpointError(
            "this is a folder, not a checkpoint",
            where=path,
            hint=OTHER if inside is None else f"give {inside}",
        )
    if not stat.S_ISREG(status.st_mode):
        what = "this is a pipe or a device, not a checkpoint"
        raise CheckpointError(what, where=path, hint=OTHER)
    if status.st_size > MAX_FILE_BYTES:
        raise CheckpointError(f"the file is larger than {MAX_FILE_BYTES >> 30} GiB", where=path)
