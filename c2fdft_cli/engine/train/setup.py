"""From a request to what a training needs: recipe, device, checkpoint, data, in this order."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from c2fdft_cli.engine.train.folder import find_run, new_run
from c2fdft_cli.engine.train.options import TrainOptions
from c2fdft_cli.engine.train.request import TrainRequest
from c2fdft_cli.engine.train.state import load_state
from c2fdft_cli.engine.weights.build import timesteps_of_recipe
from c2fdft_cli.engine.weights.checkpoint import Checkpoint, Meta, load_checkpoint, versions
from c2fdft_cli.errors import CheckpointError, DataError, RecipeError, UsageError
from c2fdft_cli.execution.device import GPU_ONLY, Runtime, make_runtime, with_precision
from c2fdft_cli.execution.distributed import join_training
from c2fdft_cli.recipe.files import load_recipe, recipe_from_dict, write_recipe
from c2fdft_cli.recipe.schema import Recipe

ON_RESUME = ("train.micro_batch", "data.workers")
"""What a resumed run may change: it changes nothing but rounding."""


def set_up(request: TrainRequest) -> TrainOptions:
    """Check a request in the order usage, recipe, device, checkpoint, data.

    Raises:
        RecipeError, ResourceError, CheckpointError, DataError: whichever is met first.
    """
    if request.resume:
        return _resumed(request)
    recipe = None if request.recipe is None else load_recipe(request.recipe, request.overrides)
    if request.init is None and recipe is not None:
        _data(request, recipe, None)  # a missing --data is reported first
    runtime = make_runtime(request.device, request.precision)
    join_training(runtime)
    init = None if request.init is None else load_checkpoint(request.init)
    if init is not None:
        recipe = _recipe_with(init, recipe, request)
    if recipe is None:
        raise RecipeError("--recipe is missing", hint="`c2fdft recipes list` shows the recipes")
    if request.precision == "auto":  # the recipe has its say, be it the checkpoint's
        runtime = with_precision(runtime, recipe.train.precision, "train.precision")
    data = _data(request, recipe, init)
    _check_shards(data)
    name = _recipe_name(request, init)
    grid, notices = _grid(request, recipe, init)
    recipe = replace(
        recipe,
        sampling=replace(recipe.sampling, steps=len(grid), grid=grid),
        data=replace(recipe.data, shards=str(data)),
    )
    return TrainOptions(
        stage=request.stage,
        recipe=recipe,
        recipe_name=name,
        data=data,
        run=new_run(request.out, name, request.stage),
        runtime=runtime,
        precision=request.precision,
        grid=grid,
        init=init,
        max_seconds=request.max_seconds,
        files={"recipe.yaml": write_recipe(recipe), "env.json": _environment(runtime)},
        notices=notices,
    )


def _resumed(request: TrainRequest) -> TrainOptions:
    """The options of a run that goes on: its own recipe, data and grid."""
    fixed = [o for o in request.overrides if o.split("=")[0] not in ON_RESUME]
    if fixed or request.init is not None:
        raise UsageError(
            "--resume keeps the run's recipe and weights, so it cannot be combined with "
            + (" ".join(fixed) if fixed else "--from"),
            hint=f"only {' and '.join(ON_RESUME)} may change; start a new run with --init",
        )
    wanted = None if request.recipe is None else Path(request.recipe).stem
    run = find_run(request.out, wanted, request.stage)
    state = load_state(run.state)
    meta = state.meta
    if meta.recipe is None or meta.data is None or meta.grid is None:
        raise CheckpointError("the state names no recipe, data or timesteps", where=run.state)
    if meta.stage != request.stage:
        raise UsageError(
            f"train-{request.stage} cannot resume a {meta.stage} run",
            where=run.path,
            hint=f"use train-{meta.stage} --resume",
        )
    recipe = recipe_from_dict(meta.recipe, request.overrides, where=str(run.state))
    data = request.data or Path(meta.data)
    runtime = make_runtime(request.device, request.precision)
    join_training(runtime)
    asked = state.precision if request.precision == "auto" else request.precision
    stated = recipe.train.precision if asked == "auto" else asked
    # a precision of a GPU is no reason not to resume here; the notice below says so
    if request.precision == "auto" and not (stated in GPU_ONLY and runtime.device.type == "cpu"):
        runtime = with_precision(runtime, stated, f"the precision in {run.state}")
    _check_shards(data)
    notices: tuple[str, ...] = ()
    if state.computed_in not in (None, runtime.precision):
        notices = (f"the run resumes in {runtime.precision}; it was in {state.computed_in}",)
    return TrainOptions(
        stage=request.stage,
        recipe=recipe,
        recipe_name=meta.recipe_name or "run",
        data=data,
        run=run,
        runtime=runtime,
        precision=asked,
        grid=meta.grid,
        resume=True,
        max_seconds=request.max_seconds,
        notices=notices,
    )


def _recipe_with(init: Checkpoint, recipe: Recipe | None, request: TrainRequest) -> Recipe:
    """The recipe asked for, else the checkpoint's, with the network that the weights are for."""
    if recipe is None:
        recipe = init.recipe(request.overrides)
    if recipe is None:
        raise RecipeError(
            "this checkpoint carries no recipe", where=init.path, hint="name one with --recipe"
        )
    own = replace(recipe, network=init.meta.network, diffusion=init.meta.diffusion)
    asked = [o for o in request.overrides if o.split(".")[0] in ("network", "diffusion")]
    if asked and own != recipe:
        raise RecipeError(
            f"{' '.join(asked)} differs from the network and diffusion of the given weights",
            hint="remove the override, or train without --from and --init",
        )
    return own


