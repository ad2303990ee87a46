"""`c2fdft bench train-step --stage fine`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from c2fdft_cli.cli import console
from c2fdft_cli.errors import UsageError
from c2fdft_cli.vocabulary import parse_numbers, split_words

if TYPE_CHECKING:
    from c2fdft_cli.engine.tools.bench import BenchOptions
    from c2fdft_cli.engine.tools.bench_fine import FineBenchResult


def time_fine(options: BenchOptions, calls: str, recompute: str, json: bool) -> None:
    """Time the fine step and print a row for each number of steps and way of recomputing."""
    from c2fdft_cli.engine.tools.bench_fine import FineBenchOptions, bench_fine

    if options.compile:
        raise UsageError("--compile cannot be combined with --stage fine")
    wish = FineBenchOptions(
        recipe=options.recipe,
        runtime=options.runtime,
        size=options.size,
        batch=options.batch,
        calls=parse_numbers("--calls", calls, "1,2,4"),
        recompute=split_words(recompute),
        repeats=options.repeats,
    )
    result = console.draw(bench_fine(wish), lambda seconds: f"{seconds:.3f} s")
    if json:
        console.emit(result)
        return
    _show(result)


def _show(result: FineBenchResult) -> None:
    columns = ("steps", "recompute", "s / iteration", "/ none", "held", "/ none", "after forward")
    rows = [
        (
            row.calls,
            row.recompute,
            row.seconds,
            row.time_ratio,
            console.megabytes(row.held),
            row.held_ratio,
            console.megabytes(row.after_forward),
        )
        for row in result.rows
    ]
    title = f"{result.batch} x {result.size} px, {result.device}, {result.precision}"
    console.table(title, columns, rows)
