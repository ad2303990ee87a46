"""Writing shards on file systems that lack what others have."""

from __future__ import annotations

from pathlib import Path

import pytest

from c2fdft_cli.data.shards.writer import create_shard
from tests.kit.shards import ENTRIES, HEADER, pairs_of


def test_a_shard_is_written_without_a_lock(tmp_path: Path) -> None:
    """On some network drives a lock fails with an error, which HDF5 passes on."""
    fcntl = pytest.importorskip("fcntl")
    with create_shard(tmp_path / "a.h5", HEADER, ENTRIES, has_lq=True) as writer:
        (temporary,) = tmp_path.iterdir()
        with temporary.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for lq, gt in pairs_of(ENTRIES):
            writer.add(lq, gt)
