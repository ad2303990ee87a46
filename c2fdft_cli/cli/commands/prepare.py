"""`c2fdft prepare`."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from c2fdft_cli.cli import console
from c2fdft_cli.cli.options import Json, path_of, refuse_several_processes, takes_settings
from c2fdft_cli.engine.prepare.options import PrepareOptions, Synthesis
from c2fdft_cli.errors import UsageError
from c2fdft_cli.files.reading import require_existing
from c2fdft_cli.settings import option_name, setting
from c2fdft_cli.vocabulary import DEGRADATIONS, TASKS
from c2fdft_cli.words import binary_size, first_of, one_of

if TYPE_CHECKING:
    from c2fdft_cli.engine.prepare.job import PrepareResult

SYNTHESIS, LOOKING = "Degradation of clean images", "Inspecting the pairs"
"""The headings of options that are rarely needed."""


@dataclass(frozen=True)
class Degrading:
    """The options for making pairs from clean images."""

    synthesize: str | None = setting(
        None, f"Degrade clean images: {one_of(DEGRADATIONS)}.", metavar="KIND"
    )
    synth: tuple[str, ...] = setting(
        (),
        "A setting of the degradation (docs/synthesis.md). Repeatable.",
        metavar="KEY=VALUE",
        several=True,
        panel=SYNTHESIS,
    )
    streaks: Path | None = setting(
        None, "Folder of rendered rain streaks (PNG).", metavar="DIR", panel=SYNTHESIS
    )
    clean_only: bool = setting(
        False,
        "With --synthesize: store only the clean images, to be degraded during training.",
        panel=SYNTHESIS,
    )


@dataclass(frozen=True)
class Looking:
    """The options for inspecting pairs or existing shards."""

    preview: Path | None = setting(
        None, "Write a contact sheet of pairs.", metavar="PNG", panel=LOOKING
    )
    verify: bool = setting(
        False, "Check every byte of existing shards; SOURCE is their folder.", panel=LOOKING
    )


@takes_settings
def prepare(
    source: Annotated[
        Path,
        typer.Argument(
            parser=path_of,
            metavar="SOURCE",
            help="Folder of image pairs in any published layout, or of clean images.",
        ),
    ],
    options: PrepareOptions,
    degrading: Degrading,
    looking: Looking,
    json: Json = False,
) -> None:
    """Pack image pairs into shards that training reads without decoding.

    The layout is recognised: Rain13K, Rain100L/H, Rain1400, GoPro, SIDD, RainDrop, lq/gt and
    others. Files that belong to no pair are listed by name.

    Examples: c2fdft prepare Rain13K/

    c2fdft prepare photos/ --synthesize rain
    """
    if looking.verify:
        _verify(source, json)
        return
    refuse_several_processes("prepare")
    require_existing(source)  # before anything heavy is loaded

    with console.loading():
        from c2fdft_cli.engine.prepare.job import prepare as start

    options = replace(options, synthesize=_synthesis(degrading))
    check, preview = options.check_only, looking.preview
    if preview is not None:
        if check:
            raise UsageError("--preview cannot be combined with --check, which writes no shards")
        if degrading.clean_only:
            raise UsageError("--preview cannot be combined with --clean-only: there are no pairs")
        _check_preview(preview, source, options.overwrite)
    with console.looking() as looked:
        job = start(options, looked)
    result = console.draw(job, lambda event: event.name)
    if preview is not None:
        _write_preview(options, preview)
    following = None if check or result.task not in TASKS else _next_command(options, result.task)
    if json:
        console.emit(_document(result, options, following))
    else:
        _tell(result, options)
        if following:
            console.say_next(following)
            # The paper's recipe takes days on a GPU and years on a CPU.
            console.remark(
                "add --dry-run to estimate the time; smaller recipes: c2fdft recipes list"
            )
        elif not check:
            words = ("train-coarse", "--recipe", "RECIPE", "--data", options.folder)
            console.say_next(console.command(*words))
            console.stdout().print(f"RECIPE is the recipe of your task: {one_of(list(TASKS))}")
    if (failure := result.failure) is not None:
        raise failure


def _check_preview(preview: Path, source: Path, overwrite: bool) -> None:
    """Raise an error before hours of work if the contact sheet could not be written."""
    from c2fdft_cli.data.images.formats import WRITE_SUFFIXES
    from c2fdft_cli.files.folders import check_folder
    from c2fdft_cli.files.paths import real_path
    from c2fdft_cli.files.writing import require_new

    if preview.suffix.lower() not in WRITE_SUFFIXES:
        raise UsageError(
            f"--preview must be a picture, got {preview}",
            hint=f"use one of {' '.join(sorted(WRITE_SUFFIXES))}",
        )
    require_new(preview, overwrite)
    check_folder(preview.parent)
    if source.resolve() in real_path(preview).parents:
        raise UsageError(
            f"--preview must be outside of the source folder, got {preview}",
            hint="choose a file in another folder",
        )


def _synthesis(degrading: Degrading) -> Synthesis | None:
    if degrading.synthesize is None:
        for one in fields(degrading):
            if getattr(degrading, one.name):
                hint = f"add --synthesize {one_of(DEGRADATIONS)}"
                raise UsageError(f"{option_name(one)} needs --synthesize", hint=hint)
        return None
    import yaml

    values: dict[str, object] = {}
    for given in degrading.synth:
        key, separator, value = given.partition("=")
        if not separator:
            raise UsageError(f"--synth must have the form KEY=VALUE, got {given}")
        try:
            values[key] = yaml.safe_load(value)
        # PyYAML raises ValueError for impossible dates and numbers of thousands of digits.
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise UsageError(f"the value of --synth {given} cannot be read as YAML") from error
    return Synthesis(
        degrading.synthesize, values, degrading.streaks, store=not degrading.clean_only
    )


def _next_command(options: PrepareOptions, task: str) -> str:
    synthesis = options.synthesize
    words: list[object] = ["train-coarse", "--recipe", task, "--data", options.folder]
    if synthesis is not None and not synthesis.store:
        words.append(f"data.synthesize={synthesis.kind}")
        for key, value in synthesis.options.items():
            words.append(f"data.synthesis.{key}={dumps(value)}")
        if synthesis.streaks is not None:
            words.append(f"data.streaks={synthesis.streaks}")
    return console.command(*words)


def _document(result: PrepareResult, options: PrepareOptions, following: str | None) -> object:
    return {
        "layout": result.layout,
        "pairs": result.pairs,
        "train": result.train,
        "val": result.val,
        "leftovers": [{"path": item.path, "reason": item.reason} for item in result.unpaired],
        "failed": [{"name": name, "problem": problem} for name, problem in result.failed],
        "notices": list(result.notices),
        "shards": list(result.shards),
        "out": options.folder,
        "bytes": result.bytes,
        "up_to_date": result.up_to_date,
        "check": result.report,
        "next": following,
    }


def _tell(result: PrepareResult, options: PrepareOptions) -> None:
    out = console.stdout()
    out.print(f"layout: {result.layout}")
    out.print(f"pairs: {result.pairs} ({result.train} train, {result.val} validation)")
    for lines in (
        [f"note: {notice}" for notice in result.notices],
        [f"unpaired: {item.path} ({item.reason})" for item in result.unpaired],
        [f"unusable: {name} ({problem})" for name, problem in result.failed],
    ):
        for line in first_of(lines):
            out.print(line)
    report = result.report
    if report is not None:
        for label in ("smallest", "median", "largest"):
            height, width = getattr(report, label)
            out.print(f"{label} image: {width}x{height}")
        if report.psnr_y is not None:
            out.print(f"inputs: {report.psnr_y:.2f} dB PSNR-Y")
        needed, free = (binary_size(n) for n in (report.bytes_needed, report.bytes_free))
        out.print(f"disk: {needed} needed, {free} free")
    if options.check_only:
        return
    state = "up to date" if result.up_to_date else "written"
    count = len(result.shards)
    size = binary_size(result.bytes)
    out.print(f"shards: {count} in {options.folder}, {size}, {state}")


def _write_preview(options: PrepareOptions, path: Path) -> None:
    from c2fdft_cli.data.shards.reader import ShardSet
    from c2fdft_cli.engine.prepare.inspect import write_preview
    from c2fdft_cli.files.folders import ensure_folder

    ensure_folder(path.parent)
    write_preview(ShardSet.open(options.folder), path)
    console.remark(f"contact sheet: {path}")


def _verify(source: Path, json: bool) -> None:
    from c2fdft_cli.data.shards.reader import verify

    result = console.draw(verify(source), lambda name: name)
    if json:
        console.emit(result)
    else:
        console.stdout().print(f"{source}: every byte is as it was written")
