"""The lines that `c2fdft restore` prints at its end."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from c2fdft_cli.cli.views.restore import next_command, tell
from c2fdft_cli.engine.restore.result import ImageDone, RestoreResult, Skipped, VideoDone


def told(images: list[ImageDone], capsys: pytest.CaptureFixture[str]) -> tuple[str, list[str]]:
    """Return what `tell` prints of a run of 4 seconds: stdout, and the lines on stderr."""
    plan: Any = SimpleNamespace(
        out="out",
        timesteps=[500],
        not_read=[],
        executor=SimpleNamespace(runs=1),
        runtime=SimpleNamespace(precision="fp32", device="cpu"),
    )
    tell(plan, RestoreResult(images, [], 4.0, folder=Path("out")))
    said = capsys.readouterr()
    return said.out, said.err.splitlines()


def test_the_rate_of_videos_counts_their_frames(capsys: pytest.CaptureFixture[str]) -> None:
    image, video = ImageDone("a.png", "out/a.png", 8, 8), VideoDone("b", "out/b", 8, 8, frames=29)
    how = "1 sampling step, timesteps 500, fp32 on cpu)\n"
    assert told([video], capsys)[0] == f"restored: out/b (7.25 frames/s, {how}"
    assert told([image, video], capsys)[0] == f"restored: 2 files in out (7.50 frames/s, {how}"
    assert told([image, image], capsys)[0] == f"restored: 2 images in out (0.50 images/s, {how}"


def test_a_note_names_its_image_or_counts_several(capsys: pytest.CaptureFixture[str]) -> None:
    alone = ImageDone("a.png", "out/a.png", 8, 8, notes=["no room for EXIF", "16 bits became 8"])
    other = ImageDone("b.png", "out/b.png", 8, 8, notes=["16 bits became 8"])
    assert told([alone, other], capsys)[1] == [
        "note: a.png: no room for EXIF",
        "note: 2 images: 16 bits became 8",
    ]


def test_only_pictures_can_be_scored_next() -> None:
    """New ones and those of an earlier run; beside them there may be videos."""
    video = SimpleNamespace(source=SimpleNamespace(video=object()))
    old_video, old_picture = (Skipped("a", f"out/a.{kind}", None) for kind in ("mp4", "png"))
    for skipped, following in (
        ([old_video], None),
        ([old_video, old_picture], "c2fdft eval out TARGET"),
    ):
        plan: Any = SimpleNamespace(items=[video], skipped=skipped, protocol=None, out="out")
        assert next_command(plan) == following
