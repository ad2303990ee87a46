"""Files of tensors are read as by torch; files that claim too much are refused unread."""

from __future__ import annotations

import errno
import io
import json
import os
import struct
import subprocess
import sys
import textwrap
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch

from c2fdft_cli.engine.weights import stored
from c2fdft_cli.engine.weights.identify import UnreadableError
from c2fdft_cli.engine.weights.stored import containers_of, open_stored
from c2fdft_cli.engine.weights.tensors import load_tensors, save_tensors
from c2fdft_cli.errors import CheckpointError, ResourceError

MANY = {
    "f32": torch.arange(24.0).reshape(2, 3, 4),
    "channels last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "part": torch.arange(100)[10:20:3],
    "scalar": torch.tensor(3.5, dtype=torch.float64),
    "empty": torch.zeros(0, 3),
    "half": torch.tensor([1.5, -2.0]).half(),
    "bf16": torch.tensor([1.5, -2.0]).bfloat16(),
    "fp8": torch.tensor([1.5, -2.0]).to(torch.float8_e4m3fn),
    "complex": torch.tensor([1j]),
    "bool": torch.tensor([True, False]),
    "u8": torch.tensor([1, 255], dtype=torch.uint8),
    "u16": torch.tensor([1, 65535]).to(torch.uint16),
    "i32": torch.tensor([-7], dtype=torch.int32),
    "parameter": torch.nn.Parameter(torch.ones(2)),
    "expanded": torch.ones(1).expand(5),
}


def equal(a, b):
    if isinstance(a, torch.Tensor):
        a = a.detach()
        same = (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)
        # torch.equal does not support some types
        return same and a.to(torch.complex128).equal(b.to(torch.complex128))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return a == b


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_files_are_read_as_by_torch(tmp_path, protocol):
    path = tmp_path / "x.pt"
    content = {"tensors": MANY, "step": 3, 5: [1.5, None, ("a", True)], "size": torch.Size([1, 2])}
    torch.save(content, path, pickle_protocol=protocol)
    assert equal(content, load_tensors(path))


def test_shared_memory_stays_shared(tmp_path):
    path = tmp_path / "x.pt"
    base = torch.zeros(4)
    torch.save({"a": base, "b": base[1:]}, path)
    loaded = load_tensors(path)
    loaded["a"][1] = 7
    assert loaded["b"][0] == 7


def test_a_file_without_checksums_is_refused(tmp_path):
    path = tmp_path / "x.pt"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.arange(9.0)}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert "the archive is damaged (Bad CRC-32" in refused(path)


@pytest.mark.parametrize("protocol", [2, 5])
def test_a_file_in_the_format_before_torch_1_6_is_refused(tmp_path, monkeypatch, protocol):
    """The hint is code that saves it again."""
    monkeypatch.chdir(tmp_path)
    path, content = Path("old.pth"), {"a": torch.arange(9.0)}
    torch.save(content, path, _use_new_zipfile_serialization=False, pickle_protocol=protocol)
    with pytest.raises(CheckpointError, match=r"it is in torch's format before 1\.6, or") as caught:
        load_tensors(path)
    if protocol == 2:  # torch's reader of plain values knows no other
        exec(caught.value.hint.partition(": ")[2], {"torch": torch})
        assert load_tensors(Path("weights.pth"))["a"].equal(content["a"])


def rewritten(path, change):
    """Rewrite an archive, its records passed through `change(name, data)`; None drops a record."""
    with zipfile.ZipFile(path) as old:
        records = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, data in records.items():
            changed = change(name.split("/", 1)[1], data)
            if changed is not None:
                new.writestr(name, changed)
    return path


@pytest.fixture
def saved(tmp_path):
    torch.save({"a": torch.arange(1000.0), "b": torch.ones(3)}, tmp_path / "x.pt")
    return tmp_path / "x.pt"


def test_a_big_endian_file_is_refused(saved):
    big = rewritten(saved, lambda name, data: b"big" if name == "byteorder" else data)
    assert "with the other order of bytes (big-endian)" in refused(big)


def test_a_file_from_before_the_order_was_stored_is_read(saved):
    old = rewritten(saved, lambda name, data: None if name == "byteorder" else data)
    assert load_tensors(old)["a"].equal(torch.arange(1000.0))


