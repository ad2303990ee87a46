"""Two evaluations held against each other, image by image."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from c2fdft_cli.engine.evaluate_stats import Comparison, compare
from c2fdft_cli.engine.evaluate_types import EvalResult
from c2fdft_cli.errors import DataError

SCORES = ("psnr", "ssim")


def against(a: EvalResult, b: EvalResult, seed: int = 0) -> dict[str, Comparison | None]:
    """Paired comparison A - B of each score over the images that both have, by name.

    None where no image has a finite score on both sides.

    Raises:
        DataError: no image in common.
    """
    rows = {row.name: row for row in b.rows}
    common = [(row, rows[row.name]) for row in a.rows if row.name in rows]
    if not common:
        details = [f"A: {row.name}" for row in a.rows[:3]] + [
            f"B: {row.name}" for row in b.rows[:3]
        ]
        what = "the two results have no image in common"
        raise DataError(what, where="--against", hint="give the same names", details=details)
    found: dict[str, Comparison | None] = {}
    for key in SCORES:
        ours, theirs = [[getattr(row, key) for row in side] for side in zip(*common, strict=True)]
        try:
            found[key] = compare(ours, theirs, seed)
        except ValueError:  # nothing but infinite scores
            found[key] = None
    return found


def not_in_common(a: EvalResult, b: EvalResult) -> list[str]:
    """Names of images that only one of the two has."""
    ours, theirs = {row.name for row in a.rows}, {row.name for row in b.rows}
    return sorted(ours ^ theirs)


def as_json(comparison: dict[str, Comparison | None], other: EvalResult) -> dict[str, Any]:
    """For --json: A - B with its 95 % interval, who wins, and B's own means."""
    means = {key: sum(getattr(row, key) for row in other.rows) / len(other.rows) for key in SCORES}
    return {
        "mean": {key: value if value < float("inf") else None for key, value in means.items()},
        "difference": {
            key: None if one is None else asdict(one) for key, one in comparison.items()
        },
        "confidence": 0.95,
    }


def in_words(comparison: dict[str, Comparison | None]) -> list[str]:
    """Lines such as `PSNR: A - B = +0.52 dB [+0.31, +0.74] (95 %), A wins 9, B 1, 0 ties`."""
    lines = []
    for key, one in comparison.items():
        if one is None:
            lines.append(f"{key.upper()}: no finite difference")
            continue
        digits, unit = (2, " dB") if key == "psnr" else (4, "")
        low, mean, high = (f"{x:+.{digits}f}" for x in (one.low, one.mean, one.high))
        lines.append(
            f"{key.upper()}: A - B = {mean}{unit} [{low}, {high}] (95 %), "
            f"A wins {one.wins}, B {one.losses}, ties {one.ties}"
        )
    return lines
