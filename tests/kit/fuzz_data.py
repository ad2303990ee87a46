"""Fuzz targets: shards, tables of pairs, and SIDD's MATLAB files."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from c2fdft_cli.data.layouts.pairs_csv import read_meta_info, read_pairs_csv
from c2fdft_cli.data.layouts.sidd import NOISY, read_blocks
from c2fdft_cli.data.shards.reader import verify
from tests.kit.fuzz import Target
from tests.kit.shards import ENTRIES, HEADER, pairs_of, write_shard


def seeds_of_shards(folder: Path) -> list[bytes]:
    """Shards with and without degraded images."""
    seeds = []
    for stored in (True, False):
        path = folder / "train-00000.h5"
        pairs = [(lq if stored else None, gt) for lq, gt in pairs_of(ENTRIES)]
        write_shard(path, ENTRIES, pairs, HEADER, has_lq=stored)
        seeds.append(path.read_bytes())
        path.unlink()
    return seeds


def read_shard(path: Path) -> None:
    """Read the index and every pixel."""
    verify(path).run()


def seeds_of_pairs(folder: Path) -> list[bytes]:
    """Tables of existing files with each separator, header and encoding, and a meta-info file."""
    for name in ("a.png", "b.png", "café.png"):
        (folder / "sub").mkdir(exist_ok=True)
        (folder / name).touch()
        (folder / "sub" / name).touch()
    rows = (("a.png", "sub/a.png", "one"), ("b.png", "sub\\b.png", "two/b"))
    tables = [[("lq", "gt", "name"), *rows], list(rows), [("café.png", "sub/café.png"), ("", "")]]
    texts = ["\r\n".join(sign.join(row) for row in table) for table in tables for sign in ",;\t"]
    texts += ["sep=;\r\na.png;sub/a.png\r\n", '"a.png","sub/a.png"\n', "a.png (8,8,3)\nb.png\n"]
    seeds = [text.encode(one) for text in texts for one in ("utf-8", "utf-8-sig")]
    return [*seeds, texts[0].encode("utf-16")]


def read_list_of_pairs(path: Path) -> None:
    """Read a file as a meta-info list, or as a table of pairs if it is none."""
    if read_meta_info(path) is None:
        read_pairs_csv(path)


def seeds_of_blocks(folder: Path) -> list[bytes]:
    """MATLAB v7.3 (HDF5), plain and chunked; v5 and v7 (compressed) if scipy is installed."""
    path, seeds = folder / "seed.mat", []
    pixels = np.arange(2 * 3 * 4 * 5 * 3).astype(np.uint8).reshape(2, 3, 4, 5, 3)
    for options in ({}, {"compression": "gzip"}):
        with h5py.File(path, "w", userblock_size=512) as file:
            file.create_dataset(NOISY, data=pixels.T, **options)
        seeds.append(b"MATLAB 7.3 MAT-file".ljust(128) + path.read_bytes()[128:])
    try:
        from scipy.io import savemat
    except ImportError:
        return seeds
    for compressed in (False, False, True):
        savemat(path, {NOISY: pixels, "other": ["x", "y"]}, do_compression=compressed)
        seeds.append(path.read_bytes())
    path.unlink()
    return seeds


TARGETS = [
    Target("shards", ".h5", seeds_of_shards, read_shard),
    Target("pairs", ".csv", seeds_of_pairs, read_list_of_pairs),
    Target("blocks", ".mat", seeds_of_blocks, lambda path: read_blocks(path, (NOISY,))),
]
