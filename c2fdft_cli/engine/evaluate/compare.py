"""The paired comparison of two evaluations, image by image."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from c2fdft_cli.data.layouts.matching import composed
from c2fdft_cli.engine.evaluate.job import EvalResult
from c2fdft_cli.engine.evaluate.metrics import lower_wins
from c2fdft_cli.engine.evaluate.rows import keys_of, missing_of, score_of, show
from c2fdft_cli.engine.sampling.scoring import Scored
from c2fdft_cli.errors import DataError
from c2fdft_cli.metrics.statistics import CONFIDENCE, Comparison, compare
from c2fdft_cli.words import finite_or_none


@dataclass(frozen=True)
class PairedComparison:
    """The comparison of two evaluations.

    common: the pairs of rows of A and B that belong to one image.
    scores: the comparison of each score over these pairs.
    """

    a: EvalResult
    b: EvalResult
    common: list[tuple[Scored, Scored]]
    scores: dict[str, Comparison]

    @property
    def not_in_both(self) -> list[str]:
        """The names of images that only one of the two has."""
        ours = {row.name for row in self.a.rows} - {row.name for row, _ in self.common}
        theirs = {row.name for row in self.b.rows} - {row.name for _, row in self.common}
        return sorted(ours | theirs)


def paired_comparison(a: EvalResult, b: EvalResult) -> PairedComparison:
    """Compare each score of A and B over the images that both have, paired by image.

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
    found: dict[str, Comparison] = {}
    for key in keys_of(a):
        ours, theirs = [[score_of(row, key) for row in side] for side in zip(*common, strict=True)]
        found[key] = compare(ours, theirs, lower_wins=lower_wins(key))
    return PairedComparison(a, b, common, found)


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


def as_json(paired: PairedComparison) -> dict[str, Any]:
    """Return a comparison for --json; values that are not finite become null.

    `docs/reference/files.md` describes the keys.
    """
    comparison = paired.scores
    facts: dict[str, Any] = finite_or_none(
        {
            "mean": {key: one.mean_b for key, one in comparison.items()},
            "difference": {key: asdict(one) for key, one in comparison.items()},
            "confidence": CONFIDENCE,
            "images": [
                {
                    "name": ours.name,
                    "name_b": theirs.name,
                    "b": {key: score_of(theirs, key) for key in comparison},
                    "difference": {
                        key: score_of(ours, key) - score_of(theirs, key) for key in comparison
                    },
                }
                for ours, theirs in paired.common
            ],
            "not_in_both": paired.not_in_both,
            "notes": paired.b.all_notes,
            "missing": missing_of(paired.b),
        }
    )
    return facts


def in_words(comparison: dict[str, Comparison]) -> list[str]:
    """Return lines such as `PSNR: A - B = +0.52 dB [+0.31, +0.74] (95 %), A wins 9, B 1, ...`."""
    lines = []
    for key, one in comparison.items():
        scored = one.wins + one.losses + one.ties
        line = f"{key.upper()}: {_difference(key, one)}"
        line += f", A wins {one.wins}, B {one.losses}, ties {one.ties}"
        if 0 < one.images < scored:
            line += f"; mean over {one.images} of {scored} images (the others have infinite scores)"
        means = ["-" if mean is None else show(key, mean) for mean in (one.mean_a, one.mean_b)]
        lines.append(f"{line}; mean of A {means[0]}, of B {means[1]}")
    return lines


def _difference(key: str, one: Comparison) -> str:
    """Return `A - B = +0.52 dB [+0.31, +0.74] (95 %)`, as far as it can be computed."""
    if one.mean is None:
        return "no finite difference"
    digits, unit = (2, " dB") if key == "psnr" else (4, "")
    interval = "(one image: no interval)"
    if one.low is not None:
        interval = f"[{one.low:+.{digits}f}, {one.high:+.{digits}f}] ({100 * CONFIDENCE:g} %)"
    return f"A - B = {one.mean:+.{digits}f}{unit} {interval}"
