"""The paired comparison of two evaluations, image by image."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

from c2fdft_cli.data.layouts.matching import composed
from c2fdft_cli.engine.evaluate.job import EvalResult
from c2fdft_cli.engine.evaluate.metrics import lower_wins
from c2fdft_cli.engine.evaluate.rows import SCORES, score_of
from c2fdft_cli.engine.sampling.scoring import Scored
from c2fdft_cli.errors import DataError
from c2fdft_cli.metrics.statistics import Comparison, compare
from c2fdft_cli.vocabulary import finite_or_none


def paired_comparison(a: EvalResult, b: EvalResult, seed: int = 0) -> dict[str, Comparison | None]:
    """Compare A and B over the images that both have: the differences A - B, paired by image.

    Returns:
        The comparison of each score: of PSNR and SSIM, or without targets of all scores. It is
        None if no image has finite scores in both.

    Raises:
        DataError: no image in common.
    """
    common = in_common(a, b)
    if not common:
        details = [f"A: {row.name}" for row in a.rows[:3]] + [
            f"B: {row.name}" for row in b.rows[:3]
        ]
        what = "the two results have no image in common"
        raise DataError(what, hint="give the images the same names", details=details)
    found: dict[str, Comparison | None] = {}
    for key in SCORES if a.has_targets else a.rows[0].more:
        ours, theirs = [[score_of(row, key) for row in side] for side in zip(*common, strict=True)]
        try:
            found[key] = compare(ours, theirs, seed, lower_wins=lower_wins(key))
        except ValueError:  # all scores are infinite
            found[key] = None
    return found


def in_common(a: EvalResult, b: EvalResult) -> list[tuple[Scored, Scored]]:
    """Return the pairs of rows of A and B that belong to one image.

    Rows of the same name belong together, otherwise rows of the same input or target file. If
    several rows of one evaluation have the same file, only their names count.
    """
    named = {composed(row.name): row for row in b.rows}
    common = [(row, other) for row in a.rows if (other := named.get(composed(row.name)))]
    ours = _by_partner(a, {row.name for row, _ in common})
    theirs = _by_partner(b, {row.name for _, row in common})
    return common + [(ours[key], theirs[key]) for key in ours if key in theirs]


def _by_partner(result: EvalResult, without: set[str]) -> dict[Path, Scored]:
    """Map each input or target file that has a single row to this row, except rows of `without`."""
    rows: dict[Path, list[Scored]] = defaultdict(list)
    for row in result.rows:
        if row.name in result.partners:
            rows[result.partners[row.name].resolve()].append(row)
    return {
        path: some[0]
        for path, some in rows.items()
        if len(some) == 1 and some[0].name not in without
    }


def not_in_common(a: EvalResult, b: EvalResult) -> list[str]:
    """Return the names of images that only one of the two has."""
    common = in_common(a, b)
    ours = {row.name for row in a.rows} - {row.name for row, _ in common}
    theirs = {row.name for row in b.rows} - {row.name for _, row in common}
    return sorted(ours | theirs)


def as_json(comparison: dict[str, Comparison | None], other: EvalResult) -> dict[str, Any]:
    """Return the comparison for --json: A - B with its 95 % interval, wins, and B's own means."""
    means = {
        key: sum(score_of(row, key) for row in other.rows) / len(other.rows) for key in comparison
    }
    return {
        "mean": {key: finite_or_none(value) for key, value in means.items()},
        "difference": {
            key: None if one is None else asdict(one) for key, one in comparison.items()
        },
        "confidence": 0.95,
    }


def in_words(comparison: dict[str, Comparison | None]) -> list[str]:
    """Return lines such as `PSNR: A - B = +0.52 dB [+0.31, +0.74] (95 %), A wins 9, B 1, ...`."""
    lines = []
    for key, one in comparison.items():
        if one is None:
            lines.append(f"{key.upper()}: no finite difference")
            continue
        digits, unit = (2, " dB") if key == "psnr" else (4, "")
        low, mean, high = (f"{x:+.{digits}f}" for x in (one.low, one.mean, one.high))
        interval = f"[{low}, {high}] (95 %)" if one.images > 1 else "(one image: no interval)"
        line = (
            f"{key.upper()}: A - B = {mean}{unit} {interval}, "
            f"A wins {one.wins}, B {one.losses}, ties {one.ties}"
        )
        scored = one.wins + one.losses + one.ties
        if one.images < scored:
            line += f"; mean over {one.images} of {scored} images (the others have infinite scores)"
        lines.append(line)
    return lines
