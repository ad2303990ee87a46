"""Find the images and videos to restore: files, folders, globs, lists, or standard input."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePath

from c2fdft_cli.data.images.formats import HEAD_BYTES
from c2fdft_cli.data.images.picture import (
    Picture,
    frame_count,
    natural_key,
    read_picture,
    size_and_frames,
)
from c2fdft_cli.data.images.samples import MAX_FRAMES
from c2fdft_cli.data.video.probe import VideoInfo, probe_video
from c2fdft_cli.engine.restore.kinds import INPUT_SUFFIXES, NotRead, looks_like_video, separate
from c2fdft_cli.engine.restore.options import STDIO
from c2fdft_cli.errors import C2fdftError, DataError, UsageError
from c2fdft_cli.files.failures import read_error
from c2fdft_cli.files.folders import is_hidden, walk_folders
from c2fdft_cli.files.paths import real_path, same_files
from c2fdft_cli.files.reading import read_text, require_existing
from c2fdft_cli.progress import Looked, counted

_SEVERAL_SUFFIXES = {".gif", ".webp", ".apng", ".avifs", ".tif", ".tiff", ".mpo"}


@dataclass(frozen=True)
class Source:
    """One image or video to restore: a file, or a frame of an animation.

    Args:
        path: the file; "stdin" for bytes from standard input.
        relative: its path relative to what the user named; outputs mirror it.
        frame: number of the frame or page, from 0; None if the file has only one.
        height, width: pixels of the upright picture; 0 if the header cannot be read.
        data: the bytes of the image, if it comes from standard input.
        problem: why it cannot be restored, such as a header that cannot be read.
        video: properties of the video, if it is one.
        note: a note for the user about the file.
    """

    path: Path
    relative: PurePath
    frame: int | None = None
    height: int = 0
    width: int = 0
    data: bytes | None = None
    problem: C2fdftError | None = None
    video: VideoInfo | None = None
    note: str | None = None

    @property
    def label(self) -> str:
        """The name in messages: the path, with the frame counted from 1."""
        return str(self.path) if self.frame is None else f"{self.path} [{self.frame + 1}]"

    @property
    def stem(self) -> str:
        """The base name: the output is named after it, and it decides the noise."""
        stem = self.relative.stem
        return stem if self.frame is None else f"{stem}-{self.frame + 1:04d}"

    @property
    def frames(self) -> int:
        """Number of frames: 1 for an image, for a video the header's number, but at least 1."""
        return 1 if self.video is None else max(1, self.video.frames)

    def read(self) -> Picture:
        """Decode the image, or the first frame; DataError if that fails."""
        return read_picture(self.data or self.path)


@dataclass(frozen=True)
class Inputs:
    """Everything that the user's arguments stand for.

    Args:
        sources: the images and videos, in natural order.
        single: whether the user named exactly one file.
        not_read: pictures among them whose formats are not supported.
    """

    sources: list[Source]
    single: bool
    not_read: list[NotRead] = field(default_factory=list)


def find_inputs(
    specs: Sequence[str],
    stdin: bytes | None = None,
    skip: Path | None = None,
    looked: Looked = lambda *_: None,
) -> Inputs:
    """Find what the user named; only headers are read, not pixels.

    If one of several files cannot be read, the error is stored as its `problem`.

    Args:
        specs: files, folders (with their sub-folders), globs and `@list.txt`, or `-` alone.
        stdin: the bytes for `-`.
        skip: a folder whose files are not inputs: the output folder, which may be in an input
            folder.
        looked: called twice for each file: before it is recognised, and before its header is read.

    Raises:
        DataError: no inputs were found, or the single file cannot be read.
        UsageError: `-` without bytes, or together with other inputs; inputs on several drives of
            Windows.
    """
    if STDIO in specs:
        if len(specs) > 1:
            hint = "restore them with separate commands"
            raise UsageError("IN cannot be - and files together", hint=hint)
        return Inputs([_from_bytes(stdin)], single=True)
    path = Path(specs[0])
    if len(specs) == 1 and not _is_many(specs[0]):
        require_existing(path)
        is_video = next(iter(separate([(path, True)])[0].values()), False)
        sources = _sources(path, PurePath(path.name), is_video)
        if sources[0].problem is not None:
            raise sources[0].problem
        return Inputs(sources, single=True)
    refused: list[OSError] = []
    files: list[tuple[Path, bool]] = []
    parents: set[str] = set()  # of what the user named: the outputs are mirrored below them
    for spec in specs:
        paths, named = _expand(spec, refused, skip)
        files += [(one, named) for one in paths]
        tops = [Path(spec)] if os.path.isdir(spec) else paths
        parents |= {os.path.dirname(os.path.abspath(top)) for top in tops}
    root = path if len(specs) == 1 and os.path.isdir(path) else _common_folder(parents)
    return _inputs(files, refused, root, specs[0], looked)


