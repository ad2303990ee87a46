"""Sound, subtitles, chapters and other streams are copied."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("av")

from c2fdft_cli.data.video.parts import read_through
from c2fdft_cli.data.video.probe import origin, probe_video
from c2fdft_cli.data.video.remux import audio_problem
from c2fdft_cli.errors import DataError
from tests.kit.video import (
    av,
    changed,
    copy,
    make_clip,
    notes_of,
    packets,
    remux,
    sound,
    stamps,
    subtitles,
)

SKIPPED = "1 packet without a usable timestamp skipped"


@pytest.mark.parametrize("suffix", [".mkv", ".wmv", ".mp4", ".ts", ".flv"])
def test_a_file_whose_times_begin_late_is_not_damaged(suffix: str, tmp_path: Path) -> None:
    options = {"bf": "0"}
    whole = make_clip(tmp_path / "whole.mkv", rate="25", seconds=2, options=options)
    source = remux(whole, tmp_path / f"a{suffix}", start=-100)
    with av.open(str(source)) as container:
        assert origin(container) > 99
    target = tmp_path / "b.mkv"
    assert notes_of(source, target) == []
    assert probe_video(source).duration == pytest.approx(2, abs=0.1)
    data = source.read_bytes()
    source.write_bytes(data[: len(data) * 2 // 5])
    if suffix == ".mkv":
        (note,) = notes_of(source, target)
        assert "of 2.0 s" in note or "of 2.1 s" in note


def test_a_video_without_sound_is_kept(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4", sound=False)
    info = probe_video(copy(source, tmp_path / "b.mp4"))
    assert (info.audio, info.duration) == ((), 0.5)


def test_subtitles_are_kept_if_the_container_supports_them(tmp_path: Path) -> None:
    whole = make_clip(tmp_path / "whole.mkv")
    source = remux(whole, tmp_path / "a.mkv", subtitles="subrip")
    target = tmp_path / "b.mkv"
    assert notes_of(source, target) == []
    assert subtitles(target) == ["subrip"]
    assert packets(target, 2) == packets(source, 2)
    assert notes_of(source, tmp_path / "b.mp4") == [
        "subtitle stream 2 (subrip) skipped: mp4 cannot hold it"
    ]
    assert subtitles(tmp_path / "b.mp4") == []


@pytest.mark.parametrize("name", ["b.mp4", "b.mov", "b.mkv"])
def test_chapters_titles_and_timecodes_are_kept(name: str, tmp_path: Path) -> None:
    whole = make_clip(tmp_path / "whole.mp4", seconds=2)
    tenths = {"time_base": Fraction(1, 10)}
    chapters = [
        {"id": 0, "start": 0, "end": 9, "metadata": {"title": "one"}, **tenths},
        {"id": 1, "start": 9, "end": 18, "metadata": {"title": "two"}, **tenths},
    ]
    source = remux(
        whole, tmp_path / "a.mov", chapters=chapters, title="fun", timecode="01:00:00:00"
    )
    target = tmp_path / name
    assert notes_of(source, target) == []
    with av.open(str(target)) as after, av.open(str(source)) as before:
        assert [stream.type for stream in before.streams] == ["video", "audio", "data", "data"]
        assert [one["metadata"]["title"] for one in after.chapters()] == ["one", "two"]
        times = [
            one[end] * one["time_base"] for one in after.chapters() for end in ("start", "end")
        ]
        assert times == [0, Fraction(9, 10), Fraction(9, 10), Fraction(9, 5)]
        assert {key.lower(): text for key, text in after.metadata.items()}["title"] == "fun"
        texts = {key.lower(): text for key, text in after.streams.video[0].metadata.items()}
        assert texts["timecode"] == before.streams.video[0].metadata["timecode"]
    assert stamps(target) == stamps(source) or name == "b.mkv"
    assert sound(target) == sound(source)


@pytest.mark.parametrize(("suffix", "muxer"), [(".avi", "avi"), (".flv", "flv"), (".ts", "mpegts")])
def test_lost_chapters_are_noted(suffix: str, muxer: str, tmp_path: Path) -> None:
    chapter = {"id": 0, "start": 0, "end": 5, "metadata": {}, "time_base": Fraction(1, 10)}
    source = remux(make_clip(tmp_path / "whole.mp4"), tmp_path / "a.mkv", chapters=[chapter])
    target = tmp_path / f"b{suffix}"
    assert notes_of(source, target) == [f"1 chapter skipped: {muxer} cannot hold chapters"]
    with av.open(str(target)) as container:
        assert container.chapters() == []


@pytest.mark.parametrize("name", ["b.mp4", "b.mkv"])
def test_chapters_before_a_late_start_are_shortened(name: str, tmp_path: Path) -> None:
    whole = make_clip(tmp_path / "whole.mp4", seconds=2)
    times, tenth = [(0, 4), (4, 12), (12, 25)], {"time_base": Fraction(1, 10)}
    chapters = [
        {"id": number, "start": start, "end": end, "metadata": {"title": str(number)}, **tenth}
        for number, (start, end) in enumerate(times)
    ]
    source = remux(whole, tmp_path / "a.mkv", chapters=chapters, start=-0.5)
    with av.open(str(copy(source, tmp_path / name))) as container:
        after = container.chapters()
    assert [one["metadata"]["title"] for one in after] == ["1", "2"]
    begins = [float(one["start"] * one["time_base"]) for one in after]
    assert begins == pytest.approx([0, 0.7], abs=0.05)


@pytest.mark.parametrize("name", ["b.mkv", "b.mp4"])
@pytest.mark.parametrize("seconds", [2, 0.2])
def test_a_further_stream_with_reordered_pictures_is_copied(
    name: str, seconds: float, tmp_path: Path
) -> None:
    """In Matroska its first packets have no times of decoding."""
    main = make_clip(tmp_path / "main.mp4", size="96x64", sound=False)
    other = make_clip(
        tmp_path / "other.mp4", rate="25", seconds=seconds, sound=False, options={"bf": "3"}
    )
    source, target = tmp_path / "a.mkv", tmp_path / name
    with (
        av.open(str(main)) as first,
        av.open(str(other)) as second,
        av.open(str(source), "w") as new,
    ):
        pairs = [
            (old, new.add_stream_from_template(old.streams.video[0], opaque=True))
            for old in (first, second)
        ]
        for old, stream in pairs:
            for packet in old.demux():
                if packet.size:
                    packet.stream = stream
                    new.mux(packet)
    assert notes_of(source, target) == []
    (before, shown), (after, copied) = (shown_packets(path, 1) for path in (source, target))
    assert copied == shown
    assert after == pytest.approx(before, abs=0.002)


def shown_packets(path: Path, index: int) -> tuple[list[float], list[bytes]]:
    """The times of the packets of a stream, from the first frame of the main one, and the data."""
    with av.open(str(path)) as container:
        begin = next(container.decode(video=0)).time
    with av.open(str(path)) as container:
        found = [one for one in container.demux(container.streams[index]) if one.size]
        return [float(one.pts * one.time_base) - begin for one in found], [*map(bytes, found)]


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
def test_sound_that_starts_before_zero_does_not_delay_the_pictures_of_avi(
    name: str, tmp_path: Path
) -> None:
    target = copy(make_clip(tmp_path / name, seconds=2), tmp_path / "b.avi")
    with av.open(str(target)) as container:
        assert [one.dts for one in container.demux(video=0) if one.size] == list(range(20))


@pytest.mark.parametrize("codec", ["aac", "ac3", "flac", "libmp3lame", "pcm_s16le"])
def test_sound_keeps_its_times_from_avi_to_avi(codec: str, tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.avi", seconds=2, sound_codec=codec, options={"bf": "0"})
    last = last_sound(source)
    for generation in range(2):
        target = tmp_path / f"{generation}.avi"
        assert notes_of(source, target) == []
        assert (last_sound(target), sound(target)) == (last, sound(source))
        source = target


def last_sound(path: Path) -> Fraction:
    """Time of the last packet of sound, in seconds."""
    with av.open(str(path)) as container:
        return [one.pts * one.time_base for one in container.demux(audio=0) if one.size][-1]


def test_gaps_of_sound_that_avi_closes_are_noted(tmp_path: Path) -> None:
    whole = make_clip(tmp_path / "whole.mkv", seconds=3)

    def later(packet: Any) -> None:
        if packet.stream.type == "audio" and packet.pts > 1000:
            packet.pts = packet.dts = packet.pts + 1500

    source = changed(whole, tmp_path / "a.mkv", later)
    assert notes_of(source, tmp_path / "b.avi") == [
        "the sound has gaps of 1.5 s, which avi closes: sound is early after them"
    ]
    assert notes_of(source, tmp_path / "b.mkv") == []


def test_webm_supports_only_some_sound(tmp_path: Path) -> None:
    info = probe_video(make_clip(tmp_path / "a.mp4"))
    assert audio_problem(info, ".webm") == "webm cannot hold this video's sound: aac"
    assert audio_problem(info, ".mkv") is None
    with pytest.raises(DataError, match="webm cannot hold this video's sound") as caught:
        copy(info.path, tmp_path / "b.webm")
    assert caught.value.where == str(tmp_path / "b.webm")


def test_streams_that_a_container_cannot_hold_together_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if each were accepted alone: what FLV refuses together depends on FFmpeg's version."""
    source = make_clip(tmp_path / "a.mkv", sound_codec="pcm_s16le")
    monkeypatch.setattr("c2fdft_cli.data.video.remux._is_held", lambda *_: True)
    with pytest.raises(DataError, match="flv cannot hold all streams of this video together") as e:
        copy(source, tmp_path / "b.flv")
    assert (e.value.where, e.value.hint) == (str(tmp_path / "b.flv"), "use .mkv")
    assert not (tmp_path / "b.flv").exists()


