"""Choose the output path of each result, before any work; no two results share a path."""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, takewhile
from pathlib import Path

from c2fdft_cli.data.images.formats import (
    JPEG_SUFFIXES,
    OUTPUT_FORMAT_OF,
    OUTPUT_FORMATS,
    RESTORED_SUFFIXES,
    UNREAD_SUFFIXES,
    WRITE_SUFFIXES,
)
from c2fdft_cli.data.video.probe import MUXERS, VIDEO_SUFFIXES, VideoInfo
from c2fdft_cli.data.video.remux import audio_problem
from c2fdft_cli.engine.restore.inputs import Inputs, Source
from c2fdft_cli.engine.restore.options import FORMATS, SAME_FORMAT, STDIO, Writing
from c2fdft_cli.errors import ResourceError, UsageError
from c2fdft_cli.files.paths import folded, same_files
from c2fdft_cli.words import one_of

_OTHER_SUFFIXES = (RESTORED_SUFFIXES - WRITE_SUFFIXES) | UNREAD_SUFFIXES | {".pdf"}
_FILE_SUFFIXES = WRITE_SUFFIXES | VIDEO_SUFFIXES
_ALL_FILES_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
_MAX_NAME_BYTES = 255


@dataclass(frozen=True)
class Item:
    """One image or video to restore, and the files that are made from it.

    Args:
        source: the input.
        output: path of the restored image; None for standard output.
        suffix: the suffix that decides the output's format, in lower case.
        compare: path of the side-by-side picture, if requested.
        deviation, heat: paths of two pictures of the per-pixel standard deviation, if requested.
    """

    source: Source
    output: Path | None
    suffix: str
    compare: Path | None = None
    deviation: Path | None = None
    heat: Path | None = None

    @property
    def files(self) -> list[Path]:
        """All files that are made, the restored image last."""
        files = (self.compare, self.deviation, self.heat, self.output)
        return [path for path in files if path is not None]

    @property
    def is_complete(self) -> bool:
        """Whether all of its files exist; each is written completely or not at all."""
        return bool(self.files) and all(map(is_there, self.files))


def is_there(path: Path) -> bool:
    """Whether something that is not a folder has this name."""
    try:
        return not stat.S_ISDIR(os.stat(path).st_mode)
    except (OSError, ValueError):  # it does not exist, or no file can have this name
        return False


def output_folder(out: str) -> Path | None:
    """Return the folder that OUT names; None if it names a file or standard output."""
    if out == STDIO:
        return None
    path = Path(out)
    return path if os.path.isdir(path) or path.suffix.lower() not in _FILE_SUFFIXES else None


def plan_outputs(inputs: Inputs, out: str, writing: Writing) -> tuple[list[Item], list[str]]:
    """Choose the outputs of every source; also return notes on names that had to be lengthened.

    Raises:
        UsageError: a single output file for several images or in place of a folder, a format that
            cannot hold what is requested, an output that would replace an input, or an option that
            videos lack.
    """
    if any(source.video is not None for source in inputs.sources):
        _check_video_options(writing)
    for option, name in (("--compare", writing.compare), ("--uncertainty", writing.uncertainty)):
        if name is not None and output_folder(str(name)) is None:
            hint = "the pictures in it are named like the inputs"
            raise UsageError(f"{option} must be a folder, got the file {name}", hint=hint)
    folder = output_folder(out)
    notes: list[str] = []
    if folder is None:
        if not inputs.single or len(inputs.sources) != 1:
            what = f"OUT must be a folder for {len(inputs.sources)} images, got the file {out}"
            raise UsageError(what)
        items = [_named_item(inputs.sources[0], out, writing)]
    else:
        _check_folder_name(folder, out, inputs)
        items, notes = _mirrored_items(inputs.sources, folder, writing)
    if writing.bit_depth == 16:
        _check_depth(items)
    _refuse_replacing_inputs(items)
    return items, notes


