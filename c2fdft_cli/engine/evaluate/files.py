"""Score saved images against their targets."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

from c2fdft_cli.data.images.picture import read_picture
from c2fdft_cli.data.layouts.listing import remarks_on_pairs
from c2fdft_cli.data.layouts.pairs import FilePair
from c2fdft_cli.engine.evaluate.job import EvalOptions, EvalResult, score_each
from c2fdft_cli.engine.evaluate.pairing import (
    Matched,
    check_all_sizes,
    degraded_beside,
    listed_pairs,
    own_names,
    pair_files,
    size_of_both,
)
from c2fdft_cli.engine.sampling.scoring import Scored, Scorer, levels
from c2fdft_cli.errors import DataError
from c2fdft_cli.metrics.protocols import PROTOCOLS, Protocol
from c2fdft_cli.progress import Job


def evaluate_files(
    restored: Path, target: Path, options: EvalOptions, degraded: Path | None = None
) -> Job[Scored, EvalResult]:
    """Score saved files, paired by name.

    16-bit files are rounded to 8 bits, except with a protocol for unrounded output. Pairs whose
    pixels cannot be read are skipped and listed in the result.

    Args:
        restored: folder or file.
        target: folder (of targets only, or a whole set in a published layout) or file.
        options: protocol, border, additional metrics.
        degraded: folder of the degraded inputs, to score them too.

    Raises:
        DataError: nothing to score, or a list of the images that differ in size from their
            targets, are smaller than SSIM's window, or cannot be read; from the iteration, no pair
            whose pixels can be read.
    """
    return _job(pair_files(restored, target), options, degraded)


def evaluate_list(
    pairs_file: Path,
    options: EvalOptions,
    degraded: Path | None = None,
    *,
    folder: Path | None = None,
) -> Job[Scored, EvalResult]:
    """Score the saved files of a list of pairs (restored, target), whatever their names.

    Args:
        pairs_file: the list, as for `prepare`.
        options, degraded: as for `evaluate_files`.
        folder: where to look for relative paths that do not exist relative to the list's folder.

    Raises:
        DataError: as `evaluate_files`, and if the list is malformed or names a missing file.
    """
    return _job(listed_pairs(pairs_file, folder), options, degraded)


def _job(pairs: Matched, options: EvalOptions, degraded: Path | None) -> Job[Scored, EvalResult]:
    protocol = PROTOCOLS[options.protocol or "rgb"]
    if degraded is not None:
        pairs = degraded_beside(pairs, degraded)
    # unique names, so that the records can be told apart
    names = own_names([pair.name for pair in pairs.pairs], [pair.lq for pair in pairs.pairs])
    named = [replace(pair, name=name) for pair, name in zip(pairs.pairs, names, strict=True)]
    pairs = replace(pairs, pairs=named)
    sizes = [
        (pair.name, partial(size_of_both, pair, pairs.degraded.get(pair.lq))) for pair in named
    ]
    check_all_sizes(sizes, options.border + protocol.border, options.looked)
    scorer = options.scorer(protocol)
    tasks = [
        (pair.name, partial(_score_pair, pair, pairs.degraded.get(pair.lq), scorer))
        for pair in named
    ]
    known = EvalResult(
        protocol,
        [],
        "saved files" + (", 16 bit where they have them" if protocol.unrounded else ", 8 bit"),
        options.border,
        pairs.without_target,
        pairs.without_restored,
        pairs.found_by,
        {pair.name: pairs.degraded.get(pair.lq, pair.gt) for pair in named},
        chosen_by=options.chosen_by(),
        with_inputs=bool(pairs.degraded),
    )

    def notes(_: list[Scored]) -> list[str]:
        return [f"note: {one}" for one in remarks_on_pairs([(pair.lq, pair.gt) for pair in named])]

    return score_each(tasks, known, options, notes=notes)


def _score_pair(pair: FilePair, degraded: Path | None, scorer: Scorer) -> Scored:
    ours, theirs = (read_image(path, scorer.protocol) for path in (pair.lq, pair.gt))
    if ours.shape != theirs.shape:
        sizes = [f"{one.shape[3]} x {one.shape[2]}" for one in (ours, theirs)]
        what = f"changed while it was scored: {sizes[0]}, its target {sizes[1]}"
        raise DataError(what, where=pair.lq, hint="run eval again when its files no longer change")
    lq = None if degraded is None else read_image(degraded, scorer.protocol)
    known = lq is not None and lq.shape == theirs.shape
    return scorer(pair.name, ours, theirs, lq if known else None)


def read_image(path: Path, protocol: Protocol) -> Tensor:
    """Read an image as `[1, 3, h, w]` float64 on the scale 0 .. 255."""
    return levels(read_picture(path).pixels, protocol).double()
