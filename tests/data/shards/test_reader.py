"""The shard format: round trips, identical bytes, and incomplete or damaged files."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from c2fdft_cli.data.pixels import Pixels
from c2fdft_cli.data.shards import reader
from c2fdft_cli.data.shards.format import Entry, deal, shard_name
from c2fdft_cli.data.shards.reader import ShardSet, verify
from c2fdft_cli.errors import DataError, ResourceError
from tests.kit.shards import ENTRIES, HEADER, pairs_of, picture, write_shard

# -- round trips ---------------------------------------------------------------


def test_shards_are_read_back_as_written(shard: Path) -> None:
    shards = ShardSet.open(shard.parent)
    assert len(shards) == 3
    assert shards.names == ["a", "straße/b", "雨"]
    assert shards.sizes == [(5, 7), (1, 1), (9, 3)]
    assert shards.has_lq
    assert shards.header == HEADER
    for i, (lq, gt) in enumerate(pairs_of(ENTRIES)):
        np.testing.assert_array_equal(shards.pair(i)[0], lq)
        np.testing.assert_array_equal(shards.pair(i)[1], gt)


def test_any_hdf5_reader_can_read_it(shard: Path) -> None:
    with h5py.File(shard, "r") as file:
        assert file.attrs["format"] == b"c2fdft-shard"
        assert file.attrs["format_version"] == 1
        assert file["name"].asstr()[2] == "雨"
        start, h, w = (file[key][2] for key in ("offset", "height", "width"))
        image = file["gt"][start : start + 3 * h * w].reshape(h, w, 3)
    np.testing.assert_array_equal(image, picture(ENTRIES[2], 2))


def test_a_file_made_after_the_description_of_version_1_is_read(tmp_path: Path) -> None:
    """It shares no code with the program: files of earlier versions must stay readable."""
    rng = np.random.default_rng(0)
    names, sides = ["a", "b/é"], [(4, 6), (3, 2)]
    kinds = {
        kind: [rng.integers(0, 256, 3 * h * w, np.uint8) for h, w in sides] for kind in ("gt", "lq")
    }
    digests = {
        kind: [hashlib.sha256(one.tobytes()).hexdigest() for one in flat]
        for kind, flat in kinds.items()
    }
    about = {"split": "train", "shard": 0, "shards": 1, "patch_cycle": "", "layout": "lq/ + gt/",
             "source": "set", "tool_version": "0.1.0", "degradation": ""}  # fmt: skip
    index = [about, [[name, h, w] for name, (h, w) in zip(names, sides, strict=True)]]
    canonical = json.dumps(
        [*index, digests["gt"], digests["lq"]], sort_keys=True, separators=(",", ":")
    )
    digest = hashlib.sha256(canonical.encode("ascii")).hexdigest()
    more = {"format": "c2fdft-shard", "format_version": 1, "sha256_index": digest}
    with h5py.File(tmp_path / "train-00000.h5", "w") as file:
        for key, value in {**about, **more}.items():
            file.attrs[key] = np.bytes_(value) if isinstance(value, str) else value
        for kind, flat in kinds.items():
            file[kind] = np.concatenate(flat)
            file[f"sha256_{kind}"] = np.array(digests[kind], "S64")
        file["offset"] = np.array([0, 3 * 4 * 6], np.int64)
        file["height"], file["width"] = np.array(sides, np.int64).T
        stored = [name.encode() for name in names]
        file.create_dataset("name", data=stored, dtype=h5py.string_dtype("utf-8", 8))
    shards = ShardSet.open(tmp_path)
    assert (shards.names, shards.sizes) == (names, sides)
    for i, (height, width) in enumerate(sides):
        for found, kind in zip(shards.pair(i), ("lq", "gt"), strict=True):
            np.testing.assert_array_equal(found, kinds[kind][i].reshape(height, width, 3))
    # Checkpoints store it, so the same images must give it in each version.
    assert shards.fingerprint[:16] == "e73180dbe2d48665"
    verify(tmp_path).run()


def test_identical_input_gives_identical_bytes(shard: Path) -> None:
    before = shard.read_bytes()
    time.sleep(1.1)  # timestamps, if HDF5 stored any, would differ
    write_shard(shard, ENTRIES, pairs_of(ENTRIES), HEADER)
    assert shard.read_bytes() == before


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
def test_a_shard_that_the_system_does_not_read_is_not_called_damaged(
    shard: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(path: Path, *_mode: str) -> None:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(DataError, match=f"cannot read: {os.strerror(code)}"):
        ShardSet.open(shard.parent)


def test_a_lack_of_memory_is_not_called_damage(
    shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("c2fdft_cli.data.shards.index.h5py.File", fail)
    with pytest.raises(ResourceError, match="out of memory reading the shard's index"):
        ShardSet.open(shard.parent)


def test_shards_may_hold_only_clean_images(tmp_path: Path) -> None:
    path = tmp_path / "val-00000.h5"
    header = replace(HEADER, split="val", degradation='{"kind": "rain"}')
    write_shard(path, ENTRIES, [(None, gt) for _, gt in pairs_of(ENTRIES)], header, has_lq=False)
    shards = ShardSet.open(tmp_path, split="val")
    assert not shards.has_lq
    np.testing.assert_array_equal(shards.gt(0), picture(ENTRIES[0], 2))
    with pytest.raises(DataError, match=r"val-00000\.h5: .*no lq"):
        shards.pair(0)
    assert verify(path).run().images == 3


def test_a_crop_is_a_copy_of_the_window(shard: Path) -> None:
    shards = ShardSet.open(shard)
    lq, gt = shards.crop(0, 2, 3, 3, 4)
    np.testing.assert_array_equal(lq, picture(ENTRIES[0], 1)[2:5, 3:7])
    np.testing.assert_array_equal(gt, picture(ENTRIES[0], 2)[2:5, 3:7])
    lq[...] = 0  # writable, unlike a view of the file
    assert not shards.lq(0).flags.writeable


@pytest.mark.parametrize("window", [(-1, 0, 2, 2), (0, 0, 6, 2), (0, 6, 1, 2), (4, 0, 2, 2)])
def test_a_window_outside_of_its_image_is_refused(
    shard: Path, window: tuple[int, int, int, int]
) -> None:
    with pytest.raises(IndexError):
        ShardSet.open(shard).crop(0, *window)


def test_an_open_set_can_be_pickled(shard: Path) -> None:
    shards = ShardSet.open(shard)
    first = shards.gt(0)
    again = pickle.loads(pickle.dumps(shards))
    np.testing.assert_array_equal(again.gt(0), first)
    assert again.fingerprint == shards.fingerprint


def test_the_fingerprint_depends_on_content_not_on_sharding(tmp_path: Path, shard: Path) -> None:
    whole = ShardSet.open(shard).fingerprint
    other = tmp_path / "other"
    other.mkdir()
    for number, entry in enumerate(ENTRIES):
        header = replace(HEADER, shard=number, shards=3)
        write_shard(other / shard_name("train", number), [entry], pairs_of([entry]), header)
    assert ShardSet.open(other).fingerprint == whole
    pairs = pairs_of(ENTRIES)
    pairs[1][1][0, 0, 0] ^= 1
    write_shard(shard, ENTRIES, pairs, HEADER)
    assert ShardSet.open(shard).fingerprint != whole


def test_every_content_has_its_own_fingerprint(shard: Path) -> None:
    """Clean images are not the pairs of two equal images, nor pairs with another first one."""

    def fingerprint(entry: Entry, lq: Pixels | None, gt: Pixels) -> str:
        write_shard(shard, [entry], [(lq, gt)], HEADER, has_lq=lq is not None)
        return ShardSet.open(shard).fingerprint

    entry, pixels = ENTRIES[0], picture(ENTRIES[0], 2)
    pairs = [(entry, None), (entry, pixels), (entry, picture(entry, 1))]
    found = [fingerprint(one, lq, pixels) for one, lq in pairs]
    found.append(fingerprint(replace(entry, name="other"), pixels, pixels))
    turned = pixels.reshape(7, 5, 3)
    found.append(fingerprint(replace(entry, height=7, width=5), turned, turned))
    assert len(set(found)) == 5


@pytest.mark.parametrize("has_lq", [True, False])
def test_the_digest_of_the_index_is_that_of_the_documented_json(shard: Path, has_lq: bool) -> None:
    """docs/shards.md; otherwise versions of the program would refuse each other's shards."""
    pairs = [(lq if has_lq else None, gt) for lq, gt in pairs_of(ENTRIES)]
    write_shard(shard, ENTRIES, pairs, HEADER, has_lq=has_lq)
    attributes = (
        '{"degradation":"","layout":"input/target","patch_cycle":"{\\"patches\\": [8]}","shard":0,'
        '"shards":1,"source":"rain","split":"train","tool_version":"0.1"}'
    )
    images = r'[["a",5,7],["stra\u00dfe/b",1,1],["\u96e8",9,3]]'
    gt, lq = (
        '["' + '","'.join(hashlib.sha256(picture(one, kind)).hexdigest() for one in ENTRIES) + '"]'
        for kind in (2, 1)
    )
    text = f"[{attributes},{images},{gt},{lq if has_lq else 'null'}]"
    with h5py.File(shard, "r") as file:
        assert (
            file.attrs["sha256_index"] == hashlib.sha256(text.encode("ascii")).hexdigest().encode()
        )


