"""`c2fdft eval`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from c2fdft_cli.cli import console
from c2fdft_cli.cli.options import Device, Json, Overwrite, Precision, Seed, Shards
from c2fdft_cli.errors import UsageError

if TYPE_CHECKING:
    from c2fdft_cli.engine.evaluate_report import ReportImages
    from c2fdft_cli.engine.evaluate_types import EvalOptions, EvalResult, Scored
    from c2fdft_cli.progress import Job


@dataclass(frozen=True)
class _Source:
    """What is scored: files against targets, or weights on shards."""

    target: Path | None
    degraded: Path | None
    weights: bool
    data: Path | None
    images: int
    seeds: int
    seed: int
    grid: str | None
    device: str
    precision: str


def evaluate(
    restored: Annotated[
        Path | None, typer.Argument(metavar="[RESTORED]", help="Folder of restored images, or one.")
    ] = None,
    target: Annotated[
        Path | None,
        typer.Argument(metavar="[TARGET]", help="Folder of the clean ones (or the whole set)."),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", metavar="CKPT", help="Score weights on validation pairs."),
    ] = None,
    data: Shards = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            "--protocol",
            metavar="NAME",
            help="derain, derain-matlab, deblur, denoise, rgb or y (else the recipe's, or rgb).",
        ),
    ] = None,
    degraded: Annotated[
        Path | None,
        typer.Option("--degraded", metavar="DIR", help="The untouched inputs, to score beside."),
    ] = None,
    border: Annotated[
        int, typer.Option("--border", help="Pixels to leave out on each side.", min=0)
    ] = 0,
    images: Annotated[
        int, typer.Option("--images", help="With --weights: pairs to take, 0 for all.", min=0)
    ] = 0,
    seeds: Annotated[
        int,
        typer.Option("--seeds", help="With --weights: noises for each image.", min=1, max=1000),
    ] = 1,
    grid: Annotated[
        str | None,
        typer.Option(
            "--grid", metavar="TIMES", help="With --weights: 999,500 (else the weights' own)."
        ),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            "--metrics", metavar="NAMES", help="Further metrics: all, or names with commas."
        ),
    ] = None,
    against: Annotated[
        Path | None,
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

    Examples: c2fdft eval out/ Rain100L/target --protocol derain

    c2fdft eval --weights runs/derain-fine/fine.pt --data shards/Rain13K
    """
    from c2fdft_cli.engine.evaluate_metrics import find_metrics
    from c2fdft_cli.engine.evaluate_types import EvalOptions

    options = EvalOptions(protocol, border, {} if metrics is None else find_metrics(metrics))
    if weights is not None and not (restored is target is degraded is None):
        raise UsageError("give RESTORED and TARGET, or --weights", where="--weights")
    if weights is None and (restored is None or target is None):
        hint = "c2fdft eval RESTORED TARGET, or c2fdft eval --weights CKPT --data SHARDS"
        raise UsageError("nothing to score", hint=hint)
    _prepare_outputs([csv, report and report / "index.html"], overwrite)
    source = _Source(
        target, degraded, weights is not None, data, images, seeds, seed, grid, device, precision
    )
    subject = weights or restored
    job = _job(subject, source, options)
    other = None if against is None else _job(against, source, EvalOptions(protocol, border))
    pictures = None
    if report is not None:
        from c2fdft_cli.engine.evaluate_report import ReportImages, with_pictures

        pictures = ReportImages()
        job = with_pictures(job, pictures)
    result = console.draw(job, _note)
    rival = None if other is None else console.draw(other, _note)
    document, words = _compared(result, rival, seed)
    written = _write(result, document, words, csv, report, pictures)
    following = None if report is not None else _next_command(subject, source, protocol)
    if json:
        console.emit({**document, "written": [str(path) for path in written], "next": following})
        return
    _tell(result, words, written)
    if following is not None:
        console.say_next(following)


