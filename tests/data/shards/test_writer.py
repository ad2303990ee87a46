"""Writing shards on disks that fail, and on file systems that lack what others have."""

from __future__ import annotations

import threading
from pathlib import Path

import h5py
import pytest

from c2fdft_cli.data.shards import writer
from c2fdft_cli.data.shards.reader import verify
from c2fdft_cli.data.shards.writer import create_shard
from c2fdft_cli.errors import ResourceError
from tests.kit.shards import ENTRIES, HEADER, pairs_of, write_shard


def test_a_disk_that_fails_at_any_byte_leaves_an_error_and_no_file(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path, pairs = tmp_path / "train-00000.h5", pairs_of(ENTRIES)
    write_shard(path, ENTRIES, pairs, HEADER)
    size = path.stat().st_size
    path.unlink()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (*range(0, size, 61), size - 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(ResourceError, match=r"train-00000\.h5: cannot write the file"):
                write_shard(path, ENTRIES, pairs, HEADER)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert list(tmp_path.iterdir()) == []
    write_shard(path, ENTRIES, pairs, HEADER)
    verify(path).run()


def test_hdf5_runs_where_no_signal_raises_an_exception(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signals are handled in the main thread."""
    threads = set()

    class Watched(writer._Memory):
        def write(self, data: bytes) -> int:
            threads.add(threading.current_thread())
            return super().write(data)

    monkeypatch.setattr(writer, "_Memory", Watched)
    write_shard(tmp_path / "a.h5", ENTRIES, pairs_of(ENTRIES), HEADER)
    assert threads
    assert threading.main_thread() not in threads


def test_hdf5_can_read_what_it_has_written_in_memory() -> None:
    memory = writer._Memory()
    with writer._create(memory) as file:
        file.create_dataset("column", data=list(range(100)), track_times=False)
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_fileobj_driver(h5py.h5fd.fileobj_driver, memory)
    with h5py.File(h5py.h5f.open(b"any", h5py.h5f.ACC_RDONLY, access)) as file:
        assert file["column"][...].tolist() == list(range(100))


def test_a_shard_is_written_without_a_lock(tmp_path: Path) -> None:
    """On some network drives a lock fails with an error, which HDF5 passes on."""
    fcntl = pytest.importorskip("fcntl")
    with create_shard(tmp_path / "a.h5", HEADER, ENTRIES, has_lq=True) as writer:
        (temporary,) = tmp_path.iterdir()
        with temporary.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for lq, gt in pairs_of(ENTRIES):
            writer.add(lq, gt)
