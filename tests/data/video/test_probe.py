"""Probing a video; other files are refused in one line."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("av")

from c2fdft_cli.data.video.probe import (
    LIMITED_RANGE,
    UNSPECIFIED,
    Colours,
    codec_name,
    demuxed,
    is_video_path,
    probe_video,
    text_options,
)
from c2fdft_cli.errors import DataError
from tests.kit.video import (
    add_pictures,
    av,
    count_frames,
    filtered,
    frames,
    make_clip,
    tone_packets,
)


def test_properties_of_a_video_are_found(tmp_path: Path) -> None:
    filters = "format=yuv422p,setparams=range=tv:colorspace=bt709:color_trc=bt709"
    path = make_clip(tmp_path / "a.mkv", rate="24000/1001", filters=filters, aspect=Fraction(4, 3))
    info = probe_video(path)
    assert (info.width, info.height, info.rate) == (64, 48, Fraction(24000, 1001))
    assert info.duration == pytest.approx(0.5, abs=0.05)
    assert (info.audio, info.pixel_format) == (("aac",), "yuv422p")
    assert info.colours == Colours(LIMITED_RANGE, 1, UNSPECIFIED, 1)
    assert (info.aspect, count_frames(path)) == (Fraction(4, 3), 12)


@pytest.mark.parametrize(
    ("version", "options"),
    [("18.1.0", {"metadata_errors": "surrogateescape"}), ("19.0.2", {}), ("20.0.0rc1", {})],
)
def test_an_option_that_pyav_19_removed_is_for_older_ones(
    version: str, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(av, "__version__", version)
    assert text_options() == options


def test_messages_of_the_library_are_off(tmp_path: Path) -> None:
    """With messages in Python's logging, a video sometimes could not be closed.

    FFmpeg's threads would wait for the interpreter lock, and their end is waited for with it held.
    """
    path = make_clip(tmp_path / "a.ts")
    av.logging.set_level(av.logging.ERROR)  # as torchvision before 0.26 does when it is imported
    try:
        probe_video(path)
        assert av.logging.get_level() is None
    finally:
        av.logging.set_level(None)


@pytest.mark.parametrize(
    ("name", "codec", "sound"),
    [
        ("a.ts", "libx264", "aac"),
        ("a.m2ts", "libx264", "ac3"),
        ("a.3gp", "mpeg4", "aac"),
        ("a.wmv", "wmv2", "wmav2"),
        ("a.flv", "flv", "aac"),
        ("a.mpg", "mpeg2video", "mp2"),
        ("a.avi", "mpeg4", "ac3"),
    ],
)
def test_supported_containers_are_read(name: str, codec: str, sound: str, tmp_path: Path) -> None:
    path = make_clip(tmp_path / name, rate="25", codec=codec, sound_codec=sound)
    info = probe_video(path)
    assert (info.width, info.height, count_frames(path)) == (64, 48, 13)
    assert info.rate == pytest.approx(25, rel=0.01)
    assert info.audio == (sound,)


@pytest.mark.parametrize("name", ["-i.mp4", "pipe:0.mp4", "concat:a|b.mkv", "a%03d.mp4", "ä b.mp4"])
def test_special_file_names_are_taken_literally(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
def test_files_that_are_not_videos_are_refused_in_one_line(
    name: str, data: bytes, tmp_path: Path
) -> None:
    make_clip(tmp_path / "clip.mp4", sound=False, seconds=0.2)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=r"cannot read the video: ..") as caught:
        probe_video(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert caught.value.where == str(tmp_path / name)


def test_sound_alone_is_not_a_video(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as out:
        for packets in tone_packets(out.add_stream("aac", rate=48000), 0.2):
            out.mux(packets)
    with pytest.raises(DataError, match="no pictures"):
        probe_video(path)


def test_a_video_without_a_single_intact_picture_is_refused(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", sound=False)
    data = path.read_bytes()
    begin, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    path.write_bytes(data[:begin] + bytes(end - begin) + data[end:])
    with pytest.raises(DataError, match="no frame in this video: Invalid data found"):
        probe_video(path)


def test_a_cover_picture_alone_is_not_a_video(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    picture = list(filtered("gradients=s=16x16:d=0.1:r=10", "format=rgb24"))
    with av.open(str(path), "w") as out:
        cover = add_pictures(out, picture, Fraction(10), "png")
        cover.disposition = av.stream.Disposition.attached_pic
        tone = out.add_stream("aac", rate=48000)
        for packets in tone_packets(tone, 0.2):
            out.mux(packets)
        out.mux(cover.encode(picture[0]))
    with pytest.raises(DataError, match="no pictures"):
        probe_video(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        probe_video(tmp_path / "a.mp4")
    with pytest.raises(DataError, match="not a regular file"):
        probe_video(tmp_path)


def test_the_pixel_limit_is_checked_before_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_clip(tmp_path / "a.mp4", sound=False, seconds=0.2)
    monkeypatch.setattr("c2fdft_cli.data.video.probe.MAX_PIXELS", 64 * 40)
    with pytest.raises(DataError, match=r"64 x 48 px is over the limit of 2560 px"):
        probe_video(path)


def test_without_pyav_the_hint_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_clip(tmp_path / "a.mp4", sound=False, seconds=0.2)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DataError, match="videos need PyAV") as caught:
        probe_video(path)
    assert caught.value.hint == "pip install 'c2fdft[video]'"


def test_names_of_videos_are_recognised() -> None:
    assert is_video_path("a/B.MP4")
    assert not is_video_path("a.gif")


def test_streams_added_by_damage_in_the_middle_are_ignored(tmp_path: Path) -> None:
    """PyAV does not know such streams, and fails after the last packet."""
    filters = "noise=alls=20:allf=t,format=yuv420p"
    whole = make_clip(
        tmp_path / "a.flv",
        size="128x96",
        rate="25",
        seconds=4,
        filters=filters,
        options={"g": "12"},
    )
    data = bytearray(whole.read_bytes())
    begin, end = len(data) // 2, len(data) // 2 + len(data) // 50
    data[begin:end] = random.Random(1).randbytes(end - begin)
    whole.write_bytes(data)
    assert 90 < count_frames(whole) < 100
    assert 90 < len(frames(whole)) < 100


def test_the_end_of_a_file_with_additional_streams_is_handled() -> None:
    class Container:
        def demux(self, *streams: object) -> Iterator[object]:
            yield from streams
            raise IndexError("list index out of range")

    assert list(demuxed(Container(), 1, 2)) == [1, 2]  # type: ignore[arg-type]


def test_a_stream_without_a_decoder_has_no_codecs_name() -> None:
    context = SimpleNamespace(codec=SimpleNamespace(canonical_name="h264"))
    assert codec_name(SimpleNamespace(codec_context=context)) == "h264"
    assert codec_name(SimpleNamespace(codec_context=None)) == "unknown"
