"""From a request to what a training needs: recipe, device, checkpoint, data, in this order."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from c2fdft_cli.engine.train.folder import RunFolder, auto_run, find_run, new_run
from c2fdft_cli.engine.train.options import TrainOptions
from c2fdft_cli.engine.train.request import TrainRequest
from c2fdft_cli.engine.train.state import load_newest
from c2fdft_cli.engine.weights.build import (
    alpha_bar_of_recipe,
    refuse_lost_image,
    timesteps_of_recipe,
)
from c2fdft_cli.engine.weights.checkpoint import Checkpoint, load_checkpoint, versions
from c2fdft_cli.errors import CheckpointError, DataError, RecipeError, UsageError
from c2fdft_cli.execution.device import GPU_ONLY, Runtime, make_runtime, with_precision
from c2fdft_cli.execution.distributed import (
    agree_on_precision,
    join_training,
    refuse_tasks_without_rank,
)
from c2fdft_cli.recipe.files import dotted, load_recipe, recipe_from_dict, stated, write_recipe
from c2fdft_cli.recipe.schema import Recipe

MAX_NAME = 80
_TIMES = frozenset({"sampling.grid", "sampling.steps", "sampling.spacing"})

MAY_CHANGE = {
    "iterations": "how far to train; it can be extended, of a finished run too",
    "periods": "the learning rate over these iterations",
    "recompute": "memory for time",
    "train.micro_batch": "memory for time",
    "train.compile": "speed",
    "train.precision": "unless --precision was given when the run began",
    "train.log_every": "how often metrics.csv gets a row",
    "train.save_every": "how often the state is saved",
    "train.validate_every": "how often it is scored",
    "train.keep": "how many checkpoints are kept",
    "train.tensorboard": "whether it writes for TensorBoard",
    "train.max_bad_steps": "how many bad steps in a row end it",
    "data.workers": "processes that read the data",
}
"""What may differ when a run resumes, `iterations` to `recompute` in the section of its stage."""


def set_up(request: TrainRequest) -> TrainOptions:
    """Check a request in the order usage, recipe, device, checkpoint, data.

    Raises:
        UsageError, RecipeError, ResourceError, CheckpointError, DataError: whichever is met first.
    """
    refuse_tasks_without_rank()
    if request.resume and request.resume_auto:
        raise UsageError("--resume cannot be combined with --resume-auto")
    named = None if request.recipe is None else Path(request.recipe).stem
    if request.resume:
        if request.init is not None:
            raise UsageError(
                "--resume keeps the run's weights, so it cannot be combined with --from or --init",
                hint="--resume-auto takes the line that began the run",
            )
        return _resumed(request, find_run(request.out, named, request.stage))
    if request.resume_auto:
        # not opened where a recipe is named: a run that goes on does not need what it began from
        init = None if request.init is None or named else load_checkpoint(request.init)
        run = auto_run(request.out, _recipe_name(request, init), request.stage)
        if run.state.is_file():
            return _resumed(request, run)
        request = replace(request, out=run.path)
    return _begun(request)


def _begun(request: TrainRequest) -> TrainOptions:
    """The options of a new run."""
    recipe = None if request.recipe is None else load_recipe(request.recipe, request.overrides)
    if request.init is None and recipe is not None:
        _data(request, recipe, None)  # a missing --data is reported first
    runtime = make_runtime(request.device, request.precision)
    join_training(runtime)
    init = None if request.init is None else load_checkpoint(request.init)
    notices: tuple[str, ...] = ()
    if init is not None:
        recipe, notices = _recipe_with(init, recipe, request)
    if recipe is None:
        raise RecipeError("--recipe is missing", hint="`c2fdft recipes list` shows the recipes")
    if request.precision == "auto":  # the recipe has its say, be it the checkpoint's
        runtime = with_precision(runtime, recipe.train.precision, "train.precision")
    runtime = agree_on_precision(runtime)
    data = _data(request, recipe, init)
    _check_shards(data)
    name = _recipe_name(request, init)
    grid, about_grid = _grid(request, recipe, init)
    refuse_lost_image(grid, alpha_bar_of_recipe(recipe.diffusion))
    # the timesteps in use, so that the run's recipe alone tells what it is trained for
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
        files={
            "recipe.yaml": write_recipe(recipe),
            "env.json": _environment(request.stage, name, runtime),
        },
        notices=notices + about_grid,
    )


def _resumed(request: TrainRequest, run: RunFolder) -> TrainOptions:
    """The options of a run that goes on: its own recipe, but for what may change, data and grid."""
    path, state, notices = load_newest(run)
    meta = state.meta
    if meta.recipe is None or meta.data is None or meta.grid is None:
        raise CheckpointError("the state names no recipe, data or timesteps", where=path)
    if meta.stage != request.stage:
        raise UsageError(
            f"train-{request.stage} cannot resume a {meta.stage} run",
            where=run.path,
            hint=f"use train-{meta.stage} --resume",
        )
    recipe, changes = _changed_recipe(request, recipe_from_dict(meta.recipe, (), str(path)), run)
    iterations = (recipe.coarse if request.stage == "coarse" else recipe.fine).iterations
    if iterations < state.step:
        raise UsageError(
            f"{request.stage}.iterations={iterations} is below the {state.step} that are done",
            where=run.path,
        )
    data = request.data or Path(str(stated(request.overrides).get("data.shards") or meta.data))
    runtime = make_runtime(request.device, request.precision)
    join_training(runtime)
    asked = state.precision if request.precision == "auto" else request.precision
    wanted = recipe.train.precision if asked == "auto" else asked
    # a precision of a GPU is no reason not to resume here; the notice below says so
    if request.precision == "auto" and not (wanted in GPU_ONLY and runtime.device.type == "cpu"):
        runtime = with_precision(runtime, wanted, f"the precision in {path}")
    runtime = agree_on_precision(runtime)
    _check_shards(data)
    notices += tuple(f"resuming with {change}" for change in changes)
    if state.computed_in not in (None, runtime.precision):
        notices += (f"the run resumes in {runtime.precision}; it was in {state.computed_in}",)
    if iterations == state.step and not state.unscored:
        notices += (f"the run is finished: {state.step} of {iterations} iterations are done",)
    return TrainOptions(
        stage=request.stage,
        recipe=recipe,
        recipe_name=meta.recipe_name or "run",
        data=data,
        run=run,
        runtime=runtime,
        precision=asked,
        grid=meta.grid,
        resume=path,
        done=state.step,
        max_seconds=request.max_seconds,
        files={"recipe.yaml": write_recipe(recipe)} if changes else {},
        notices=notices,
    )


def _changed_recipe(request: TrainRequest, own: Recipe, run: RunFolder) -> tuple[Recipe, list[str]]:
    """The run's recipe with what the request changes in it, and these changes in words.

    A recipe that is named is compared key by key: of the other stage everything may differ.

    Raises:
        UsageError: a key differs that decides the run; all are named.
    """
    if request.recipe is None:
        asked = recipe_from_dict(own.to_dict(), request.overrides, where=str(run.path))
    else:
        asked = load_recipe(request.recipe, request.overrides)
        if request.init is not None:  # what the weights have decided
            asked = replace(asked, network=own.network, diffusion=own.diffusion)
    if _same_timesteps(request, own, asked):
        asked = replace(asked, sampling=replace(own.sampling, eta=asked.sampling.eta))
    # shards may lie elsewhere by now: what counts is their fingerprint, compared once they are open
    asked = replace(asked, data=replace(asked.data, shards=own.data.shards))
    changes = _differences(own, asked)
    other = "fine." if request.stage == "coarse" else "coarse."
    fixed = [
        f"{key}: {_short(old)} in the run, {_short(new)} asked for"
        for key, (old, new) in changes.items()
        if not (key in MAY_CHANGE or key.startswith(other))
        and key.removeprefix(f"{request.stage}.") not in MAY_CHANGE
    ]
    if fixed:
        raise UsageError(
            "--resume keeps the run's recipe, from which the recipe asked for differs",
            where=run.path,
            details=fixed,
            hint="start a new run from its weights with --init; what may change stands in "
            "docs/training.md, Changing a run",
        )
    return asked, [f"{key} {_short(new)}, was {_short(old)}" for key, (old, new) in changes.items()]


def _same_timesteps(request: TrainRequest, own: Recipe, asked: Recipe) -> bool:
    """Whether the request leaves the timesteps as they are: those of given weights, or equal."""
    asked_for = _TIMES & stated(request.overrides).keys()
    if request.stage == "fine" and request.init is not None and not asked_for:
        return True
    return timesteps_of_recipe(asked.sampling, asked.diffusion) == own.sampling.grid


def _differences(old: Recipe, new: Recipe) -> dict[str, tuple[Any, Any]]:
    """(old, new) of every value that differs, by dotted key."""
    ours, theirs = dotted(old.to_dict()), dotted(new.to_dict())
    pairs = {key: (ours.get(key), theirs.get(key)) for key in sorted(ours.keys() | theirs.keys())}
    return {key: (one, other) for key, (one, other) in pairs.items() if one != other}


def _short(value: object) -> str:
    """A value of a recipe as it is written on the command line."""
    return json.dumps(value)


def _recipe_with(
    init: Checkpoint, recipe: Recipe | None, request: TrainRequest
) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe asked for, else the checkpoint's, with the network that the weights are for.

    Where these are not the network and diffusion of the recipe, a notice says so.
    """
    if recipe is None:
        recipe = init.recipe(request.overrides)
    if recipe is None:
        raise RecipeError(
            "this checkpoint carries no recipe", where=init.path, hint="name one with --recipe"
        )
    own = replace(recipe, network=init.meta.network, diffusion=init.meta.diffusion)
    asked = [one for one in request.overrides if _sections([one]) & {"network", "diffusion"}]
    if asked and own != recipe:
        raise RecipeError(
            f"{' '.join(asked)} differs from the network and diffusion of the given weights",
            hint="remove the override, or train without --from and --init",
        )
    differs = [
        f"{key} {_short(new)} (the recipe: {_short(old)})"
        for key, (old, new) in _differences(recipe, own).items()
    ]
    if not differs:
        return own, ()
    notice = f"the network is that of {init.path.name}, not the recipe's: {', '.join(differs)}"
    return own, (notice,)