def _grid(
    request: TrainRequest, recipe: Recipe, init: Checkpoint | None
) -> tuple[list[int], tuple[str, ...]]:
    """The sampling times: overrides first, then the checkpoint's, then the recipe's."""
    times = ("sampling.grid=", "sampling.steps=", "sampling.spacing=")
    asked = any(override.startswith(times) for override in request.overrides)
    stated = timesteps_of_recipe(recipe.sampling, recipe.diffusion)
    given = None if init is None else init.meta.grid
    if asked or given is None or request.stage != "fine" or given == stated:
        return stated, ()
    if request.recipe is None:
        return given, ()
    own = ",".join(map(str, stated))
    notice = (
        f"sampling at the checkpoint's timesteps {given}; sampling.grid=[{own}] takes the recipe's"
    )
    return given, (notice,)


def _recipe_name(request: TrainRequest, init: Checkpoint | None) -> str:
    if request.recipe is not None:
        return Path(request.recipe).stem
    meta: Meta | None = None if init is None else init.meta
    return (meta.recipe_name if meta is not None else None) or "run"


def _data(request: TrainRequest, recipe: Recipe, init: Checkpoint | None) -> Path:
    """The shards asked for, else those in the recipe, else those the checkpoint was trained on."""
    if request.data is not None:
        return request.data
    named = any(override.startswith("data.shards=") for override in request.overrides)
    if recipe.data.shards is not None and (named or request.recipe is not None):
        return Path(recipe.data.shards)
    if init is None or init.meta.data is None:
        raise UsageError(
            "--data is missing", hint="give the shard folder that `c2fdft prepare` wrote"
        )
    return Path(init.meta.data)


def _check_shards(data: Path) -> None:
    if not data.is_dir() or not any(data.glob("train-*.h5")):
        raise DataError(
            "no training shards in this folder", where=data, hint="run c2fdft prepare SRC"
        )


def _environment(runtime: Runtime) -> str:
    return json.dumps(
        {
            "versions": versions(),
            "command": sys.argv,
            "device": str(runtime.device),
            "device_name": torch.cuda.get_device_name(runtime.device)
            if runtime.device.type == "cuda"
            else "cpu",
            "precision": runtime.precision,
            "processes": runtime.world,
            "threads": torch.get_num_threads(),
        },
        indent=1,
    )
