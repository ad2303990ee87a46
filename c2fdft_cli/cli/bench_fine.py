"""`c2fdft bench train-step --stage fine`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from c2fdft_cli.cli import console

if TYPE_CHECKING:
    from c2fdft_cli.engine.tools.bench_fine import FineBenchResult
    from c2fdft_cli.engine.tools.bench_options import BenchOptions
    from c2fdft_cli.execution.device import Runtime
    from c2fdft_cli.recipe.schema import Recipe


def time_fine(options: BenchOptions, recipe: Recipe, runtime: Runtime, json: bool) -> None:
    """Time the fine step and print a row for each number of steps and way of recomputing."""
    from c2fdft_cli.engine.tools.bench_fine import bench_fine

    result = console.draw(bench_fine(options, recipe, runtime), lambda seconds: f"{seconds:.3f} s")
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
