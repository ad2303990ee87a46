"""`c2fdft restore`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from c2fdft_cli.cli import console
from c2fdft_cli.cli.options import Device, Json, Overwrite, Precision, Seed, Weights
from c2fdft_cli.errors import UsageError

if TYPE_CHECKING:
    from c2fdft_cli.engine.restore.plan import RestorePlan

SAMPLING = "Sampling"
FILES = "Files"
VIDEO = "Video"
MACHINE = "Machine"


def restore(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="An image or a video, a folder (sub-folders too), a quoted glob, @list.txt, "
            "or - for stdin.",
        ),
    ],
    out: Annotated[
        str,
        typer.Argument(
            metavar="OUT",
            help="A folder; for one input also a file (a.png, a.mp4), or - for stdout.",
        ),
    ],
    weights: Weights = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            metavar="derain|denoise|deblur",
            help="Without --weights: use the packaged weights for this task (default: derain).",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            metavar="N",
            min=1,
            help="Sampling steps (default: the timesteps in the checkpoint).",
            rich_help_panel=SAMPLING,
        ),
    ] = None,
    spacing: Annotated[
        str | None,
        typer.Option(
            "--spacing",
            help="Spacing of --steps: linspace (default), leading or trailing.",
            metavar="NAME",
            rich_help_panel=SAMPLING,
        ),
    ] = None,
    grid: Annotated[
        str | None,
        typer.Option(
            "--grid",
            metavar="T,T,...",
            help="Timesteps in descending order, such as 999,500.",
            rich_help_panel=SAMPLING,
        ),
    ] = None,
    eta: Annotated[
        float,
        typer.Option(
            "--eta",
            help="Noise added in each step: 0 none (DDIM), 1 ancestral (DDPM).",
            rich_help_panel=SAMPLING,
        ),
    ] = 0.0,
    seed: Seed = 0,
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples", metavar="K", min=1, help="Average K samples.", rich_help_panel=SAMPLING
        ),
    ] = None,
    self_ensemble: Annotated[
        bool,
        typer.Option(
            "--self-ensemble",
            help="Average over 8 flips and rotations (4 for derain).",
            rich_help_panel=SAMPLING,
        ),
    ] = False,
    uncertainty: Annotated[
        Path | None,
        typer.Option(
            "--uncertainty",
            metavar="DIR",
            help="Write the per-pixel standard deviation of 8 (or --samples) samples as PNG.",
            rich_help_panel=SAMPLING,
        ),
    ] = None,
    output_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="NAME",
            help="png (default), jpg, tif, bmp, webp, or same (as the input).",
            rich_help_panel=FILES,
        ),
    ] = None,
    quality: Annotated[
        int, typer.Option("--quality", help="JPEG quality, 1-100.", rich_help_panel=FILES)
    ] = 95,
    bit_depth: Annotated[
        int | None,
        typer.Option(
            "--bit-depth",
            metavar="8|16",
            help="Bits per channel (default: those of the input).",
            rich_help_panel=FILES,
        ),
    ] = None,
    suffix: Annotated[
        str,
        typer.Option(
            "--suffix", metavar="TEXT", help="Append TEXT to output names.", rich_help_panel=FILES
        ),
    ] = "",
    compare: Annotated[
        Path | None,
        typer.Option(
            "--compare",
            metavar="DIR",
            help="Write degraded | restored | difference side by side.",
            rich_help_panel=FILES,
        ),
    ] = None,
    temporal_noise: Annotated[
        str,
        typer.Option(
            "--temporal-noise",
            metavar="fixed|per-frame",
            help="Initial noise: one for all frames (less flicker), or one per frame.",
            rich_help_panel=VIDEO,
        ),
    ] = "fixed",
    crf: Annotated[
        int,
        typer.Option(
            "--crf",
            metavar="N",
            help="Video quality, 0 (best, largest file) to 51.",
            rich_help_panel=VIDEO,
        ),
    ] = 18,
    overwrite: Overwrite = False,
    batch: Annotated[
        int,
        typer.Option(
            "--batch",
            metavar="N",
            min=0,
            help="Images of one size per batch; 0 for as many as memory allows.",
            rich_help_panel=MACHINE,
        ),
    ] = 0,
    max_memory: Annotated[
        str | None,
        typer.Option(
            "--max-memory",
            metavar="SIZE",
            help="Memory limit, such as 900M or 6G (default: 80 % of free memory).",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option(
            "--tile",
            metavar="N",
            help="Restore in overlapping tiles of N px (default: the whole image).",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    compile: Annotated[
        str,
        typer.Option(
            "--compile",
            metavar="WHEN",
            help="torch.compile: auto (on CUDA, for large jobs), on or off.",
            rich_help_panel=MACHINE,
        ),
    ] = "auto",
    device: Device = "auto",
    precision: Precision = "auto",
    json: Json = False,
) -> None:
    """Restore images and videos of any sizes.

    Existing outputs are skipped, so an interrupted run resumes where it stopped. Outputs are PNG,
    with bit depth, alpha, colour profile and EXIF of the input. Videos keep container,
    frame rate and sound; they need the extra `video`.

    Examples: c2fdft restore rainy/ out/

    c2fdft restore rainy/ out/ --weights runs/derain-fine/fine.pt
    """
    from c2fdft_cli.engine.restore.inputs import require_source
    from c2fdft_cli.engine.restore.options import (
        STDIO,
        Machine,
        Sampling,
        Writing,
        parse_grid,
        parse_size,
    )

    if json and out == STDIO:
        raise UsageError("--json cannot be combined with OUT -, which is the image")
    sampling = Sampling(
        weights=weights,
        task=task,
        steps=steps,
        spacing=spacing,
        grid=None if grid is None else parse_grid(grid),
        eta=eta,
        seed=seed,
        samples=samples,
        self_ensemble=self_ensemble,
        temporal_noise=temporal_noise,
    )
    machine = Machine(
        device=device,
        precision=precision,
        batch=batch,
        max_memory=None if max_memory is None else parse_size(max_memory),
        tile=tile,
        compile=compile,
    )
    writing = Writing(
        format=output_format,
        quality=quality,
        bit_depth=bit_depth,
        suffix=suffix,
        overwrite=overwrite,
        compare=compare,
        uncertainty=uncertainty,
        crf=crf,
    )
    require_source(source)  # before torch is loaded

    from c2fdft_cli.engine.restore.plan import plan_restore

    plan = plan_restore(
        source,
        out,
        sampling=sampling,
        machine=machine,
        writing=writing,
        stdin=sys.stdin.buffer.read() if source == STDIO else None,
    )
    _run(plan, json)


def _run(plan: RestorePlan, json: bool) -> None:
    from c2fdft_cli.cli.restore_view import document, next_command, tell, with_rate
    from c2fdft_cli.engine.restore.job import restore as start
    from c2fdft_cli.engine.restore.options import STDIO
    from c2fdft_cli.engine.restore.result import gather_ranks
    from c2fdft_cli.execution.distributed import destroy_process_group, join_ranks

    try:
        join_ranks(plan.runtime)
        if not plan.runtime.is_main:
            gather_ranks(start(plan).run(), plan.runtime)
            return
        for remark in [] if json else plan.remarks:
            console.remark(remark)
        for warning in plan.warnings:
            console.remark(f"warning: {warning}")
        result = gather_ranks(console.draw(start(plan), with_rate()), plan.runtime)
    finally:
        destroy_process_group()
    following = None if result.failure is not None else next_command(plan)
    if json:
        console.emit(document(plan, result, following))
    elif plan.out != STDIO:
        tell(plan, result)
        if following is not None:
            console.say_next(following)
    if result.failure is not None:
        raise result.failure