def refused(path):
    with pytest.raises(CheckpointError) as caught:
        load_tensors(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_flipped_bit_is_noticed(saved):
    data = bytearray(saved.read_bytes())
    data[data.index(torch.arange(1000.0).numpy().tobytes()) + 500] ^= 1
    saved.write_bytes(data)
    assert "the archive is damaged (Bad CRC-32" in refused(saved)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda name, data: None if name == "data/0" else data, "damaged"),
        (lambda name, data: data[:-4] if name == "data/0" else data, "fewer bytes than"),
        (lambda name, data: data[:-9] if name == "data.pkl" else data, "damaged"),
        (lambda name, data: None if name == "data.pkl" else data, "zip archive of other files"),
        (lambda name, data: b"N." if name == "data.pkl" else data, "holds a NoneType"),
        (lambda name, data: b"" if name == "data.pkl" else data, "damaged"),
    ],
)
def test_damaged_archives_are_refused(saved, change, says):
    assert says in refused(rewritten(saved, change))


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_an_incomplete_download_is_refused(tmp_path, share):
    path = tmp_path / "x.pt"
    torch.save({"a": torch.arange(9999.0)}, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    assert "it is truncated" in refused(path)


def test_a_table_of_contents_of_absurd_size_is_refused(saved):
    data = bytearray(saved.read_bytes())
    at = data.rindex(b"PK\x06\x06") + 40
    data[at : at + 8] = (1 << 40).to_bytes(8, "little")
    saved.write_bytes(data)
    assert "table of contents is absurdly large" in refused(saved)


def test_an_archive_whose_last_record_is_elsewhere_is_refused(saved):
    """zipfile might read a table of contents whose size was not checked."""
    data = saved.read_bytes()
    with_comment = data[:-2] + b"\x01\x00c"
    locator = data.rindex(b"PK\x06\x07")
    elsewhere = data[: locator + 8] + bytes(8) + data[locator + 16 :]
    for odd in (with_comment, elsewhere):
        saved.write_bytes(odd)
        assert "torch.save did not write it" in refused(saved)


def claims(**changes):
    """The pickle of a float32 tensor of 2 x 3 with a storage of 6 elements, with changes."""
    of = {"numel": 6, "offset": 0, "shape": "I2\nI3\n", "stride": "I3\nI1\n"} | changes
    return (
        "(S'a'\nctorch._utils\n_rebuild_tensor_v2\n"
        f"((S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nL{of['numel']}L\ntQ"
        f"L{of['offset']}L\n({of['shape']}t({of['stride']}tI00\nNtRd."
    ).encode()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, None),
        ({"offset": 1}, "reaches beyond its bytes"),
        ({"stride": "I3\nI2\n"}, "reaches beyond its bytes"),
        ({"shape": "I2\nI4\n"}, "reaches beyond its bytes"),
        ({"shape": f"I2\nL{1 << 50}L\n"}, "reaches beyond its bytes"),
        ({"shape": f"I2\nL{1 << 50}L\n", "stride": "I0\nI0\n"}, "larger than the file"),
        ({"numel": 1 << 50, "offset": (1 << 50) - 6}, "larger than the file"),
        ({"numel": 7}, "fewer bytes than its shape needs"),
        ({"numel": -6}, "contains Python objects (torch.Tensor)"),
        ({"shape": f"I0\nL{1 << 59}L\n", "stride": f"L{1 << 59}L\nI1\n"}, None),
        ({"shape": f"I0\nL{1 << 59}L\nL{1 << 59}L\n", "stride": "I1\n" * 3}, "impossible shape"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_claims_are_checked_before_anything_is_allocated(tmp_path, changes, says, nested):
    path, content = tmp_path / "x.pt", claims(**changes)
    if nested:
        content = b"(S'x'\n(" + content.removesuffix(b".") + b"ld."  # {"x": [content]}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", content)
        archive.writestr("x/data/0", bytes(25))  # longer than stated
    tracemalloc.start()
    if says is None:
        load_tensors(path)
    else:
        assert says in refused(path)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_the_larger_of_two_sizes_of_a_storage_counts(tmp_path):
    # in either order of the two tensors
    claim = "ctorch._utils\n_rebuild_tensor_v2\n((S'storage'\nctorch\nFloatStorage\n"
    claim += "S'0'\nS'cpu'\nL%dL\ntQL0L\n(I2\nt(I1\ntI00\nNtR"
    path = tmp_path / "x.pt"
    for first, second in ((1 << 50, 2), (2, 1 << 50)):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/data.pkl", f"(S'a'\n{claim % first}S'b'\n{claim % second}d.")
            archive.writestr("x/data/0", bytes(8))
        assert "larger than the file" in refused(path)


def test_views_of_one_storage_count_each(tmp_path):
    """Each is copied to a storage of its own: a small file could take any amount of memory."""
    path, base = tmp_path / "x.pt", torch.arange(1 << 18)
    torch.save({f"a{number}": base[number:] for number in range(9)}, path)
    assert "larger than the file" in refused(path)


def test_one_storage_is_read_in_each_of_its_types(tmp_path):
    path = tmp_path / "x.pt"
    pickled = claims().decode().removesuffix("d.")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickled + pickled[1:].replace("'a'", "'b'").replace(
            "Float", "Int") + "d.")  # fmt: skip
        archive.writestr("x/data/0", torch.arange(6.0).numpy().tobytes())
    loaded = load_tensors(path)
    assert loaded["a"].equal(torch.arange(6.0).view(2, 3))
    assert loaded["b"].equal(torch.arange(6.0).view(torch.int32).view(2, 3))


def test_a_file_that_is_too_large_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "MAX_FILE_BYTES", 1 << 30)
    with (tmp_path / "x.pt").open("wb") as file:
        file.truncate((1 << 30) + 1)
    assert "larger than 1 GiB" in refused(tmp_path / "x.pt")


