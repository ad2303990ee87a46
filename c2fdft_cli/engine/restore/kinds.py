"""Recognise pictures and videos by their first bytes, and by their names if these do not tell."""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from c2fdft_cli.data.images.formats import HEAD_BYTES, HINTS, RESTORED_SUFFIXES, is_read, recognise
from c2fdft_cli.data.video.probe import VIDEO_SUFFIXES

VIDEO = "video"
INPUT_SUFFIXES = RESTORED_SUFFIXES | VIDEO_SUFFIXES
_UNKNOWN = "unknown"
_SYNC, _PACKETS = 0x47, ((0, 188), (4, 192))
"""The first byte of each packet of an MPEG transport stream; offsets and lengths of packets."""
_PROGRAM_START = b"\0\0\1\xba"
"""The first bytes of an MPEG program stream."""
_AMBIGUOUS_SUFFIXES = {".ts", ".mts", ".m2ts", ".m2t", ".tod", ".mod"}
"""Suffixes of videos that other files have too: .ts TypeScript source, .mod modules of Go."""
_STARTS = (
    b"\x1aE\xdf\xa3",
    b"FLV\1",
    b"0&\xb2u\x8ef\xcf\x11",
    _PROGRAM_START,
    b"YUV4MPEG2",
    b"OggS",
)
"""The first bytes of Matroska, Flash video, ASF and others."""


@dataclass(frozen=True)
class NotRead:
    """Pictures that were found but whose format is not supported.

    Args:
        kind: the format, such as HEIC.
        count: how many there are.
        hint: what to do about them.
        files: their paths.
    """

    kind: str
    count: int
    hint: str
    files: list[str]

    def __str__(self) -> str:
        files = "file" if self.count == 1 else "files"
        return f"{self.count} {self.kind} {files} not read: {self.hint}"


def separate(files: Iterable[tuple[Path, bool]]) -> tuple[dict[Path, bool], list[NotRead]]:
    """Separate the files to restore from unsupported pictures, one entry for each kind of these.

    The files to restore are in their order, each once, however it is named, with whether it is a
    video.

    Args:
        files: paths, each with whether the user named it, instead of a folder or a glob; a file
            that is not a picture is restored only if it is named.
    """
    inputs: dict[Path, bool] = {}
    not_read: dict[str, list[str]] = defaultdict(list)
    seen: set[str] = set()
    for path, named in files:
        place = os.path.abspath(path)
        if place in seen:
            continue
        seen.add(place)
        kind = _kind_of(path)
        if kind is not None and kind in HINTS and not is_read(kind):
            not_read[kind].append(str(path))
        elif kind is not None or named:
            inputs[path] = kind == VIDEO
    return inputs, [
        NotRead(kind, len(paths), HINTS[kind], paths) for kind, paths in not_read.items()
    ]


def _kind_of(path: Path) -> str | None:
    """Return a picture's format or kind as `recognise` does, `VIDEO`, or None for neither.

    A file with the suffix of a picture counts as a picture, so that damage is reported. A file that
    cannot be read is judged by its name, and reading it fails later.
    """
    suffix = path.suffix.lower()
    picture = _UNKNOWN if suffix in INPUT_SUFFIXES else None
    by_name = VIDEO if suffix in VIDEO_SUFFIXES else picture
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would block
            return picture
        with path.open("rb", buffering=0) as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return by_name
    kind = recognise(head, suffix)
    if kind is None and suffix in _AMBIGUOUS_SUFFIXES and head:
        return VIDEO if _is_mpeg_stream(head) else None
    return kind or by_name


def looks_like_video(head: bytes) -> bool:
    """Whether the first `HEAD_BYTES` are those of a video, of any kind."""
    is_mp4 = head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide")
    is_avi = head[:4] == b"RIFF" and head[8:12] == b"AVI "
    is_picture = recognise(head, "") is not None
    is_known = is_mp4 or is_avi or _is_mpeg_stream(head) or head.startswith(_STARTS)
    return is_known and not is_picture


def _is_mpeg_stream(head: bytes) -> bool:
    """Whether this is the start of an MPEG program stream or transport stream."""
    return head.startswith(_PROGRAM_START) or any(
        set(head[start::step]) == {_SYNC} and len(head) > start + step for start, step in _PACKETS
    )