@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=20),
    st.integers(1, 4000),
    st.integers(1, 2),
)
def test_distribution_over_shards_keeps_order_and_limit(
    sizes: list[tuple[int, int]], limit: int, planes: int
) -> None:
    entries = [Entry(str(i), h, w) for i, (h, w) in enumerate(sizes)]
    ranges = deal(entries, max_bytes=limit, planes=planes)
    assert [i for numbers in ranges for i in numbers] == list(range(len(entries)))
    sums = [planes * sum(entries[i].nbytes for i in numbers) for numbers in ranges]
    for numbers, used in zip(ranges, sums, strict=True):
        assert numbers
        assert used <= limit or len(numbers) == 1
    for used, after in zip(sums, ranges[1:], strict=False):
        assert used + planes * entries[after[0]].nbytes > limit


@pytest.mark.parametrize(("limit", "images"), [(2 * 2 * 48, 2), (2 * 2 * 48 - 1, 1)])
def test_a_shard_may_be_exactly_full(limit: int, images: int) -> None:
    entries = [Entry(name, 4, 4) for name in "abcdef"]
    ranges = deal(entries, max_bytes=limit, planes=2)
    assert [len(numbers) for numbers in ranges] == [images] * (6 // images)


# -- errors in writing --------------------------------------------------------


def test_a_wrong_size_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "train-00000.h5"
    pairs = pairs_of(ENTRIES)
    pairs[2] = pairs[0]
    with pytest.raises(DataError, match=r"train-00000\.h5.*: lq of image 雨 must be") as caught:
        write_shard(path, ENTRIES, pairs, HEADER)
    assert "run prepare again" in str(caught.value.hint)
    assert list(tmp_path.iterdir()) == []


def test_too_few_or_too_many_images_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "train-00000.h5"
    pairs = pairs_of(ENTRIES)
    with pytest.raises(ValueError, match="fewer"):
        write_shard(path, ENTRIES, pairs[:2], HEADER)
    with pytest.raises(ValueError, match="more"):
        write_shard(path, ENTRIES, [*pairs, pairs[0]], HEADER)
    with pytest.raises(ValueError, match="at least one"):
        write_shard(path, [], [], HEADER)
    with pytest.raises(ValueError, match="if and only if has_lq is set"):
        write_shard(path, ENTRIES, pairs, HEADER, has_lq=False)
    assert not path.exists()


@pytest.mark.parametrize(
    "name",
    ["", "a\nb", "\x1b[31m", "\x1f", "\x7f", "\x80", "\x9b31m", "\x9f", "x" * 1025, "\udcff"],
)
def test_names_that_cannot_be_stored_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError):
        write_shard(tmp_path / "train-00000.h5", [Entry(name, 1, 1)], [], HEADER)


