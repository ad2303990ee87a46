"""What a shard says about its images, and how images are dealt out to shards (docs/shards.md)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Annotated, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, ConfigDict, Field, ValidationInfo, field_validator

from c2fdft_cli.errors import DataError
from c2fdft_cli.validation import STRICT

FORMAT = "c2fdft-shard"
FORMAT_VERSION = 1
SPLITS = ("train", "val")
# Together the limits keep sums of offsets within int64: 3 * 65535^2 bytes an image, 10^7 times, are
# 1.3e17. Raising one of them means looking at `index._Reader._entries` again.
MAX_SIDE = 65_535
MAX_IMAGES = 10_000_000
MAX_NAME_BYTES = 1_024
MAX_SHARDS = 100_000
"""Of a split: their numbers have five digits, by which their names sort."""
CHANNELS = 3

Pixels = NDArray[np.uint8]


def _refuse_control_characters(text: str) -> str:
    if not is_clean(text):
        raise ValueError("must not hold control characters")
    return text


CleanText: TypeAlias = Annotated[
    str, Field(strict=True), AfterValidator(_refuse_control_characters)
]
Number: TypeAlias = Annotated[int, Field(ge=0, strict=True)]


@dataclass(frozen=True)
class ShardHeader:
    """The root attributes of a shard; equal in all shards of a set but for `split` and `shard`.

    Args:
        split: "train" or "val".
        patch_cycle: the patch cycle that the set was prepared for, JSON text ("" for none).
        layout: the layout that the source folder was recognised as.
        source: the source's own name, never a path.
        tool_version: the version of the program that wrote it.
        degradation: how `lq` was (or is to be) made from `gt`, JSON text ("" for real pairs).
        shard: number of this shard in its split, from 0.
        shards: how many shards its split has.
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
        # pydantic checks fields in the order in which they stand, so `shard` is in `info.data` only
        # because it stands before `shards`.
        if info.data.get("shard", 0) >= shards:
            raise ValueError(f"must be more than shard, {info.data.get('shard')}")
        return shards


@dataclass(frozen=True)
class Entry:
    """One image (pair) of a shard: its name, unique in its split, and its size in pixels."""

    name: str
    height: int
    width: int

    @property
    def nbytes(self) -> int:
        """Bytes of one uint8 RGB image of this size."""
        return CHANNELS * self.height * self.width


@dataclass(frozen=True)
class ShardIndex:
    """A shard's index, checked: every image lies inside of the file.

    Args:
        path: the file.
        file_size: its size in bytes when the index was read.
        header: the root attributes.
        entries: name and size of each image.
        offsets: [n] byte offset of each image in the pixel datasets.
        sha256_gt, sha256_lq: [n] hex digests of the stored pixels (lq: None if clean-only).
        gt_start, lq_start: byte offset of each pixel dataset in the file (lq: None likewise).
    """

    path: Path
    file_size: int
    header: ShardHeader
    entries: tuple[Entry, ...]
    offsets: tuple[int, ...]
    sha256_gt: tuple[str, ...]
    sha256_lq: tuple[str, ...] | None
    gt_start: int
    lq_start: int | None


def shard_name(split: str, number: int) -> str:
    """File name of a shard: `train-00000.h5`."""
    return f"{split}-{number:05d}.h5"


def offsets_of(entries: Sequence[Entry]) -> list[int]:
    """Byte offset of each image, one at least, when they lie back to back."""
    return list(accumulate((entry.nbytes for entry in entries[:-1]), initial=0))


def deal(entries: Sequence[Entry], *, max_bytes: int, planes: int) -> list[range]:
    """Split images, in order, into shards of at most `max_bytes` of pixels, one image at least.

    Args:
        entries: the images of one split.
        max_bytes: limit on a shard's pixel bytes.
        planes: images stored for each entry (2 for pairs, 1 for clean-only).
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
    """SHA-256 over all that a shard says beside its pixels, as canonical JSON."""
    text = json.dumps(
        [
            asdict(header),
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
    """DataError for a name that no shard stores: not 1 to 1024 bytes of UTF-8, or not clean."""
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
    """The entry of an image of the file `where`; DataError where no shard can hold it."""
    check_name(name)
    if max(height, width) > MAX_SIDE:
        raise DataError(
            f"an image of {width}x{height} px cannot be stored",
            where=where,
            hint=f"its sides may have {MAX_SIDE} px: cut or shrink it",
        )
    return Entry(name, height, width)


def clean_text(text: str) -> str:
    """Text for an attribute: what cannot be stored or shown becomes a question mark."""
    # Bytes of a file name that are no UTF-8 are lone surrogates in Python, which UTF-8 cannot
    # encode.
    plain = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(c if is_clean(c) else "?" for c in plain)


def is_clean(name: str) -> bool:
    """True without control characters (they could drive a terminal)."""
    # Those over 127 too: some terminals take 155 alone for the begin of an escape sequence.
    return not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in name)
