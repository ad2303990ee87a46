"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Device = Annotated[
    str, typer.Option("--device", help="Device: auto, cpu, cuda or mps.", metavar="DEVICE")
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        help="auto (bf16 where the hardware has it), fp32, bf16 or fp16.",
        metavar="PRECISION",
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of all random numbers.", min=0)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")]
Shards = Annotated[
    Path | None, typer.Option("--data", help="Folder of shards made by `c2fdft prepare`.")
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="NAME|FILE",
        help="Packaged weights by name (`c2fdft weights list`; ./NAME is the file), or a "
        "checkpoint.",
    ),
]


def weights_file(spec: str, quiet: bool) -> Path:
    """The checkpoint that a word stands for; CheckpointError when there is none.

    Args:
        spec: a name of packaged weights, or a file.
        quiet: say nothing of the choice, as with --json.
    """
    from c2fdft_cli.cli import console
    from c2fdft_cli.engine.weights.choose import choose_weights

    found = choose_weights(spec)
    for remark in [] if quiet else found.remarks:
        console.remark(remark)
    return found.path
