"""What is there to restore? Files, folders, globs, lists of files, or standard input."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePath

from c2fdft_cli.data.images.animation import FrameCache
from c2fdft_cli.data.images.picture import (
    Picture,
    frame_count,
    image_size,
    natural_key,
    read_picture,
)
from c2fdft_cli.data.video.probe import VideoInfo, probe_video
from c2fdft_cli.engine.restore.kinds import INPUT_SUFFIXES, VIDEO, NotRead, Sorted, kind_of
from c2fdft_cli.engine.restore.options import STDIO
from c2fdft_cli.errors import C2fdftError, DataError, UsageError
from c2fdft_cli.files import identity, read_error, read_text, real_path, require_existing

_SEVERAL_SUFFIXES = {".gif", ".webp", ".apng", ".avifs", ".tif", ".tiff", ".mpo"}
MAX_FRAMES = 100_000


@dataclass(frozen=True)
class Source:
    """One image or video to restore: a file, or a frame of an animation.

    Args:
        path: the file; the name "stdin" for bytes from standard input.
        relative: where it lies below what the user named; outputs mirror it.
        frame: which frame or page, from 0; None for the file's only one.
        height, width: pixels of the upright picture, 0 where the header could not be read.
        data: the file's bytes, when there is no file.
        problem: why its header cannot be read.
        video: what is in it, if it is a video.
        note: what the user may not expect of it.
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
        """The name for people: the path, with the frame counted from 1."""
        return str(self.path) if self.frame is None else f"{self.path} [{self.frame + 1}]"

    @property
    def stem(self) -> str:
        """The base name: of the output, and that which decides the noise."""
        stem = self.relative.stem
        return stem if self.frame is None else f"{stem}-{self.frame + 1:04d}"

    @property
    def frames(self) -> int:
        """1 for an image; of a video as many as its header counts, at least 1."""
        return 1 if self.video is None else max(1, self.video.frames)

    def read(self, frames: FrameCache) -> Picture:
        """Decode it, out of `frames` where its file holds several; DataError."""
        if self.frame is None:
            return read_picture(self.data or self.path)
        return frames.read(self.path, self.frame)


@dataclass(frozen=True)
class Inputs:
    """Everything that the user's words stand for.

    Args:
        sources: in natural order.
        single: whether one file was named by itself.
        not_read: pictures beside them that are of other kinds.
    """

    sources: list[Source]
    single: bool
    not_read: list[NotRead] = field(default_factory=list)


def find_inputs(
    specs: Sequence[str], stdin: bytes | None = None, skip: Path | None = None
) -> Inputs:
    """Resolve what the user named; the headers are read, not the pixels.

    What the file system refuses for one of several files is that file's `problem`.

    Args:
        specs: files, folders (with their sub-folders), globs and `@list.txt`, or `-` alone.
        stdin: the bytes for `-`.
        skip: a folder whose files are no inputs: the outputs, where they lie among the inputs.

    Raises:
        DataError: nothing there, or the single file cannot be read.
        UsageError: `-` without bytes, or beside others.
    """
    if STDIO in specs:
        if len(specs) > 1:
            raise UsageError("IN cannot be - and files together", hint="restore one after another")
        return Inputs([_from_bytes(stdin)], single=True)
    path = Path(specs[0])
    if len(specs) == 1 and not _is_many(specs[0]):
        require_existing(path)
        sources = list(_scan([(path, PurePath(path.name))]))
        if sources[0].problem is not None:
            raise sources[0].problem
        return Inputs(sources, single=True)
    found, refused = Sorted(), list[OSError]()
    parents: set[str] = set()
    for spec in specs:
        parents |= _add(spec, found, refused, skip)
    root = path if len(specs) == 1 and os.path.isdir(path) else Path(os.path.commonpath(parents))
    return _inputs(found, refused, root, specs[0])


def _is_many(spec: str) -> bool:
    """Whether a word stands for several files."""
    # A file whose name begins with @, or has brackets in it, is that file.
    there = os.path.exists(spec)
    return os.path.isdir(spec) or (not there and (spec.startswith("@") or glob.has_magic(spec)))


def _add(spec: str, found: Sorted, refused: list[OSError], skip: Path | None) -> set[str]:
    """Sort the files of one word; the folders above which outputs do not mirror."""
    path = Path(spec)
    if os.path.isdir(path):
        found.add(_without(sorted(_walk(path, refused), key=natural_key), skip), named=False)
        return {os.path.dirname(os.path.abspath(path))}
    if _is_many(spec):
        paths = _listed(Path(spec[1:])) if spec.startswith("@") else _matching(spec, skip)
        found.add(paths, named=spec.startswith("@"))
        return {os.path.dirname(os.path.abspath(path)) for path in paths}
    found.add([path], named=True)
    return {os.path.dirname(os.path.abspath(path))}


