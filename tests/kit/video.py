"""Small videos, made by ffmpeg's own test sources when a test asks for them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("imageio_ffmpeg")

from c2fdft_cli.data.video.ffmpeg import ffmpeg_program
from c2fdft_cli.data.video.probe import probe_video
from c2fdft_cli.data.video.stream import VideoReader, VideoWriter


def ffmpeg(*arguments: object) -> str:
    """Run ffmpeg and return what it prints."""
    command = [ffmpeg_program(), "-nostdin", "-loglevel", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def make_clip(
    path: Path,
    *,
    size: str = "64x48",
    rate: str = "10",
    seconds: float = 0.5,
    sound: bool = True,
    filters: str = "format=yuv420p",
    options: tuple[str, ...] = (),
) -> Path:
    """Colours that turn slowly, with a sine tone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = ["-f", "lavfi", "-i", f"gradients=s={size}:r={rate}:d={seconds}:seed=3"]
    tone = ["-f", "lavfi", "-i", f"sine=duration={seconds}"] if sound else []
    ffmpeg(*picture, *tone, "-vf", filters, "-fps_mode", "vfr", *options, f"file:{path}")
    return path


def stamps(path: Path) -> list[tuple[int, ...]]:
    """(time base, time stamps) of the frames."""
    lines = ffmpeg(
        "-i", f"file:{path}", "-map", "0:v", "-fps_mode", "passthrough",
        "-enc_time_base", "demux", "-f", "framecrc", "-",
    ).splitlines()  # fmt: skip
    base = next(line for line in lines if line.startswith("#tb")).split(": ")[1]
    frames = [int(line.split(",")[2]) for line in lines if not line.startswith("#")]
    return [tuple(map(int, base.split("/"))), tuple(frames)]


def sound(path: Path) -> str:
    """A hash of the packets of all sound."""
    return ffmpeg("-i", f"file:{path}", "-map", "0:a", "-c", "copy", "-f", "streamhash", "-")


def frames(path: Path) -> np.ndarray:
    """All frames [n, h, w, 3]."""
    info = probe_video(path)
    with VideoReader(info, info.is_deep) as reader:
        return np.stack([frame.pixels for frame in reader])


def copy(source: Path, target: Path, crf: int = 18) -> Path:
    """Decode and encode without a change."""
    info = probe_video(source)
    with (
        VideoReader(info, info.is_deep) as reader,
        VideoWriter(target, info, info.is_deep, crf, target) as writer,
    ):
        for frame in reader:
            writer.write(frame)
        writer.finish()
    return target
