"""Shards that are crafted to do harm are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from c2fdft_cli.data.shards import index
from c2fdft_cli.data.shards.format import index_digest, offsets_of
from c2fdft_cli.data.shards.reader import ShardSet
from c2fdft_cli.errors import DataError
from tests.kit.shards import ENTRIES, HEADER

Damage = Callable[[h5py.File], None]


def put(name: str, data: object, **options: object) -> Damage:
    def damage(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, data=data, **options)

    return damage


def attribute(name: str, value: object) -> Damage:
    def damage(file: h5py.File) -> None:
        file.attrs[name] = value

    return damage


def soft_link(file: h5py.File) -> None:
    del file["lq"]
    file["lq"] = h5py.SoftLink("/gt")


def external_link(file: h5py.File) -> None:
    del file["gt"]
    file["gt"] = h5py.ExternalLink("/etc/passwd", "gt")


def external_storage(file: h5py.File) -> None:
    size = file["gt"].shape[0]
    del file["gt"]
    file.create_dataset("gt", (size,), "u1", external=[("/etc/passwd", 0, size)])


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((file["gt"].shape[0],), "u1")
    layout[:] = h5py.VirtualSource("/etc/passwd", "gt", layout.shape)
    del file["gt"]
    file.create_virtual_dataset("gt", layout)


def never_written(file: h5py.File) -> None:
    del file["gt"]
    file.create_dataset("gt", (10**15,), "u1")


def group_instead(file: h5py.File) -> None:
    del file["offset"]
    file.create_group("offset")


TOTAL = sum(entry.nbytes for entry in ENTRIES)
NEXT = offsets_of(ENTRIES)
HOSTILE: dict[str, tuple[Damage, str]] = {
    "offset past the end": (put("offset", np.array([0, 105, 2**62])), "do not fit the sizes"),
    "negative offset": (put("offset", np.array([0, -105, 108])), "do not fit the sizes"),
    "huge height": (put("height", np.array([5, 2**40, 9])), "height must be 1 to 65535"),
    "height beyond the limit": (
        put("height", np.array([5, 65536, 9])),
        "height must be 1 to 65535",
    ),
    "negative width": (put("width", np.array([7, -1, 3])), "width must be 1 to 65535"),
    "zero width": (put("width", np.array([7, 0, 3])), "width must be 1 to 65535"),
    "taller than its data": (put("height", np.array([5, 1, 10])), "holds 189 bytes"),
    "float heights": (put("height", np.array([5.0, 1.0, 9.0])), "wrong type"),
    "one height missing": (put("height", np.array([5, 1])), "wrong length"),
    "one height too many": (put("height", np.array([5, 1, 9, 1])), "wrong length"),
    "two-dimensional": (put("offset", np.zeros((3, 1), np.int64)), "one-dimensional"),
    "no images": (put("offset", np.zeros(0, np.int64)), "no data"),
    "pixels of 16 bit": (put("gt", np.zeros(TOTAL, np.uint16)), "not uint8"),
    "chunked pixels": (put("gt", np.zeros(TOTAL, np.uint8), chunks=(10,)), "plain"),
    "compressed": (put("lq", np.zeros(TOTAL, np.uint8), compression="gzip"), "plain"),
    "too few pixels": (put("gt", np.zeros(TOTAL - 1, np.uint8)), "holds 188 bytes"),
    "names of numbers": (put("name", np.arange(3)), "wrong type"),
    "names of any length": (put("name", ["a", "b", "c"]), "no data"),
    "names too long": (put("name", np.array([b"x" * 2000] * 3)), "wrong type"),
    "escape in a name": (put("name", np.array([b"a", b"\x1b[2J", b"c"])), "name cannot be used"),
    "not UTF-8": (put("name", np.array([b"a", b"\xff", b"c"])), "not a shard, or it is damaged"),
    "another name": (put("name", np.array([b"a", b"b", b"c"])), "index is damaged"),
    "no digests": (put("sha256_gt", np.array([b"x" * 64] * 3)), "must hold SHA-256"),
    "newer version": (attribute("format_version", 2), "version 2 is newer"),
    "version zero": (attribute("format_version", 0), "there is no shard format version 0"),
    "version in words": (attribute("format_version", "one"), "must be a whole number"),
    "other format": (attribute("format", "other"), "not a shard"),
    "list of formats": (attribute("format", [1, 2]), "must be a single value"),
    "unknown split": (attribute("split", "test"), "split must match pattern .*, got .test."),
    "shard 5 of 1": (attribute("shard", 5), "shards must be more than shard, 5"),
    "other source": (attribute("source", "elsewhere"), "index is damaged"),
    "escape in an attribute": (attribute("source", "\x1b[2J"), "control characters"),
    "soft link": (soft_link, "missing or a link"),
    "external link": (external_link, "missing or a link"),
    "external storage": (external_storage, "plain"),
    "virtual": (virtual, "plain"),
    "never written": (never_written, "no data"),
    "group": (group_instead, "plain"),
}
HINTS = {"newer version": "update c2fdft", "other format": "make shards with prepare"}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(shard: Path, name: str) -> None:
    damage, words = HOSTILE[name]
    with h5py.File(shard, "r+") as file:
        damage(file)
    with pytest.raises(DataError, match=words) as caught:
        ShardSet.open(shard)
    assert "\n" not in str(caught.value)
    assert caught.value.where == str(shard)
    assert caught.value.hint == HINTS.get(name, "run prepare again")


def test_a_bad_index_with_a_valid_digest_is_refused(shard: Path) -> None:
    """An attacker can write a matching digest too, so the limits are checked regardless."""
    entries = [replace(ENTRIES[0], height=2**33), *ENTRIES[1:]]
    with h5py.File(shard, "r+") as file:
        shas = [[text.decode() for text in file[f"sha256_{kind}"]] for kind in ("gt", "lq")]
        file["height"][0] = 2**33
        file.attrs["sha256_index"] = index_digest(HEADER, entries, *shas)
    with pytest.raises(DataError, match="height must be 1 to 65535"):
        ShardSet.open(shard)


def test_attributes_that_are_too_large_are_not_read(
    shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with h5py.File(shard, "w", libver="latest") as file:  # 1.8 has no attributes above 64 KiB
        file.attrs["format"] = np.bytes_(b"x" * (index.MAX_ATTRIBUTE_BYTES + 1))
    monkeypatch.setattr(h5py.AttributeManager, "__getitem__", None)
    with pytest.raises(DataError, match="attribute format must be a single value"):
        ShardSet.open(shard)


def test_columns_that_are_too_large_are_not_read(
    shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "MAX_COLUMN_BYTES", 8 * len(ENTRIES) - 1)
    monkeypatch.setattr(h5py.Dataset, "__getitem__", None)
    with pytest.raises(DataError, match="dataset offset is too large for an index"):
        ShardSet.open(shard)


def test_data_beyond_the_end_of_the_file_are_refused(shard: Path) -> None:
    """Newer HDF5 refuses such a file itself, so the test pretends that the file is shorter."""
    with h5py.File(shard, "r") as file:
        reader = index._Reader(file, shard)
        ends = {one.id.get_offset() + one.nbytes: name for name, one in file.items()}
        reader._size = max(ends) - 1
        last = ends[max(ends)]
        with pytest.raises(DataError, match=f"dataset {last} reaches past the end of the file"):
            reader.index()


def test_offsets_must_be_the_sums_of_the_sizes() -> None:
    assert NEXT == [0, 105, 108]
