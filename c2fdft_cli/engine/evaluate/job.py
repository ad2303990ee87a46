"""Score saved images against their targets."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from c2fdft_cli.data.images.picture import read_picture, to_8bit
from c2fdft_cli.data.images.tensors import as_tensor
from c2fdft_cli.engine.evaluate.pairing import (
    FilePair,
    FilePairs,
    check_all_sizes,
    degraded_beside,
    fail,
    pair_files,
)
from c2fdft_cli.engine.evaluate.types import (
    EvalOptions,
    EvalResult,
    EvalRow,
    Images,
    ScoredRow,
    score_images,
)
from c2fdft_cli.errors import DataError
from c2fdft_cli.metrics.protocols import PROTOCOLS, Protocol
from c2fdft_cli.pipeline import in_order
from c2fdft_cli.progress import Job


def evaluate_files(
    restored: Path, target: Path, options: EvalOptions, degraded: Path | None = None
) -> Job[ScoredRow, EvalResult]:
    """Score saved files, paired by name.

    On 8 bits (16-bit files rounded), except that a protocol for unrounded output takes 16-bit
    files as they are.

    Args:
        restored: folder or file.
        target: folder (of targets alone, or a whole set in a published layout) or file.
        options: protocol, border, further metrics.
        degraded: folder of the inputs, to score them too.

    Raises:
        DataError: nothing to score, sizes that differ, an image smaller than SSIM's window, or,
            from the iteration, a file that cannot be read.
    """
    protocol = PROTOCOLS[options.protocol or "rgb"]
    pairs = pair_files(restored, target)
    if degraded is not None:
        pairs = degraded_beside(pairs, degraded)
    check_all_sizes(pairs.pairs)
    mine = options.share(pairs.pairs)
    work = _score_files(mine, pairs, protocol, options)
    return Job(work, total=len(mine), title="eval", unit="image")


def _score_files(
    mine: list[FilePair], pairs: FilePairs, protocol: Protocol, options: EvalOptions
) -> Generator[ScoredRow, None, EvalResult]:
    tasks = [(pair.name, partial(_score_pair, pair, protocol, options)) for pair in mine]
    rows = yield from score_each(tasks, len(pairs.pairs))
    return EvalResult(
        protocol,
        rows,
        "saved files" + (", 16 bit where they have them" if protocol.unrounded else ", 8 bit"),
        options.border,
        pairs.without_target,
        pairs.without_restored,
        pairs.found_by,
    )


def score_each(
    tasks: Sequence[tuple[str, Callable[[], ScoredRow]]], total: int, unit: str = "pairs"
) -> Generator[ScoredRow, None, list[EvalRow]]:
    """Score (name, work) in order, read ahead; DataError at the end names all that cannot be.

    Args:
        tasks: what this process scores.
        total: how many there are over all processes.
        unit: what they are.
    """
    rows, problems = [], []

    def one(task: tuple[str, Callable[[], ScoredRow]]) -> ScoredRow | str:
        name, score = task
        try:
            return score()
        except DataError as error:
            return f"{name}: {error}"

    for outcome in in_order(one, tasks, workers=2):
        if isinstance(outcome, str):
            problems.append(outcome)
        else:
            rows.append(outcome.row)
            yield outcome
    fail(problems, total, unit)
    return rows


def _score_pair(pair: FilePair, protocol: Protocol, options: EvalOptions) -> ScoredRow:
    ours, theirs = (read_image(path, protocol) for path in (pair.restored, pair.target))
    scores = score_images(ours, theirs, protocol, options.border)
    lq = None if pair.degraded is None else read_image(pair.degraded, protocol)
    if lq is not None and lq.shape != theirs.shape:
        lq = None
    row = EvalRow(
        pair.name,
        scores.psnr,
        scores.ssim,
        {key: metric(ours, theirs) for key, metric in options.metrics.items()},
        None if lq is None else score_images(lq, theirs, protocol, options.border),
    )
    return ScoredRow(row, Images(lq, ours, theirs))


def read_image(path: Path, protocol: Protocol) -> Tensor:
    """`[1, 3, h, w]` float64 on the scale 0 .. 255."""
    pixels = read_picture(path).pixels
    if pixels.dtype == np.uint16 and protocol.unrounded:
        return as_tensor(pixels.astype(np.float64) / 257)
    return as_tensor(to_8bit(pixels)).double()
