"""Images where images are wanted: a folder that has some, files that are no videos."""

from __future__ import annotations

from pathlib import Path

from c2fdft_cli.data.images.picture import list_images
from c2fdft_cli.data.video.probe import is_video_path
from c2fdft_cli.errors import DataError

_FRAMES_FIRST = "take the frames out first, such as `ffmpeg -i clip.mp4 frames/%06d.png`"


def some_images(
    folder: Path, *, recursive: bool = False, kind: str = "images", hint: str | None = None
) -> list[Path]:
    """The image files of a folder in natural order, one at least.

    Args:
        folder: where to look.
        recursive: also in its sub-folders.
        kind: what is looked for, as the message calls it.
        hint: what to try where there are none, and no videos either.

    Raises:
        DataError: no such folder, or no images in it.
    """
    images = list_images(folder, recursive)
    if not images:
        if any(is_video_path(path) for path in folder.iterdir()):
            raise DataError(
                f"no {kind} in the folder, but videos", where=folder, hint=_FRAMES_FIRST
            )
        raise DataError(f"no {kind} in the folder", where=folder, hint=hint)
    return images


def refuse_videos(*files: Path) -> None:
    """DataError for a file with the name of a video, where an image is wanted."""
    for path in files:
        if path.is_file() and is_video_path(path):
            raise DataError("a video, not an image", where=path, hint=_FRAMES_FIRST)
