"""Lists the images of a folder, and refuses videos where images are expected."""

from __future__ import annotations

from pathlib import Path

from c2fdft_cli.data.images.picture import list_images
from c2fdft_cli.data.video.probe import is_video_path
from c2fdft_cli.errors import DataError

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


def refuse_videos(*files: Path) -> None:
    """Raise a DataError if an existing file has the suffix of a video, not of an image."""
    for path in files:
        if path.is_file() and is_video_path(path):
            raise DataError("a video, not an image", where=path, hint=_FRAMES_FIRST)
