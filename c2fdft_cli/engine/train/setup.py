"""Plan a training by its options: checks recipe, device, checkpoint and data."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from c2fdft_cli.data.shards.reader import ShardSet
from c2fdft_cli.engine.sampling.pairs import settings_without_effect
from c2fdft_cli.engine.sampling.subject import weights_digest
from c2fdft_cli.engine.train.folder import RunFolder, auto_run, find_run, new_run
from c2fdft_cli.engine.train.options import TrainOptions
from c2fdft_cli.engine.train.plan import TrainPlan
from c2fdft_cli.engine.train.state import StateToResume, load_newest
from c2fdft_cli.engine.train.step.memory import choose_recompute
from c2fdft_cli.engine.weights.build import (
    alpha_bar_of_recipe,
    refuse_lost_image,
    timesteps_of_recipe,
)
from c2fdft_cli.engine.weights.checkpoint import Checkpoint, load_checkpoint, recipe_in, versions
from c2fdft_cli.errors import CheckpointError, DataError, RecipeError, UsageError
from c2fdft_cli.execution.device import GPU_ONLY, Runtime, make_runtime, with_precision
from c2fdft_cli.execution.distributed import (
    agree_on_precision,
    join_training,
    refuse_tasks_without_rank,
)
from c2fdft_cli.recipe.files import (
    dotted,
    load_recipe,
    recipe_from_dict,
    stated,
    stated_keys,
    write_recipe,
)
from c2fdft_cli.recipe.schema import Recipe, Stage
from c2fdft_cli.vocabulary import TrainedStage

MAX_NAME = 80
_TIMES = ("grid", "steps", "spacing")
"""The keys of `sampling` that choose its timesteps."""
_KEYS_OF_TIMESTEPS = frozenset(f"sampling.{key}" for key in _TIMES)

MAY_CHANGE = {
    "iterations": "length of the training; even a finished run can be extended",
    "periods": "the learning rate over these iterations",
    "recompute": "trades time for memory",
    "train.micro_batch": "trades time for memory",
    "train.compile": "speed",
    "train.precision": "has no effect if --precision was given when the run was started",
    "train.log_every": "how often metrics.csv gets a row",
    "train.save_every": "how often the state is saved",
    "train.validate_every": "how often the validation images are scored",
    "train.keep": "how many checkpoints are kept",
    "train.tensorboard": "whether TensorBoard files are written",
    "train.max_bad_steps": "how many bad steps in a row end the run",
    "data.workers": "number of processes that read the data",
    "data.shards": "the same shards in another folder",
    "data.streaks": "the same streak masks in another folder",
}
"""Keys that may change when a run is resumed; those without a section are of the run's stage."""


def set_up(options: TrainOptions) -> TrainPlan:
    """Check the options, in the order usage, recipe, device, checkpoint, data; return the plan.

    Raises:
        UsageError, RecipeError, ResourceError, CheckpointError, DataError: the first problem found.
    """
    refuse_tasks_without_rank()
    if options.resume and options.resume_auto:
        raise UsageError("--resume cannot be combined with --resume-auto")
    named = None if options.recipe is None else Path(options.recipe).stem
    if options.resume:
        if options.init is not None:
            raise UsageError(
                "--resume keeps the run's weights, so it cannot be combined with --from or --init",
                hint="--resume-auto accepts the command line that started the run",
            )
        return _resumed(options, find_run(options.out, named, options.stage))
    if options.resume_auto:
        # A checkpoint is opened only if the recipe's name has to come from it: a run that resumes
        # does not need the weights that it started from.
        init = None if options.init is None or named else load_checkpoint(options.init)
        run = auto_run(options.out, _recipe_name(options, init), options.stage)
        if run.has_state():
            return _resumed(options, run)
        options = replace(options, out=run.path)
    return _begun(options)


