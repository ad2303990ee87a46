"""What is there to restore? A file, a folder, a glob, a list of files, or standard input."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from c2fdft_cli.data.images.picture import (
    IMAGE_SUFFIXES,
    Picture,
    frame_count,
    image_size,
    is_image_path,
    list_images,
    natural_key,
    read_picture,
)
from c2fdft_cli.data.video.probe import VIDEO_SUFFIXES, VideoInfo, is_video_path, probe_video
from c2fdft_cli.engine.restore.options import STDIO
from c2fdft_cli.errors import C2fdftError, DataError, UsageError

ANIMATION_SUFFIXES = frozenset({".gif", ".webp", ".tif", ".tiff", ".png"})
MAX_LIST_BYTES = 64 << 20
MAX_FRAMES = 100_000


@dataclass(frozen=True)
class Source:
    """One image or video to restore: a file, or a frame of an animation.

    Args:
        path: the file; the name "stdin" for bytes that came in.
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

    def read(self) -> Picture:
        """Decode it; DataError."""
        return read_picture(self.data or self.path, frame=self.frame or 0)


@dataclass(frozen=True)
class Inputs:
    """Everything that the user's words stand for.

    Args:
        sources: in natural order.
        single: whether one file was named by itself.
        root: the folder that relative paths count from; None for standard input.
    """

    sources: list[Source]
    single: bool
    root: Path | None


def find_inputs(spec: str, stdin: bytes | None = None, skip: Path | None = None) -> Inputs:
    """Resolve what the user named; the headers are read, not the pixels.

    Args:
        spec: a file, a folder (with its sub-folders), a glob, `@list.txt` or `-`.
        stdin: the bytes for `-`.
        skip: a folder whose files are no inputs: the outputs, where they lie among the inputs.

    Raises:
        DataError: nothing there.
        UsageError: `-` without bytes.
    """
    if spec == STDIO:
        return Inputs([_from_bytes(stdin)], single=True, root=None)
    if spec.startswith("@") and not Path(spec).exists():
        return _many(_listed(Path(spec[1:])), None)
    path = Path(spec)
    if path.is_dir():
        return _many(_in_folder(path, skip), path)
    if not path.exists() and glob.has_magic(spec):
        return _many(_matching(spec, skip), None)
    if not path.exists():
        raise DataError("no such file or folder", where=spec, hint="check the path")
    sources = list(_scan([(path, PurePath(path.name))]))
    return Inputs(sources, single=True, root=path.parent)


def _from_bytes(data: bytes | None) -> Source:
    if not data:
        raise UsageError("no bytes on standard input", where=STDIO, hint="pipe an image into it")
    picture = read_picture(data)
    height, width = picture.pixels.shape[:2]
    return Source(Path("stdin"), PurePath("stdin"), height=height, width=width, data=data)


def _many(paths: list[Path], root: Path | None) -> Inputs:
    base = root if root is not None else _common_folder(paths)
    return Inputs(list(_scan([(p, _below(p, base)) for p in paths])), single=False, root=base)


def _common_folder(paths: Iterable[Path]) -> Path:
    return Path(os.path.commonpath([os.path.abspath(path.parent) for path in paths]))


def _below(path: Path, root: Path) -> PurePath:
    return PurePath(os.path.relpath(os.path.abspath(path), os.path.abspath(root)))


def _in_folder(folder: Path, skip: Path | None) -> list[Path]:
    found = list_images(folder, recursive=True)
    found += [path for path in folder.rglob("*") if _is_other(path.relative_to(folder), path)]
    found = _without(found, skip)
    if not found:
        kinds = " ".join([*sorted(IMAGE_SUFFIXES), *sorted(VIDEO_SUFFIXES)])
        raise DataError("no images in this folder", where=folder, hint=f"looked for {kinds}")
    return sorted(found, key=natural_key)


def _is_other(relative: PurePath, path: Path) -> bool:
    """Whether it is one of the inputs that are no plain images: a GIF or a video."""
    hidden = any(part.startswith(".") for part in relative.parts)
    return (path.suffix.lower() == ".gif" or is_video_path(path)) and not hidden and path.is_file()


def _without(paths: list[Path], folder: Path | None) -> list[Path]:
    """Leave out what lies in the output folder, unless the inputs themselves lie there."""
    if folder is None:
        return paths
    inside = folder.resolve()
    others = [path for path in paths if inside not in path.resolve().parents]
    return others or paths


def _matching(pattern: str, skip: Path | None) -> list[Path]:
    matches = [Path(name) for name in glob.glob(pattern, recursive=True)]
    found = [
        path
        for path in matches
        if (is_image_path(path) or _is_other(PurePath(), path)) and path.is_file()
    ]
    found = _without(found, skip)
    if not found:
        raise DataError("no image matches", where=pattern, hint="quote the pattern and check it")
    return sorted(found, key=natural_key)


def _listed(file: Path) -> list[Path]:
    """The paths in a text file, one a line; blank lines and lines after `#` are left out."""
    try:
        if file.stat().st_size > MAX_LIST_BYTES:
            raise DataError(f"a list over {MAX_LIST_BYTES >> 20} MiB", where=file)
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise DataError(f"cannot read the list: {reason}", where=file) from error
    names = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not names:
        raise DataError("the list is empty", where=file, hint="one path a line")
    return list(dict.fromkeys(Path(name) for name in names))


def _scan(files: Iterable[tuple[Path, PurePath]]) -> Iterator[Source]:
    """Sizes and frames from the headers; what cannot be read keeps its problem."""
    for path, relative in files:
        try:
            if is_video_path(path):
                video = probe_video(path)
                yield Source(path, relative, None, video.height, video.width, video=video)
                continue
            height, width = image_size(path)
            frames = frame_count(path) if path.suffix.lower() in ANIMATION_SUFFIXES else 1
            if frames > MAX_FRAMES:
                raise DataError(f"over {MAX_FRAMES} frames", where=path)
        except DataError as error:
            yield Source(path, relative, problem=error)
            continue
        for frame in range(frames):
            number = frame if frames > 1 else None
            yield Source(path, relative, number, height, width)
