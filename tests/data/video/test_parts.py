"""Concatenated files: timestamps continue at the joins, for pictures and sound."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("av")

from c2fdft_cli.data.video.parts import Parts, read_through
from c2fdft_cli.data.video.probe import probe_video
from tests.kit.video import av, copy, frames, make_clip, notes_of, stamps


def joined(folder: Path, *clips: Path, suffix: str = ".ts") -> Path:
    """Write the concatenated bytes of files."""
    path = folder / f"joined{suffix}"
    path.write_bytes(b"".join(clip.read_bytes() for clip in clips))
    return path


def times(path: Path, kind: str) -> list[float]:
    """Presentation times of the packets of the first video or audio stream, in seconds."""
    with av.open(str(path)) as container:
        (stream,) = [one for one in container.streams if one.type == kind]
        return sorted(float(p.pts * p.time_base) for p in container.demux(stream) if p.size)


@pytest.mark.parametrize(
    ("name", "codec"),
    [("out.mkv", "aac"), ("out.ts", "aac"), ("out.mp4", "aac"), ("out.avi", "libmp3lame")],
)
@pytest.mark.parametrize("seconds", [2.0, 0.4])
def test_timestamps_continue_where_files_were_joined(
    tmp_path: Path, name: str, codec: str, seconds: float
) -> None:
    clip = make_clip(tmp_path / "a.ts", rate="25", seconds=seconds, sound_codec=codec)
    source = joined(tmp_path, clip, clip, clip)
    target = tmp_path / name
    (note,) = notes_of(source, target, crf=0)
    assert note == "its timestamps restart 2 times, as in joined files: made continuous"
    info, count = read_through(probe_video(source)), round(25 * seconds)
    assert (info.frames, len(info.joins)) == (3 * count, 2)
    assert info.duration == pytest.approx(3 * seconds, abs=0.2)
    shown = times(target, "video")
    if name != "out.avi":  # AVI repeats pictures for its constant rate
        assert len(shown) == 3 * count
    gaps = [b - a for a, b in itertools.pairwise(shown)]
    assert max(gaps) < 0.04 + 0.1
    assert min(gaps) > 0.03
    assert shown[-1] - shown[0] == pytest.approx(3 * seconds, abs=0.2)
    heard = [b - a for a, b in itertools.pairwise(times(target, "audio"))]
    assert len(heard) + 1 == 3 * len(times(clip, "audio"))
    assert max(heard) < 0.15
    assert min(heard) > 0.02


@pytest.mark.parametrize(
    ("suffix", "codec", "sound_codec"),
    [(".mpg", "mpeg2video", "mp2"), (".ts", "mpeg2video", "mp2"), (".ts", "libx264", "ac3")],
)
def test_all_packets_of_a_unit_belong_to_its_part(
    tmp_path: Path, suffix: str, codec: str, sound_codec: str
) -> None:
    """MPEG packs several frames of sound into one unit, and its program stream also pictures."""
    codecs = {"codec": codec, "sound_codec": sound_codec}
    clip = make_clip(tmp_path / f"a{suffix}", rate="25", seconds=2.0, **codecs)
    target = tmp_path / "out.mkv"
    (note,) = notes_of(joined(tmp_path, clip, clip, suffix=suffix), target)
    assert note == "its timestamps restart 1 time, as in joined files: made continuous"
    assert len(times(target, "audio")) == 2 * len(times(clip, "audio"))
    shown = times(target, "video")
    assert len(shown) == 2 * 50
    assert all(0.03 < b - a < 0.14 for a, b in itertools.pairwise(shown))


def test_pictures_and_sound_stay_synchronised(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a.ts", rate="25", seconds=1.0)
    target = copy(joined(tmp_path, clip, clip), tmp_path / "out.mkv", crf=0)
    (picture, tone), (pictures, tones) = (
        [times(path, kind) for kind in ("video", "audio")] for path in (clip, target)
    )
    first, second = (tones[i * len(tone)] - pictures[i * len(picture)] for i in (0, 1))
    assert first == pytest.approx(tone[0] - picture[0], abs=0.002)
    assert second == pytest.approx(first, abs=0.002)
    assert np.abs(frames(target)[25:].astype(float) - frames(target)[:25]).mean() < 1


def test_parts_may_lack_sound_and_differ_in_length(tmp_path: Path) -> None:
    long = make_clip(tmp_path / "a.ts", rate="25", seconds=1.0, sound=False)
    short = make_clip(tmp_path / "b.ts", rate="25", seconds=0.2)
    source = joined(tmp_path, short, long, short)
    (tick, found), count = stamps(copy(source, tmp_path / "out.mkv")), 5 + 25 + 5
    gaps = {round(25 * (b - a) * tick, 1) for a, b in itertools.pairwise(found)}
    assert len(found) == count
    assert min(gaps) == Fraction(1)


@pytest.mark.parametrize("suffix", [".ts", ".mkv", ".mp4", ".avi"])
def test_other_files_have_no_joins(tmp_path: Path, suffix: str) -> None:
    clip = make_clip(tmp_path / f"a{suffix}", rate="25", seconds=1.0)
    info = read_through(probe_video(clip))
    assert (info.joins, info.frames) == ((), 25)
    assert info.duration == probe_video(clip).duration


def found(*packets: tuple[int, int | None, int]) -> list[int]:
    """Find the starts of parts among packets (stream, place, time in frames); stream 0 is video."""
    parts = Parts(0, Fraction(1, 25))
    for stream, position, time in packets:
        fields = {"stream_index": stream, "pts": time, "dts": time}
        packet: Any = SimpleNamespace(**fields, duration=1, time_base=Fraction(1, 25))
        parts.add(packet, position)
    return [join.position for join in parts.joins()]


def test_a_single_packet_out_of_order_starts_no_part() -> None:
    pictures = [(0, 10 * i, i) for i in range(20)]
    assert found(*pictures) == []
    for i in range(1, 20):
        assert found(*pictures[:i], (0, 10 * i, 0), *pictures[i + 1 :]) == []
        assert found(*pictures[:i], (1, 10 * i, 40), (1, 10 * i + 1, 0), *pictures[i:]) == []


def test_a_part_starts_with_the_first_of_its_packets() -> None:
    """Sound may be first, and the demuxer may return the last sound of the part before later."""
    pictures = [(0, 10 * i, i) for i in range(10)]
    more = [(stream, position + 200, time) for stream, position, time in pictures]
    assert found(*pictures, *more) == [200]
    heard = [(1, 10 * i + 5, i) for i in range(10)]
    both = sorted([*pictures, *heard], key=lambda packet: packet[1])
    assert found(*both, (1, 195, 0), *more) == [195]
    assert found(*both[:-1], *more, both[-1]) == [200]
    assert found(*pictures, *more, *[(0, p + 200, t) for _, p, t in more]) == [200, 400]


def test_packets_without_a_place_in_the_file_start_no_part() -> None:
    pictures = [(0, 10 * i, i) for i in range(10)]
    assert found(*pictures, *[(0, None, i) for i in range(10)]) == []