@pytest.mark.parametrize("name", [" ", "~", "\xa0", "x" * 1024])
def test_names_at_the_limits_are_stored(shard: Path, name: str) -> None:
    entry = Entry(name, 1, 1)
    write_shard(shard, [entry], pairs_of([entry]), HEADER)
    assert ShardSet.open(shard).names == [name]


def test_a_missing_output_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ResourceError):
        write_shard(tmp_path / "no" / "train-00000.h5", ENTRIES, pairs_of(ENTRIES), HEADER)


# -- incomplete sets -----------------------------------------------------------


def write_set(folder: Path, numbers: list[int], shards: int) -> None:
    for number in numbers:
        header = replace(HEADER, shard=number, shards=shards)
        entry = Entry(f"image {number}", 4, 4)
        write_shard(folder / shard_name("train", number), [entry], pairs_of([entry]), header)


@pytest.mark.parametrize(("numbers", "shards"), [([0, 1], 3), ([0, 2], 3), ([1], 2)])
def test_a_missing_shard_is_named(tmp_path: Path, numbers: list[int], shards: int) -> None:
    write_set(tmp_path, numbers, shards)
    with pytest.raises(DataError):
        ShardSet.open(tmp_path)


def test_shards_of_two_sets_are_refused(tmp_path: Path) -> None:
    write_set(tmp_path, [0, 1], 2)
    header = replace(HEADER, shard=1, shards=2, source="another")
    entry = Entry("c", 4, 4)
    write_shard(tmp_path / shard_name("train", 1), [entry], pairs_of([entry]), header)
    with pytest.raises(DataError, match="not of one set"):
        ShardSet.open(tmp_path)


