"""Lists the images of a folder; what to say about videos and files of several pictures."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path

from c2fdft_cli.data.images.picture import (
    FramesAndProfile,
    frame_count,
    frames_and_profile,
    list_images,
)
from c2fdft_cli.data.images.profiles import profile_difference, profile_name
from c2fdft_cli.data.video.probe import is_video_path
from c2fdft_cli.errors import DataError
from c2fdft_cli.pipeline import in_order
from c2fdft_cli.words import many

_VISIBLE = 3
"""Levels. Profiles that are called sRGB differ by one or two."""
_FRAMES_FIRST = "extract the frames first, such as by `ffmpeg -i clip.mp4 frames/%06d.png`"


def some_images(
    folder: Path, *, recursive: bool = False, kind: str = "images", hint: str | None = None
) -> list[Path]:
    """List the image files of a folder, at least one, in natural order.

    Args:
        folder: the folder to search.
        recursive: whether to search its sub-folders too.
        kind: the kind of images that are expected, for the message.
        hint: what to try if the folder has neither images nor videos.

    Raises:
        DataError: the folder does not exist or contains no images.
    """
    images = list_images(folder, recursive)
    if not images:
        if any(is_video_path(path) for path in folder.iterdir()):
            raise DataError(
                f"no {kind} in the folder, but videos", where=folder, hint=_FRAMES_FIRST
            )
        raise DataError(f"no {kind} in the folder", where=folder, hint=hint)
    return images


def top_images(folder: Path, *, kind: str = "images") -> tuple[list[Path], list[str]]:
    """List the images of a folder without its sub-folders, and report those: [] or one sentence.

    Args:
        folder, kind: as for `some_images`.

    Raises:
        DataError: as `some_images`.
    """
    images = some_images(folder, kind=kind, hint="images in sub-folders are not used")
    below = 0
    with suppress(DataError):  # a sub-folder that cannot be listed is no reason to stop
        below = len(list_images(folder, recursive=True)) - len(images)
    verb = "is" if below == 1 else "are"
    return images, [f"{many(below, 'image')} in sub-folders {verb} not used"] if below else []


def refuse_videos(*files: Path) -> None:
    """Raise a DataError if an existing file has the suffix of a video, not of an image."""
    for path in files:
        if path.is_file() and is_video_path(path):
            raise DataError("a video, not an image", where=path, hint=_FRAMES_FIRST)


def beyond_the_first(paths: Collection[Path]) -> list[str]:
    """Report files of which only the first page or frame is used: [] or one sentence.

    Args:
        paths: image files; one that cannot be read is not reported here.
    """

    def count(path: Path) -> int:
        try:
            return frame_count(path)
        except DataError:
            return 1

    files = list(dict.fromkeys(paths))
    return _only_the_first(dict(zip(files, in_order(count, files), strict=True)))


def _only_the_first(frames: Mapping[Path, int]) -> list[str]:
    """Report files that hold more than one picture, given the number in each."""
    several = [path for path, number in frames.items() if number > 1]
    if not several:
        return []
    share, path = f"{len(several)} of {len(frames)} files", several[0]
    holds = f"such as {path}, which holds {frames[path]}"
    return [f"only the first picture is used of {share}, {holds}"]


class SeenFiles:
    """Collects what the headers of image files say, for remarks on pairs of these files."""

    def __init__(self) -> None:
        self._frames: dict[Path, int] = {}
        self._profiles: dict[Path, bytes | None] = {}
        self._same: dict[bytes | None, bytes | None] = {}  # so that equal profiles are held once

    def add(self, path: Path, found: FramesAndProfile | None) -> None:
        """Add a file with its frames and profile; None for one that cannot be read."""
        if found is not None:
            self._frames[path], profile = found
            self._profiles[path] = self._same.setdefault(profile, profile)

    def remarks(self, pairs: Sequence[tuple[Path, Path]]) -> list[str]:
        """Report what is surprising about the files of pairs, with a sentence for each kind.

        Args:
            pairs: the two image files of each pair, which may be one and the same; those that
                cannot be read, or were not added, are not reported here.
        """
        frames = {path: self._frames.get(path, 1) for path in chain(*pairs)}
        return [*_only_the_first(frames), *_unlike_colours(pairs, self._profiles)]


def frames_and_profile_if_readable(path: Path) -> FramesAndProfile | None:
    """Read what `SeenFiles` collects; None if that is not possible."""
    try:
        return frames_and_profile(path)
    except DataError:
        return None


def remarks_on_pairs(pairs: Sequence[tuple[Path, Path]]) -> list[str]:
    """Read the headers of all files of pairs; return `SeenFiles.remarks`."""
    seen = SeenFiles()
    files = list(dict.fromkeys(chain(*pairs)))
    for path, found in zip(files, in_order(frames_and_profile_if_readable, files), strict=True):
        seen.add(path, found)
    return seen.remarks(pairs)


def _unlike_colours(
    pairs: Sequence[tuple[Path, Path]], profiles: Mapping[Path, bytes | None]
) -> list[str]:
    """Report pairs whose two files have different colour profiles: [] or one sentence.

    Pixels are used as they are stored, so a pair of Display P3 and sRGB differs in all its colours.

    profiles: those of the files that can be read.
    """
    count, example = 0, ""
    for pair in pairs:
        found = [profiles[path] for path in pair if path in profiles]
        if len(found) == 2 and profile_difference(*found) > _VISIBLE:
            count += 1
            named = zip(pair, map(profile_name, found), strict=True)
            example = example or " and ".join(f"{path} ({name})" for path, name in named)
    if not count:
        return []
    return [
        f"the colour profiles of {count} of {many(len(pairs), 'pair')} differ, such as those of "
        f"{example}: values are used as stored, so convert both files to one profile first"
    ]
