"""`c2fdft demo`: runs the six commands on a small data set that it makes first."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from contextlib import redirect_stdout
from functools import partial
from itertools import count
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from c2fdft_cli.cli import console
from c2fdft_cli.cli.command_list import load_command
from c2fdft_cli.cli.options import Json, path_of, refuse_several_processes
from c2fdft_cli.errors import Interrupted, UsageError
from c2fdft_cli.signals import SignalReceived, raise_late, unwinding

_AGAIN = "the demo does not resume; start it again, with another --out if you have named one"


def demo(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Values of recipes/tiny.yaml to change."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            parser=path_of,
            metavar="DIR",
            help="Folder for all files (default: c2fdft-demo, or c2fdft-demo-2, ...).",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Run the whole pipeline in minutes: prepare, train, sweep, fine-tune, restore, score.

    The photos come with scikit-image (the `demo` extra), the rain is synthetic, and the network
    starts from random weights. So the result shows what a few minutes of training can do.
    """
    refuse_several_processes("demo")
    with console.loading():
        from c2fdft_cli.engine.tools.demo import HELD_OUT, comparison, make_pairs
        from c2fdft_cli.recipe.files import load_recipe

    load_recipe("tiny", overrides or [])  # refuses wrong overrides before any file is written
    folder = _free_folder(out)
    started = time.monotonic()
    console.remark(f"making photos with rain in {folder}/pairs")
    picture = folder / "comparison.png"
    with unwinding(_AGAIN):
        make_pairs(folder / "pairs")
        try:
            scores = _run_pipeline(folder, overrides or [], quiet=json)
        finally:
            console.expect(document=json)  # not any more, after the document of `eval`
        rainy, clean = folder / "pairs" / "val" / "rainy", folder / "pairs" / "val" / "clean"
        names = [Path(name).with_suffix(".png").name for name in HELD_OUT]
        comparison([rainy, folder / "restored", clean], picture, names)
    seconds = time.monotonic() - started
    if json:
        console.emit({"seconds": seconds, "picture": picture, **scores})
        return
    _tell(scores)
    console.stdout().print(f"degraded | restored | target: {picture}")
    console.stdout().print(f"finished in {seconds:.0f} s")
    fine = folder / "fine" / "fine.pt"
    console.say_next(console.command("restore", "PHOTO.jpg", "RESTORED.png", "--weights", fine))


def _free_folder(out: Path | None) -> Path:
    if out is not None:
        if os.path.exists(out) and not os.path.isdir(out):
            what = "the output must be a folder, but this is a file"
            raise UsageError(what, where=out, hint="name another with --out")
        if os.path.isdir(out) and any(out.iterdir()):
            raise UsageError("the folder is not empty", where=out, hint="choose another with --out")
        return out
    names = ("c2fdft-demo" if number == 1 else f"c2fdft-demo-{number}" for number in count(1))
    # A link that leads nowhere takes a name too: no folder can be made there.
    return next(folder for folder in map(Path, names) if not os.path.lexists(folder))


def _run_pipeline(folder: Path, overrides: list[str], *, quiet: bool) -> dict[str, Any]:
    """Run the commands one after another and return the documents of the two `eval` commands.

    quiet: redirect the standard output of the other commands to standard error.
    """
    run = partial(_run, to=sys.stderr if quiet else sys.stdout)
    pairs, shards = folder / "pairs", folder / "shards"
    coarse, fine = folder / "coarse", folder / "fine"
    rainy, clean, restored = pairs / "val" / "rainy", pairs / "val" / "clean", folder / "restored"
    settings = ["data.synthesize=rain", "data.synthesis.heavy=0", *overrides]
    run("prepare", pairs, "--out", shards)
    run("train-coarse", "--recipe", "tiny", "--data", shards, "--out", coarse, *settings)
    run("sweep-steps", coarse / "coarse.pt", "--steps", "1,2,4")
    # A short fine stage gains most with one sampling step, whatever is best for the coarse weights.
    one_step = "sampling.grid=[500]"
    run("train-fine", "--from", coarse / "coarse.pt", "--out", fine, one_step, *overrides)
    run("restore", rainy, restored, "--weights", fine / "fine.pt")
    return {"degraded": _score(rainy, clean), "restored": _score(restored, clean)}


def _score(results: Path, clean: Path) -> Any:
    """Run `eval` and return its JSON document."""
    document = io.StringIO()
    _run("eval", results, clean, "--protocol", "derain", "--json", to=document)
    return json.loads(document.getvalue())


def _run(*words: object, to: TextIO) -> None:
    """Run a command in this process; what it prints on standard output goes to `to`.

    Its errors are those of the demo. What it has set in torch and in the C library is undone.
    """
    from c2fdft_cli.execution.surroundings import usual_settings

    # not wrapped, so that it can be pasted
    console.stderr().print(f"$ {console.command(*words)}", soft_wrap=True)
    name, *rest = map(console.word_of, words)
    command = load_command(name)
    try:
        with usual_settings(), redirect_stdout(to):
            with command.make_context(f"c2fdft {name}", rest) as context:
                command.invoke(context)
            raise_late()
    except Interrupted as stop:
        what = f"the demo was stopped in {name}"
        raise Interrupted(what, signal_number=stop.signal_number, hint=_AGAIN) from stop
    except SignalReceived as stop:
        stop.hint = _AGAIN
        raise


def _tell(scores: dict[str, Any]) -> None:
    before, after = scores["degraded"], scores["restored"]
    by_name = {Path(row["name"]).stem: row for row in before["images"]}
    rows = []
    for row in after["images"]:
        was = by_name[Path(row["name"]).stem]
        rows.append((row["name"], was["psnr"], row["psnr"], was["ssim"], row["ssim"]))
    means = [side["mean"][key] for key in ("psnr", "ssim") for side in (before, after)]
    rows.append(("mean", *means))
    columns = ("image", "PSNR degraded", "PSNR restored", "SSIM degraded", "SSIM restored")
    console.table(f"images not used for training ({after['protocol']})", columns, rows)
    if means[1] <= means[0]:
        console.remark(
            "the restored images do not score higher than the degraded ones: too few iterations"
        )
