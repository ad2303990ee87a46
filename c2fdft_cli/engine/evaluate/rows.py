"""An evaluation as a JSON document, as table rows, and as CSV."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from c2fdft_cli.engine.evaluate.job import EvalResult
from c2fdft_cli.engine.sampling.scoring import Scored, finite_or_none
from c2fdft_cli.files import atomic_write_bytes
from c2fdft_cli.metrics.statistics import summarise, worst

SCORES = ("psnr", "ssim")
"""Those that each image with a target has."""
Column = tuple[str, Callable[[Scored], float]]


def score_of(row: Scored, key: str) -> float:
    """A score by its key in JSON and CSV."""
    return getattr(row, key) if key in SCORES else row.more[key]


def _columns(result: EvalResult) -> list[Column]:
    """Every score that all rows have, by its key in JSON and CSV."""
    keys = [*(SCORES if result.has_targets else ()), *result.rows[0].more]
    return [(key, partial(score_of, key=key)) for key in keys]


def document(result: EvalResult) -> dict[str, Any]:
    """`{protocol, mean, images, ...}`; an infinite PSNR is null."""
    columns = _columns(result)
    scores = {key: [value(row) for row in result.rows] for key, value in columns}
    statistics_of = {key: summarise(values) for key, values in scores.items()}
    names = [row.name for row in result.rows]
    return {
        "protocol": result.protocol.name,
        "protocol_chosen_by": result.chosen_by,
        "mean": {key: finite_or_none(one.mean) for key, one in statistics_of.items()},
        "images": [
            {"name": row.name, **{key: finite_or_none(value(row)) for key, value in columns}}
            for row in result.rows
        ],
        "median": {key: finite_or_none(one.median) for key, one in statistics_of.items()},
        "std": {key: finite_or_none(one.std) for key, one in statistics_of.items()},
        "worst": worst(names, scores["psnr"]) if result.has_targets else [],
        "sets": {
            name: {"images": len(rows), "mean": _means(rows, columns)}
            for name, rows in sets_of(result).items()
        },
        "degraded": _degraded(result),
        "scored_on": result.scored_on,
        "border": result.border,
        "notes": result.all_notes,
        "spread": finite_or_none(result.spread),
        "paired_by": result.found_by,
        "scored": len(result.rows),
        "expected": len(result.rows) + result.missing,
        "missing": {
            "target": [str(path) for path in result.without_target],
            "restored": [str(path) for path in result.without_restored],
            "unreadable": result.unreadable,
        },
    }


def sets_of(result: EvalResult) -> dict[str, list[Scored]]:
    """The rows by the first folder of their names, where there are several: a folder of sets."""
    sets: dict[str, list[Scored]] = defaultdict(list)
    for row in result.rows:
        sets[row.name.partition("/")[0] if "/" in row.name else ""].append(row)
    return dict(sets) if len(sets) > 1 and "" not in sets else {}


def _means(rows: list[Scored], columns: list[Column]) -> dict[str, float | None]:
    return {
        key: finite_or_none(summarise([value(row) for row in rows]).mean) for key, value in columns
    }


def _degraded(result: EvalResult) -> dict[str, Any] | None:
    """The inputs, when they are known for all images."""
    known = [(row.name, row.degraded) for row in result.rows if row.degraded is not None]
    if len(known) < len(result.rows):
        return None
    return {
        "mean": {
            "psnr": finite_or_none(statistics.fmean(score.psnr for _, score in known)),
            "ssim": statistics.fmean(score.ssim for _, score in known),
        },
        "images": [
            {"name": name, **{key: finite_or_none(v) for key, v in asdict(score).items()}}
            for name, score in known
        ],
    }


def table_of(result: EvalResult) -> tuple[list[str], list[list[object]]]:
    """Column names and rows for people: each image, then means of sets, and statistics of all."""
    columns = _columns(result)
    has_degraded = all(row.degraded is not None for row in result.rows)
    header = ["image", *(key.upper() for key, _ in columns)]
    rows: list[list[object]] = []
    for row in result.rows:
        cells: list[object] = [row.name, *(_show(key, value(row)) for key, value in columns)]
        if has_degraded and row.degraded is not None:
            cells += [f"{row.degraded.psnr:.2f}", f"{row.degraded.ssim:.4f}"]
        rows.append(cells)
    if has_degraded:
        header += ["input PSNR", "input SSIM"]
    for name, some in sets_of(result).items():
        label = f"mean of {name} ({len(some)})"
        rows.append([label, *_statistics(some, columns, "mean", has_degraded)])
    for label in ("mean", "median", "std"):
        statistics = _statistics(result.rows, columns, label, has_degraded)
        part = f" ({len(result.rows)} of {len(result.rows) + result.missing})"
        rows.append([label + part if label == "mean" and result.missing else label, *statistics])
    return header, rows


def _statistics(
    scored: list[Scored], columns: list[Column], label: str, has_degraded: bool
) -> list[object]:
    """One line under the table; a dash stands for infinite or missing."""
    series = [(key, [value(row) for row in scored]) for key, value in columns]
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
    """One line an image; an infinite PSNR is `inf`, as spreadsheets read it.

    A name that is not UTF-8 has the bytes that the file system has for it.
    """
    columns = _columns(result)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    extra = ["input_psnr", "input_ssim"] if _degraded(result) is not None else []
    writer.writerow(["name", *(key for key, _ in columns), *extra, "protocol"])
    for row in result.rows:
        inputs = [row.degraded.psnr, row.degraded.ssim] if extra and row.degraded else []
        scores = [value(row) for _, value in columns]
        writer.writerow([_text_cell(row.name), *scores, *inputs, result.protocol.name])
    atomic_write_bytes(path, text.getvalue().encode("utf-8", "surrogateescape"))


def _text_cell(text: str) -> str:
    """Text that a spreadsheet does not take for a formula, whatever a file is called."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) else text