def _inputs(found: Sorted, refused: list[OSError], root: Path, first: str) -> Inputs:
    """Sources with their places below `root`; DataError where there are none."""
    paths = list(dict.fromkeys(found.inputs))
    if refused and not paths:
        raise read_error(refused[0], refused[0].filename) from refused[0]
    if not paths:
        hint = f"looked for {' '.join(sorted(INPUT_SUFFIXES))}"
        if found.not_read:
            hint = found.not_read[0].hint
        what = "no images in this folder" if os.path.isdir(first) else "no image matches"
        details = [str(one) for one in found.not_read]
        raise DataError(what, where=first, hint=hint, details=details)
    sources = list(_scan([(path, _below(path, root)) for path in paths]))
    for error in refused:
        path = Path(error.filename)
        sources.append(Source(path, _below(path, root), problem=read_error(error, path)))
    return Inputs(sources, single=False, not_read=found.not_read)


def _from_bytes(data: bytes | None) -> Source:
    if not data:
        raise UsageError("IN is -, but standard input is empty", hint="pipe an image into it")
    picture = read_picture(data)
    height, width = picture.pixels.shape[:2]
    frames, note = frame_count(data), None
    if frames > 1:
        note = (
            f"the first of {frames} frames is restored; to restore all of them, save it to a file"
        )
    name = "stdin"
    return Source(Path(name), PurePath(name), None, height, width, data=data, note=note)


def _below(path: Path, root: Path) -> PurePath:
    """The place of a path; a list may name the root itself, which is no image but has a name."""
    full = os.path.abspath(path)
    place = os.path.relpath(full, os.path.abspath(root))
    return PurePath(place if place != os.curdir else os.path.basename(full) or "root")


def _walk(folder: Path, refused: list[OSError]) -> Iterator[Path]:
    """All files below a folder but the hidden ones; each real folder once, so that loops end.

    What cannot be listed goes into `refused`.
    """
    seen = {os.path.realpath(folder)}

    def is_new(path: str) -> bool:
        real, count = os.path.realpath(path), len(seen)
        seen.add(real)
        return len(seen) > count

    for base, folders, files in os.walk(folder, onerror=refused.append, followlinks=True):
        shown = [name for name in folders if not name.startswith(".")]
        folders[:] = [name for name in shown if is_new(os.path.join(base, name))]
        yield from (Path(base, name) for name in files if not name.startswith("."))


def _without(paths: list[Path], folder: Path | None) -> list[Path]:
    """Leave out what lies in the output folder, unless the inputs themselves lie there."""
    if folder is None:
        return paths
    outputs = identity(folder)

    @cache
    def lies_there(place: Path) -> bool:
        return identity(place) == outputs or (place != place.parent and lies_there(place.parent))

    return [path for path in paths if not lies_there(real_path(path).parent)] or paths


def _matching(pattern: str, skip: Path | None) -> list[Path]:
    """The files that match, each folder's by one of its names: a link may lead to one above it."""
    matches = [Path(name) for name in glob.glob(pattern, recursive=True) if not os.path.isdir(name)]
    if not matches:
        raise DataError("no image matches", where=pattern, hint="quote the pattern and check it")
    real_folder = cache(real_path)
    once: dict[tuple[Path, str], Path] = {}
    for path in sorted(matches, key=lambda path: len(path.parts)):  # a loop's names are longer
        once.setdefault((real_folder(path.parent), path.name), path)
    return sorted(_without(list(once.values()), skip), key=natural_key)


def _listed(file: Path) -> list[Path]:
    """The paths in a text file, one a line; blank lines and lines after `#` are skipped."""
    text = read_text(file, errors="surrogateescape")
    names = [line.strip() for line in text.split("\n")]
    names = [name for name in names if name and not name.startswith("#")]
    if not names:
        raise DataError("the list is empty", where=file, hint="list one path a line")
    return list(dict.fromkeys(Path(name) for name in names))


def _scan(files: Iterable[tuple[Path, PurePath]]) -> Iterator[Source]:
    """Sizes and frames from the headers; what cannot be read keeps its problem."""
    for path, relative in files:
        try:
            yield from _open(path, relative)
        except DataError as error:
            yield Source(path, relative, problem=error)
        except OSError as error:
            yield Source(path, relative, problem=read_error(error, path))


def _open(path: Path, relative: PurePath) -> list[Source]:
    if kind_of(path) == VIDEO:
        video = probe_video(path)
        return [Source(path, relative, None, video.height, video.width, video=video)]
    height, width = image_size(path)
    frames = frame_count(path)
    if frames > MAX_FRAMES:
        raise DataError(f"over {MAX_FRAMES} frames", where=path)
    if frames == 1:
        return [Source(path, relative, None, height, width)]
    note = None
    if path.suffix.lower() not in _SEVERAL_SUFFIXES:
        note = f"this file holds {frames} frames, each restored as a picture of its own"
    first = Source(path, relative, 0, height, width, note=note)
    return [first, *(Source(path, relative, i, height, width) for i in range(1, frames))]