def _sections(overrides: Sequence[str]) -> set[str]:
    """The sections of a recipe in which overrides state values."""
    return {key.partition(".")[0] for key in stated(overrides)}


def _grid(
    request: TrainRequest, recipe: Recipe, init: Checkpoint | None
) -> tuple[list[int], tuple[str, ...]]:
    """The sampling times: overrides first, then the checkpoint's, then the recipe's."""
    asked = _TIMES & stated(request.overrides).keys()
    grid = timesteps_of_recipe(recipe.sampling, recipe.diffusion)
    given = None if init is None else init.meta.grid
    if asked or given is None or request.stage != "fine" or given == grid:
        return grid, ()
    if request.recipe is None:
        return given, ()
    own = ",".join(map(str, grid))
    notice = (
        f"sampling at the checkpoint's timesteps {given}; sampling.grid=[{own}] takes the recipe's"
    )
    return given, (notice,)


def _recipe_name(request: TrainRequest, init: Checkpoint | None) -> str:
    """The recipe's name, which the run folder is named after; "run" where there is none to use."""
    if request.recipe is not None:
        return Path(request.recipe).stem
    name = None if init is None else init.meta.recipe_name
    # Others may have written the checkpoint: a name that is a path would lead out of runs/.
    usable = name and name.isprintable() and not set(name) & set("/\\:") and len(name) <= MAX_NAME
    return name if name and usable else "run"


def _data(request: TrainRequest, recipe: Recipe, init: Checkpoint | None) -> Path:
    """The shards asked for, else those in the recipe, else those the checkpoint was trained on."""
    if request.data is not None:
        return request.data
    named = "data.shards" in stated(request.overrides)
    if recipe.data.shards is not None and (named or request.recipe is not None):
        return Path(recipe.data.shards)
    if init is None or init.meta.data is None:
        raise UsageError(
            "--data is missing", hint="give the shard folder that `c2fdft prepare` wrote"
        )
    return Path(init.meta.data)


def _check_shards(data: Path) -> None:
    # A checkpoint, a state or a recipe may name it, as it was called from where a command ran then.
    hint = "name shards made by `c2fdft prepare` with --data"
    if not data.is_dir():
        raise DataError("no such folder of shards", where=data, hint=hint)
    if not any(data.glob("train-*.h5")):
        raise DataError("no training shards in this folder", where=data, hint=hint)


def _environment(stage: str, recipe_name: str, runtime: Runtime) -> str:
    return json.dumps(
        {
            "stage": stage,
            "recipe": recipe_name,
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
