"""Small shards with pixels by formula."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from c2fdft_cli.data.pixels import Pixels
from c2fdft_cli.data.shards.format import Entry, ShardHeader
from c2fdft_cli.data.shards.writer import create_shard

HEADER = ShardHeader("train", '{"patches": [8]}', "input/target", "rain", "0.1")
ENTRIES = [Entry("a", 5, 7), Entry("straße/b", 1, 1), Entry("雨", 9, 3)]


def picture(entry: Entry, phase: int) -> Pixels:
    values = np.arange(entry.nbytes) * 7 + 31 * phase + len(entry.name)
    return values.astype(np.uint8).reshape(entry.height, entry.width, 3)


def write_shard(
    path: Path,
    entries: Sequence[Entry],
    images: Iterable[tuple[Pixels | None, Pixels]],
    header: ShardHeader,
    *,
    has_lq: bool = True,
) -> None:
    """Write a whole shard from a stream of (lq, gt)."""
    with create_shard(path, header, entries, has_lq=has_lq) as writer:
        for lq, gt in images:
            writer.add(lq, gt)


def pairs_of(entries: list[Entry]) -> list[tuple[Pixels | None, Pixels]]:
    return [(picture(entry, 1), picture(entry, 2)) for entry in entries]
