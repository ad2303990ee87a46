"""`c2fdft eval`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from c2fdft_cli.cli import console
from c2fdft_cli.cli.options import Json, option_words, path_of, takes_settings, weights_file
from c2fdft_cli.engine.evaluate.options import SETS, EvalSource, Mode, WeightsOptions, mode_of
from c2fdft_cli.errors import PartialFailure, UsageError
from c2fdft_cli.files.folders import ensure_folder
from c2fdft_cli.files.paths import same_files
from c2fdft_cli.files.reading import require_existing
from c2fdft_cli.files.writing import require_new
from c2fdft_cli.settings import BORDER, OVERWRITE, PROTOCOL, check_settings, setting

if TYPE_CHECKING:
    from c2fdft_cli.engine.evaluate.job import EvalOptions, EvalResult
    from c2fdft_cli.engine.sampling.pairs import PairSource
    from c2fdft_cli.engine.sampling.scoring import Metric, Scored
    from c2fdft_cli.execution.device import Runtime
    from c2fdft_cli.progress import Job

MEASURES, FILES = "Metrics", "Files"
"""The headings of options that are rarely needed."""
_PARTS_OF_SETS = (".h5", ".mat")
"""The suffixes of shards and of SIDD blocks."""


@dataclass(frozen=True)
class Scores:
    """The options for what to measure, what to compare with, and where to write the scores."""

    protocol: str | None = setting(None, PROTOCOL)
    border: int = setting(0, replace(BORDER, panel=MEASURES))
    metrics: str | None = setting(
        None, "Further metrics: all, or names separated by commas.", metavar="NAMES", panel=MEASURES
    )
    against: str | None = setting(
        None,
        "Paired comparison with other results (another list with --pairs, weights with --weights).",
        metavar="B",
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
    source: EvalSource,
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

    c2fdft eval --pairs pairs.csv

    c2fdft eval photos/ --no-reference
    """
    mode = mode_of(source, runs, scores.against)
    if source.weights is None and mode is not Mode.PHOTOS and not scores.metrics:
        require_existing(restored, target, source.degraded, source.pairs)  # before torch is loaded

    with console.loading():
        from c2fdft_cli.engine.evaluate.job import EvalOptions
        from c2fdft_cli.engine.evaluate.ranks import join
        from c2fdft_cli.execution.distributed import destroy_process_group

    metrics = _find_metrics(scores.metrics, mode)
    _make_room(scores, source)
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
        _evaluate(source, mode, runs, options, scores, runtime, json)
    finally:
        destroy_process_group()


def _make_room(scores: Scores, source: EvalSource) -> None:
    """Check the files that will be written, and create their folders."""
    from c2fdft_cli.engine.evaluate.report import REPORT_FILES

    pages = [] if scores.report is None else [scores.report / name for name in REPORT_FILES]
    files = [path for path in (scores.csv, *pages) if path is not None]
    _refuse_inputs(files, source.inputs(scores.against))
    if scores.csv is not None and same_files([scores.csv], pages):
        hint = "name another file"
        raise UsageError("--csv is a file of --report", where=scores.csv, hint=hint)
    for path in files:
        require_new(path, scores.overwrite)
        ensure_folder(path.parent)


def _refuse_inputs(files: Sequence[Path], inputs: Sequence[Path]) -> None:
    """Raise UsageError for a file that would replace an input, or has the name of a part of one."""
    from c2fdft_cli.data.images.picture import is_image_path

    named = [path for path in files if is_image_path(path) or path.suffix.lower() in _PARTS_OF_SETS]
    if hit := named or same_files(files, inputs):
        what = "this file would replace an input, or has the name of an image, shard or SIDD blocks"
        raise UsageError(what, where=hit[0], hint="name another file, such as scores.csv")


def _find_metrics(names: str | None, mode: Mode) -> dict[str, Metric]:
    """Return the requested further metrics; without targets all no-reference ones by default."""
    from c2fdft_cli.engine.evaluate.metrics import find_metrics

    if mode is Mode.PHOTOS:
        return find_metrics(names or "all", no_reference=True)
    return {} if names is None else find_metrics(names)