def _begun(options: TrainOptions) -> TrainPlan:
    """Return the plan of a new run."""
    recipe = None if options.recipe is None else load_recipe(options.recipe, options.overrides)
    if options.init is None and recipe is not None:
        _data(options, recipe, None)  # a missing --data is reported first
    runtime = make_runtime(options.device, options.precision)
    join_training(runtime)
    init = None if options.init is None else load_checkpoint(options.init)
    notices: tuple[str, ...] = ()
    if init is not None:
        recipe, notices = _recipe_with(init, recipe, options)
    if recipe is None:
        raise RecipeError("--recipe is missing", hint="`c2fdft recipes list` shows the recipes")
    if options.precision == "auto":  # the recipe decides, even if it is the checkpoint's
        runtime = with_precision(runtime, recipe.train.precision, "train.precision")
    runtime = agree_on_precision(runtime)
    data = _data(options, recipe, init)
    _check_shards(data)
    name = _recipe_name(options, init)
    timesteps, about_timesteps = _timesteps(options, recipe, init)
    refuse_lost_image(timesteps, alpha_bar_of_recipe(recipe.diffusion))
    # The run's recipe states the timesteps and shards in use, so that it describes the run fully.
    recipe = replace(
        recipe,
        sampling=replace(recipe.sampling, steps=len(timesteps), grid=timesteps),
        data=replace(recipe.data, shards=str(data)),
    )
    keys = stated_keys(options.recipe, options.overrides)
    return TrainPlan(
        stage=options.stage,
        recipe=recipe,
        recipe_name=name,
        data=data,
        run=new_run(options.out, name, options.stage),
        section=_section(recipe, options.stage, len(timesteps), runtime),
        runtime=runtime,
        precision=options.precision,
        timesteps=timesteps,
        init=init,
        started_from="" if init is None else weights_digest(init),
        max_seconds=options.max_seconds,
        files={
            "recipe.yaml": write_recipe(recipe),
            "env.json": _environment(options.stage, name, runtime),
        },
        notices=notices + about_timesteps + settings_without_effect(recipe.data, keys),
    )


def _resumed(options: TrainOptions, run: RunFolder) -> TrainPlan:
    """Return the plan of a resumed run, made from its state and the changes requested."""
    # Taken before the state is read, so that a state which another process renames into place
    # during the reading is noticed too.
    stamp = run.state_stamp()
    path, state, notices = load_newest(run)
    meta = state.meta
    if meta.stage == "released" or meta.recipe is None or meta.data is None or meta.grid is None:
        what = "the state lacks the stage, the recipe, the data or the timesteps"
        raise CheckpointError(what, where=path)
    if meta.stage != options.stage:
        raise UsageError(
            f"train-{options.stage} cannot resume a {meta.stage} run",
            where=run.path,
            hint=f"use train-{meta.stage} --resume",
        )
    own = recipe_in(meta.recipe, (), path)
    recipe, changes = _changed_recipe(options, own, run, meta.data)
    if options.recipe is None:
        notices += _edited_copy(run, own)
    notices += _other_start(options.init, state.started_from)
    iterations = recipe.section(options.stage).iterations
    if iterations < state.step:
        raise UsageError(
            f"{options.stage}.iterations={iterations} is less than the {state.step} iterations "
            "that are done",
            where=run.path,
        )
    data = Path(recipe.data.shards or meta.data)
    runtime = make_runtime(options.device, options.precision)
    join_training(runtime)
    requested = state.precision if options.precision == "auto" else options.precision
    wanted = recipe.train.precision if requested == "auto" else requested
    # A run in a precision that only GPUs have can resume on a CPU; the notice below reports it.
    if options.precision == "auto" and not (wanted in GPU_ONLY and runtime.device.type == "cpu"):
        runtime = with_precision(runtime, wanted, f"the precision in {path}")
    runtime = agree_on_precision(runtime)
    _check_shards(data)
    notices += tuple(f"resuming with {change}" for change in changes)
    if state.computed_in not in (None, runtime.precision):
        notices += (f"the run resumes in {runtime.precision}; it was in {state.computed_in}",)
    if iterations == state.step and not state.unscored:
        notices += (f"the run is finished: {state.step} of {iterations} iterations are done",)
    return TrainPlan(
        stage=options.stage,
        recipe=recipe,
        section=_section(recipe, options.stage, len(meta.grid), runtime),
        recipe_name=meta.recipe_name or "run",
        data=data,
        run=run,
        runtime=runtime,
        precision=requested,
        timesteps=meta.grid,
        started_from=state.started_from,
        resume=StateToResume(path, stamp, state),
        done=state.step,
        max_seconds=options.max_seconds,
        files={"recipe.yaml": write_recipe(recipe)}
        if changes or requested != state.precision
        else {},
        notices=notices,
    )


def _section(recipe: Recipe, stage: TrainedStage, calls: int, runtime: Runtime) -> Stage:
    """Return the recipe's section of the stage, with a choice instead of `fine.recompute: auto`.

    On CUDA the choice depends on the memory that is free now and on kernels that are timed, so it
    is made once, after the checks. `calls` is the number of sampling steps.
    """
    if stage == "coarse":
        return recipe.coarse
    way = choose_recompute(recipe.network, recipe.fine, calls, recipe.train.compile, runtime)
    return replace(recipe.fine, recompute=way)


