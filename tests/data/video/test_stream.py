"""Videos through both ffmpeg processes: size, times, colours, sound and subtitles stay."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("imageio_ffmpeg")

from c2fdft_cli.data.video.probe import VideoInfo, count_frames, probe_video
from c2fdft_cli.data.video.stream import (
    VideoReader,
    VideoWriter,
    audio_problem,
    dropped,
    output_pixel_format,
)
from c2fdft_cli.errors import DataError
from tests.kit.video import copy, ffmpeg, frames, make_clip, sound, stamps


def difference(a: Path, b: Path) -> float:
    return float(np.abs(frames(a).astype(float) - frames(b)).mean())


def test_a_video_stays_what_it_is(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4", rate="30000/1001")
    target = copy(source, tmp_path / "b.mp4", crf=0)
    before, after = probe_video(source), probe_video(target)
    assert after.rate == Fraction(30000, 1001)
    assert (after.height, after.width, count_frames(target)) == (48, 64, 15)
    assert (after.duration, after.audio, after.colours) == (
        before.duration,
        ("aac",),
        before.colours,
    )
    assert stamps(target) == stamps(source)
    assert sound(target) == sound(source)
    assert difference(source, target) < 0.5


@pytest.mark.parametrize("name", ["b.mkv", "b.mov", "b.avi"])
def test_other_containers(name: str, tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4")
    target = copy(source, tmp_path / name, crf=0)
    info = probe_video(target)
    assert (info.rate, info.audio, count_frames(target)) == (10, ("aac",), 5)
    assert sound(target) == sound(source)
    assert difference(source, target) < 0.5


def test_webm(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.webm", options=("-c:v", "libvpx-vp9", "-cpu-used", "8"))
    target = copy(source, tmp_path / "b.webm")
    assert (count_frames(target), len(probe_video(target).audio)) == (5, 1)
    assert sound(target) == sound(source)


@pytest.mark.parametrize("size", ["63x47", "64x47", "1x1"])
def test_odd_sizes_stay(size: str, tmp_path: Path) -> None:
    source = make_clip(
        tmp_path / "a.mkv", size=size, sound=False, filters="format=yuv444p", seconds=0.3
    )
    target = copy(source, tmp_path / "b.mp4", crf=0)
    info = probe_video(target)
    assert f"{info.width}x{info.height}" == size
    assert difference(source, target) < 0.5


def test_a_varying_frame_rate_keeps_its_time_stamps(tmp_path: Path) -> None:
    source = make_clip(
        tmp_path / "a.mp4", seconds=1, filters="format=yuv420p,select='not(eq(mod(n,3),1))'"
    )
    target = copy(source, tmp_path / "b.mp4")
    (_, times) = stamps(source)
    assert len(set(np.diff(times))) > 1
    assert stamps(target) == stamps(source)
    assert sound(target) == sound(source)


def test_a_picture_that_begins_late_begins_late(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mkv", filters="format=yuv420p,setpts=PTS+0.5/TB")
    start = probe_video(source).start
    assert start == pytest.approx(0.5, abs=0.03)
    assert probe_video(copy(source, tmp_path / "b.mkv")).start == start


def test_a_cut_stays_a_cut(tmp_path: Path) -> None:
    whole = make_clip(tmp_path / "whole.mp4", seconds=1)
    source = tmp_path / "a.mp4"
    ffmpeg("-ss", "0.35", "-i", whole, "-c", "copy", source)
    count = len(frames(source))
    assert count < 10
    assert count_frames(source) == count
    target = copy(source, tmp_path / "b.mp4")
    assert len(frames(target)) == count
    assert sound(target) == sound(source)


@pytest.mark.parametrize(
    ("range_", "matrix"), [("pc", "bt709"), ("tv", "bt709"), ("tv", "bt470bg")]
)
def test_colour_flags_stay_and_so_do_the_colours(range_: str, matrix: str, tmp_path: Path) -> None:
    flags = f"range={range_}:colorspace={matrix}:color_primaries=bt709:color_trc=bt709"
    name = matrix.removesuffix("bg")
    filters = f"scale=out_range={range_}:out_color_matrix={name},format=yuv420p,setparams={flags}"
    source = make_clip(tmp_path / "a.mp4", sound=False, filters=filters)
    target = copy(source, tmp_path / "b.mp4", crf=0)
    colours = probe_video(target).colours
    assert colours == probe_video(source).colours
    assert (colours.range, colours.matrix) == (range_, matrix)
    assert difference(source, target) < 1


def test_ten_bits_stay(tmp_path: Path) -> None:
    filters = "format=yuv420p10le,setparams=range=tv:colorspace=bt2020nc:color_primaries=bt2020:"
    filters += "color_trc=smpte2084"
    source = make_clip(tmp_path / "a.mkv", sound=False, filters=filters)
    target = copy(source, tmp_path / "b.mkv", crf=1)
    info = probe_video(target)
    assert (info.pixel_format, info.is_deep) == ("yuv420p10le", True)
    assert info.colours == probe_video(source).colours
    assert frames(target).dtype == np.uint16
    assert difference(source, target) < 100


def test_a_rotation_is_applied_once(tmp_path: Path) -> None:
    whole = make_clip(tmp_path / "whole.mp4")
    source = tmp_path / "a.mp4"
    ffmpeg("-display_rotation", "90", "-i", whole, "-c", "copy", source)
    info = probe_video(source)
    assert (info.height, info.width) == (64, 48)
    target = copy(source, tmp_path / "b.mp4", crf=0)
    after = probe_video(target)
    assert (after.height, after.width) == (64, 48)
    assert np.abs(frames(target)[0] - np.rot90(frames(whole)[0]).astype(float)).mean() < 0.5


def test_the_shape_of_pixels_stays(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4", filters="format=yuv420p,setsar=4/3")
    assert probe_video(copy(source, tmp_path / "b.mp4")).aspect == Fraction(4, 3)


def test_without_sound(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4", sound=False)
    info = probe_video(copy(source, tmp_path / "b.mp4"))
    assert (info.audio, info.duration) == ((), 0.5)


def test_subtitles_stay_where_the_container_holds_them(tmp_path: Path) -> None:
    (tmp_path / "s.srt").write_text("1\n00:00:00,000 --> 00:00:00,900\nhello\n")
    whole = make_clip(tmp_path / "whole.mp4")
    source = tmp_path / "a.mp4"
    codecs = ["-map", "0", "-map", "1", "-c", "copy", "-c:s", "mov_text"]
    ffmpeg("-i", whole, "-i", tmp_path / "s.srt", *codecs, source)
    assert probe_video(copy(source, tmp_path / "b.mp4")).subtitles == ("mov_text",)
    assert dropped(probe_video(source), ".mp4") == []
    assert probe_video(copy(source, tmp_path / "b.mkv")).subtitles == ()
    assert dropped(probe_video(source), ".mkv") == ["subtitles dropped: mkv does not hold mov_text"]


@pytest.mark.parametrize(
    ("own", "size", "deep", "expected"),
    [
        ("yuv420p", (48, 64), False, "yuv420p"),
        ("nv12", (48, 64), False, "yuv420p"),
        ("yuv420p", (47, 64), False, "yuv444p"),
        ("yuv422p", (47, 64), False, "yuv422p"),
        ("yuv422p10le", (48, 64), True, "yuv422p10le"),
        ("yuv422p", (48, 63), False, "yuv444p"),
        ("gbrp", (48, 64), False, "yuv444p"),
        ("gray", (48, 64), False, "yuv420p"),
        ("p010le", (48, 64), True, "yuv420p10le"),
    ],
)
def test_pixel_formats(own: str, size: tuple[int, int], deep: bool, expected: str) -> None:
    info = VideoInfo(Path("a.mp4"), *size, Fraction(25), pixel_format=own)
    assert info.is_deep is deep
    assert output_pixel_format(info, deep) == expected


def test_webm_holds_some_sound_only() -> None:
    info = VideoInfo(Path("a.mp4"), 48, 64, Fraction(25), audio=("aac", "opus"))
    assert audio_problem(info, ".webm") == "webm holds opus and vorbis sound, this video has aac"
    assert audio_problem(info, ".mkv") is None


def test_a_damaged_stretch_is_told(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mkv", size="160x120", sound=False, seconds=2)
    data = bytearray(source.read_bytes())
    for i in range(len(data) // 2, 2 * len(data) // 3, 97):
        data[i] ^= 255
    source.write_bytes(data)
    with VideoReader(probe_video(source), deep=False) as reader:
        count = sum(1 for _ in reader)
        assert 0 < count <= 20
        assert reader.complaint


def test_an_encoder_that_gives_up_says_why(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4")  # aac in webm
    with pytest.raises(DataError, match=r"cannot encode the video: .*WebM") as caught:
        copy(source, tmp_path / "b.webm")
    assert "b.webm" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_leaving_early_ends_both_processes(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4")
    info = probe_video(source)
    target = tmp_path / "b.mp4"
    with VideoReader(info, False) as reader, VideoWriter(target, info, False, 18, target) as writer:
        writer.write(next(iter(reader)))
    for ends in (reader, writer):
        assert ends._ffmpeg.process.returncode is not None
