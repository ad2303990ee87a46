"""SIDD's validation blocks as pairs: two MATLAB files to compare, or noisy blocks to restore."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NoReturn

from c2fdft_cli.data.images.tensors import as_tensor
from c2fdft_cli.data.layouts.sidd import (
    NOISY,
    RESULTS,
    SUFFIX,
    TARGET,
    Blocks,
    block_files,
    read_blocks,
)
from c2fdft_cli.engine.evaluate.job import EvalOptions, EvalResult, score_each
from c2fdft_cli.engine.sampling.pairs import DecodedPair, PairSource
from c2fdft_cli.engine.sampling.scoring import Scored
from c2fdft_cli.errors import DataError
from c2fdft_cli.metrics.protocols import PROTOCOLS
from c2fdft_cli.progress import Job

PROTOCOL = "denoise"
"""The protocol of these blocks, unless another is requested."""
CHOSEN_BY = "the one for SIDD's blocks"


@dataclass(frozen=True)
class BlockPairs(PairSource):
    """Blocks and their targets; `eval` scores results with them, or weights.

    ours: the noisy blocks or the results.
    """

    ours: Blocks = field(kw_only=True)


def open_blocks(ours: Path, target: Path | None = None) -> BlockPairs:
    """Read blocks and their targets.

    Args:
        ours: a file of noisy blocks or of results, or the folder with both published files.
        target: the file of clean blocks or its folder; None for the folder of `ours`.

    Raises:
        DataError: a file is missing or does not contain blocks, or the shapes differ.
    """
    noisy, beside = block_files(ours if ours.is_dir() else ours.parent)
    if ours.is_dir():
        ours = noisy or _missing(NOISY, ours)
    if target is None:
        target = beside or _missing(TARGET, ours.parent)
    elif target.is_dir():
        target = block_files(target)[1] or _missing(TARGET, target)
    blocks, targets = read_blocks(ours, (RESULTS, NOISY, TARGET)), read_blocks(target, (TARGET,))
    shapes = [list(side.pixels.shape) for side in (blocks, targets)]
    if shapes[0] != shapes[1]:
        what = f"the two files differ in shape: {shapes[0]}, {shapes[1]}"
        raise DataError(what, where=ours, hint=f"use files of the same set, not {target}")
    names = targets.names

    def pair(i: int) -> DecodedPair:
        # A block has no file of its own, so its noise is derived from its name.
        return DecodedPair(names[i], blocks.block(i), targets.block(i), names[i])

    height, width = targets.pixels.shape[-3:-1]
    found_by = "their place in the SIDD files"
    return BlockPairs(names, pair, lambda _: (height, width), found_by, unit="block", ours=blocks)


def _missing(name: str, folder: Path) -> NoReturn:
    """Raise DataError for a folder without one of the two files."""
    hint = "download it from SIDD's site, or name the file"
    raise DataError(f"there is no {name}{SUFFIX} in the folder", where=folder, hint=hint)


def evaluate_blocks(pairs: BlockPairs, options: EvalOptions) -> Job[Scored, EvalResult]:
    """Score blocks as they are stored, on 8 bits, by default with the protocol "denoise".

    Raises:
        DataError: from the iteration, blocks smaller than SSIM's window.
    """
    scorer = options.scorer(PROTOCOLS[options.protocol or PROTOCOL])

    def one(i: int) -> Scored:
        pair = pairs.pair(i)
        return scorer(pair.name, as_tensor(pair.lq), as_tensor(pair.gt))

    tasks = [(name, partial(one, i)) for i, name in enumerate(pairs.names)]
    known = EvalResult(
        scorer.protocol,
        [],
        f"{pairs.ours.variable} of {pairs.ours.path.name}, 8 bit",
        options.border,
        found_by=pairs.found_by,
        chosen_by=options.chosen_by(CHOSEN_BY),
    )
    return score_each(tasks, known, options, unit=pairs.unit)