def _changed_recipe(
    options: TrainOptions, own: Recipe, run: RunFolder, data: str
) -> tuple[Recipe, list[str]]:
    """Apply the changes requested to the run's recipe; return it with a text for each change.

    If the options name a recipe, it is compared with the run's key by key; all keys of the other
    stage may differ. Its `data.shards` is the folder to use: `data`, unless another is given.

    Raises:
        UsageError: keys differ that may not change; the message lists all of them.
    """
    if options.recipe is None:
        requested = recipe_from_dict(own.to_dict(), options.overrides, where=str(run.path))
    else:
        requested = load_recipe(options.recipe, options.overrides)
        if options.init is not None:  # the weights that the run started from decide these
            requested = replace(requested, network=own.network, diffusion=own.diffusion)
    if _same_timesteps(options, own, requested):
        times = {key: getattr(own.sampling, key) for key in _TIMES}
        requested = replace(requested, sampling=replace(requested.sampling, **times))
    named = options.recipe is not None or "data.shards" in stated(options.overrides)
    shards = options.data or Path((named and requested.data.shards) or data)
    requested = replace(requested, data=replace(requested.data, shards=str(shards)))
    changes = _differences(own, requested)
    other = "fine." if options.stage == "coarse" else "coarse."
    fixed = [
        f"{key}: {old} in the run, {new} requested"
        for key, (old, new) in changes.items()
        if not (key in MAY_CHANGE or key.startswith(other))
        and key.removeprefix(f"{options.stage}.") not in MAY_CHANGE
    ]
    if fixed:
        # The recipe may have changed since the run began, with a newer version of the program.
        own_recipe = f"--resume --out {run.path} without --recipe keeps the run's own; or "
        raise UsageError(
            "--resume keeps the run's recipe, but the requested recipe differs from it",
            where=run.path,
            details=fixed,
            hint=("" if options.recipe is None else own_recipe)
            + "start a new run from its weights with --init; docs/training.md, Changing a run, "
            "lists what may change",
        )
    return requested, [f"{key} {new}, was {old}" for key, (old, new) in changes.items()]


def _edited_copy(run: RunFolder, own: Recipe) -> tuple[str, ...]:
    """Report that the recipe.yaml in the run's folder is not the run's recipe any more."""
    path = run.path / "recipe.yaml"
    if not path.is_file():
        return ()
    try:
        copy = load_recipe(str(path))
        # The path of the shards is not compared, because not every path can be stored as text.
        copy = replace(copy, data=replace(copy.data, shards=own.data.shards))
        differs = [
            f"{key} {new} (in the run {old})" for key, (old, new) in _differences(own, copy).items()
        ]
    except RecipeError as error:
        differs = [error.what]
    if not differs:
        return ()
    notice = f"{path} is a copy of the run's recipe, and changes in it have no effect: "
    return (notice + ", ".join(differs),)


def _other_start(given: Path | None, started_from: str | None) -> tuple[str, ...]:
    """Report that the given weights are not those that the run started from, if that is known."""
    if given is None or started_from is None:
        return ()
    try:
        same = weights_digest(load_checkpoint(given)) == started_from
    except CheckpointError:  # a run that resumes does not need the weights that it started from
        same = True
    if same:
        return ()
    what = f"the run did not start from {given}, so these weights are not used"
    return (f"{what}; another --out starts a run from them",)


def _same_timesteps(options: TrainOptions, own: Recipe, requested: Recipe) -> bool:
    """Whether the options keep the timesteps: equal ones, or none stated for given weights."""
    requested_keys = _KEYS_OF_TIMESTEPS & stated(options.overrides).keys()
    if options.stage == "fine" and options.init is not None and not requested_keys:
        return True
    try:
        return timesteps_of_recipe(requested.sampling, requested.diffusion) == own.sampling.grid
    except ValueError:  # the diffusion is that of given weights, which may have fewer timesteps
        return False


def _differences(old: Recipe, new: Recipe) -> dict[str, tuple[str, str]]:
    """Return the values that differ, as on the command line, by dotted key: (old, new)."""
    ours, theirs = dotted(old.to_dict()), dotted(new.to_dict())
    pairs = {key: (ours.get(key), theirs.get(key)) for key in sorted(ours.keys() | theirs.keys())}
    return {
        key: (json.dumps(one), json.dumps(other))
        for key, (one, other) in pairs.items()
        if one != other
    }


