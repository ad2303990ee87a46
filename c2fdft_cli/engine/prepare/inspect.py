"""Look at every pair without writing any: sizes, damage, and how degraded the inputs are."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch

from c2fdft_cli.data.shards.format import CHANNELS, Pixels
from c2fdft_cli.engine.prepare.source import Found, PairReader, SourcePair
from c2fdft_cli.errors import DataError
from c2fdft_cli.metrics.protocols import luma, psnr
from c2fdft_cli.pipeline import in_order

Size = tuple[int, int]


@dataclass(frozen=True)
class CheckReport:
    """What a look at all pairs showed.

    Args:
        smallest, median, largest: (height, width), by number of pixels.
        psnr_y: mean PSNR-Y of the untouched inputs in dB, over pairs that are not identical; None
            without such pairs.
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
class Looked:
    """One pair that was read, or the problem with it."""

    split: str
    name: str
    size: Size | None = None
    psnr_y: float | None = None
    sha256_lq: str | None = None
    sha256_gt: str = ""
    problem: str | None = None


def look(reader: PairReader, found: Found, *, workers: int) -> Generator[Looked, None, None]:
    """Read every pair, those to validate on first."""

    def one(item: tuple[str, SourcePair]) -> Looked:
        split, pair = item
        try:
            lq, gt = reader.read(pair)
        except DataError as error:
            return Looked(split, pair.name, problem=str(error))
        if lq is not None and lq.shape != gt.shape:
            return Looked(
                split,
                pair.name,
                problem=f"sizes differ: lq {lq.shape[1]}x{lq.shape[0]}, "
                f"gt {gt.shape[1]}x{gt.shape[0]}",
            )
        return Looked(
            split,
            pair.name,
            size=(gt.shape[0], gt.shape[1]),
            psnr_y=None if lq is None else psnr_y(lq, gt),
            sha256_lq=None if lq is None else hashlib.sha256(lq).hexdigest(),
            sha256_gt=hashlib.sha256(gt).hexdigest(),
        )

    return in_order(one, found.pairs, workers=workers)


def psnr_y(lq: Pixels, gt: Pixels) -> float:
    """PSNR in dB on the luma of two uint8 images [h, w, 3] (paper section 10)."""
    a, b = (torch.tensor(image).permute(2, 0, 1)[None] for image in (lq, gt))
    return float(psnr(luma(a), luma(b)))


def summarise(looked: Sequence[Looked], *, has_lq: bool, bytes_free: int) -> CheckReport:
    """The report over the pairs that could be read, of which there must be one."""
    sizes = sorted(
        (one.size for one in looked if one.size), key=lambda size: (math.prod(size), size)
    )
    scores = [one.psnr_y for one in looked if one.psnr_y is not None and math.isfinite(one.psnr_y)]
    planes = 2 if has_lq else 1
    return CheckReport(
        smallest=sizes[0],
        median=sizes[len(sizes) // 2],
        largest=sizes[-1],
        psnr_y=statistics.fmean(scores) if scores else None,
        bytes_needed=planes * CHANNELS * sum(map(math.prod, sizes)),
        bytes_free=bytes_free,
    )