def _common_folder(paths: Iterable[str]) -> Path:
    """Return the folder that absolute paths share; UsageError if they are on different drives."""
    try:
        return Path(os.path.commonpath(paths))
    except ValueError as error:  # on Windows
        hint = "restore the inputs on each drive with a separate command"
        raise UsageError("the inputs are on different drives", hint=hint) from error


def _is_many(spec: str) -> bool:
    """Whether an argument stands for several files."""
    # An existing file is taken as it is, even if its name begins with @ or contains brackets.
    exists = os.path.exists(spec)
    return os.path.isdir(spec) or (not exists and (spec.startswith("@") or glob.has_magic(spec)))


def _expand(spec: str, refused: list[OSError], skip: Path | None) -> tuple[list[Path], bool]:
    """Return the files that one argument stands for, and whether the user named each of them."""
    path = Path(spec)
    if os.path.isdir(path):
        walked = walk_folders(path, refused.append)
        found = (Path(folder, name) for folder, names in walked for name in names)
        return _without(sorted(found, key=natural_key), skip), False
    if not _is_many(spec):
        return [path], True
    if spec.startswith("@"):
        return _listed(Path(spec[1:])), True
    return _matching(spec, skip), False


def _inputs(
    files: list[tuple[Path, bool]],
    refused: list[OSError],
    root: Path,
    first: str,
    looked: Looked,
) -> Inputs:
    """Return the sources with their paths relative to `root`; DataError if there are none."""
    found, not_read = separate(counted(files, looked, "recognising files"))
    if refused and not found:
        raise read_error(refused[0], refused[0].filename) from refused[0]
    if not found:
        hint = f"looked for {' '.join(sorted(INPUT_SUFFIXES))}"
        if not_read:
            hint = not_read[0].hint
        what = "no images in this folder" if os.path.isdir(first) else "no image matches"
        details = [str(one) for one in not_read]
        raise DataError(what, where=first, hint=hint, details=details)
    below = _places_below(root)
    sources: list[Source] = []
    for path, is_video in counted(found.items(), looked, "reading headers"):
        sources += _sources(path, below(path), is_video)
    for error in refused:
        path = Path(error.filename)
        sources.append(Source(path, below(path), problem=read_error(error, path)))
    return Inputs(sources, single=False, not_read=not_read)


def _from_bytes(data: bytes | None) -> Source:
    if not data:
        raise UsageError("IN is -, but standard input is empty", hint="pipe an image into it")
    if looks_like_video(data[:HEAD_BYTES]):
        hint = "save it to a file, and name the file"
        raise UsageError("videos cannot be read from standard input", hint=hint)
    picture = read_picture(data)
    height, width = picture.pixels.shape[:2]
    frames, note = frame_count(data), None
    if frames > 1:
        note = (
            f"the first of {frames} frames is restored; to restore all of them, save it to a file"
        )
    name = "stdin"
    return Source(Path(name), PurePath(name), None, height, width, data=data, note=note)