def test_pairs_and_clean_images_are_not_mixed(tmp_path: Path) -> None:
    for number in range(2):
        header, entry = replace(HEADER, shard=number, shards=2), Entry(f"image {number}", 4, 4)
        (lq, gt), clean = pairs_of([entry])[0], number == 1
        images = [(None if clean else lq, gt)]
        write_shard(
            tmp_path / shard_name("train", number), [entry], images, header, has_lq=not clean
        )
    with pytest.raises(DataError, match="not of one set"):
        ShardSet.open(tmp_path)


def test_a_name_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    twice = [Entry("a", 2, 2), Entry("a", 3, 3)]
    write_shard(tmp_path / "train-00000.h5", twice, pairs_of(twice), HEADER)
    with pytest.raises(DataError, match="occurs twice"):
        ShardSet.open(tmp_path)


def test_a_name_that_occurs_in_two_shards_is_refused(tmp_path: Path) -> None:
    for number in range(2):
        path, header = tmp_path / shard_name("train", number), replace(HEADER, shard=number)
        entry = Entry("a", 2 + number, 2)
        write_shard(path, [entry], pairs_of([entry]), replace(header, shards=2))
    with pytest.raises(DataError, match=r"train-00001\.h5: the name a occurs twice"):
        ShardSet.open(tmp_path)


def test_a_wrong_split_or_no_shards_is_refused(tmp_path: Path, shard: Path) -> None:
    with pytest.raises(DataError, match="not of the val split"):
        ShardSet.open(shard, split="val")
    with pytest.raises(DataError, match="no val-"):
        ShardSet.open(tmp_path, split="val")
    with pytest.raises(DataError, match="no such folder"):
        ShardSet.open(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no such split"):
        ShardSet.open(tmp_path, split="test")


# -- damage --------------------------------------------------------------------


def test_verify_counts_images_and_bytes(shard: Path) -> None:
    job = verify(shard.parent)
    assert list(job) == [entry.name for entry in ENTRIES]
    assert len(job) == 3
    assert job.result.bytes == 2 * sum(entry.nbytes for entry in ENTRIES)


def flip(shard: Path, kind: str) -> None:
    """Flip one bit of the second image."""
    with h5py.File(shard, "r") as file:
        start = file[kind].id.get_offset()
    data = bytearray(shard.read_bytes())
    data[start + ENTRIES[0].nbytes + 1] ^= 4
    shard.write_bytes(data)


@pytest.mark.parametrize("kind", ["lq", "gt"])
def test_verify_names_a_flipped_byte(shard: Path, kind: str) -> None:
    flip(shard, kind)
    with pytest.raises(DataError, match=f"{kind} of image straße/b is damaged") as caught:
        verify(shard).run()
    assert caught.value.where == str(shard)


def test_verify_reads_both_splits(shard: Path) -> None:
    val = shard.with_name(shard_name("val", 0))
    write_shard(val, ENTRIES, pairs_of(ENTRIES), replace(HEADER, split="val"))
    assert verify(shard.parent).run().images == 6
    flip(val, "gt")
    with pytest.raises(DataError, match="gt of image straße/b is damaged") as caught:
        verify(shard.parent).run()
    assert caught.value.where == str(val)


def test_any_flipped_bit_is_noticed_or_changes_nothing(shard: Path) -> None:
    """With any byte damaged there is a DataError, or the names, sizes and pixels are equal."""
    good = ShardSet.open(shard)
    pixels = [(lq.copy(), gt.copy()) for lq, gt in map(good.pair, range(3))]
    data = shard.read_bytes()
    places = range(0, len(data), 17)
    for place in places:
        shard.write_bytes(data[:place] + bytes([data[place] ^ 0x41]) + data[place + 1 :])
        try:
            verify(shard).run()
        except DataError:
            continue
        read = ShardSet.open(shard)
        assert (read.names, read.sizes) == (good.names, good.sizes)
        for i, (lq, gt) in enumerate(pixels):
            np.testing.assert_array_equal(read.lq(i), lq)
            np.testing.assert_array_equal(read.gt(i), gt)


def test_a_file_truncated_anywhere_is_refused(shard: Path) -> None:
    data = shard.read_bytes()
    for size in [0, 1, 8, 100, *range(200, len(data), 97), len(data) - 1]:
        shard.write_bytes(data[:size])
        with pytest.raises(DataError):
            ShardSet.open(shard)


def test_files_that_are_not_hdf5_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "train-00000.h5"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" * 50)
    with pytest.raises(DataError, match="not a shard"):
        ShardSet.open(path)
    with h5py.File(path, "w") as file:
        file["gt"] = 1
    with pytest.raises(DataError, match="attribute format is missing"):
        ShardSet.open(path)


def test_a_shard_that_shrinks_before_it_is_read(shard: Path) -> None:
    shards = ShardSet.open(shard)
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DataError, match="changed while in use"):
        shards.gt(0)


