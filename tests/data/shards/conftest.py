"""A small shard for tests to read or damage."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.shards import ENTRIES, HEADER, pairs_of, write_shard


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "train-00000.h5"
    write_shard(path, ENTRIES, pairs_of(ENTRIES), HEADER)
    return path
