"""Lists the images of a folder; what to say about videos and files of several pictures."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path

from c2fdft_cli.data.images.picture import colour_profile, frame_count, list_images
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
    several = [
        (path, number)
        for path, number in zip(files, in_order(count, files), strict=True)
        if number > 1
    ]
    if not several:
        return []
    path, number = several[0]
    share = f"{len(several)} of {len(files)} files"
    return [f"only the first picture is used of {share}, such as {path}, which holds {number}"]


def remarks_on_pairs(pairs: Sequence[tuple[Path, Path]]) -> list[str]:
    """Report what is surprising about the files of pairs, with a sentence for each kind.

    Args:
        pairs: the two image files of each pair, which may be one and the same; those that cannot
            be read are not reported here.
    """
    return [*beyond_the_first(list(chain(*pairs))), *_unlike_colours(pairs)]


def _unlike_colours(pairs: Sequence[tuple[Path, Path]]) -> list[str]:
    """Report pairs whose two files have different colour profiles: [] or one sentence.

    Pixels are used as they are stored, so a pair of Display P3 and sRGB differs in all its colours.
    """

    def profiles(pair: tuple[Path, Path]) -> tuple[bytes | None, bytes | None]:
        if pair[0] == pair[1]:
            return None, None
        try:
            return colour_profile(pair[0]), colour_profile(pair[1])
        except DataError:
            return None, None

    count, example = 0, ""
    for pair, found in zip(pairs, in_order(profiles, pairs), strict=True):
        if profile_difference(*found) > _VISIBLE:
            count += 1
            named = zip(pair, map(profile_name, found), strict=True)
            example = example or " and ".join(f"{path} ({name})" for path, name in named)
    if not count:
        return []
    return [
        f"the colour profiles of {count} of {many(len(pairs), 'pair')} differ, such as those of "
        f"{example}: values are used as stored, so convert both files to one profile first"
    ]
