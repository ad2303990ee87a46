"""The header and index of a shard, and how images are distributed over shards (docs/shards.md)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Annotated, ClassVar, TypeAlias

from pydantic import AfterValidator, ConfigDict, Field, ValidationInfo, field_validator

from c2fdft_cli.errors import DataError
from c2fdft_cli.validation import STRICT

FORMAT = "c2fdft-shard"
FORMAT_VERSION = 1
SPLITS = ("train", "val")
# Together the limits keep sums of offsets within int64: 10^7 images of 3 * 65535^2 bytes are
# 1.3e17. If you raise one of them, check that `index._Reader._entries` still cannot overflow.
MAX_SIDE = 65_535
MAX_IMAGES = 10_000_000
MAX_NAME_BYTES = 1_024
MAX_SHARDS = 100_000
"""Most shards of a split: numbers have five digits, so that file names sort in order."""
CHANNELS = 3
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def _refuse_control_characters(text: str) -> str:
    if not is_clean(text):
        raise ValueError("must not contain control characters")
    return text


CleanText: TypeAlias = Annotated[
    str, Field(strict=True), AfterValidator(_refuse_control_characters)
]
Number: TypeAlias = Annotated[int, Field(ge=0, strict=True)]


@dataclass(frozen=True)
class ShardHeader:
    """The root attributes of a shard; in a set only `split`, `shard` and `shards` may differ.

    Args:
        split: "train" or "val".
        patch_cycle: always ""; other values are read and not used.
        layout: the layout recognised in the source folder.
        source: the source folder's own name, never a path.
        tool_version: the version of the program that wrote it.
        degradation: how `lq` was made from `gt`, or is to be made during training, as JSON text
            ("" for real pairs).
        shard: number of this shard in its split, from 0.
        shards: number of shards in its split.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    split: Annotated[str, Field(pattern=rf"^({'|'.join(SPLITS)})$", strict=True)]
    patch_cycle: CleanText
    layout: CleanText
    source: CleanText
    tool_version: CleanText
    degradation: CleanText = ""
    shard: Number = 0
    shards: Number = 1

    @field_validator("shards")
    @classmethod
    def _counts_this_shard(cls, shards: int, info: ValidationInfo) -> int:
        # pydantic checks fields in the order of their definition, so `shard` is in `info.data` only
        # because it is defined before `shards`.
        if info.data.get("shard", 0) >= shards:
            raise ValueError(f"must be more than shard, {info.data.get('shard')}")
        return shards


@dataclass(frozen=True)
class Entry:
    """One image or pair of a shard: its name, unique in its split, and its size in pixels."""

    name: str
    height: int
    width: int

    @property
    def nbytes(self) -> int:
        """The number of bytes of one uint8 RGB image of this size."""
        return CHANNELS * self.height * self.width


@dataclass(frozen=True)
class ShardIndex:
    """A shard's index after all checks: every image is known to be inside the file.

    Args:
        path: the file.
        file_size, mtime_ns: its size in bytes and its modification time when the index was read.
        header: the root attributes.
        entries: name and size of each image.
        offsets: [n] byte offset of each image in the pixel datasets.
        sha256_gt, sha256_lq: [n] hex digests of the stored pixels (lq: None if clean-only).
        gt_start, lq_start: byte offset of each pixel dataset in the file (lq: None if clean-only).
    """

    path: Path
    file_size: int
    mtime_ns: int
    header: ShardHeader
    entries: tuple[Entry, ...]
    offsets: tuple[int, ...]
    sha256_gt: tuple[str, ...]
    sha256_lq: tuple[str, ...] | None
    gt_start: int
    lq_start: int | None


def shard_name(split: str, number: int) -> str:
    """Return the file name of a shard, such as `train-00000.h5`."""
    return f"{split}-{number:05d}.h5"


def offsets_of(entries: Sequence[Entry]) -> list[int]:
    """Return the byte offset of each image, stored one after another; needs at least one image."""
    return list(accumulate((entry.nbytes for entry in entries[:-1]), initial=0))


def deal(entries: Sequence[Entry], *, max_bytes: int, planes: int) -> list[range]:
    """Split images, in order, into shards of at most `max_bytes` of pixels or of a single image.

    Args:
        entries: the images of one split.
        max_bytes: limit on a shard's pixel bytes.
        planes: images stored for each entry (2 for pairs, 1 for clean-only).

    Returns:
        The range of indices into `entries` for each shard.
    """
    ranges, first, used = [], 0, 0
    for number, entry in enumerate(entries):
        size = planes * entry.nbytes
        if number > first and used + size > max_bytes:
            ranges.append(range(first, number))
            first, used = number, 0
        used += size
    if len(entries) > first:
        ranges.append(range(first, len(entries)))
    return ranges


def index_digest(
    header: ShardHeader,
    entries: Sequence[Entry],
    sha256_gt: Sequence[str],
    sha256_lq: Sequence[str] | None,
) -> str:
    """Return the SHA-256 of everything in a shard except its pixels, as canonical JSON."""
    text = json.dumps(
        [
            vars(header),
            [[entry.name, entry.height, entry.width] for entry in entries],
            list(sha256_gt),
            None if sha256_lq is None else list(sha256_lq),
        ],
        ensure_ascii=True,
        separators=(",", ":"),
        sort_keys=True,
    )
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def check_name(name: str) -> None:
    """Check that a shard can store a name.

    Raises:
        DataError: the name is not 1 to 1024 bytes of UTF-8 without control characters.
    """
    try:
        data = name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            "a file name is not valid UTF-8", where=ascii(name), hint="rename the file"
        ) from error
    if not data or len(data) > MAX_NAME_BYTES or not is_clean(name):
        raise DataError(
            "a name cannot be stored",
            where=ascii(name[:80]),
            hint=f"names are 1 to {MAX_NAME_BYTES} bytes without control characters",
        )


def make_entry(name: str, height: int, width: int, where: Path) -> Entry:
    """Make the entry of an image of the file `where`; DataError if no shard can store it."""
    check_name(name)
    if max(height, width) > MAX_SIDE:
        raise DataError(
            f"an image of {width}x{height} px cannot be stored",
            where=where,
            hint=f"its sides may have at most {MAX_SIDE} px: crop or shrink it",
        )
    return Entry(name, height, width)


def clean_text(text: str) -> str:
    """Replace characters that an attribute cannot store or a terminal show by question marks."""
    # Bytes of a file name that are not UTF-8 are lone surrogates in Python, which UTF-8 cannot
    # encode.
    plain = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(c if is_clean(c) else "?" for c in plain)


def is_clean(name: str) -> bool:
    """Whether a name has no control characters, which could manipulate a terminal."""
    # Those above 127 count too: some terminals take 155 as the start of an escape sequence.
    return _CONTROL.search(name) is None
