"""What is in a video: read from ffmpeg's words, and hostile files are refused in one line."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import pytest

pytest.importorskip("imageio_ffmpeg")

from c2fdft_cli.data.video.probe import (
    Colours,
    count_frames,
    is_video_path,
    parse_probe,
    probe_video,
)
from c2fdft_cli.errors import DataError
from tests.kit.video import make_clip

LINES = """
Input #0, matroska,webm, from 'file:a.mkv':
  Metadata:
    title           : Stream #0:7: Audio: fake
                    :   Stream #0:8: Audio: fake
  Duration: 01:02:03.50, start: 0.000000, bitrate: 51 kb/s
  Stream #0:0: Video: h264 (High), yuv420p(tv, bt709, progressive), 640x480, 25 fps, 25 tbr, 1k tbn
  Stream #0:1[0x2](eng): Audio: vorbis, 44100 Hz, mono, fltp
  Stream #0:2(ger): Audio: aac (LC) (mp4a / 0x6134706D), 44100 Hz, mono, fltp
  Stream #0:3: Subtitle: subrip (srt)
Stream mapping:
  Stream #0:0 -> #0:0 (h264 (native) -> wrapped_avframe (native))
[Parsed_showinfo_0 @ 0x7f] config in time_base: 1/1000, frame_rate: 24000/1001
[Parsed_showinfo_0 @ 0x7f] config out time_base: 0/0, frame_rate: 0/0
[Parsed_showinfo_0 @ 0x7f] n:   0 pts:    480 pts_time:0.48    duration:     40 \
duration_time:0.04    fmt:yuvj420p cl:left sar:4/3 s:48x64 i:P iskey:1 type:I
[Parsed_showinfo_0 @ 0x7f] color_range:pc color_space:bt709 color_primaries:unknown color_trc:bt709
Output #0, null, to 'pipe:':
  Stream #0:0: Audio: not an input
""".strip().splitlines()


def test_the_words_of_ffmpeg() -> None:
    info = parse_probe(Path("a.mkv"), [line + " " * ("type:I" in line) for line in LINES])
    assert (info.width, info.height, info.rate) == (48, 64, Fraction(24000, 1001))
    assert (info.start, info.duration) == (Fraction(12, 25), 3723.5)
    assert info.audio == ("vorbis", "aac")
    assert info.subtitles == ("subrip",)
    assert info.colours == Colours("pc", "bt709", "unknown", "bt709")
    assert info.aspect == Fraction(4, 3)


def test_no_frame_is_an_error() -> None:
    with pytest.raises(DataError, match="no frame"):
        parse_probe(Path("a.mkv"), LINES[:10])


@pytest.mark.parametrize("name", ["-i.mp4", "pipe:0.mp4", "concat:a|b.mkv", "a%03d.mp4", "ä b.mp4"])
def test_names_are_only_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_clip(tmp_path / "clip.mp4", sound=False, seconds=0.2).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert probe_video(Path(name)).width == 64
    assert count_frames(Path(name)) == 2


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("empty.mp4", b""),
        ("text.mkv", b"hello"),
        ("list.mp4", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"),
        ("list.mkv", b"ffconcat version 1.0\nfile clip.mp4\n"),
        ("noise.avi", bytes(range(256)) * 8),
    ],
)
def test_what_is_no_video_is_refused_in_one_line(name: str, data: bytes, tmp_path: Path) -> None:
    make_clip(tmp_path / "clip.mp4", sound=False, seconds=0.2)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=r"cannot read the video: ..") as caught:
        probe_video(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert caught.value.where == str(tmp_path / name)


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", seconds=0.2, options=("-map", "1:a"), filters="null")
    with pytest.raises(DataError, match="no pictures"):
        probe_video(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        probe_video(tmp_path / "a.mp4")
    with pytest.raises(DataError, match="not a regular file"):
        probe_video(tmp_path)


def test_the_pixel_limit_holds_before_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_clip(tmp_path / "a.mp4", sound=False, seconds=0.2)
    monkeypatch.setattr("c2fdft_cli.data.video.ffmpeg.MAX_PIXELS", 64 * 40)
    with pytest.raises(DataError):
        probe_video(path)


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_clip(tmp_path / "a.mp4", sound=False, seconds=0.2)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(DataError, match=r"pip install 'c2fdft\[video\]'"):
        probe_video(path)


def test_names_of_videos() -> None:
    assert is_video_path("a/B.MP4")
    assert not is_video_path("a.gif")
