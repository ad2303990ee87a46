"""`c2fdft restore`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from c2fdft_cli.cli import console
from c2fdft_cli.cli.options import Json, takes_settings
from c2fdft_cli.engine.restore.options import (
    STDIO,
    Machine,
    SamplingOptions,
    Writing,
    require_sources,
)
from c2fdft_cli.errors import UsageError
from c2fdft_cli.words import first_of

if TYPE_CHECKING:
    from c2fdft_cli.engine.restore.plan import RestorePlan


@takes_settings
def restore(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="IN",
            help="Images, videos, folders (sub-folders too), globs, @list.txt, or - for stdin.",
        ),
    ],
    out: Annotated[
        str,
        typer.Argument(
            metavar="OUT",
            help="A folder; for a single input also a file (a.png, a.mp4), or - for stdout.",
        ),
    ],
    sampling: SamplingOptions,
    writing: Writing,
    machine: Machine,
    json: Json = False,
) -> None:
    """Restore images and videos of any sizes.

    Existing outputs are skipped, so an interrupted run resumes where it stopped. Outputs are PNG
    files with the bit depth, alpha, colour profile and metadata of the input. Videos keep their
    container, frame rate and sound; they need the extra `video`.

    Examples: c2fdft restore rainy/ out/

    c2fdft restore a.jpg b.jpg out/

    c2fdft restore rainy/ out/ --weights runs/derain-fine/fine.pt
    """
    if json and out == STDIO:
        raise UsageError("--json cannot be combined with OUT -: stdout is the image then")
    require_sources(sources, out)  # before torch is loaded

    with console.loading():
        from c2fdft_cli.engine.restore.plan import plan_restore

    stdin = sys.stdin.buffer.read() if STDIO in sources else None
    with console.looking() as looked:
        plan = plan_restore(
            sources,
            out,
            sampling=sampling,
            machine=machine,
            writing=writing,
            stdin=stdin,
            looked=looked,
        )
    _run(plan, json)


def _run(plan: RestorePlan, json: bool) -> None:
    from c2fdft_cli.cli.views.restore import document, next_command, tell, with_rate
    from c2fdft_cli.engine.restore.job import restore as start
    from c2fdft_cli.engine.restore.result import merge
    from c2fdft_cli.execution.distributed import destroy_process_group, gather, join_ranks

    try:
        join_ranks(plan.runtime)
        if not plan.runtime.is_main:
            gather(start(plan).run(), plan.runtime, merge)
            return
        for remark in [] if json else plan.remarks:
            console.remark(remark)
        for warning in first_of(plan.warnings):
            console.remark(f"warning: {warning}")
        result = gather(console.draw(start(plan), with_rate()), plan.runtime, merge)
    finally:
        destroy_process_group()
    following = None if result.failure is not None else next_command(plan)
    if json:
        console.emit(document(plan, result, following))
    else:
        tell(plan, result)
        if following is not None and plan.out != STDIO:
            console.say_next(following)
            if plan.writing.compare is None:
                console.remark(
                    "without clean targets, restore with --compare DIR shows what changed"
                )
    if result.failure is not None:
        raise result.failure