def _check_depth(items: Sequence[Item]) -> None:
    """Raise UsageError if an output's format does not hold 16 bits."""
    deep = [one for one in OUTPUT_FORMATS if one.is_deep]
    for item in items:
        if OUTPUT_FORMAT_OF.get(item.suffix) not in deep:
            names = one_of([one.name for one in deep])
            options = one_of([one.suffixes[0].removeprefix(".") for one in deep])
            what = f"--bit-depth 16 needs {names}, {item.suffix[1:]} holds 8 bits"
            raise UsageError(what, hint=f"use --format {options}")


def is_about_one_file(error: ResourceError) -> bool:
    """Whether the file system refused only this file, so that others can still be written."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno not in _ALL_FILES_ERRORS


def with_usable_names(item: Item) -> Item:
    """Set the item's problem if no file can have an output's name, before the network runs."""
    if item.source.problem is not None:
        return item
    problem = next(filter(None, (_name_problem(item.source, path) for path in item.files)), None)
    return replace(item, source=replace(item.source, problem=problem))


def _name_problem(source: Source, path: Path) -> ResourceError | None:
    size = len(os.fsencode(path.name))
    if size > _MAX_NAME_BYTES:
        what = f"the output's name has {size} bytes, file systems allow 255"
        return ResourceError(what, where=source.label, hint="shorten the input's name")
    if os.path.isdir(path):
        what = f"a folder has the output's name {path}"
        return ResourceError(what, where=source.label, hint="rename the folder or the input")
    return None


def _check_folder_name(folder: Path, out: str, inputs: Inputs) -> None:
    suffix = folder.suffix.lower()
    if inputs.single and suffix in _OTHER_SUFFIXES and not os.path.isdir(folder):
        is_video = inputs.sources[0].video is not None
        kind, suffixes = ("videos", MUXERS) if is_video else ("images", WRITE_SUFFIXES)
        hint = f"use one of {' '.join(sorted(suffixes))}"
        raise UsageError(f"cannot write {kind} as '{suffix}'", where=folder, hint=hint)
    if out.endswith(("/", "\\")) and suffix in _FILE_SUFFIXES:
        raise UsageError("OUT is a folder with the suffix of an image", where=folder)


def _check_video_options(writing: Writing) -> None:
    """Refuse options that only apply to images."""
    requested = {
        "--uncertainty": writing.uncertainty is not None,
        "--compare": writing.compare is not None,
        "--bit-depth 16": writing.bit_depth == 16,
    }
    for option, is_given in requested.items():
        if is_given:
            hint = "omit it, or restore images only"
            raise UsageError(f"{option} cannot be used with videos", hint=hint)


def _named_item(source: Source, out: str, writing: Writing) -> Item:
    """Return the item of a single source whose output file the user named."""
    path = Path(out)
    suffix = path.suffix.lower()
    if writing.suffix and out != STDIO:
        hint = "put it into the name, or name a folder"
        raise UsageError(f"--suffix cannot be combined with the output file {out}", hint=hint)
    if source.video is not None:
        _check_video_output(source.video, path)
        return Item(source, path, suffix)
    if out == STDIO:
        return _with_extras(source, None, _suffix(source, writing.format), source.stem, writing)
    if suffix in VIDEO_SUFFIXES:
        raise UsageError("an image cannot become a video", where=out, hint="name a .png file")
    name = writing.format
    if name not in (None, SAME_FORMAT) and FORMATS[name] != FORMATS.get(suffix[1:]):
        raise UsageError(f"--format {name} does not fit the output file {out}")
    return _with_extras(source, path, suffix, path.stem, writing)


def _check_video_output(video: VideoInfo, out: Path) -> None:
    suffix = out.suffix.lower()
    if suffix not in MUXERS:
        hint = f"name a folder, or a file with one of {' '.join(sorted(MUXERS))}"
        raise UsageError("the output of a video must be a video file", where=out, hint=hint)
    problem = audio_problem(video, suffix)
    if problem is not None:
        other = "use .mkv" if audio_problem(video, ".mkv") is None else "convert the sound first"
        raise UsageError(problem, where=out, hint=f"sound is copied as it is; {other}")


def _suffix(source: Source, format: str | None) -> str:
    """Return the suffix of an output that the user did not name."""
    own = source.path.suffix.lower()
    if source.video is not None:
        return own if own in MUXERS else ".mkv"
    name = format or "png"
    if name != SAME_FORMAT:
        return FORMATS[name]
    return own if own in WRITE_SUFFIXES else ".jpg" if own in JPEG_SUFFIXES else ".png"


def _with_extras(
    source: Source, output: Path | None, suffix: str, base: str, writing: Writing
) -> Item:
    """Return an item with the additional pictures that were requested, named after `base`."""
    compare, uncertainty = writing.compare, writing.uncertainty
    return Item(
        source,
        output,
        suffix,
        compare=compare and compare / f"{base}.compare.png",
        deviation=uncertainty and uncertainty / f"{base}.spread.png",
        heat=uncertainty and uncertainty / f"{base}.heat.png",
    )


def _mirrored_items(
    sources: Sequence[Source], folder: Path, writing: Writing
) -> tuple[list[Item], list[str]]:
    """Return items below the output folder, and notes on the names that had to be lengthened.

    Items that would share a file get the input's suffix in their names, and then a number:
    a.jpg beside a.png gives a.jpg.png and a.png.png. Names are compared as by file systems that
    ignore case and how accented letters are composed.
    """

    def item(source: Source, stem: str) -> Item:
        suffix = _suffix(source, writing.format)
        # `with_name` gets the stem and the suffix together: the stem of "..png" alone is no name.
        name = source.relative.with_name(f"{stem}{writing.suffix}{suffix}")
        base = str(name).removesuffix(suffix)
        return _with_extras(source, folder / name, suffix, base, writing)

    plain = [item(source, source.stem) for source in sources]
    # No output may have the name of a folder of outputs: that of a.jpg beside the folder a.png.
    folders = {folded(str(path)) for one in plain for path in _folders(one, folder)}
    claims = Counter(folders)
    claims.update(key for one in plain for key in _keys(one))
    # Unshared names are reserved before any name is lengthened, so they stay as they are whatever
    # the order of the inputs.
    taken = {key for one in plain if not _is_shared(one, claims) for key in _keys(one)} | folders
    settled, notes = [], []
    for one in plain:
        if _is_shared(one, claims):
            stems = _longer_stems(one.source)
            longer = next(
                made for made in (item(one.source, s) for s in stems) if not taken & _keys(made)
            )
            taken |= _keys(longer)
            name = one.output.name if one.output else ""
            notes.append(f"{one.source.label} -> {longer.output}: another input claims {name}")
            one = longer  # noqa: PLW2901
        settled.append(one)
    return settled, notes


def _longer_stems(source: Source) -> Iterator[str]:
    """Yield a.jpg, a.jpg-2, a.jpg-3, ... for a.jpg; a.gif-0001, ... for a frame of a.gif."""
    frame = "" if source.frame is None else f"-{source.frame + 1:04d}"
    stem = f"{source.relative.name}{frame}"
    yield stem
    yield from (f"{stem}-{number}" for number in count(2))


def _keys(item: Item) -> set[str]:
    return {folded(str(path)) for path in item.files}


def _folders(item: Item, top: Path) -> Iterable[Path]:
    """Return the folders of an item's output below `top`."""
    places = [] if item.output is None else item.output.parents
    return takewhile(lambda place: place != top, places)


def _is_shared(item: Item, claims: Counter[str]) -> bool:
    return any(claims[key] > 1 for key in _keys(item))


def _refuse_replacing_inputs(items: list[Item]) -> None:
    inputs = [item.source.path for item in items if item.source.data is None]
    hit = same_files([path for item in items for path in item.files], inputs)
    if hit:
        raise UsageError(
            "this output would replace an input",
            where=hit[0],
            hint="name another OUT, or a folder together with --suffix _restored",
            details=[str(path) for path in hit[1:]],
        )
