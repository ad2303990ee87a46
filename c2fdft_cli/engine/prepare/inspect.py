"""Checks every pair without writing any: sizes, damage, and the PSNR of the inputs."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from c2fdft_cli.data.images.picture import FramesAndProfile, read_rgb8, save_rgb8
from c2fdft_cli.data.images.sheet import contact_sheet
from c2fdft_cli.data.layouts.listing import SeenFiles, frames_and_profile_if_readable
from c2fdft_cli.data.layouts.pairs import FilePair
from c2fdft_cli.data.pixels import Pixels
from c2fdft_cli.data.shards.format import CHANNELS, make_entry
from c2fdft_cli.data.shards.reader import ShardSet
from c2fdft_cli.engine.prepare.plan import Size
from c2fdft_cli.engine.prepare.source import FoundPairs, PairReader
from c2fdft_cli.engine.prepare.split import choose_val, content_keys
from c2fdft_cli.errors import DataError, UsageError
from c2fdft_cli.pipeline import in_order

Headers = dict[Path, FramesAndProfile | None]

PREVIEW_PAIRS, PREVIEW_COLUMNS, PREVIEW_TILE = 12, 3, 240


@dataclass(frozen=True)
class CheckReport:
    """A summary of all pairs that could be read.

    Args:
        smallest, median, largest: (height, width), by number of pixels.
        psnr_y: mean PSNR-Y of the inputs in dB, over pairs whose images differ; None if there are
            none.
        bytes_needed: space that the shards will need.
        bytes_free: free space on the disk of the output folder.
    """

    smallest: Size
    median: Size
    largest: Size
    psnr_y: float | None
    bytes_needed: int
    bytes_free: int


@dataclass(frozen=True)
class Checked:
    """A pair that was read: size, PSNR-Y and digests as in a shard, or the problem with it."""

    pair: FilePair
    size: Size = (0, 0)
    psnr_y: float | None = None
    sha256_lq: str | None = None
    sha256_gt: str = ""
    problem: str | None = None


def check_pairs(
    reader: PairReader, pairs: Sequence[FilePair], seen: SeenFiles, *, workers: int
) -> Generator[Checked, None, None]:
    """Read every pair; pairs with the same clean image together, so that it is decoded once.

    What else the headers say is added to `seen`.
    """
    groups: dict[Path, list[FilePair]] = defaultdict(list)
    for pair in pairs:
        groups[pair.gt].append(pair)

    def check(group: list[FilePair]) -> tuple[list[Checked], Headers]:
        # two images: the clean one that the group shares, and the degraded one of the current pair
        decode = lru_cache(maxsize=2)(read_rgb8)
        checked = [_check(reader, pair, decode) for pair in group]
        files = {path for pair in group for path in (pair.lq, pair.gt)}
        return checked, {path: frames_and_profile_if_readable(path) for path in files}

    for checked, headers in in_order(check, groups.values(), workers=workers):
        for path, found in headers.items():
            seen.add(path, found)
        yield from checked


def _check(reader: PairReader, pair: FilePair, decode: Callable[[Path], Pixels]) -> Checked:
    try:
        lq, gt = reader.read(pair, decode)
        height, width = gt.shape[:2]
        make_entry(pair.name, height, width, pair.gt)
    except DataError as error:
        return Checked(pair, problem=str(error))
    if lq is not None and lq.shape != gt.shape:
        problem = f"the sizes differ: lq {lq.shape[1]}x{lq.shape[0]}, gt {width}x{height}"
        return Checked(pair, problem=problem)
    return Checked(
        pair,
        size=(height, width),
        psnr_y=None if lq is None else _psnr_y(lq, gt),
        sha256_lq=None if lq is None else hashlib.sha256(lq).hexdigest(),
        sha256_gt=hashlib.sha256(gt).hexdigest(),
    )


def _psnr_y(lq: Pixels, gt: Pixels) -> float:
    """Return the PSNR in dB of the luma of two uint8 images [h, w, 3]."""
    import torch

    from c2fdft_cli.metrics.protocols import luma, psnr

    a, b = (torch.tensor(image).permute(2, 0, 1)[None] for image in (lq, gt))
    return float(psnr(luma(a), luma(b)))


def choose_checked(found: FoundPairs, checked: Sequence[Checked]) -> FoundPairs:
    """Choose the validation pairs by the digests of images that were read."""
    if not found.candidates:
        return found
    candidates = set(found.candidates)
    usable = [one for one in checked if one.problem is None and one.pair in candidates]
    digests: dict[Path, Hashable] = {one.pair.gt: (one.size, one.sha256_gt) for one in usable}
    # The files of other pairs are not opened again: reading a pipe would never end.
    contents = {path: path for pair in candidates for path in (pair.lq, pair.gt)} | content_keys(
        [one.pair for one in usable], digests.__getitem__
    )
    return found.with_val(*choose_val(found.candidates, found.val_size, contents))


def summarise(checked: Sequence[Checked], *, has_lq: bool, bytes_free: int) -> CheckReport | None:
    """Summarise the pairs that could be read; None if there are none."""
    sizes = sorted(
        (one.size for one in checked if one.problem is None),
        key=lambda size: (math.prod(size), size),
    )
    if not sizes:
        return None
    scores = [one.psnr_y for one in checked if one.psnr_y is not None and math.isfinite(one.psnr_y)]
    planes = 2 if has_lq else 1
    return CheckReport(
        smallest=sizes[0],
        median=sizes[len(sizes) // 2],
        largest=sizes[-1],
        psnr_y=statistics.fmean(scores) if scores else None,
        bytes_needed=planes * CHANNELS * sum(map(math.prod, sizes)),
        bytes_free=bytes_free,
    )


def write_preview(shards: ShardSet, path: Path) -> None:
    """Write a contact sheet of pairs (degraded beside clean), evenly spaced in a split.

    Raises:
        UsageError: the shards contain only clean images.
    """
    if not shards.has_lq:
        raise UsageError("--preview cannot show clean-only shards: they contain no pairs")
    count = min(PREVIEW_PAIRS, len(shards))
    pairs = [shards.pair(i * len(shards) // count) for i in range(count)]
    save_rgb8(path, contact_sheet(pairs, PREVIEW_COLUMNS, PREVIEW_TILE))
