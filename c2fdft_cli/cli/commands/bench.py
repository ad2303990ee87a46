"""`c2fdft bench`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from c2fdft_cli.cli import console
from c2fdft_cli.cli.options import Json, Weights, recipe_names, takes_settings, weights_file
from c2fdft_cli.engine.tools.bench_options import BenchOptions
from c2fdft_cli.errors import ResourceError
from c2fdft_cli.words import binary_size

if TYPE_CHECKING:
    from c2fdft_cli.engine.tools.bench import BenchResult
    from c2fdft_cli.recipe.schema import Recipe


@takes_settings
def bench(
    part: Annotated[
        str,
        typer.Argument(
            metavar="PART", help="What to time: forward, train-step, restore or loader."
        ),
    ],
    *,
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe",
            metavar="NAME|FILE",
            help="Recipe to time; with --weights, the network is theirs.",
            autocompletion=recipe_names,
        ),
    ] = "derain",
    weights: Weights = None,
    options: BenchOptions,
    json: Json = False,
) -> None:
    """Measure the speed of this machine: network, training step, restoring, data loading.

    The parts that compute are also compared with the speed of matrix products on this machine.

    Example: c2fdft bench forward --size 256 --precision bf16
    """
    with console.loading():
        from c2fdft_cli.engine.tools.bench import bench as start
        from c2fdft_cli.execution.device import make_runtime

    timed = _recipe(recipe, None if weights is None else weights_file(weights, json))
    runtime = make_runtime(options.device, options.precision)
    with _memory_named(options):
        result = console.draw(start(options, timed, runtime), _seconds)
    console.emit(result) if json else _show(result)


@contextmanager
def _memory_named(options: BenchOptions) -> Iterator[None]:
    """Turn an out-of-memory error into a ResourceError that names the part and its sizes."""
    from c2fdft_cli.execution.memory import is_out_of_memory

    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        sizes = f"--size {options.size} and --batch {options.batch}"
        what = f"{options.part} does not fit into memory with {sizes}"
        raise ResourceError(what, hint="try smaller values") from error


def _seconds(seconds: float) -> str:
    return f"{seconds:.3f} s"


def _show(result: BenchResult) -> None:
    rows = [(key.replace("_", " "), value) for key, value in vars(result).items()]
    rows[-1] = ("peak memory", binary_size(result.peak_memory))
    console.table("", ("what", "value"), rows)


def _recipe(name: str, weights: Path | None) -> Recipe:
    """Load the recipe; if weights are given, with the network of the weights."""
    from dataclasses import replace

    from c2fdft_cli.engine.weights.checkpoint import load_checkpoint
    from c2fdft_cli.recipe.files import load_recipe

    recipe = load_recipe(name)
    if weights is None:
        return recipe
    return replace(recipe, network=load_checkpoint(weights).meta.network)