def _evaluate(
    source: EvalSource,
    mode: Mode,
    runs: WeightsOptions,
    options: EvalOptions,
    scores: Scores,
    runtime: Runtime,
    json: bool,
) -> None:
    from c2fdft_cli.cli.views.evaluate import compared, tell, write
    from c2fdft_cli.engine.evaluate.ranks import merge_pictures
    from c2fdft_cli.engine.evaluate.report import Gallery, with_pictures
    from c2fdft_cli.execution.distributed import gather

    quiet = json or not runtime.is_main
    job, other = _jobs(source, mode, scores.against, runs, options, quiet)
    if other is not None:
        job.title, other.title = "eval A", "eval B"
    gallery = Gallery()  # stays empty unless `options` requests pictures for a report
    result = _run(with_pictures(job, gallery), runtime)
    gallery = gather(gallery, runtime, merge_pictures)
    rival = None if other is None else _run(other, runtime)
    if not runtime.is_main:
        return
    document, words, rivals = compared(result, rival)
    written, remarks = write(result, rivals, document, scores.csv, scores.report, gallery)
    following = None if scores.report else _with_report(source, runs, scores)
    failure = None if scores.allow_missing else _incomplete(result, rival, scores.against)
    if json:
        console.emit({**document, "written": [str(path) for path in written], "next": following})
    else:
        sides = [f"A is {source.subject}, B is {scores.against}"] if words else []
        tell(result, [*sides, *words, *remarks], written)
        if following is not None and failure is None:
            console.say_next(following)
    if failure is not None:
        raise failure


def _incomplete(
    result: EvalResult, rival: EvalResult | None, against: str | None
) -> PartialFailure | None:
    """Return the error that the command ends with if a side is incomplete, or both sides are."""
    if rival is None:
        return result.failure
    sides = (result.failure_of("A"), rival.failure_of(f"B ({against})"))
    found = [one for one in sides if one is not None]
    if len(found) < 2:
        return found[0] if found else None
    details = [line for one in found for line in (str(one), *one.details)]
    what = "both sides of the comparison are incomplete"
    return PartialFailure(what, hint=found[0].hint, details=details)


def _jobs(
    source: EvalSource,
    mode: Mode,
    against: str | None,
    runs: WeightsOptions,
    options: EvalOptions,
    quiet: bool,
) -> tuple[Job[Scored, EvalResult], Job[Scored, EvalResult] | None]:
    """Make the job of the results or weights to score, and that of B, in the same mode."""
    from c2fdft_cli.engine.evaluate.weights import compare_weights, evaluate_weights

    if source.weights is None:
        with console.looking() as looked:
            options = replace(options, looked=looked)
            alone = replace(options, pictures=False)
            job = _job_of_results(source.place, source, mode, options)
            if against is None:
                return job, None
            return job, _job_of_results(Path(against), source, mode, alone)
    with console.looking():
        pairs = _pairs_to_restore(source, mode, runs.seed)
    ours = weights_file(source.weights, quiet)
    theirs = None if against is None else weights_file(against, quiet)
    with console.looking() as looked:
        options = replace(options, looked=looked)
        if theirs is None:
            return evaluate_weights(ours, runs, options, data=source.data, pairs=pairs), None
        return compare_weights(ours, theirs, runs, options, data=source.data, pairs=pairs)


def _job_of_results(
    path: Path, source: EvalSource, mode: Mode, options: EvalOptions
) -> Job[Scored, EvalResult]:
    """Make the job that scores the results at `path`, which are side A or B."""
    from c2fdft_cli.engine.evaluate.files import evaluate_files, evaluate_list
    from c2fdft_cli.engine.evaluate.photos import evaluate_alone
    from c2fdft_cli.engine.evaluate.sidd import evaluate_blocks, open_blocks

    if mode is Mode.PHOTOS:
        return evaluate_alone(path, options)
    if mode is Mode.LIST:
        return evaluate_list(path, options, source.degraded, folder=source.restored)
    if mode is Mode.BLOCKS:
        return evaluate_blocks(open_blocks(path, source.target), options)
    target = cast("Path", source.target)  # there is one in the mode IMAGES
    return evaluate_files(path, target, options, source.degraded)


def _pairs_to_restore(source: EvalSource, mode: Mode, seed: int) -> PairSource | None:
    """Open the pairs that the weights are to restore; None for those of shards."""
    from c2fdft_cli.engine.evaluate.folder import open_folder, open_list
    from c2fdft_cli.engine.evaluate.sidd import open_blocks

    if mode is Mode.SHARDS:
        return None
    if mode is Mode.LIST:
        return open_list(source.place, source.restored)
    if mode is Mode.BLOCKS:
        return open_blocks(source.place, source.target)
    return open_folder(source.place, source.sigma, seed)


def _with_report(source: EvalSource, runs: WeightsOptions, scores: Scores) -> str:
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
