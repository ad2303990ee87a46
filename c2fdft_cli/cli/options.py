"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.", metavar="DEVICE")]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        help="auto (bf16 where the hardware has it), fp32, bf16 or fp16.",
        metavar="PRECISION",
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of all random numbers.", min=0)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there already.")]
Shards = Annotated[
    Path | None, typer.Option("--data", help="Folder of shards made by `c2fdft prepare`.")
]
Out = Annotated[Path | None, typer.Option("--out", help="Where to write.")]
