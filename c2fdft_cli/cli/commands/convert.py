"""`c2fdft convert IN OUT`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from c2fdft_cli.cli import console
from c2fdft_cli.cli.options import Json, path_of, takes_settings, weights_file
from c2fdft_cli.engine.weights.convert_options import ConvertOptions
from c2fdft_cli.words import binary_size

if TYPE_CHECKING:
    from c2fdft_cli.engine.weights.convert import Converted


@takes_settings
def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="A checkpoint (.pt, .pth, .ckpt, .safetensors), or the name of packaged weights.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Argument(
            parser=path_of, metavar="OUT", help="A .pt, .pth, .ckpt, .safetensors or .onnx file."
        ),
    ],
    options: ConvertOptions,
    json: Json = False,
) -> None:
    """Convert weights to another format: checkpoint, official, safetensors, ONNX.

    Example: c2fdft convert net_g_latest.pth derain.onnx
    """
    with console.loading():
        from c2fdft_cli.engine.weights.convert import convert as start

    file = weights_file(source, quiet=json)
    with console.loading("converting..."):
        done = start(file, out, options)
    then = _next(done)
    if json:
        console.emit({**asdict(done), "next": then})
        return
    _tell(done)
    asked = "raw" if options.raw else "ema" if options.ema_only else None
    if asked not in (None, *done.sets):
        console.remark(f"note: the source has no {asked} weights; its only set was stored")
    if then is not None:
        console.say_next(then)
    elif done.form == "onnx":
        console.stdout().print("to run it with onnxruntime: docs/convert.md")
    else:
        console.remark("restoring with this file would use another noise schedule: use a .pt")


def _next(done: Converted) -> str | None:
    """Return the command that restores with the file as with its source; None if none does."""
    if done.form == "onnx" or not done.keeps_schedule:
        return None
    line: list[object] = ["restore", "IN", "OUT", "--weights", done.out]
    if done.form == "official":  # this format cannot hold the timesteps and eta
        line += ["--grid", ",".join(map(str, done.grid))]
        line += ["--eta", done.eta] if done.eta else []
    return console.command(*line)


def _tell(done: Converted) -> None:
    rows: list[tuple[str, object]] = [
        ("format", done.form),
        ("weights", " and ".join(done.sets)),
        ("stored as", done.stored),
        ("parameters", f"{done.parameters:,}"),
        ("size", binary_size(done.bytes)),
        ("timesteps", ", ".join(map(str, done.grid))),
    ]
    if done.onnx_error is not None:
        rows.append(("largest error", f"{done.onnx_error:.1e} relative, against torch"))
    if done.left_out:
        rows.append(("omitted", "; ".join(done.left_out)))
    console.table(str(done.out), ("what", "value"), rows)