@pytest.mark.parametrize(
    ("codec", "suffix"), [("flac", ".ts"), ("pcm_s16le", ".ts"), ("pcm_s16le", ".mp4")]
)
def test_sound_that_would_be_unreadable_is_refused(codec: str, suffix: str, tmp_path: Path) -> None:
    """These containers accept the stream's header, but not its packets, or not as sound."""
    info = probe_video(make_clip(tmp_path / "a.mkv", sound_codec=codec))
    muxer = {".ts": "mpegts", ".mp4": "mp4"}[suffix]
    assert audio_problem(info, suffix) == f"{muxer} cannot hold this video's sound: {codec}"


@pytest.mark.parametrize("codec", ["mp2", "libmp3lame", "ac3", "aac"])
@pytest.mark.parametrize("suffix", [".ts", ".mp4", ".mov", ".mkv", ".avi", ".wmv"])
def test_common_sound_is_not_refused(codec: str, suffix: str, tmp_path: Path) -> None:
    assert (
        audio_problem(probe_video(make_clip(tmp_path / "a.mkv", sound_codec=codec)), suffix) is None
    )


def test_subtitles_and_fonts_that_would_be_unreadable_are_skipped(tmp_path: Path) -> None:
    whole = make_clip(tmp_path / "whole.mkv")
    texts = remux(whole, tmp_path / "texts.mkv", subtitles="subrip")
    source = tmp_path / "a.mkv"
    with av.open(str(texts)) as old, av.open(str(source), "w") as new:
        pairs = {one.index: new.add_stream_from_template(one, opaque=True) for one in old.streams}
        new.add_attachment("a.ttf", "font/ttf", b"font")
        for packet in old.demux():
            if packet.size:
                packet.stream = pairs[packet.stream_index]
                new.mux(packet)
    assert notes_of(source, tmp_path / "b.ts") == [
        "subtitle stream 2 (subrip) skipped: mpegts cannot hold it",
        "attachment stream 3 (unknown) skipped: mpegts cannot hold it",
    ]
    assert notes_of(source, tmp_path / "b.mkv") == []
    with av.open(str(tmp_path / "b.mkv")) as container:
        assert [one.type for one in container.streams] == [
            *("video", "audio", "subtitle", "attachment")
        ]