def _recipe_with(
    init: Checkpoint, recipe: Recipe | None, options: TrainOptions
) -> tuple[Recipe, tuple[str, ...]]:
    """Return the requested recipe, or the checkpoint's, with the network of the checkpoint.

    Network and diffusion are those of the weights; if the recipe differs, a notice reports it.
    """
    if recipe is None:
        recipe = init.recipe(options.overrides)
    if recipe is None:
        raise RecipeError(
            "this checkpoint contains no recipe", where=init.path, hint="name one with --recipe"
        )
    own = replace(recipe, network=init.meta.network, diffusion=init.meta.diffusion)
    requested = [
        one
        for one in options.overrides
        if any(key.startswith(("network.", "diffusion.")) for key in stated([one]))
    ]
    if requested and own != recipe:
        raise RecipeError(
            f"{' '.join(requested)} differs from the network and diffusion of the given weights",
            hint="remove the override, or train without --from and --init",
        )
    differs = [
        f"{key} {new} (recipe: {old})" for key, (old, new) in _differences(recipe, own).items()
    ]
    if not differs:
        return own, ()
    notice = f"the network is that of {init.path.name}, not the recipe's: {', '.join(differs)}"
    return own, (notice,)


def _timesteps(
    options: TrainOptions, recipe: Recipe, init: Checkpoint | None
) -> tuple[list[int], tuple[str, ...]]:
    """Return the timesteps (from overrides, the checkpoint or the recipe, in this order), notices.

    Only the fine stage uses the checkpoint's timesteps.

    Raises:
        RecipeError: the timesteps are not among those of the given weights' diffusion.
    """
    requested = _KEYS_OF_TIMESTEPS & stated(options.overrides).keys()
    given = None
    if init is not None and options.stage == "fine" and not requested:
        given = init.meta.grid
    if given is not None and options.recipe is None:
        return given, ()
    try:
        timesteps = timesteps_of_recipe(recipe.sampling, recipe.diffusion)
    except ValueError as error:  # a named recipe is for its own diffusion, not for the weights'
        misfit = f"do not fit the diffusion of the given weights: {error}"
        if given is None:
            hint = f"give timesteps below {recipe.diffusion.timesteps} with sampling.grid"
            raise RecipeError(f"the recipe's timesteps {misfit}", hint=hint) from error
        return given, (f"sampling at the checkpoint's timesteps {given}; the recipe's {misfit}",)
    if given in (None, timesteps):
        return timesteps, ()
    own = ",".join(map(str, timesteps))
    notice = (
        f"sampling at the checkpoint's timesteps {given}; sampling.grid=[{own}] uses the recipe's"
    )
    return given, (notice,)


def _recipe_name(options: TrainOptions, init: Checkpoint | None) -> str:
    """Return the recipe's name, which the run folder is named after, or "run" if it has none."""
    if options.recipe is not None:
        return Path(options.recipe).stem
    name = None if init is None else init.meta.recipe_name
    # The checkpoint may come from elsewhere, and a name that is a path would lead out of runs/.
    usable = name and name.isprintable() and not set(name) & set("/\\:") and len(name) <= MAX_NAME
    return name if name and usable else "run"


def _data(options: TrainOptions, recipe: Recipe, init: Checkpoint | None) -> Path:
    """Return the shard folder: --data, or else the recipe's, or else the checkpoint's.

    Raises:
        UsageError: none of them names a folder.
        DataError: the checkpoint's folder is missing, or holds other images than then.
    """
    if options.data is not None:
        return options.data
    named = "data.shards" in stated(options.overrides)
    if recipe.data.shards is not None and (named or options.recipe is not None):
        return Path(recipe.data.shards)
    if init is None or init.meta.data is None:
        raise UsageError(
            "--data is missing", hint="give the shard folder that `c2fdft prepare` wrote"
        )
    data = Path(init.meta.data)
    _check_shards(data)
    init.refuse_other_data(ShardSet.open(data, "train"))
    return data


def _check_shards(data: Path) -> None:
    # The hint mentions --data because the path may come from a checkpoint, a state or a recipe,
    # where it may be relative to the folder that an earlier command ran in.
    hint = "name shards made by `c2fdft prepare` with --data"
    if not data.is_dir():
        raise DataError("no such folder of shards", where=data, hint=hint)
    if not any(data.glob("train-*.h5")):
        raise DataError("no training shards in this folder", where=data, hint=hint)


def _environment(stage: TrainedStage, recipe_name: str, runtime: Runtime) -> str:
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