def _places_below(root: Path) -> Callable[[Path], PurePath]:
    """Return a function that makes paths relative to `root`.

    A list of files may contain the root itself: it is not an image, but needs a name for its error.
    """
    top = os.path.abspath(root)
    # once for each folder, because it takes long for one with many files
    place_of = cache(lambda folder: PurePath(os.path.relpath(os.path.abspath(folder), top)))

    def below(path: Path) -> PurePath:
        folder: PurePath = place_of(path.parent)
        if path.name not in ("", os.pardir) and os.pardir not in folder.parts:
            return folder / path.name
        full = os.path.abspath(path)
        place = os.path.relpath(full, top)
        return PurePath(place if place != os.curdir else os.path.basename(full) or "root")

    return below


def _without(paths: list[Path], folder: Path | None) -> list[Path]:
    """Leave out files in the output folder, unless all inputs are in it."""
    if folder is None:
        return paths
    outputs = [folder]
    is_folder = cache(lambda place: bool(same_files([place], outputs)))

    @cache
    def is_output(place: Path) -> bool:
        return any(map(is_folder, (place, *place.parents)))

    real_folder = cache(real_path)

    def folder_of(path: Path) -> Path:
        return real_path(path).parent if path.is_symlink() else real_folder(path.parent)

    return [path for path in paths if not is_output(folder_of(path))] or paths


def _matching(pattern: str, skip: Path | None) -> list[Path]:
    """Return the files that match, each once even if links give its folder several paths."""
    named = Path(pattern).parts  # besides these, `glob` itself leaves out names with a dot
    matches = [
        path
        for path in _glob(pattern)
        if not os.path.isdir(path)
        and not any(is_hidden(part) for part in path.parts if part not in named and part[0] != ".")
    ]
    if not matches:
        raise DataError("no image matches", where=pattern, hint="quote the pattern and check it")
    real_folder = cache(real_path)
    once: dict[tuple[Path, str], Path] = {}
    for path in sorted(matches, key=lambda path: len(path.parts)):  # paths through loops are longer
        once.setdefault((real_folder(path.parent), path.name), path)
    return sorted(_without(list(once.values()), skip), key=natural_key)


def _glob(pattern: str) -> Iterator[Path]:
    """Yield what a pattern matches; `**` stands for a folder and all folders below it.

    Python's own `**` follows two links to one folder through each of their 2^40 combinations.
    """
    parts = Path(pattern).parts
    if "**" not in parts:
        yield from map(Path, glob.glob(pattern))
        return
    here = parts.index("**")
    for top in glob.glob(os.path.join(*parts[:here])) if here else [os.curdir]:
        for folder, _ in walk_folders(top, lambda _: None):
            yield from _glob(os.path.join(glob.escape(folder), *(parts[here + 1 :] or ("*",))))


def _listed(file: Path) -> list[Path]:
    """Return the paths in a text file, one per line; blank lines and `#` comments are skipped."""
    text = read_text(file, errors="surrogateescape")
    names = [line.strip() for line in text.split("\n")]
    names = [name for name in names if name and not name.startswith("#")]
    if not names:
        raise DataError("the list is empty", where=file, hint="list one path per line")
    return [Path(name) for name in names]


def _sources(path: Path, relative: PurePath, is_video: bool) -> list[Source]:
    """Return a file's frames with their size from its header, or its error as their problem."""
    try:
        return _opened(path, relative, is_video)
    except DataError as error:
        return [Source(path, relative, problem=error)]
    except OSError as error:
        return [Source(path, relative, problem=read_error(error, path))]


def _opened(path: Path, relative: PurePath, is_video: bool) -> list[Source]:
    if is_video:
        video = probe_video(path)
        return [Source(path, relative, None, video.height, video.width, video=video)]
    height, width, frames = size_and_frames(path)
    if frames > MAX_FRAMES:
        raise DataError(f"over {MAX_FRAMES} frames", where=path)
    if frames == 1:
        return [Source(path, relative, None, height, width)]
    note = None
    if path.suffix.lower() not in _SEVERAL_SUFFIXES:
        note = f"this file contains {frames} frames; each is restored as a separate picture"
    first = Source(path, relative, 0, height, width, note=note)
    return [first, *(Source(path, relative, i, height, width) for i in range(1, frames))]