def test_an_empty_stream_is_skipped(tmp_path: Path) -> None:
    """MPEG-TS may announce sound that never comes, whose sample rate is then unknown."""
    whole, source = make_clip(tmp_path / "whole.mp4"), tmp_path / "a.ts"
    with av.open(str(whole)) as old, av.open(str(source), "w") as new:
        pairs = {one.index: new.add_stream_from_template(one, opaque=True) for one in old.streams}
        new.add_stream_from_template(old.streams.audio[0], opaque=True)
        for packet in old.demux():
            if packet.size:
                packet.stream = pairs[packet.stream_index]
                new.mux(packet)
    assert audio_problem(probe_video(source), ".mkv") is None
    assert notes_of(source, tmp_path / "b.mkv") == ["audio stream 2 (aac) skipped: it is empty"]


@pytest.mark.parametrize("suffix", [".avi", ".mp4"])
def test_declared_but_missing_pictures_are_reported(tmp_path: Path, suffix: str) -> None:
    codec, options = ("mpeg4", {}) if suffix == ".avi" else ("libx264", {"g": "5", "bf": "0"})
    source = make_clip(
        tmp_path / f"a{suffix}",
        size="160x120",
        rate="25",
        seconds=1,
        sound=False,
        codec=codec,
        options=options,
    )
    if suffix == ".mp4":  # with the index before the pictures, as for streaming
        copied = tmp_path / "b.mp4"
        with (
            av.open(str(source)) as own,
            av.open(str(copied), "w", options={"movflags": "+faststart"}) as out,
        ):
            stream = out.add_stream_from_template(own.streams.video[0])
            for packet in own.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    out.mux(packet)
        source = copied
    data = source.read_bytes()
    source.write_bytes(data[: len(data) - len(data) // 4])
    info = read_through(probe_video(source))
    assert info.missing > 0
    assert info.missing + info.frames == 25
    (note,) = notes_of(source, tmp_path / "out.mkv")
    assert note == f"damage in the video: it announces {info.missing} frames more than it contains"


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".ts", ".avi", ".wmv", ".mkv", ".flv"])
def test_only_a_sound_packet_with_a_repeated_time_is_dropped(tmp_path: Path, suffix: str) -> None:
    """Most containers refuse such a packet, and would refuse the whole video with it."""
    whole = make_clip(tmp_path / "whole.mkv")
    times: list[int] = []

    def repeat(packet: Any) -> None:
        if packet.stream.type == "audio":
            times.append(packet.pts)
            if len(times) == 7:
                packet.pts = packet.dts = times[5]

    source = changed(whole, tmp_path / "a.mkv", repeat)
    skipped = [] if suffix in (".mkv", ".flv") else [SKIPPED]
    assert notes_of(source, tmp_path / f"b{suffix}") == skipped


