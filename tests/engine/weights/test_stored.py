"""Files of tensors are read as by torch; files that claim too much are refused unread."""

from __future__ import annotations

import io
import json
import pickle
import tracemalloc
import zipfile

import pytest
import torch

from c2fdft_cli.engine.weights import stored
from c2fdft_cli.engine.weights.stored import open_stored
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
@pytest.mark.parametrize("old", [False, True])
def test_files_are_read_as_by_torch(tmp_path, old, protocol):
    path = tmp_path / "x.pt"
    content = {"tensors": MANY, "step": 3, 5: [1.5, None, ("a", True)], "size": torch.Size([1, 2])}
    options = {"_use_new_zipfile_serialization": not old, "pickle_protocol": protocol}
    torch.save(content, path, **options)
    assert equal(content, load_tensors(path))


@pytest.mark.parametrize("old", [False, True])
def test_shared_memory_stays_shared(tmp_path, old):
    path = tmp_path / "x.pt"
    base = torch.zeros(4)
    torch.save({"a": base, "b": base[1:]}, path, _use_new_zipfile_serialization=not old)
    loaded = load_tensors(path)
    loaded["a"][1] = 7
    assert loaded["b"][0] == 7


def test_files_without_checksums_are_read(tmp_path):
    path = tmp_path / "x.pt"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.arange(9.0)}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert load_tensors(path)["a"].equal(torch.arange(9.0))


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


def test_big_endian_files_are_read(saved):
    def swap(name, data):
        if name == "byteorder":
            return b"big"
        return (
            torch.frombuffer(bytearray(data), dtype=torch.float32).numpy().byteswap().tobytes()
            if name.startswith("data/")
            else data
        )

    assert load_tensors(rewritten(saved, swap))["a"].equal(torch.arange(1000.0))


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
@pytest.mark.parametrize("old", [False, True])
def test_an_incomplete_download_is_refused(tmp_path, share, old):
    path = tmp_path / "x.pt"
    torch.save({"a": torch.arange(9999.0)}, path, _use_new_zipfile_serialization=not old)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    assert "it is truncated" in refused(path)


def test_a_table_of_contents_of_absurd_size_is_refused(saved):
    data = bytearray(saved.read_bytes())
    at = data.rindex(b"PK\x06\x06") + 40
    data[at : at + 8] = (1 << 40).to_bytes(8, "little")
    saved.write_bytes(data)
    assert "table of contents is absurdly large" in refused(saved)


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
    ],
)
def test_claims_are_checked_before_anything_is_allocated(tmp_path, changes, says):
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", claims(**changes))
        archive.writestr("x/data/0", bytes(24))
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
    claim += "S'0'\nS'cpu'\nL%dL\nNtQL0L\n(I2\nt(I1\ntI00\nNtR"
    content = f"(S'a'\n{claim % (1 << 50)}S'b'\n{claim % 2}d."
    parts = [stored.LEGACY_MAGIC, 1001, {"little_endian": True}]
    path = tmp_path / "x.pt"
    begin = b"".join(pickle.dumps(part, 2) for part in parts) + content.encode()
    path.write_bytes(begin + pickle.dumps(["0"], 2) + bytes(16))
    assert "larger than the file" in refused(path)


def table(entries, data=bytes(4096)):
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(2, 2), offsets=(0, 16)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"a": entry(shape=[3, 2])}, "number of bytes of a does not match"),
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


def test_a_file_without_read_permission_is_named(saved, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(saved), "is_dir", denied)
    assert "the file cannot be read: Permission denied" in refused(saved)


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
