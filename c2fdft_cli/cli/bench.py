"""`c2fdft bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from c2fdft_cli.cli import console
from c2fdft_cli.cli.options import Json, Weights, takes_settings, weights_file
from c2fdft_cli.engine.tools.bench_options import BenchOptions

if TYPE_CHECKING:
    from c2fdft_cli.recipe.schema import Recipe


@takes_settings
def bench(
    part: Annotated[str, typer.Argument(help="forward, train-step, restore or loader.")],
    *,
    recipe: Annotated[
        str, typer.Option("--recipe", metavar="NAME|FILE", help="Recipe of the network to time.")
    ] = "derain",
    weights: Weights = None,
    options: BenchOptions,
    json: Json = False,
) -> None:
    """Time a part on this machine, relative to its matrix products.

    The fine training step is timed for each number of sampling steps and way of recomputing, with
    the bytes that it holds.

    Example: c2fdft bench forward --size 256 --precision bf16
    """
    with console.loading():
        from c2fdft_cli.engine.tools.bench import bench as start
        from c2fdft_cli.execution.device import make_runtime

    timed = _recipe(recipe, None if weights is None else weights_file(weights, json))
    runtime = make_runtime(options.device, options.precision)
    if options.stage == "fine":
        from c2fdft_cli.cli.bench_fine import time_fine

        time_fine(options, timed, runtime, json)
        return
    job = start(options, timed, runtime)
    result = console.draw(job, lambda seconds: f"{seconds:.3f} s")
    if json:
        console.emit(result)
        return
    rows = [(key.replace("_", " "), value) for key, value in vars(result).items()]
    rows[-1] = ("peak memory", console.megabytes(result.peak_memory))
    console.table("", ("what", "value"), rows)


def _recipe(name: str, weights: Path | None) -> Recipe:
    """The recipe, with the network of the weights where some are named."""
    from dataclasses import replace

    from c2fdft_cli.engine.weights.checkpoint import load_checkpoint
    from c2fdft_cli.recipe.files import load_recipe

    recipe = load_recipe(name)
    if weights is None:
        return recipe
    return replace(recipe, network=load_checkpoint(weights).meta.network)
