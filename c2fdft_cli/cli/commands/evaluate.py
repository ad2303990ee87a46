"""`c2fdft eval`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from c2fdft_cli.cli import console
from c2fdft_cli.cli.commands.evaluate_source import SETS, Source, given, job_of
from c2fdft_cli.cli.options import Json, option_words, path_of, takes_settings
from c2fdft_cli.engine.evaluate.options import WeightsOptions
from c2fdft_cli.errors import UsageError
from c2fdft_cli.files import ensure_folder, require_existing, require_new
from c2fdft_cli.settings import BORDER, OVERWRITE, PROTOCOL, check_settings, setting

if TYPE_CHECKING:
    from c2fdft_cli.engine.evaluate.job import EvalOptions, EvalResult
    from c2fdft_cli.engine.sampling.scoring import Metric, Scored
    from c2fdft_cli.execution.device import Runtime
    from c2fdft_cli.progress import Job

MEASURES, FILES = "Metrics", "Files"
"""The headings of options that are rarely needed."""


@dataclass(frozen=True)
class Scores:
    """The options for what to measure, what to compare with, and where to write the scores."""

    protocol: str | None = setting(None, PROTOCOL)
    border: int = setting(0, replace(BORDER, panel=MEASURES))
    metrics: str | None = setting(
        None, "Further metrics: all, or names separated by commas.", metavar="NAMES", panel=MEASURES
    )
    against: str | None = setting(
        None, "Paired comparison with other results (with --weights: other weights).", metavar="B"
    )
    csv: Path | None = setting(
        None, "Write the scores of each image as CSV.", metavar="FILE", panel=FILES
    )
    report: Path | None = setting(
        None, "Write a page with scores and pictures: DIR/index.html.", metavar="DIR"
    )
    allow_missing: bool = setting(
        False, "Exit with 0 even if images are unpaired or cannot be read.", panel=SETS
    )
    overwrite: bool = setting(False, replace(OVERWRITE, panel=FILES))

    def __post_init__(self) -> None:
        check_settings(self)


@takes_settings
def evaluate(
    restored: Annotated[
        Path | None,
        typer.Argument(
            parser=path_of,
            metavar="RESTORED",
            help="Folder of restored images, one image, or SIDD blocks. With --weights: the set to "
            "restore and score.",
        ),
    ] = None,
    target: Annotated[
        Path | None,
        typer.Argument(
            parser=path_of, metavar="TARGET", help="Folder of the clean images (or the whole set)."
        ),
    ] = None,
    *,
    source: Source,
    scores: Scores,
    runs: WeightsOptions,
    json: Json = False,
) -> None:
    """Score restored images against their targets, paired by name.

    With --weights, degraded images are restored and scored in one go. Under torchrun the images
    are divided among the processes.

    Examples: c2fdft eval out/ Rain100L/target --protocol derain

    c2fdft eval --weights runs/derain-fine/fine.pt --data shards/Rain13K

    c2fdft eval --weights derain Rain100L/

    c2fdft eval --weights denoise kodak24/ --sigma 25

    c2fdft eval --weights denoise SIDD/

    c2fdft eval photos/ --no-reference
    """
    if source.is_plain and not (given(runs) or scores.metrics):
        require_existing(restored, target, source.degraded)  # before torch is loaded

    with console.loading():
        from c2fdft_cli.engine.evaluate.job import EvalOptions
        from c2fdft_cli.engine.evaluate.ranks import join
        from c2fdft_cli.engine.evaluate.report import REPORT_FILES
        from c2fdft_cli.execution.distributed import destroy_process_group

    metrics = _find_metrics(scores.metrics, source.no_reference)
    if source.weights is None and given(runs):
        raise UsageError(f"{given(runs)[0]} needs --weights")
    if scores.against == "":  # `Path` would take it for the current folder
        raise UsageError("--against is empty", hint="name a file, a folder, or packaged weights")
    source.check()
    pages = [] if scores.report is None else [scores.report / name for name in REPORT_FILES]
    for path in filter(None, [scores.csv, *pages]):
        require_new(path, scores.overwrite)
        ensure_folder(path.parent)
    runtime = join()
    try:
        options = EvalOptions(
            scores.protocol,
            scores.border,
            metrics,
            runtime.rank,
            runtime.world,
            pictures=scores.report is not None,
        )
        _evaluate(source, runs, options, scores, runtime, json)
    finally:
        destroy_process_group()


def _find_metrics(names: str | None, no_reference: bool) -> dict[str, Metric]:
    """Return the requested further metrics; without targets all no-reference ones by default."""
    from c2fdft_cli.engine.evaluate.metrics import find_metrics

    if no_reference:
        return find_metrics(names or "all", no_reference=True)
    return {} if names is None else find_metrics(names)


def _evaluate(
    source: Source,
    runs: WeightsOptions,
    options: EvalOptions,
    scores: Scores,
    runtime: Runtime,
    json: bool,
) -> None:
    from c2fdft_cli.cli.views.evaluate import compared, tell, write
    from c2fdft_cli.engine.evaluate.ranks import merge_pictures
    from c2fdft_cli.engine.evaluate.report import Encoded, with_pictures
    from c2fdft_cli.execution.distributed import gather

    pairs, quiet = source.named_pairs(runs.seed), json or not runtime.is_main
    job = job_of(source.subject, source, runs, pairs, options, quiet)
    other = None
    if scores.against is not None:
        metrics = options.metrics if source.no_reference else {}
        rivals = replace(options, metrics=metrics, pictures=False)
        other = job_of(scores.against, source, runs, pairs, rivals, quiet)
        job.title, other.title = "eval A", "eval B"
    pictures: Encoded = {}  # stays empty unless `options` requests pictures for a report
    result = _run(with_pictures(job, pictures), runtime)
    pictures = gather(pictures, runtime, merge_pictures)
    rival = None if other is None else _run(other, runtime)
    if not runtime.is_main:
        return
    document, words = compared(result, rival, runs.seed)
    written = write(result, document, words, scores.csv, scores.report, pictures)
    following = None if scores.report else _with_report(source, runs, scores)
    failures = [one.failure for one in (result, rival) if one is not None]
    failure = None if scores.allow_missing else next(filter(None, failures), None)
    if json:
        console.emit({**document, "written": [str(path) for path in written], "next": following})
    else:
        sides = [f"A is {source.subject}, B is {scores.against}"] if words else []
        tell(result, sides + words, written)
        if following is not None and failure is None:
            console.say_next(following)
    if failure is not None:
        raise failure


def _with_report(source: Source, runs: WeightsOptions, scores: Scores) -> str:
    """Return the same command with --report, under a name that is free."""
    folders = [path for path in (source.restored, source.target) if path is not None]
    words = [*option_words(source), *option_words(runs)]
    words += option_words(scores, but=("csv", "overwrite"))
    names = ("report" if number == 1 else f"report-{number}" for number in count(1))
    free = next(name for name in names if not Path(name).exists())
    return console.command("eval", *folders, *words, "--report", free)


def _run(job: Job[Scored, EvalResult], runtime: Runtime) -> EvalResult:
    """Score this process's share; on rank 0 return the result of all processes."""
    from c2fdft_cli.cli.views.evaluate import note
    from c2fdft_cli.engine.evaluate.ranks import merge_results
    from c2fdft_cli.execution.distributed import gather

    own = console.draw(job, note) if runtime.is_main else job.run()
    return gather(own, runtime, merge_results)
