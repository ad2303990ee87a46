"""`c2fdft info PATH`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from c2fdft_cli.cli import console
from c2fdft_cli.cli.options import Json
from c2fdft_cli.words import first_of


def info(
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH",
            help="A checkpoint, the name of packaged weights, a shard folder, or a run folder.",
        ),
    ],
    json: Json = False,
) -> None:
    """Show the contents of a checkpoint, a shard folder or a run folder."""
    from c2fdft_cli.engine.weights.choose import find_path
    from c2fdft_cli.files.reading import require_existing

    found = find_path(path)
    require_existing(found.path)  # before torch is loaded
    for remark in [] if json else found.remarks:
        console.remark(remark)

    with console.loading():
        from c2fdft_cli.engine.tools.info import describe

    facts = describe(found.path)
    if json:
        console.emit(facts)
        return
    console.table(path, ("what", "value"), [(key, _words(v)) for key, v in facts.items()])


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(item)}" for key, item in value.items()) or "-"
    if isinstance(value, list):
        words = [_words(item) for item in value]
        # A run keeps up to hundreds of checkpoints; timesteps are shown in full.
        return ", ".join(first_of(words) if words == value else words)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, bool) or value is None:
        return "-" if value is None else "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) and abs(value) > 9999 else str(value)
