"""`c2fdft bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from c2fdft_cli.cli import console
from c2fdft_cli.cli.options import Device, Json, Precision, Shards, Weights, weights_file

if TYPE_CHECKING:
    from c2fdft_cli.recipe.schema import Recipe


def bench(
    part: Annotated[str, typer.Argument(help="forward, train-step, restore or loader.")],
    recipe: Annotated[
        str, typer.Option("--recipe", metavar="NAME|FILE", help="Recipe of the network to time.")
    ] = "derain",
    weights: Weights = None,
    size: Annotated[
        int, typer.Option("--size", help="Side of the input in px, a multiple of 8.", min=8)
    ] = 256,
    batch: Annotated[int, typer.Option("--batch", help="Images per batch.", min=1)] = 1,
    steps: Annotated[int, typer.Option("--steps", help="Sampling steps of restore.", min=1)] = 4,
    repeats: Annotated[int, typer.Option("--repeats", help="Timed runs.", min=1)] = 5,
    compile: Annotated[bool, typer.Option("--compile", help="Use torch.compile.")] = False,
    data: Shards = None,
    stage: Annotated[
        str, typer.Option("--stage", help="Stage of train-step: coarse or fine.")
    ] = "coarse",
    calls: Annotated[
        str,
        typer.Option(
            "--calls",
            metavar="N,...",
            help="Sampling steps of the fine stage, separated by commas.",
        ),
    ] = "4",
    recompute: Annotated[
        str,
        typer.Option(
            "--recompute",
            metavar="WAY,...",
            help="Recomputation in the fine stage: none, call, level.",
        ),
    ] = "none,call",
    device: Device = "auto",
    precision: Precision = "auto",
    json: Json = False,
) -> None:
    """Time a part on this machine, relative to its matrix products.

    The fine training step is timed for each number of sampling steps and way of recomputing, with
    the bytes that it holds.

    Example: c2fdft bench forward --size 256 --precision bf16
    """
    from c2fdft_cli.engine.tools.bench import BenchOptions
    from c2fdft_cli.engine.tools.bench import bench as start
    from c2fdft_cli.errors import UsageError
    from c2fdft_cli.execution.device import make_runtime

    if size % 8 and part != "restore":
        raise UsageError(f"--size must be a multiple of 8, got {size}", hint="try --size 256")
    if stage not in ("coarse", "fine") or (stage == "fine" and part != "train-step"):
        hint = "only train-step has two stages: coarse and fine"
        raise UsageError(f"--stage {stage} cannot be used with {part}", hint=hint)
    options = BenchOptions(
        part=part,
        recipe=_recipe(recipe, None if weights is None else weights_file(weights, json)),
        runtime=make_runtime(device, precision),
        size=size,
        batch=batch,
        steps=steps,
        repeats=repeats,
        compile=compile,
        data=data,
    )
    if stage == "fine":
        from c2fdft_cli.cli.bench_fine import time_fine

        time_fine(options, calls, recompute, json)
        return
    result = console.draw(start(options), lambda seconds: f"{seconds:.3f} s")
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
