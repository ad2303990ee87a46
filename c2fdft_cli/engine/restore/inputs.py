"""What is there to restore? A file, a folder, a glob, a list of files, or standard input."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from c2fdft_cli.data.images.picture import (
    IMAGE_SUFFIXES,
    Picture,
    frame_count,
    image_size,
    natural_key,
    read_picture,
)
from c2fdft_cli.data.video.probe import VIDEO_SUFFIXES, VideoInfo, is_video_path, probe_video
from c2fdft_cli.engine.restore.options import STDIO
from c2fdft_cli.errors import C2fdftError, DataError, UsageError
from c2fdft_cli.files import read_error, read_text, require_existing

INPUT_SUFFIXES = IMAGE_SUFFIXES | VIDEO_SUFFIXES | {".gif"}
ANIMATION_SUFFIXES = frozenset({".gif", ".webp", ".tif", ".tiff", ".png"})
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
    """

    path: Path
    relative: PurePath
    frame: int | None = None
    height: int = 0
    width: int = 0
    data: bytes | None = None
    problem: C2fdftError | None = None
    video: VideoInfo | None = None

    @property
    def label(self) -> str:
        """The name for people: the path, with the frame counted from 1."""
        return str(self.path) if self.frame is None else f"{self.path} [{self.frame + 1}]"

    @property
    def stem(self) -> str:
        """The base name of the output."""
        stem = self.relative.stem
        return stem if self.frame is None else f"{stem}-{self.frame + 1:04d}"

    @property
    def name(self) -> str:
        """The file name that keys the noise."""
        return f"{self.stem}{self.relative.suffix}"

    @property
    def frames(self) -> int:
        """1 for an image; of a video as many as its header counts, at least 1."""
        return 1 if self.video is None else max(1, self.video.frames)

    def read(self) -> Picture:
        """Decode it; DataError."""
        return read_picture(self.data or self.path, frame=self.frame or 0)


@dataclass(frozen=True)
class Inputs:
    """Everything that the user's words stand for.

    Args:
        sources: in natural order.
        single: whether one file was named by itself.
    """

    sources: list[Source]
    single: bool


def require_source(spec: str) -> None:
    """DataError where the user named a path that is not there; a glob or a list may be empty."""
    # an empty word is an error of usage, which planning reports
    if spec and spec != STDIO and not spec.startswith("@") and not glob.has_magic(spec):
        require_existing(spec)


def find_inputs(spec: str, stdin: bytes | None = None, skip: Path | None = None) -> Inputs:
    """Resolve what the user named; the headers are read, not the pixels.

    What the file system refuses for one of several files is that file's `problem`.

    Args:
        spec: a file, a folder (with its sub-folders), a glob, `@list.txt` or `-`.
        stdin: the bytes for `-`.
        skip: a folder whose files are no inputs: the outputs, where they lie among the inputs.

    Raises:
        DataError: nothing there, or the single file cannot be read.
        UsageError: `-` without bytes.
    """
    if spec == STDIO:
        return Inputs([_from_bytes(stdin)], single=True)
    path = Path(spec)
    if spec.startswith("@") and not os.path.exists(path):
        return _many(_listed(Path(spec[1:])), None)
    if os.path.isdir(path):
        return _in_folder(path, skip)
    if not os.path.exists(path) and glob.has_magic(spec):
        return _many(_matching(spec, skip), None)
    require_existing(path)
    sources = list(_scan([(path, PurePath(path.name))]))
    if sources[0].problem is not None:
        raise sources[0].problem
    return Inputs(sources, single=True)


def _from_bytes(data: bytes | None) -> Source:
    if not data:
        raise UsageError("IN is -, but standard input is empty", hint="pipe an image into it")
    picture = read_picture(data)
    height, width = picture.pixels.shape[:2]
    return Source(Path("stdin"), PurePath("stdin"), height=height, width=width, data=data)


def _many(paths: Sequence[Path], root: Path | None) -> Inputs:
    base = root if root is not None else _common_folder(paths)
    return Inputs(list(_scan([(p, _below(p, base)) for p in paths])), single=False)


def _common_folder(paths: Iterable[Path]) -> Path:
    return Path(os.path.commonpath([os.path.abspath(path.parent) for path in paths]))


def _below(path: Path, root: Path) -> PurePath:
    return PurePath(os.path.relpath(os.path.abspath(path), os.path.abspath(root)))


def _in_folder(folder: Path, skip: Path | None) -> Inputs:
    refused: list[OSError] = []
    found = _without([p for p in _walk(folder, refused) if _is_input(p)], skip)
    if refused and not found:
        raise read_error(refused[0], refused[0].filename) from refused[0]
    if not found:
        kinds = " ".join(sorted(INPUT_SUFFIXES))
        raise DataError("no images in this folder", where=folder, hint=f"looked for {kinds}")
    inputs = _many(sorted(found, key=natural_key), folder)
    for error in refused:
        path = Path(error.filename)
        inputs.sources.append(Source(path, _below(path, folder), problem=read_error(error, path)))
    return inputs


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


def _is_input(path: Path) -> bool:
    return path.suffix.lower() in INPUT_SUFFIXES


def _without(paths: list[Path], folder: Path | None) -> list[Path]:
    """Leave out what lies in the output folder, unless the inputs themselves lie there."""
    if folder is None:
        return paths
    inside = Path(os.path.realpath(folder))
    others = [path for path in paths if inside not in Path(os.path.realpath(path)).parents]
    return others or paths


def _matching(pattern: str, skip: Path | None) -> list[Path]:
    matches = map(Path, glob.glob(pattern, recursive=True))
    found = [path for path in matches if _is_input(path) and not os.path.isdir(path)]
    found = _without(found, skip)
    if not found:
        raise DataError("no image matches", where=pattern, hint="quote the pattern and check it")
    return sorted(found, key=natural_key)


def _listed(file: Path) -> list[Path]:
    """The paths in a text file, one a line; blank lines and lines after `#` are skipped."""
    text = read_text(file, errors="surrogateescape")
    names = [line.strip() for line in text.splitlines()]
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
    if is_video_path(path):
        video = probe_video(path)
        return [Source(path, relative, None, video.height, video.width, video=video)]
    height, width = image_size(path)
    frames = frame_count(path) if path.suffix.lower() in ANIMATION_SUFFIXES else 1
    if frames > MAX_FRAMES:
        raise DataError(f"over {MAX_FRAMES} frames", where=path)
    numbers = range(frames) if frames > 1 else [None]
    return [Source(path, relative, number, height, width) for number in numbers]