def table(entries, data=bytes(4096)):
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(2, 2), offsets=(0, 16)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"a": entry(shape=[3, 2])}, "number of bytes of a does not match"),
        ({"a": entry(shape=[1, 2])}, "number of bytes of a does not match"),
        ({"a": entry(shape=[1 << 61])}, "a has an impossible shape"),
        ({"a": entry(shape=[-2, -2])}, "a has an impossible shape"),
        ({"a": entry(shape=[1] * 99)}, "a has an impossible shape"),
        ({"a": entry(shape=[1 << 20, 1 << 20], offsets=[0, 1 << 42])}, "truncated"),
        ({"a": entry(offsets=[16, 0])}, "number of bytes of a does not match"),
        ({"a": entry(offsets=[-16, 0])}, "a has an impossible shape"),
        ({"a": entry(offsets=[0, 16, 32])}, "damaged"),
        ({"a": entry(dtype="F4")}, "contains Python objects (F4)"),
        ({"a": entry(dtype=["F32"])}, "damaged"),
        ({"a": []}, "damaged"),
        ({f"a{i}": entry(shape=[1024], offsets=[0, 4096]) for i in range(400)}, "larger than the"),
    ],
)
def test_safetensors_tables_are_checked(tmp_path, content, says):
    path = tmp_path / "x.safetensors"
    path.write_bytes(table(content))
    assert says in refused(path)


def test_safetensors_are_read_as_by_their_library(tmp_path):
    library = pytest.importorskip("safetensors.torch")
    path = tmp_path / "x.safetensors"
    kept = {
        name: t.detach().contiguous() for name, t in MANY.items() if name not in ("u16", "complex")
    }
    library.save_file({name: t.clone() for name, t in kept.items()}, path)
    assert equal(kept, load_tensors(path))


def test_a_safetensors_table_of_absurd_size_is_refused(tmp_path):
    path, length = tmp_path / "x.safetensors", stored.MAX_HEADER_BYTES + 1
    with path.open("wb") as file:
        file.write(length.to_bytes(8, "little") + b"{")
        file.truncate(8 + length)
    assert "its safetensors header is larger than 32 MiB" in refused(path)


def test_deeply_nested_json_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    text = b'{"a":' + b"[" * 100_000
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    assert "damaged" in refused(path)


def test_only_the_requested_tensors_are_read(saved):
    with open_stored(saved) as file:
        read = []
        original = file.read
        watched = stored.StoredFile(
            saved, file.content, False, lambda key, size: read.append(key) or original(key, size)
        )
        assert watched.load(file.content["b"]).equal(torch.ones(3))
    assert read == ["1"]


def test_containers_that_hold_themselves_are_read(tmp_path):
    loop = []
    loop.append(loop)
    path = tmp_path / "x.pt"
    torch.save({"loop": loop}, path)
    loaded = load_tensors(path)["loop"]
    assert loaded[0] is loaded


def test_extreme_nesting_is_refused(tmp_path):
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"(S'a'\n" + b"]" * 100_000 + b"a" * 99_999 + b"d.")
    assert "damaged" in refused(path)


def failing(code):
    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.EMFILE, errno.ESTALE])
@pytest.mark.parametrize("call", ["stat", "open"])
def test_a_file_that_the_system_does_not_read_is_not_damaged(saved, monkeypatch, call, code):
    monkeypatch.setattr(Path, call, failing(code))
    text = (
        "too many files are open" if code == errno.EMFILE else f"cannot read: {os.strerror(code)}"
    )
    with pytest.raises(UnreadableError, match=text):
        load_tensors(saved)


def test_a_disk_that_fails_while_a_tensor_is_read_is_no_damage(saved):
    with open_stored(saved) as file:
        broken = stored.StoredFile(saved, file.content, False, failing(errno.EIO))
        with pytest.raises(UnreadableError, match="Input/output error"):
            broken.load(file.content)