def test_mpeg_ts_whose_clock_wraps_is_not_damaged(tmp_path: Path) -> None:
    whole, source = make_clip(tmp_path / "whole.mp4", seconds=2), tmp_path / "a.ts"
    with (
        av.open(str(whole)) as old,
        av.open(str(source), "w", options={"mpegts_copyts": "1"}) as new,
    ):
        pairs = {one.index: new.add_stream_from_template(one, opaque=True) for one in old.streams}
        for packet in old.demux():
            if packet.size:
                later = 95440 / packet.time_base  # 3.7 s before the clock's 33 bits are used up
                packet.pts, packet.dts = round(packet.pts + later), round(packet.dts + later)
                packet.stream = pairs[packet.stream_index]
                new.mux(packet)
    with av.open(str(source)) as container:
        assert container.start_time < -3e6
    assert notes_of(source, tmp_path / "b.mkv") == []


def test_a_source_that_cannot_be_read_on_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_clip(tmp_path / "a.mkv")

    def fail(*_: Any) -> Iterator[Any]:
        av.error.err_check(-errno.EIO)
        yield

    monkeypatch.setattr("c2fdft_cli.data.video.remux.continuous", fail)
    with pytest.raises(DataError, match=r"a\.mkv: cannot read the video: Input/output error"):
        copy(source, tmp_path / "b.mkv")
