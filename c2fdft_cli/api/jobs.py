"""Prepare, train, sweep and score from Python: each function runs a job of the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch

from c2fdft_cli.api.arguments import (
    as_tuple,
    check_callable,
    counted,
    given_path,
    name_or_path,
    texts,
)
from c2fdft_cli.api.images import Image, as_list, unpack
from c2fdft_cli.engine.evaluate.files import evaluate_files
from c2fdft_cli.engine.evaluate.job import EvalOptions, EvalResult
from c2fdft_cli.engine.evaluate.metrics import find_metrics
from c2fdft_cli.engine.evaluate.pairing import fail
from c2fdft_cli.engine.prepare.job import PrepareResult
from c2fdft_cli.engine.prepare.job import prepare as prepare_job
from c2fdft_cli.engine.prepare.options import PrepareOptions, Synthesis
from c2fdft_cli.engine.sampling.scoring import Scored
from c2fdft_cli.engine.sweep.job import sweep
from c2fdft_cli.engine.sweep.options import SweepOptions, parse_rule, parse_spacings, parse_steps
from c2fdft_cli.engine.sweep.report import SweepResult
from c2fdft_cli.engine.train.events import TrainEvent, TrainResult
from c2fdft_cli.engine.train.job import train as train_job
from c2fdft_cli.engine.train.options import TrainOptions
from c2fdft_cli.engine.train.setup import set_up
from c2fdft_cli.engine.weights.choose import choose_weights
from c2fdft_cli.errors import CheckpointError, DataError, Interrupted, UsageError
from c2fdft_cli.execution.distributed import destroy_process_group
from c2fdft_cli.execution.surroundings import usual_settings
from c2fdft_cli.metrics.protocols import PROTOCOLS
from c2fdft_cli.recipe.files import override
from c2fdft_cli.settings import check_type
from c2fdft_cli.vocabulary import TRAINED_STAGES, check_choice


@usual_settings()
def evaluate(
    restored: str | Path | Image | Sequence[Image],
    target: str | Path | Image | Sequence[Image],
    *,
    protocol: str | None = None,
    border: int = 0,
    metrics: str | Sequence[str] = (),
    degraded: str | Path | None = None,
) -> EvalResult:
    """Score restored images against their targets, as `c2fdft eval` does.

    SIDD's `.mat` blocks are scored only by the command.

    Args:
        restored, target: two folders or files, paired by name; or two images, or two lists of
            equally many images.
        protocol: the protocol of PSNR and SSIM, such as "derain"; None for "rgb".
        border: pixels to skip on each side.
        metrics: an additional metric, such as "lpips", or several; "all" stands for every metric
            that needs no download.
        degraded: folder of the inputs, to score them too; only if `restored` is a folder or file.

    Returns:
        The records (`rows`), their means (`psnr` in dB, `ssim`), and the unpaired files.

    Raises:
        UsageError: an unknown name, a value that is not an image, or arguments that cannot be
            combined.
        DataError: nothing to score, sizes that differ, or a file that cannot be read.
        ResourceError: the packages or weights of a metric are missing.
    """
    check_type("border", border, int)
    names = ",".join(texts("metrics", metrics))
    options = EvalOptions(protocol, border, find_metrics(names) if names else {})
    check_type("degraded", degraded, str | Path | None)
    paths = [isinstance(one, str | Path) for one in (restored, target)]
    if any(paths) and not all(paths):
        raise UsageError("restored and target must both be paths, or both images")
    if isinstance(restored, str | Path) and isinstance(target, str | Path):
        beside = None if degraded is None else given_path("degraded", degraded)
        ours, theirs = given_path("restored", restored), given_path("target", target)
        result = evaluate_files(ours, theirs, options, beside).run()
        # The command ends with an error after it has printed the scores of the others.
        fail(result.unreadable, len(result.rows) + len(result.unreadable))
        return result
    if degraded is not None:
        raise UsageError(
            "degraded works with folders only", hint="score the inputs with a second call"
        )
    return _evaluate_images(as_list(restored), as_list(target), options)  # type: ignore[arg-type]


def _evaluate_images(
    restored: Sequence[Image], target: Sequence[Image], options: EvalOptions
) -> EvalResult:
    protocol = PROTOCOLS[options.protocol or "rgb"]
    scorer = options.scorer(protocol)
    ours, theirs = (
        [frame[None] for image in images for frame in unpack(image).levels]
        for images in (restored, target)
    )
    if len(ours) != len(theirs):
        raise DataError(f"there are {len(ours)} restored images and {len(theirs)} targets")
    if not ours:
        raise DataError("there are no images to score")
    rows: list[Scored] = []
    for i, pair in enumerate(zip(ours, theirs, strict=True)):
        # as a file of 8 bits would hold them
        a, b = pair if protocol.unrounded else (one.round().clamp(0, 255) for one in pair)
        if a.shape != b.shape:
            sizes = " and ".join(f"{one.shape[-1]}x{one.shape[-2]}" for one in (a, b))
            raise DataError(f"the sizes of image {i} differ: {sizes}")
        rows.append(scorer(str(i), a, b))
    depth = "unrounded" if protocol.unrounded else "8 bit"
    return EvalResult(protocol, rows, f"images in memory, {depth}", options.border)


@usual_settings()
def prepare(
    source: str | Path,
    out: str | Path | None = None,
    *,
    val: int | str | Path | None = None,
    synthesize: str | None = None,
    synthesis: Mapping[str, object] | None = None,
    streaks: str | Path | None = None,
    clean_only: bool = False,
    overwrite: bool = False,
) -> PrepareResult:
    """Pack pairs into the shards that training reads, as `c2fdft prepare` does.

    Args:
        source: a folder of pairs in a layout that the program recognises; with `synthesize` a
            folder of clean images.
        out: folder for the shards; None for shards/NAME, with the name of the source.
        val: number of validation pairs, or a folder or list of separate ones; None for the
            command's default.
        synthesize: degrade clean images with "rain", "noise" or "blur".
        synthesis: options of the degradation, such as `{"sigma": [5, 50]}`.
        streaks: folder of rendered rain streaks.
        clean_only: pack only the clean images, which are degraded during training.
        overwrite: replace another set in `out`.

    Raises:
        UsageError, DataError, ResourceError: as the command.
    """
    check_type("source", source, str | Path)
    check_type("out", out, str | Path | None)
    check_type("val", val, int | str | Path | None)
    check_type("streaks", streaks, str | Path | None)
    check_type("synthesize", synthesize, str | None)
    check_type("synthesis", synthesis, Mapping | None)
    for name, value in (("clean_only", clean_only), ("overwrite", overwrite)):
        check_type(name, value, bool)
    if synthesize is None and (synthesis or streaks is not None or clean_only):
        raise UsageError("synthesis, streaks and clean_only need synthesize")
    made = None
    if synthesize is not None:
        masks = None if streaks is None else given_path("streaks", streaks)
        made = Synthesis(synthesize, dict(synthesis or {}), masks, store=not clean_only)
    parts = given_path("val", val) if isinstance(val, str | Path) else val
    folder = None if out is None else given_path("out", out)
    pairs = given_path("source", source)
    options = PrepareOptions(pairs, folder, val=parts, synthesize=made, overwrite=overwrite)
    return prepare_job(options).run()


@usual_settings()
def train(
    stage: Literal["coarse", "fine"],
    *,
    recipe: str | Path | None = None,
    data: str | Path | None = None,
    out: str | Path | None = None,
    overrides: Mapping[str, object] | Sequence[str] = (),
    init: str | Path | None = None,
    resume: bool = False,
    device: str | torch.device = "auto",
    precision: str = "auto",
    max_seconds: float | None = None,
    on_event: Callable[[TrainEvent], None] | None = None,
) -> TrainResult:
    """Train a stage to its end, as `c2fdft train-coarse` and `c2fdft train-fine` do.

    Args:
        stage: "coarse" or "fine".
        recipe: name or file; None for the recipe of `init`.
        data: folder of shards; None for the recipe's, otherwise that of `init`.
        out: run folder; None for an unused name in runs/.
        overrides: values of recipe keys, `{"coarse.lr": 6e-4}` or `["coarse.lr=6e-4"]`.
        init: weights to start from, a name or a file; the fine stage needs them unless it resumes.
        resume: resume the run in `out`, or the newest run of this stage.
        device, precision: as for `load`.
        max_seconds: after this time save the state and stop (Interrupted).
        on_event: called with each event, a `TrainEvent`: `Begun`, `StepDone`, `Validated`, `Saved`
            or `Notice`.

    Raises:
        RecipeError, UsageError, DataError, CheckpointError, ResourceError: as the commands. Also if
            the program is in a process group of torch.distributed: the training makes its own.
        Interrupted: stopped by Ctrl-C, SIGTERM or the time limit; the state is saved. A signal
            after the last step goes to the program's own handler.
    """
    check_choice("stage", stage, TRAINED_STAGES)
    for name, value in (("recipe", recipe), ("data", data), ("out", out), ("init", init)):
        check_type(name, value, str | Path | None)
    check_type("resume", resume, bool)
    check_type("device", device, str | torch.device)
    check_type("precision", precision, str)
    check_callable("on_event", on_event)
    if stage == "fine" and init is None and not resume:
        raise CheckpointError(
            "the fine stage needs weights to start from", hint="give init=, the coarse checkpoint"
        )
    options = TrainOptions(
        stage=stage,
        recipe=None if recipe is None else name_or_path(recipe),
        overrides=_override_words(overrides),
        data=None if data is None else given_path("data", data),
        out=None if out is None else given_path("out", out),
        resume=resume,
        init=None if init is None else choose_weights(name_or_path(init)).path,
        device=str(device),
        precision=precision,
        max_seconds=max_seconds,
    )
    try:
        result = train_job(set_up(options)).run(on_event or (lambda _: None))
    # No `finally`: an error that occurs in this process only must not wait for the others.
    except Interrupted:  # all processes are interrupted together
        destroy_process_group()
        raise
    destroy_process_group()
    return result


@usual_settings()
def sweep_steps(
    weights: str | Path,
    *,
    data: str | Path | None = None,
    steps: str | Sequence[int] = "1-10",
    spacing: str | Sequence[str] = "linspace",
    start: Sequence[int] = (),
    grids: Sequence[Sequence[int]] = (),
    images: int = 0,
    seeds: int = 1,
    seed: int = 0,
    choose: str = "within:0.2dB",
    protocol: str | None = None,
    stamp: bool = True,
    out: str | Path | None = None,
    overwrite: bool = False,
    device: str | torch.device = "auto",
    precision: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> SweepResult:
    """Choose the sampling steps and store the timesteps in the file, as `c2fdft sweep-steps` does.

    It works in one process: under torchrun only one of them may call it.

    Args:
        weights: coarse or fine weights, a name or a file.
        data: folder of shards; None for the one that the weights were trained on.
        steps: numbers of sampling steps to try, such as "1-4" or `[1, 2, 4]`.
        spacing: "linspace", "leading" or "trailing", or several.
        start: first timesteps to try; none for the largest.
        grids: further timesteps to try, such as `[[999, 500]]`.
        images: number of validation pairs; 0 for all.
        seeds: noise samples per image, for a standard deviation.
        seed: the first seed of the noise.
        choose: "psnr", "ssim", or fewest steps "within:XdB" of the best.
        protocol: the protocol of the scores; None for the recipe's.
        stamp: whether to store the chosen timesteps in the file.
        out: folder for sweep.json, sweep.csv and sweep.png; None for that of the weights.
        overwrite: replace the scores of a sweep with other settings in `out`.
        device, precision: as for `load`.
        progress: called after each restoration with the number done, and the total number.

    Raises:
        UsageError, DataError, CheckpointError, ResourceError: as the command.
        Interrupted: stopped by Ctrl-C or SIGTERM; the same call resumes.
    """
    check_type("weights", weights, str | Path)
    for name, path in (("data", data), ("out", out)):
        check_type(name, path, str | Path | None)
    check_type("choose", choose, str)
    check_type("stamp", stamp, bool)
    check_type("device", device, str | torch.device)
    check_callable("progress", progress)
    if isinstance(steps, str):
        steps = parse_steps(steps)
    example = "lists of timesteps such as [[999, 500]]"
    schedules = [as_tuple("grids", grid, example) for grid in as_tuple("grids", grids, example)]
    options = SweepOptions(
        data=None if data is None else given_path("data", data),
        steps=as_tuple("steps", steps, 'numbers such as "1-4" or [1, 2, 4]'),
        spacings=parse_spacings(",".join(texts("spacing", spacing))),
        starts=as_tuple("start", start, "timesteps such as [999, 750]"),
        schedules=tuple(schedules),
        images=images,
        seeds=seeds,
        seed=seed,
        rule=parse_rule(choose),
        protocol=protocol,
        stamp=stamp,
        out=None if out is None else given_path("out", out),
        overwrite=overwrite,
        device=str(device),
        precision=precision,
    )
    job = sweep(choose_weights(name_or_path(weights)).path, options)
    return job.run(counted(progress, len(job)))


def _override_words(overrides: Mapping[str, object] | Sequence[str]) -> list[str]:
    if isinstance(overrides, Mapping):
        return [override(key, value) for key, value in overrides.items()]
    return texts("overrides", overrides)