def test_a_disk_that_fails_in_the_table_of_contents_is_no_damage(saved, monkeypatch):
    monkeypatch.setattr(zipfile, "_EndRecData", failing(errno.EIO))
    with pytest.raises(UnreadableError, match="Input/output error"):
        load_tensors(saved)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate"),
    ],
    ids=["Python", "torch"],
)
def test_a_lack_of_memory_is_no_damage(saved, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(stored, "_flat", fail)
    with pytest.raises(ResourceError, match=r"x\.pt: out of memory"):
        load_tensors(saved)


@pytest.mark.acceptance
def test_a_limit_of_memory_is_no_damage(tmp_path):
    """Whichever of the allocations of 64 MiB fails."""
    pytest.importorskip("resource")
    torch.save({"a": torch.zeros(16 << 20)}, tmp_path / "large.pt")
    torch.save({"a": torch.zeros(9)}, tmp_path / "small.pt")
    program = """
        import resource, sys
        from pathlib import Path
        from c2fdft_cli.engine.weights.tensors import load_tensors
        from c2fdft_cli.errors import ResourceError

        load_tensors(Path("small.pt"))
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        for more in (32, 96):
            resource.setrlimit(resource.RLIMIT_AS, (used + (more << 20), -1))
            try:
                load_tensors(Path("large.pt"))
            except ResourceError as error:
                print(error)
    """
    code = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(code, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "large.pt: out of memory reading the file\n" * 2, done.stderr


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_records_whose_unpacking_cannot_be_limited_are_refused(tmp_path, method):
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("x/data.pkl", claims())
        archive.writestr("x/data/0", bytes(24))
    assert "compressed by another method than deflate" in refused(path)


def test_a_record_is_not_unpacked_beyond_the_size_that_it_states(tmp_path):
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", claims())
        archive.writestr("x/data/0", bytes(64 << 20), zipfile.ZIP_DEFLATED)
    data, size = path.read_bytes(), struct.pack("<L", 64 << 20)
    tracemalloc.start()
    assert "is compressed, and unpacks to far more than its size" in refused(path)
    path.write_bytes(data.replace(size, struct.pack("<L", 24)))
    assert "the archive is damaged (Bad CRC-32" in refused(path)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_tensors_that_torch_negates_when_they_are_used_are_refused(tmp_path):
    """The stored values have the other sign."""
    z = torch.complex(torch.ones(3), torch.ones(3))
    path = tmp_path / "x.pt"
    for lazy in (z.conj().imag, z.conj()):
        torch.save({"a": lazy}, path)
        assert "contains Python objects (torch.Tensor)" in refused(path)


@pytest.mark.parametrize(("metadata", "is_read"), [("(S'neg'\nI01\nd", False), ("", True)])
def test_a_tensor_of_version_3_may_be_negated_too(tmp_path, metadata, is_read):
    text = claims().decode().replace("_v2", "_v3").replace("Float", "Untyped")
    text = text.replace("torch\nUntyped", "torch.storage\nUntyped").replace("L6L", "L24L")
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", text.replace("NtRd.", f"Nctorch\nuint32\n{metadata}tRd."))
        archive.writestr("x/data/0", bytes(24))
    if is_read:
        assert load_tensors(path)["a"].dtype == torch.uint32
    else:
        assert "contains Python objects (torch.Tensor)" in refused(path)


def test_the_containers_of_a_value_are_found_at_any_depth():
    loop = []
    tree = {"a": [1, (2, {"b": 3})], "c": [loop], "d": 3}
    loop += [loop, tree["a"]]
    found = containers_of(tree, lambda value: value == 3)
    a = tree["a"]
    assert found == {id(one) for one in (tree, a, a[1], a[1][1], tree["c"], loop)}
    assert containers_of(tree, lambda value: value == 1) == {
        id(one) for one in (tree, a, tree["c"], loop)
    }
    assert containers_of(tree, lambda value: value == 4) == set()


def test_a_compressed_archive_of_modest_size_is_read(tmp_path):
    file = io.BytesIO()
    torch.save({"a": torch.arange(9.0)}, file)
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert load_tensors(path)["a"].equal(torch.arange(9.0))


def test_any_other_error_of_a_save_is_raised_and_keeps_the_old_file(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("of torch")

    path = tmp_path / "a.pt"
    save_tensors(path, {"a": 1})
    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(RuntimeError, match="of torch"):
        save_tensors(path, {"a": 2})
    assert load_tensors(path) == {"a": 1}


def test_an_error_of_the_disk_is_one_line(tmp_path):
    """torch would replace the error of the write by a different one."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(ResourceError, match="cannot write"):
            save_tensors(tmp_path / "a.pt", {"params": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []
