"""Convert an evaluation to a JSON document, to table rows, and to CSV."""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

from c2fdft_cli.engine.evaluate.job import EvalResult
from c2fdft_cli.engine.sampling.scoring import Scored, finite_or_none, mean_scores
from c2fdft_cli.files import atomic_write_bytes
from c2fdft_cli.metrics.statistics import summarise, worst

SCORES = ("psnr", "ssim")
"""The scores of every image with a target."""


def score_of(row: Scored, key: str) -> float:
    """Return a score by its key in JSON and CSV."""
    return getattr(row, key) if key in SCORES else row.more[key]


def _keys(result: EvalResult) -> list[str]:
    """Return the keys of the scores, which are the same for all rows."""
    return [*(SCORES if result.has_targets else ()), *result.rows[0].more]


def document(result: EvalResult) -> dict[str, Any]:
    """Return `{protocol, mean, images, ...}`; values that are not finite become null."""
    keys = _keys(result)
    scores = {key: [score_of(row, key) for row in result.rows] for key in keys}
    summaries = {key: summarise(values) for key, values in scores.items()}
    names = [row.name for row in result.rows]
    facts: dict[str, Any] = finite_or_none(
        {
            "protocol": result.protocol.name,
            "protocol_chosen_by": result.chosen_by,
            "mean": {key: one.mean for key, one in summaries.items()},
            "images": [
                {"name": row.name, **{key: score_of(row, key) for key in keys}}
                for row in result.rows
            ],
            "median": {key: one.median for key, one in summaries.items()},
            "std": {key: one.std for key, one in summaries.items()},
            "worst": worst(names, scores["psnr"]) if result.has_targets else [],
            "sets": {
                name: {
                    "images": len(rows),
                    "mean": {key: summarise([score_of(r, key) for r in rows]).mean for key in keys},
                }
                for name, rows in sets_of(result).items()
            },
            "degraded": _degraded(result),
            "scored_on": result.scored_on,
            "border": result.border,
            "notes": result.all_notes,
            "spread": result.spread,
            "paired_by": result.found_by,
            "scored": len(result.rows),
            "expected": len(result.rows) + result.missing,
            "missing": {
                "target": [str(path) for path in result.without_target],
                "restored": [str(path) for path in result.without_restored],
                "unreadable": result.unreadable,
            },
        }
    )
    return facts


def sets_of(result: EvalResult) -> dict[str, list[Scored]]:
    """Group the rows by the first folder of their names, for a folder of several data sets.

    Empty if all rows are in the same folder, or if one is in none.
    """
    sets: dict[str, list[Scored]] = defaultdict(list)
    for row in result.rows:
        sets[row.name.partition("/")[0] if "/" in row.name else ""].append(row)
    return dict(sets) if len(sets) > 1 and "" not in sets else {}


def _degraded(result: EvalResult) -> dict[str, Any] | None:
    """Return the scores of the inputs; None unless they are known for all images."""
    known = [(row.name, row.degraded) for row in result.rows if row.degraded is not None]
    if len(known) < len(result.rows):
        return None
    return {
        "mean": mean_scores(score for _, score in known),
        "images": [{"name": name, **asdict(score)} for name, score in known],
    }


def table_of(result: EvalResult) -> tuple[list[str], list[list[object]]]:
    """Return the columns and rows of the table: images, means of the sets, and statistics."""
    keys = _keys(result)
    has_degraded = all(row.degraded is not None for row in result.rows)
    header = ["image", *(key.upper() for key in keys)]
    rows: list[list[object]] = []
    for row in result.rows:
        cells: list[object] = [row.name, *(_show(key, score_of(row, key)) for key in keys)]
        if has_degraded and row.degraded is not None:
            cells += [f"{row.degraded.psnr:.2f}", f"{row.degraded.ssim:.4f}"]
        rows.append(cells)
    if has_degraded:
        header += ["input PSNR", "input SSIM"]
    for name, some in sets_of(result).items():
        label = f"mean of {name} ({len(some)})"
        rows.append([label, *_statistics(some, keys, "mean", has_degraded)])
    for label in ("mean", "median", "std"):
        statistics = _statistics(result.rows, keys, label, has_degraded)
        part = f" ({len(result.rows)} of {len(result.rows) + result.missing})"
        rows.append([label + part if label == "mean" and result.missing else label, *statistics])
    return header, rows


def _statistics(
    scored: list[Scored], keys: list[str], label: str, has_degraded: bool
) -> list[object]:
    """Return a statistic of each score, for a line under the images; None if it has no value."""
    series = [(key, [score_of(row, key) for row in scored]) for key in keys]
    if has_degraded:
        known = [row.degraded for row in scored if row.degraded is not None]
        series += [("psnr", [one.psnr for one in known]), ("ssim", [one.ssim for one in known])]
    values = [(key, getattr(summarise(numbers), label)) for key, numbers in series]
    return [None if value is None else _show(key, value) for key, value in values]


def _show(key: str, value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.2f}" if key == "psnr" else f"{value:.4f}"


def write_csv(path: Path, result: EvalResult) -> None:
    """Write one line per image; an infinite PSNR is written as `inf`, which spreadsheets can read.

    A name that is not UTF-8 is written with its bytes in the file system.
    """
    keys = _keys(result)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    extra = ["input_psnr", "input_ssim"] if _degraded(result) is not None else []
    writer.writerow(["name", *keys, *extra, "protocol"])
    for row in result.rows:
        inputs = [row.degraded.psnr, row.degraded.ssim] if extra and row.degraded else []
        scores = [score_of(row, key) for key in keys]
        writer.writerow([_text_cell(row.name), *scores, *inputs, result.protocol.name])
    atomic_write_bytes(path, text.getvalue().encode("utf-8", "surrogateescape"))


def _text_cell(text: str) -> str:
    """Quote text that a spreadsheet would take for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) else text
