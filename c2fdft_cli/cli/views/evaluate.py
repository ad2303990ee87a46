"""The output of `c2fdft eval`: its lines and tables, JSON document and files."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from c2fdft_cli.cli import console
from c2fdft_cli.words import binary_size, first_of

if TYPE_CHECKING:
    from c2fdft_cli.engine.evaluate.job import EvalResult
    from c2fdft_cli.engine.evaluate.report import Gallery
    from c2fdft_cli.engine.sampling.scoring import Scored


def note(event: Scored) -> str:
    """Return the note at the progress bar: the image, and its PSNR if it has one."""
    return event.name if math.isnan(event.psnr) else f"{event.name}: {event.psnr:.2f} dB"


def compared(
    result: EvalResult, rival: EvalResult | None
) -> tuple[dict[str, Any], list[str], dict[str, Scored]]:
    """Return the JSON document, the lines that compare the result with B, and the rows of B.

    The rows of B are by the names of the result's.
    """
    from c2fdft_cli.engine.evaluate.compare import as_json, in_words, paired_comparison
    from c2fdft_cli.engine.evaluate.rows import document

    facts = document(result)
    if rival is None:
        return facts, [], {}
    paired = paired_comparison(result, rival)
    words = [*(f"B: {line}" for line in _about(rival)), *in_words(paired.scores)]
    if alone := paired.not_in_both:
        words.append(f"not in both: {', '.join(alone[:10])}" + (" ..." if alone[10:] else ""))
    facts["against"] = {**as_json(paired), "lines": words}
    return facts, words, {ours.name: theirs for ours, theirs in paired.common}


def write(
    result: EvalResult,
    rivals: dict[str, Scored],
    document: dict[str, Any],
    csv: Path | None,
    report: Path | None,
    gallery: Gallery,
) -> tuple[list[Path], list[str]]:
    """Write the requested files (CSV, report); return their paths, and remarks on the page."""
    written, remarks = [], []
    if csv is not None:
        from c2fdft_cli.engine.evaluate.rows import write_csv

        write_csv(csv, result, rivals)
        written.append(csv)
    if report is not None:
        from c2fdft_cli.engine.evaluate.report import write_report

        command, lines = console.command(*sys.argv[1:]), [_protocol(result), *_remarks(result)]
        pages = write_report(report, document, gallery, command, lines, result.recipe)
        written += pages
        size = pages[0].stat().st_size
        remarks = [f"size of the page: {binary_size(size)}"] if size >= 1 << 20 else []
        remarks += gallery.note(len(result.rows))
    return written, remarks


def _remarks(result: EvalResult) -> list[str]:
    """Return the lines below the table: further metrics, and what is to know about the scores."""
    from c2fdft_cli.engine.evaluate.metrics import describe_metric

    return [describe_metric(name) for name in result.rows[0].more] + _about(result)


def _about(result: EvalResult) -> list[str]:
    """Return what is to know about the scores: timesteps, notes, spread, unpaired files."""
    lines = list(result.all_notes)
    if result.spread is not None:
        lines.append(f"mean PSNR +/- {result.spread:.3f} dB over the seeds")
    lines += first_of([f"no target: {path}" for path in result.without_target])
    lines += first_of([f"not restored: {path}" for path in result.without_restored])
    return lines + first_of([f"not scored: {problem}" for problem in result.unreadable])


def _protocol(result: EvalResult) -> str:
    """Describe the protocol, how it was chosen, and which pixels it scores."""
    border = f", border of {result.border} px skipped" if result.border else ""
    what = f"protocol {result.protocol.name} ({result.chosen_by}): {result.protocol.describes}"
    return f"{what}; {result.scored_on}{border}"


def _tell_scores(result: EvalResult) -> None:
    """Print the table of scores; of many images only the worst, and what is left."""
    from c2fdft_cli.engine.evaluate.metrics import lower_wins
    from c2fdft_cli.engine.evaluate.rows import MAX_ROWS, keys_of, sets_of, table_of

    columns, images, statistics = table_of(result)
    left = len(result.rows) - len(images)
    if not left:
        console.table("", columns, [*images, *statistics])
        return
    which, others = "lowest", "higher"
    if lower_wins(keys_of(result)[0]):
        which, others = "highest", "lower"
    out = console.stdout()  # not as titles of the tables, which may be narrower than the words
    out.print(f"the {len(images)} images with the {which} {columns[1]}:")
    console.table("", columns, images)
    more = f"and {left:,} more images with {others} scores"
    out.print(f"{more}: --csv FILE writes all, --json prints them")
    out.print(f"all {len(result.rows):,} images:")
    console.table("", ["", *columns[1:]], statistics)
    sets = len(sets_of(result))
    if sets > MAX_ROWS:
        out.print(f"the images are in {sets:,} sets: --json prints the means of each")


def tell(result: EvalResult, words: list[str], written: list[Path]) -> None:
    """Print the table of scores and the lines that explain it."""
    from c2fdft_cli.metrics.statistics import worst

    out = console.stdout()
    out.print(_protocol(result))
    _tell_scores(result)
    if len(result.rows) > 1 and result.has_targets:
        names = worst([row.name for row in result.rows], [row.psnr for row in result.rows])
        out.print(f"lowest PSNR: {', '.join(names)}")
    for line in [*_remarks(result), *words]:
        out.print(line)
    if written:
        out.print(f"written: {', '.join(map(str, written))}")
