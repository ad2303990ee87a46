"""Where does each result go? Names are settled before any work, and never collide silently."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from c2fdft_cli.data.images.encoding import ENCODERS
from c2fdft_cli.data.images.picture import IMAGE_SUFFIXES
from c2fdft_cli.data.video.probe import MUXERS, VIDEO_SUFFIXES
from c2fdft_cli.data.video.remux import audio_problem
from c2fdft_cli.engine.restore.inputs import Inputs, Source
from c2fdft_cli.engine.restore.options import (
    DEEP_SUFFIXES,
    FORMATS,
    SAME_FORMAT,
    STDIO,
    RestoreOptions,
)
from c2fdft_cli.errors import UsageError

_OTHER_SUFFIXES = frozenset(
    {".gif", ".avif", ".heic", ".jp2", ".jxl", ".tga", ".exr", ".hdr", ".ppm", ".pgm", ".raw"}
)
_FILE_SUFFIXES = IMAGE_SUFFIXES | VIDEO_SUFFIXES
_SHOWN = 10


@dataclass(frozen=True)
class Item:
    """The way of one image or video: from its source to the files that are made of it.

    Args:
        source: what is restored.
        output: the restored image; None for standard output.
        compare: side-by-side picture, where asked for.
        spread, heat: the uncertainty's two pictures, where asked for.
    """

    source: Source
    output: Path | None
    compare: Path | None = None
    spread: Path | None = None
    heat: Path | None = None

    @property
    def files(self) -> list[Path]:
        """All files that it makes, the restored image last."""
        files = (self.compare, self.spread, self.heat, self.output)
        return [path for path in files if path is not None]

    @property
    def is_complete(self) -> bool:
        """Whether all of its files are there; each is written whole or not at all."""
        return bool(self.files) and all(path.exists() for path in self.files)


@dataclass(frozen=True)
class Outputs:
    """Where everything goes.

    Args:
        items: one for each source, in order.
        folder: the output folder, None when a single file (or standard output) was named.
        warnings: names that had to be made longer.
    """

    items: list[Item]
    folder: Path | None
    warnings: list[str]


def output_folder(options: RestoreOptions) -> Path | None:
    """The folder that OUT stands for, None when it names a file or standard output."""
    if options.out == STDIO:
        return None
    out = Path(options.out)
    return out if out.is_dir() or out.suffix.lower() not in _FILE_SUFFIXES else None


def plan_outputs(inputs: Inputs, options: RestoreOptions) -> Outputs:
    """Give every source its output.

    Raises:
        UsageError: a file named for several images, a format that cannot hold what is asked, an
            output that would replace an input, names that collide, or what videos cannot have.
    """
    if any(source.video is not None for source in inputs.sources):
        _check_video_options(options)
    folder = output_folder(options)
    if folder is None:
        return Outputs([_single_item(inputs, options)], None, [])
    if inputs.single and not folder.is_dir() and folder.suffix.lower() in _OTHER_SUFFIXES:
        hint = f"use one of {' '.join(sorted(ENCODERS))}"
        raise UsageError(f"cannot write images as '{folder.suffix}'", where=folder, hint=hint)
    if options.out.endswith(("/", "\\")) and folder.suffix.lower() in _FILE_SUFFIXES:
        raise UsageError("a folder with the suffix of an image", where=folder)
    items = [_item(source, _name(source, options), folder, options) for source in inputs.sources]
    items, warnings = _without_collisions(items, folder, options)
    _refuse_replacing_inputs(items)
    return Outputs(items, folder, warnings)


def _single_item(inputs: Inputs, options: RestoreOptions) -> Item:
    if not inputs.single or len(inputs.sources) != 1:
        count = len(inputs.sources)
        raise UsageError(f"one output for {count} images", where=options.out, hint="name a folder")
    source = inputs.sources[0]
    if source.video is not None or Path(options.out).suffix.lower() in VIDEO_SUFFIXES:
        return _single_video(source, options)
    if options.out == STDIO:
        _check_depth(_suffix(source, options), options)
        return _extras(Item(source, None), PurePath(source.stem), options)
    out = Path(options.out)
    suffix = out.suffix.lower()
    if options.format not in (None, SAME_FORMAT) and FORMATS[options.format.lower()] != _canonical(
        suffix
    ):
        raise UsageError(f"--format {options.format} for a {suffix} file", where=out)
    _check_depth(suffix, options)
    item = _extras(Item(source, out), PurePath(out.stem), options)
    _refuse_replacing_inputs([item])
    return item


def _single_video(source: Source, options: RestoreOptions) -> Item:
    out = Path(options.out)
    if source.video is None:
        raise UsageError("an image cannot become a video", where=out, hint="name a .png file")
    if out.suffix.lower() not in MUXERS:
        hint = f"name a folder, or a file with one of {' '.join(sorted(MUXERS))}"
        raise UsageError("a video goes into a video file", where=out, hint=hint)
    problem = audio_problem(source.video, out.suffix.lower())
    if problem is not None:
        raise UsageError(problem, where=out, hint="sound is copied as it is; use .mkv")
    item = Item(source, out)
    _refuse_replacing_inputs([item])
    return item


def _check_video_options(options: RestoreOptions) -> None:
    """Refuse what only images have."""
    asked = {
        "--uncertainty": options.uncertainty is not None,
        "--compare": options.compare is not None,
        "--bit-depth 16": options.bit_depth == 16,
    }
    for option, is_there in asked.items():
        if is_there:
            hint = "leave it out, or restore images only"
            raise UsageError("not for videos", where=option, hint=hint)


def output_suffix(item: Item, options: RestoreOptions) -> str:
    """The suffix that decides the format, for standard output too."""
    return item.output.suffix.lower() if item.output else _suffix(item.source, options)


def _canonical(suffix: str) -> str:
    return FORMATS.get(suffix.removeprefix("."), suffix)


def _suffix(source: Source, options: RestoreOptions) -> str:
    if source.video is not None:
        own = source.path.suffix.lower()
        return own if own in MUXERS else ".mkv"
    name = (options.format or "png").lower()
    if name != SAME_FORMAT:
        return FORMATS[name]
    own = source.path.suffix.lower()
    return own if own in ENCODERS else ".png"


def _check_depth(suffix: str, options: RestoreOptions) -> None:
    if options.bit_depth == 16 and suffix not in DEEP_SUFFIXES:
        raise UsageError(
            f"{suffix[1:]} holds 8 bits", where="--bit-depth 16", hint="use --format png or tif"
        )


def _name(source: Source, options: RestoreOptions) -> PurePath:
    suffix = _suffix(source, options)
    _check_depth(suffix, options)
    return source.relative.with_name(f"{source.stem}{options.suffix}{suffix}")


def _longer_name(source: Source, options: RestoreOptions) -> PurePath:
    """With the input's suffix in it: a.jpg beside a.png gives a.jpg.png."""
    frame = "" if source.frame is None else f"-{source.frame + 1:04d}"
    name = f"{source.relative.name}{frame}{options.suffix}{_suffix(source, options)}"
    return source.relative.with_name(name)


