"""`c2fdft train-coarse` and `c2fdft train-fine`: two commands, one loop."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from c2fdft_cli.cli import console
from c2fdft_cli.cli.options import Json, takes_settings, weights_file, weights_names
from c2fdft_cli.engine.train.options import RUN, TrainOptions
from c2fdft_cli.errors import CheckpointError, Interrupted, RecipeError, UsageError
from c2fdft_cli.vocabulary import TrainedStage
from c2fdft_cli.words import binary_size

if TYPE_CHECKING:
    from c2fdft_cli.engine.train.events import TrainResult
    from c2fdft_cli.engine.train.plan import TrainPlan

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="Values of the recipe to change, such as train.seed=1."
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Do not train; print the plan with estimated time, memory and disk."
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option(
        "--seed",
        metavar="N",
        help="Seed of all random numbers; the same as train.seed=N.",
        rich_help_panel=RUN,
    ),
]


@takes_settings
def train_coarse(
    *,
    overrides: Overrides = None,
    options: TrainOptions,
    init: Annotated[
        str | None,
        typer.Option(
            "--init",
            metavar="NAME|CKPT",
            help="Start from these weights: a checkpoint, or the name of packaged weights.",
            rich_help_panel=RUN,
            autocompletion=weights_names,
        ),
    ] = None,
    dry_run: DryRun = False,
    seed: SeedOption = None,
    json: Json = False,
) -> None:
    """Stage 1: train the network to predict noise.

    With --init training starts from these weights, and uses their recipe unless --recipe is given.

    Example: c2fdft train-coarse --recipe derain --data shards/Rain13K
    """
    _check_overrides(overrides or [], fine=False)
    if not options.resume and options.recipe is None and init is None:
        hint = "`c2fdft recipes list` shows the recipes"
        raise RecipeError("--recipe is missing: give a name or a file", hint=hint)
    _start(options, "coarse", overrides, seed, init, dry_run, json)


@takes_settings
def train_fine(
    *,
    overrides: Overrides = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="NAME|CKPT",
            help="Weights to start from, usually a coarse checkpoint; also a fine one, or the name "
            "of packaged weights.",
            autocompletion=weights_names,
        ),
    ] = None,
    options: TrainOptions,
    init: Annotated[
        str | None,
        typer.Option("--init", metavar="CKPT", help="The same as --from.", rich_help_panel=RUN),
    ] = None,
    dry_run: DryRun = False,
    seed: SeedOption = None,
    json: Json = False,
) -> None:
    """Stage 2: train through the few-step sampler, from pure noise to the restored image.

    Data, recipe and timesteps come from the checkpoint unless they are given. An official
    checkpoint does not contain them and needs --recipe and --data.

    Example: c2fdft train-fine --from runs/derain-coarse/coarse.pt
    """
    if source is not None and init is not None:
        raise UsageError("--from cannot be combined with --init")
    _check_overrides(overrides or [], fine=True)
    start = source if source is not None else init
    if not options.resume and start is None:
        raise CheckpointError(
            "--from is missing: there are no weights to start from",
            hint="give a coarse checkpoint: c2fdft train-fine --from coarse.pt",
        )
    _start(options, "fine", overrides, seed, start, dry_run, json)


def _check_overrides(words: list[str], *, fine: bool) -> None:
    """Raise UsageError for an argument that is not KEY=VALUE; the hint names the likely option."""
    word = next((word for word in words if "=" not in word), None)
    if word is None:
        return
    from c2fdft_cli.engine.weights.catalogue import read_catalogue
    from c2fdft_cli.engine.weights.identify import WEIGHTS_SUFFIXES
    from c2fdft_cli.recipe.files import recipe_names

    suffix, hint = Path(word).suffix.lower(), "an override has the form KEY=VALUE: coarse.lr=6e-4"
    if suffix in WEIGHTS_SUFFIXES or (fine and word in read_catalogue()):
        hint = f"give the weights with {'--from' if fine else '--init'} {word}"
    elif suffix in (".yaml", ".yml") or word in recipe_names():
        hint = f"give the recipe with --recipe {word}"
    elif os.path.isdir(word):
        hint = f"give the shards with --data {word}"
    raise UsageError(f"unexpected argument {word!r}", hint=hint)


def _start(
    options: TrainOptions,
    stage: TrainedStage,
    overrides: list[str] | None,
    seed: int | None,
    init: str | None,
    dry_run: bool,
    json: bool,
) -> None:
    """Train a stage; a missing recipe is reported before torch is loaded."""
    from c2fdft_cli.recipe.files import find_recipe

    if options.recipe is not None:
        find_recipe(options.recipe)
    options = replace(
        options,
        stage=stage,
        overrides=[*(overrides or []), *([] if seed is None else [f"train.seed={seed}"])],
        init=None if init is None else weights_file(init, json),
    )
    _run(options, dry_run, json)


def _run(options: TrainOptions, dry_run: bool, json: bool) -> None:
    with console.loading():
        from c2fdft_cli.cli.views.train import watch
        from c2fdft_cli.engine.train.job import train
        from c2fdft_cli.engine.train.setup import set_up
        from c2fdft_cli.execution.distributed import destroy_process_group

    with console.loading("setting up the training..."):
        plan = set_up(options)
    try:
        if dry_run:
            _show_plan(plan, json)
            destroy_process_group()
            return
        with console.loading("setting up the training..."):
            job = train(plan)
        result = watch(job, plan) if plan.runtime.is_main else job.run()
    # Not in a `finally`: after an error in this process only, leaving the group would wait for the
    # others; and `cli.app._end` must still see the group, to exit at once.
    except Interrupted:  # raised in all processes
        destroy_process_group()
        raise
    destroy_process_group()
    if not plan.runtime.is_main:
        return
    following = _next_command(plan, result)
    if json:
        console.emit({**vars(result), "next": following})
        return
    best = "" if result.best_psnr is None else f", best {result.best_psnr:.2f} dB"
    console.stdout().print(f"{result.checkpoint}: step {result.step}{best}")
    console.say_next(following)


def _next_command(plan: TrainPlan, result: TrainResult) -> str:
    """Return the command to run next: sweep-steps after the coarse stage, otherwise restore.

    A sweep needs validation images; without any, train-fine comes next. If the run folder has the
    sweep of other weights, such as those of a shorter training, --overwrite replaces it. Other
    spacings than `leading` start at the last timestep, where some schedules leave nothing of the
    image.
    """
    from c2fdft_cli.engine.sampling.subject import weights_digest
    from c2fdft_cli.engine.sweep.log import is_of_other_weights
    from c2fdft_cli.engine.weights.build import alpha_bar_of_recipe
    from c2fdft_cli.engine.weights.checkpoint import load_checkpoint

    path, log = result.checkpoint, result.checkpoint.parent / "sweep.json"
    if plan.stage != "coarse":
        return console.command("restore", "IN", "OUT", "--weights", path)
    if result.best_psnr is None:
        return console.command("train-fine", "--from", path)
    outdated = log.is_file() and is_of_other_weights(log, weights_digest(load_checkpoint(path)))
    lost = float(alpha_bar_of_recipe(plan.recipe.diffusion)[-1]) == 0
    return console.command(
        "sweep-steps",
        path,
        *(["--spacing", "leading"] if lost else []),
        *(["--overwrite"] if outdated else []),
    )


def _show_plan(plan: TrainPlan, json: bool) -> None:
    from c2fdft_cli.engine.train.dry_run import estimate_training

    job = estimate_training(plan)
    if not plan.runtime.is_main:
        job.run()
        return
    if not json:
        console.remark(
            "dry run: times some steps of each patch size, for about a minute on a CPU; "
            "nothing is written"
        )
    estimate = console.draw(job)
    if json:
        console.emit(estimate)
        return
    for notice in estimate.notices:
        console.remark(f"note: {notice}")
    columns = ("patch", "batch", "micro", "iterations", "s / step", "time", "memory")
    rows = [
        (
            size.patch,
            size.batch,
            size.micro_batch,
            size.iterations,
            size.seconds_per_step,
            console.duration(3600 * size.hours),
            binary_size(size.memory),
        )
        for size in estimate.stages
    ]
    console.table(f"{plan.run.path} ({estimate.device}, {estimate.precision})", columns, rows)
    out = console.stdout()
    time = console.duration(3600 * estimate.hours)
    out.print(f"total: {estimate.iterations} iterations, about {time}")
    if any(size.timed_images < size.batch // plan.runtime.world for size in estimate.stages):
        out.print("estimated from steps with fewer images than a batch has")
    out.print(f"disk: {binary_size(estimate.disk)} for checkpoints and state")
