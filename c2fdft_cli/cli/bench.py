"""`c2fdft bench`."""

from __future__ import annotations

from typing import Annotated

import typer

from c2fdft_cli.cli import console
from c2fdft_cli.cli.options import Device, Json, Precision, Shards


def bench(
    part: Annotated[str, typer.Argument(help="forward, train-step, restore or loader.")],
    recipe: Annotated[
        str, typer.Option("--recipe", metavar="NAME|FILE", help="Whose network to time.")
    ] = "derain",
    size: Annotated[int, typer.Option("--size", help="Side of the input in px.", min=8)] = 256,
    batch: Annotated[int, typer.Option("--batch", help="Images at once.", min=1)] = 1,
    steps: Annotated[int, typer.Option("--steps", help="Calls of restore.", min=1)] = 4,
    repeats: Annotated[int, typer.Option("--repeats", help="Counted runs.", min=1)] = 5,
    compile: Annotated[bool, typer.Option("--compile", help="With torch.compile.")] = False,
    data: Shards = None,
    device: Device = "auto",
    precision: Precision = "auto",
    json: Json = False,
) -> None:
    """Time a part on this machine, beside the rate of its matrix products.

    Example: c2fdft bench forward --size 256 --precision bf16
    """
    from c2fdft_cli.engine.bench import BenchOptions
    from c2fdft_cli.engine.bench import bench as start
    from c2fdft_cli.engine.runtime import make_runtime
    from c2fdft_cli.errors import UsageError
    from c2fdft_cli.recipe_files import load_recipe

    if size % 8 and part != "restore":
        raise UsageError("a multiple of 8", where=f"--size {size}", hint="256")
    options = BenchOptions(
        part=part,
        recipe=load_recipe(recipe),
        runtime=make_runtime(device, precision),
        size=size,
        batch=batch,
        steps=steps,
        repeats=repeats,
        compile=compile,
        data=data,
    )
    result = console.draw(start(options), lambda seconds: f"{seconds:.3f} s")
    if json:
        console.emit(result)
        return
    rows = [(key.replace("_", " "), value) for key, value in vars(result).items()]
    rows[-1] = ("peak memory", console.megabytes(result.peak_memory))
    console.table("", ("what", "value"), rows)
