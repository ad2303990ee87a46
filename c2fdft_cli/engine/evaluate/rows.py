"""Convert an evaluation to a JSON document, to table rows, and to CSV."""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from heapq import nsmallest
from pathlib import Path
from typing import Any

from c2fdft_cli.engine.evaluate.job import EvalResult
from c2fdft_cli.engine.evaluate.metrics import lower_wins
from c2fdft_cli.engine.sampling.scoring import Scored, mean_scores
from c2fdft_cli.files.writing import atomic_write_bytes
from c2fdft_cli.metrics.statistics import summarise, worst
from c2fdft_cli.words import finite_or_none

SCORES = ("psnr", "ssim")
"""The scores of every image with a target."""
MAX_ROWS, FEW = 200, 20
"""Most images, or sets, that the printed table lists; how many of more images it lists."""
_INPUT_SCORES = ("input_psnr", "input_ssim")
"""The columns for the scores of the degraded inputs, which exist if all inputs are known."""


def score_of(row: Scored, key: str) -> float:
    """Return a score by its key in JSON and CSV."""
    if key in _INPUT_SCORES:
        return getattr(row.degraded, key.removeprefix("input_"))  # type: ignore[no-any-return]
    return getattr(row, key) if key in SCORES else row.more[key]


def keys_of(result: EvalResult) -> list[str]:
    """Return the keys of the restored images' scores, which are the same for all rows."""
    return [*(SCORES if result.has_targets else ()), *result.rows[0].more]


def _columns(result: EvalResult) -> list[str]:
    """Return the keys of all scores in the table and in CSV."""
    has_inputs = all(row.degraded is not None for row in result.rows)
    return [*keys_of(result), *(_INPUT_SCORES if has_inputs else ())]


def document(result: EvalResult) -> dict[str, Any]:
    """Return `{protocol, mean, images, ...}`; values that are not finite become null."""
    keys = keys_of(result)
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
            "missing": missing_of(result),
        }
    )
    return facts


def missing_of(result: EvalResult) -> dict[str, list[str]]:
    """Return what has no score: unpaired files by their side, and errors of unreadable ones."""
    return {
        "target": [str(path) for path in result.without_target],
        "restored": [str(path) for path in result.without_restored],
        "unreadable": result.unreadable,
    }


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


def table_of(
    result: EvalResult,
) -> tuple[list[str], list[list[object]], list[list[object]]]:
    """Return the columns of the table, its rows of images, and those of sets and statistics.

    Of more than `MAX_ROWS` images only the `FEW` worst by the first score are rows, worst first;
    more than `MAX_ROWS` sets have no rows.
    """
    columns = _columns(result)
    titles = [key.upper().replace("INPUT_", "input ") for key in columns]
    scored = result.rows if len(result.rows) <= MAX_ROWS else _worst(result.rows, columns[0])
    images: list[list[object]] = [
        [row.name, *(show(key, score_of(row, key)) for key in columns)] for row in scored
    ]
    rows: list[list[object]] = []
    sets = sets_of(result)
    for name, some in sets.items() if len(sets) <= MAX_ROWS else ():
        rows.append([f"mean of {name} ({len(some)})", *_statistics(some, columns)["mean"]])
    for label, values in _statistics(result.rows, columns).items():
        part = f" ({len(result.rows)} of {len(result.rows) + result.missing})"
        title = label + part if label == "mean" and result.missing else label
        rows.append([title, *values])
    return ["image", *titles], images, rows


def _worst(rows: list[Scored], key: str) -> list[Scored]:
    """Return the `FEW` worst rows by a score, worst first; those without a value come first."""
    sign = -1 if lower_wins(key) else 1

    def rank(row: Scored) -> tuple[float, str]:
        value = score_of(row, key)
        return (-math.inf if math.isnan(value) else sign * value), row.name

    return nsmallest(FEW, rows, key=rank)


def _statistics(scored: list[Scored], columns: list[str]) -> dict[str, list[str | None]]:
    """Return mean, median and std of each score, for lines under the images; None if undefined."""
    found = [summarise([score_of(row, key) for row in scored]) for key in columns]
    return {
        label: [
            None if (value := getattr(one, label)) is None else show(key, value)
            for key, one in zip(columns, found, strict=True)
        ]
        for label in ("mean", "median", "std")
    }


def show(key: str, value: float) -> str:
    """Format a score for the terminal: PSNR with two decimals, others with four, NaN as a dash."""
    if math.isnan(value):
        return "-"
    return f"{value:.2f}" if key in ("psnr", "input_psnr") else f"{value:.4f}"


def write_csv(path: Path, result: EvalResult, rivals: Mapping[str, Scored]) -> None:
    """Write one line per image; an infinite PSNR is written as `inf`, which spreadsheets can read.

    A name that is not UTF-8 is written with its bytes in the file system.

    Args:
        path: the file.
        result: the evaluation.
        rivals: in a comparison the rows of B, by the names of A's rows, for further columns, which
            stay empty where B has no row; empty without a comparison.
    """
    columns = _columns(result)
    theirs = keys_of(result) if rivals else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", *columns, "protocol", *(f"b_{key}" for key in theirs)])
    for row in result.rows:
        scores = [score_of(row, key) for key in columns]
        rival = rivals.get(row.name)
        others = ["" if rival is None else score_of(rival, key) for key in theirs]
        writer.writerow([_text_cell(row.name), *scores, result.protocol.name, *others])
    atomic_write_bytes(path, text.getvalue().encode("utf-8", "surrogateescape"))


def _text_cell(text: str) -> str:
    """Quote text that a spreadsheet would take for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) else text
