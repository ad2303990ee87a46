"""`c2fdft eval`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from c2fdft_cli.cli import console
from c2fdft_cli.cli.evaluate_source import Source, check_source, job_of, named_pairs, next_command
from c2fdft_cli.cli.options import Device, Json, Overwrite, Precision, Seed, Shards, Weights
from c2fdft_cli.files import require_existing
from c2fdft_cli.vocabulary import PROTOCOL_NAMES, check_choice

if TYPE_CHECKING:
    from c2fdft_cli.engine.evaluate.job import EvalOptions, EvalResult
    from c2fdft_cli.engine.sampling.scoring import Metric, Scored
    from c2fdft_cli.execution.device import Runtime
    from c2fdft_cli.progress import Job


@dataclass(frozen=True)
class _Sinks:
    """Where results go."""

    csv: Path | None
    report: Path | None
    json: bool


def evaluate(
    restored: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RESTORED]",
            help="Folder of restored images, one image, or SIDD blocks. With --weights: the set.",
        ),
    ] = None,
    target: Annotated[
        Path | None,
        typer.Argument(metavar="[TARGET]", help="Folder of the clean ones (or the whole set)."),
    ] = None,
    weights: Weights = None,
    data: Shards = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            "--protocol",
            metavar="NAME",
            help="derain, derain-matlab, deblur, denoise, rgb or y (default: by recipe, or rgb).",
        ),
    ] = None,
    degraded: Annotated[
        Path | None,
        typer.Option("--degraded", metavar="DIR", help="Folder of degraded inputs, scored too."),
    ] = None,
    border: Annotated[
        int, typer.Option("--border", help="Pixels to skip on each side.", min=0)
    ] = 0,
    images: Annotated[
        int, typer.Option("--images", help="With --weights: pairs to take, 0 for all.", min=0)
    ] = 0,
    seeds: Annotated[
        int,
        typer.Option("--seeds", help="With --weights: noise samples per image.", min=1, max=1000),
    ] = 1,
    grid: Annotated[
        str | None,
        typer.Option(
            "--grid",
            metavar="TIMES",
            help="With --weights: timesteps, such as 999,500 (default: the checkpoint's).",
        ),
    ] = None,
    sigma: Annotated[
        float | None,
        typer.Option(
            "--sigma",
            metavar="LEVELS",
            help="With --weights and a folder of clean images: add Gaussian noise, unclipped.",
        ),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            "--metrics", metavar="NAMES", help="Further metrics: all, or names with commas."
        ),
    ] = None,
    no_reference: Annotated[
        bool,
        typer.Option("--no-reference", help="Score photos that have no targets, by themselves."),
    ] = False,
    against: Annotated[
        str | None,
        typer.Option(
            "--against", metavar="B", help="Compare pair by pair with this result (or weights)."
        ),
    ] = None,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write the rows as CSV.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="DIR", help="Write a page to look at: DIR/index.html."),
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    seed: Seed = 0,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Score restored images against their targets, paired by name.

    Under torchrun the processes share the images.

    Examples: c2fdft eval out/ Rain100L/target --protocol derain

    c2fdft eval --weights runs/derain-fine/fine.pt --data shards/Rain13K

    c2fdft eval --weights derain Rain100L/

    c2fdft eval --weights denoise kodak24/ --sigma 25

    c2fdft eval --weights denoise SIDD/  (the folder of its validation blocks, .mat)

    c2fdft eval photos/ --no-reference
    """
    if protocol is not None:
        check_choice("--protocol", protocol, PROTOCOL_NAMES)
    asked = (weights, data, sigma, metrics, grid, images, seeds - 1, no_reference)
    if not any(asked):  # the plain call: a missing path is told before torch is loaded
        require_existing(restored, target, degraded)

    from c2fdft_cli.cli.evaluate_view import prepare_outputs
    from c2fdft_cli.engine.evaluate.job import EvalOptions
    from c2fdft_cli.engine.evaluate.ranks import join
    from c2fdft_cli.execution.distributed import destroy_process_group

    more = _find_metrics(metrics, no_reference)
    EvalOptions(protocol, border)  # a wrong name is found before any file is read
    prepare_outputs([csv, report and report / "index.html"], overwrite)
    of_weights = {"--images": images or None, "--seeds": seeds - 1 or None, "--grid": grid}
    check_source(restored, target, degraded, weights, data, no_reference, sigma, of_weights)
    pairs = None if weights is None else named_pairs(restored, target, data, sigma, seed)
    source = Source(
        restored, target, degraded, weights, no_reference, data, pairs, sigma,
        images, seeds, seed, grid, device, precision,
    )  # fmt: skip
    runtime = join()
    try:
        options = EvalOptions(
            protocol, border, more, runtime.rank, runtime.world, pictures=report is not None
        )
        _evaluate(source, options, against, _Sinks(csv, report, json), runtime)
    finally:
        destroy_process_group()


def _find_metrics(names: str | None, no_reference: bool) -> dict[str, Metric]:
    """The metrics that were asked for; without targets there are no others."""
    from c2fdft_cli.engine.evaluate.metrics import find_metrics
    from c2fdft_cli.engine.evaluate.photos import find_no_reference_metrics

    if no_reference:
        return find_no_reference_metrics(names or "all")
    return {} if names is None else find_metrics(names)


def _evaluate(
    source: Source, options: EvalOptions, against: str | None, sinks: _Sinks, runtime: Runtime
) -> None:
    from c2fdft_cli.cli.evaluate_view import compared, tell, write
    from c2fdft_cli.engine.evaluate.ranks import gather_pictures
    from c2fdft_cli.engine.evaluate.report import ReportImages, with_pictures

    quiet = sinks.json or not runtime.is_main
    job = job_of(source.subject, source, options, quiet)
    metrics = options.metrics if source.alone else {}
    rivals = replace(options, metrics=metrics, pictures=False)
    other = None if against is None else job_of(against, source, rivals, quiet)
    pictures = None if sinks.report is None else ReportImages()
    if pictures is not None:
        job = with_pictures(job, pictures)
    result = _run(job, runtime)
    if pictures is not None:
        pictures.by_name = gather_pictures(pictures.by_name, runtime)
    rival = None if other is None else _run(other, runtime)
    if not runtime.is_main:
        return
    document, words = compared(result, rival, source.seed)
    written = write(result, document, words, sinks.csv, sinks.report, pictures)
    following = None if sinks.report is not None else next_command(source, options.protocol)
    if sinks.json:
        console.emit({**document, "written": [str(path) for path in written], "next": following})
        return
    tell(result, words, written)
    if following is not None:
        console.say_next(following)


def _run(job: Job[Scored, EvalResult], runtime: Runtime) -> EvalResult:
    """This process's share, and in rank 0 that of all."""
    from c2fdft_cli.cli.evaluate_view import note
    from c2fdft_cli.engine.evaluate.ranks import gather_result

    return gather_result(console.draw(job, note) if runtime.is_main else job.run(), runtime)