def test_a_shard_that_is_cut_while_it_is_open(shard: Path) -> None:
    """Missing bytes are an error; a memory map would end the process by SIGBUS."""
    shards = ShardSet.open(shard)
    before = shards.gt(0).copy()
    os.truncate(shard, 0)
    with pytest.raises(DataError, match="changed while in use"):
        shards.gt(0)
    np.testing.assert_array_equal(before, picture(ENTRIES[0], 2))


def test_a_disk_that_fails_is_an_error_in_one_line(
    shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = ShardSet.open(shard)

    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(DataError, match=r"train-00000\.h5: cannot read: Input/output error"):
        shards.gt(0)


def test_an_open_shard_that_is_deleted_or_replaced_is_read_as_it_was(shard: Path) -> None:
    shards = ShardSet.open(shard)
    shards.gt(0)
    shard.unlink()
    shard.write_bytes(b"another")
    np.testing.assert_array_equal(shards.gt(2), picture(ENTRIES[2], 2))
    with pytest.raises(DataError, match="changed while in use"):
        pickle.loads(pickle.dumps(shards)).gt(2)  # as in a worker, which opens the file again


def test_files_are_closed_with_the_set(shard: Path) -> None:
    shards = ShardSet.open(shard)
    shards.gt(0)
    (opened,) = shards._files.values()
    del shards
    assert opened.file.closed


@pytest.fixture
def several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ShardSet:
    """A set of four files, two of which may be open."""
    monkeypatch.setattr("c2fdft_cli.data.shards.reader._MAX_OPEN", 2)
    for number in range(4):
        header = replace(HEADER, shard=number, shards=4)
        entry = Entry(f"picture {number}", 4, 5)
        path = tmp_path / shard_name("train", number)
        write_shard(path, [entry], [(picture(entry, number), picture(entry, number + 9))], header)
    return ShardSet.open(tmp_path)


def test_a_set_opens_its_files_as_they_are_read_and_keeps_few_open(several: ShardSet) -> None:
    used = [several._files[i] for i in (0, 1, 2) if several.gt(i) is not None]
    assert [one.file.closed for one in used] == [True, False, False]
    for i in (1, 3, 0, 2, 1, 1, 3, 2, 0):  # whatever the order
        for kind, phase in (("lq", i), ("gt", i + 9)):
            window = several.window(kind, i, 1, 1, 3, 2)
            entry = Entry(several.names[i], 4, 5)
            np.testing.assert_array_equal(window, picture(entry, phase)[1:4, 1:3])
            assert len(several._files) <= 2
            assert list(several._files)[-1] == i


def test_a_file_that_was_closed_and_replaced_is_refused(several: ShardSet) -> None:
    for i in (0, 1, 2):
        several.gt(i)
    path, other = several.paths[:2]
    before, content = path.stat(), path.read_bytes()
    path.write_bytes(other.read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert path.stat().st_size == before.st_size
    with pytest.raises(DataError, match=r"train-00000\.h5: the shard was changed while in use"):
        several.gt(0)
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert several.gt(0).shape == (4, 5, 3)


def test_a_file_that_was_closed_and_has_only_another_time_is_read(
    several: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = several.gt(0).copy()
    for i in (1, 2):
        several.gt(i)
    path = several.paths[0]
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(1, 2))
    np.testing.assert_array_equal(several.gt(0), expected)
    for i in (1, 2):
        several.gt(i)
    monkeypatch.setattr(reader, "read_index", None)  # not read again for each opening
    np.testing.assert_array_equal(several.gt(0), expected)


def test_too_many_open_files_are_no_fault_of_the_shard(
    shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = ShardSet.open(shard)

    def fail(path: Path, *_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    monkeypatch.setattr("c2fdft_cli.data.shards.reader.io.FileIO", fail)
    with pytest.raises(ResourceError, match=r"train-00000\.h5: too many files are open") as raised:
        shards.gt(0)
    assert "ulimit -n" in str(raised.value.hint)