def _item(source: Source, name: PurePath, folder: Path, options: RestoreOptions) -> Item:
    return _extras(Item(source, folder / name), name.with_suffix(""), options)


def _extras(item: Item, base: PurePath, options: RestoreOptions) -> Item:
    """Add the pictures that are made beside the restored one."""
    compare, spread, heat = (base.with_name(f"{base.name}.{kind}.png") for kind in
                             ("compare", "spread", "heat"))  # fmt: skip
    if options.compare is not None:
        item = replace(item, compare=options.compare / compare)
    if options.uncertainty is not None:
        folder = options.uncertainty
        item = replace(item, spread=folder / spread, heat=folder / heat)
    return item


def _without_collisions(
    items: list[Item], folder: Path, options: RestoreOptions
) -> tuple[list[Item], list[str]]:
    """Longer names for those that would share one; file systems may not tell cases apart."""
    counts = Counter(str(item.output).casefold() for item in items)
    warnings, settled = [], []
    for item in items:
        if counts[str(item.output).casefold()] > 1:
            renamed = _item(item.source, _longer_name(item.source, options), folder, options)
            what = f"{item.source.label} -> {renamed.output}: another input claims"
            warnings.append(f"{what} {item.output.name if item.output else ''}")
            item = renamed  # noqa: PLW2901
        settled.append(item)
    owners = defaultdict(list)
    for item in settled:
        for path in item.files:
            owners[str(path).casefold()].append(item.source.label)
    clashes = [f"{path}: {', '.join(names)}" for path, names in owners.items() if len(names) > 1]
    if clashes:
        raise UsageError(
            "several inputs would share an output",
            where=folder,
            hint="rename them, or restore them into separate folders",
            details=clashes[:_SHOWN],
        )
    return settled, warnings


def _refuse_replacing_inputs(items: list[Item]) -> None:
    inputs = {item.source.path.resolve() for item in items if item.source.data is None}
    hit = [path for item in items for path in item.files if path.resolve() in inputs]
    if hit:
        raise UsageError(
            "an output would replace an input",
            where=hit[0],
            hint="choose another folder, or give --suffix _restored",
            details=[str(path) for path in hit[1:_SHOWN]],
        )