def _job(subject: Path | None, source: _Source, options: EvalOptions) -> Job[Scored, EvalResult]:
    """The evaluation of one folder of results, or of one checkpoint."""
    from c2fdft_cli.engine.evaluate import evaluate_files
    from c2fdft_cli.engine.evaluate_weights import WeightsOptions, evaluate_weights
    from c2fdft_cli.engine.sweep_grids import parse_times

    if subject is None:
        raise UsageError("nothing to score")
    if source.weights:
        wish = WeightsOptions(
            checkpoint=subject,
            data=source.data,
            images=source.images,
            seeds=source.seeds,
            seed=source.seed,
            grid=None if source.grid is None else tuple(parse_times(source.grid, "--grid")),
            device=source.device,
            precision=source.precision,
        )
        return evaluate_weights(wish, options)
    if source.target is None:
        raise UsageError("no target")
    return evaluate_files(subject, source.target, options, source.degraded)


def _next_command(subject: Path | None, source: _Source, protocol: str | None) -> str:
    """The same with a page to look at."""
    words: list[object] = ["eval", subject, source.target]
    if source.weights:
        words = ["eval", "--weights", subject]
        words += [] if source.data is None else ["--data", source.data]
    words += [] if protocol is None else ["--protocol", protocol]
    return console.command(*words, "--report", "report")


def _note(event: Scored) -> str:
    return f"{event.row.name}: {event.row.psnr:.2f} dB"


def _prepare_outputs(paths: list[Path | None], overwrite: bool) -> None:
    """Nothing is overwritten unless asked; its folder is made before the work begins."""
    from c2fdft_cli.data.atomic import ensure_folder

    for path in paths:
        if path is None:
            continue
        if path.is_file() and not overwrite:
            raise UsageError("it exists", where=path, hint="use --overwrite, or another name")
        ensure_folder(path.parent)


def _compared(
    result: EvalResult, rival: EvalResult | None, seed: int
) -> tuple[dict[str, Any], list[str]]:
    """The JSON document, and the lines about B."""
    from c2fdft_cli.engine.evaluate_against import against, as_json, in_words, not_in_common
    from c2fdft_cli.engine.evaluate_output import document

    facts = document(result)
    if rival is None:
        return facts, []
    comparison = against(result, rival, seed)
    words = in_words(comparison)
    alone = not_in_common(result, rival)
    if alone:
        words.append(f"not in both: {', '.join(alone[:10])}" + (" ..." if alone[10:] else ""))
    facts["against"] = {**as_json(comparison, rival), "not_in_both": alone, "lines": words}
    return facts, words


def _write(
    result: EvalResult,
    document: dict[str, Any],
    words: list[str],
    csv: Path | None,
    report: Path | None,
    pictures: ReportImages | None,
) -> list[Path]:
    """The files that were asked for."""
    written = []
    if csv is not None:
        from c2fdft_cli.engine.evaluate_output import write_csv

        write_csv(csv, result)
        written.append(csv)
    if report is not None and pictures is not None:
        from c2fdft_cli.engine.evaluate_report import About, write_report

        about = About(console.command(*sys.argv[1:]), _remarks(result), result.recipe)
        written += write_report(report, document, pictures, about)
    return written


def _remarks(result: EvalResult) -> list[str]:
    """What the numbers are: protocol, further metrics, grid, files without a partner."""
    from c2fdft_cli.engine.evaluate_metrics import describe_metric

    border = f", border {result.border} px left out" if result.border else ""
    lines = [f"protocol {result.protocol.name}: {result.protocol.describes}"]
    lines[0] += f"; {result.scored_on}{border}"
    lines += [describe_metric(name) for name in result.rows[0].more]
    lines += result.notes
    if result.spread is not None:
        lines.append(f"mean PSNR +/- {result.spread:.3f} dB over the seeds")
    lines += [f"no target: {path}" for path in result.without_target]
    return lines + [f"not restored: {path}" for path in result.without_restored]


def _tell(result: EvalResult, words: list[str], written: list[Path]) -> None:
    from c2fdft_cli.engine.evaluate_output import table_of
    from c2fdft_cli.engine.evaluate_stats import worst

    console.table("", *table_of(result))
    out = console.stdout()
    if len(result.rows) > 1:
        names = worst([row.name for row in result.rows], [row.psnr for row in result.rows])
        out.print(f"lowest PSNR: {', '.join(names)}", markup=False)
    for line in [*_remarks(result), *(f"B: {line}" for line in words)]:
        out.print(line, markup=False)
    if written:
        out.print(f"written: {', '.join(map(str, written))}", markup=False)
