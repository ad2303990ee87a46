"""Frames are read upright, cropped, at their times, and in spite of damage."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("av")

from c2fdft_cli.data.video.parts import read_through
from c2fdft_cli.data.video.probe import main_stream, origin, probe_video
from c2fdft_cli.data.video.reader import VideoReader
from c2fdft_cli.errors import DataError
from tests.kit.video import (
    add_pictures,
    av,
    begin,
    copy,
    count_frames,
    filtered,
    frames,
    make_clip,
    notes_of,
    packets,
    remux,
    stamps,
)


def test_a_late_start_of_the_pictures_is_kept(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mkv", filters="format=yuv420p,setpts=PTS+0.5/TB")
    start = begin(source)
    assert start == pytest.approx(0.5, abs=0.03)
    assert begin(copy(source, tmp_path / "b.mkv")) == start


@pytest.mark.parametrize("suffix", [".ts", ".flv"])
def test_times_count_from_the_start_of_the_file(suffix: str, tmp_path: Path) -> None:
    """These containers start late; the pictures come a little after the sound."""
    source = make_clip(tmp_path / f"a{suffix}")
    delay = begin(source)
    assert 0 < delay < 0.03
    assert stamps(source)[1][0] * probe_video(source).time_base > 0.15
    target = copy(source, tmp_path / "b.mkv")
    assert stamps(target)[1][0] == round(1000 * delay)
    with av.open(str(target)) as container:
        assert container.streams.audio[0].start_time == 0


def test_a_lead_in_before_zero_does_not_move_the_times() -> None:
    assert [origin(SimpleNamespace(start_time=us)) for us in (-21_000, None, 21_000)] == [
        *(0, 0, Fraction(21, 1000))
    ]


def test_a_video_that_was_cut_keeps_its_frames(tmp_path: Path) -> None:
    whole = make_clip(tmp_path / "whole.mp4", seconds=1)
    source = tmp_path / "a.mp4"
    remux(whole, source, start=0.35)
    count = len(frames(source))
    assert count < 10
    assert count_frames(source) == count
    for name in ("b.mp4", "b.mkv"):
        target = tmp_path / name
        assert notes_of(source, target) == []
        assert len(frames(target)) == count
        with av.open(str(target)) as container:  # the sound that was cut away does not come back
            assert container.duration / 1e6 == pytest.approx(0.7, abs=0.09)


def test_a_video_that_was_cut_at_a_key_frame_is_not_damaged(tmp_path: Path) -> None:
    whole = make_clip(tmp_path / "whole.mp4", seconds=2, sound=False, options={"g": "5", "bf": "0"})
    source = remux(whole, tmp_path / "a.mp4", cut=1)
    with av.open(str(source)) as container:
        assert container.streams.video[0].frames == 20
    assert notes_of(source, tmp_path / "b.mkv") == []
    assert count_frames(tmp_path / "b.mkv") == 10


def test_a_rotation_is_applied_once(tmp_path: Path) -> None:
    whole = make_clip(tmp_path / "whole.mp4")
    source = tmp_path / "a.mp4"
    remux(whole, source, turn=90)
    info = probe_video(source)
    assert (info.height, info.width) == (64, 48)
    target = copy(source, tmp_path / "b.mp4", crf=0)
    after = probe_video(target)
    assert (after.height, after.width) == (64, 48)
    assert np.abs(frames(target)[0] - np.rot90(frames(whole)[0]).astype(float)).mean() < 0.5


@pytest.mark.parametrize(
    ("matrix", "axes", "order"),
    [
        ((-1, 0, 0, 1), (0, 1), np.s_[:, ::-1]),
        ((1, 0, 0, -1), (0, 1), np.s_[::-1]),
        ((-1, 0, 0, -1), (0, 1), np.s_[::-1, ::-1]),
        ((0, 1, 1, 0), (1, 0), np.s_[:]),
        ((0, -1, -1, 0), (1, 0), np.s_[::-1, ::-1]),
        ((0, 1, -1, 0), (1, 0), np.s_[:, ::-1]),
    ],
)
def test_a_mirrored_video_is_mirrored(
    matrix: tuple[int, ...], axes: tuple[int, int], order: Any, tmp_path: Path
) -> None:
    """(x, y) is shown at (a x + c y, b x + d y)."""
    whole = make_clip(tmp_path / "whole.mp4", seconds=0.2, sound=False)
    a, b, c, d = (65536 * one for one in matrix)
    data, size = bytearray(whole.read_bytes()), struct.Struct(">9i")
    begin = data.index(b"tkhd") + 44
    assert size.unpack_from(data, begin) == (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    size.pack_into(data, begin, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    source = tmp_path / "a.mp4"
    source.write_bytes(data)
    found = frames(source)[0]
    assert np.array_equal(found, frames(whole)[0].transpose(*axes, 2)[order])
    assert found.shape[:2] == (probe_video(source).height, probe_video(source).width)


def boxes(data: bytes, path: list[tuple[bytes, int]], begin: int = 0) -> list[int]:
    """Where each box of a path in MP4 begins; the numbers are the sizes of their headers."""
    if not path:
        return []
    (kind, header), *rest = path
    while data[begin + 4 : begin + 8] != kind:
        begin += int.from_bytes(data[begin : begin + 4], "big")
    return [begin, *boxes(data, rest, begin + header)]


def with_aperture(source: Path, target: Path, width: int, height: int) -> Path:
    """Add a centred clean aperture to an MP4 file whose index is at its end."""
    data = bytearray(source.read_bytes())
    kinds = [b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"]
    places = boxes(data, [(kind, 16 if kind == b"stsd" else 8) for kind in kinds])
    box = struct.pack(">I4s8I", 40, b"clap", width, 1, height, 1, 0, 1, 0, 1)
    end = places[-1] + int.from_bytes(data[places[-1] : places[-1] + 4], "big")
    data[end:end] = box
    for place in places:
        size = int.from_bytes(data[place : place + 4], "big") + len(box)
        data[place : place + 4] = size.to_bytes(4, "big")
    target.write_bytes(data)
    return target


@pytest.mark.parametrize(("turn", "suffix"), [(0, ".mp4"), (90, ".mp4"), (0, ".mkv")])
def test_edges_that_the_container_cuts_away_are_left_out(
    turn: int, suffix: str, tmp_path: Path
) -> None:
    whole = make_clip(tmp_path / "whole.mp4", sound=False, seconds=0.3)
    if turn:
        whole = remux(whole, tmp_path / "turned.mp4", turn=turn)
    source = with_aperture(whole, tmp_path / "a.mp4", 40, 20)
    if suffix != ".mp4":
        source = remux(source, tmp_path / f"a{suffix}")
    info, crop = probe_video(source), np.s_[:, 14:-14, 12:-12]
    assert (info.height, info.width) == ((40, 20) if turn else (20, 40))
    expected = frames(whole)[:, 12:-12, 14:-14] if turn else frames(whole)[crop]
    assert np.array_equal(frames(source), expected)
    assert np.abs(frames(copy(source, tmp_path / "b.mp4", crf=0)) - expected.astype(int)).mean() < 1


def test_an_aperture_outside_the_pictures_is_ignored(tmp_path: Path) -> None:
    whole = make_clip(tmp_path / "whole.mp4", sound=False, seconds=0.2)
    for width in (0, 1000):
        source = with_aperture(whole, tmp_path / "a.mp4", width, 20)
        assert (probe_video(source).height, probe_video(source).width) == (48, 64)


def test_columns_that_the_codec_cuts_away_are_left_out(tmp_path: Path) -> None:
    """At the left edge, decoders keep some unless they may return unaligned data."""
    from av.bitstream import BitStreamFilterContext

    whole, source = make_clip(tmp_path / "whole.mp4", sound=False), tmp_path / "a.mp4"
    with av.open(str(whole)) as old, av.open(str(source), "w") as new:
        main = old.streams.video[0]
        stream = new.add_stream_from_template(main)
        cut = BitStreamFilterContext("h264_metadata=crop_left=10:crop_right=4", main, stream)
        for packet in old.demux(main):
            for one in cut.filter(packet if packet.size else None):
                one.stream = stream
                new.mux(one)
    assert probe_video(source).width == 50
    assert np.abs(frames(source).astype(int) - frames(whole)[:, :, 10:-4]).mean() < 1
    assert frames(copy(source, tmp_path / "b.mp4")).shape == (5, 48, 50, 3)


def test_the_default_video_stream_is_restored_wherever_it_is(tmp_path: Path) -> None:
    kinds = [
        list(filtered(f"gradients=s={s}:d=0.3:r=10", "format=yuv420p")) for s in ("32x32", "64x48")
    ]
    with av.open(str(tmp_path / "a.mkv"), "w") as out:
        streams = [add_pictures(out, one, Fraction(10), "libx264") for one in kinds]
        streams[0].disposition = av.stream.Disposition(0)
        streams[1].disposition = av.stream.Disposition.default
        for stream, pictures in zip(streams, kinds, strict=True):
            for one in [*pictures, None]:
                if one is not None:
                    one.pict_type = 0
                out.mux(stream.encode(one))
    assert probe_video(tmp_path / "a.mkv").width == 64


@pytest.mark.parametrize("name", ["b.mp4", "b.mkv", "b.avi"])
def test_the_main_video_stream_is_restored(name: str, tmp_path: Path) -> None:
    """The video has a cover picture, a main stream and a second one."""
    source = tmp_path / "a.mp4"
    main = list(filtered("gradients=s=64x48:d=0.5:r=10:seed=3", "format=yuv420p"))
    second = list(filtered("gradients=s=32x32:d=0.5:r=10:seed=4", "format=yuv420p"))
    picture = list(filtered("gradients=s=16x16:d=0.1:r=10", "format=rgb24"))
    with av.open(str(source), "w") as out:
        cover = add_pictures(out, picture, Fraction(10), "png")
        cover.disposition = av.stream.Disposition.attached_pic
        streams = [add_pictures(out, one, Fraction(10), "libx264") for one in (main, second)]
        streams[0].disposition = av.stream.Disposition.default
        out.start_encoding()
        out.mux(cover.encode(picture[0]))
        for stream, pictures in zip(streams, (main, second), strict=True):
            for one in [*pictures, None]:
                if one is not None:
                    one.pict_type = 0
                out.mux(stream.encode(one))
    target = tmp_path / name
    notes = notes_of(source, target)
    info = probe_video(target)
    assert (info.width, info.height) == (64, 48)
    assert len(frames(target)) == 5
    with av.open(str(source)) as before, av.open(str(target)) as after:
        old = {one.width: one.index for one in before.streams.video}
        new = {one.width: one.index for one in after.streams.video}
    if name == "b.avi":
        assert set(new) == {64}
        kinds = ["picture stream 1 (h264)", "picture stream 2 (png)"]
        assert notes == [f"{kind} skipped: avi cannot hold it" for kind in kinds]
    else:
        assert (set(new), notes) == ({64, 32, 16}, [])
        for width in (16, 32):
            assert packets(target, new[width]) == packets(source, old[width])


@pytest.mark.parametrize("suffix", [".avi", ".wmv"])
def test_containers_with_one_time_per_packet_keep_the_times(suffix: str, tmp_path: Path) -> None:
    """FFmpeg's guesses of the times of their reordered frames are wrong."""
    source = make_clip(tmp_path / f"a{suffix}", seconds=2, sound=False, options={"bf": "2"})
    for generation in range(2):
        info = probe_video(source)
        with VideoReader(info, False) as reader:
            times = [frame.pts * info.time_base for frame in reader]
        assert times == [Fraction(number, 10) for number in range(20)]
        target = tmp_path / f"{generation}{suffix}"
        assert notes_of(source, target, crf=0) == []
        source = target


@pytest.mark.parametrize("begin", [0, 1, 40])
def test_gaps_between_reordered_pictures_of_avi_are_kept(tmp_path: Path, begin: int) -> None:
    """A gap may lie among the first pictures, which the decoder returns later."""
    source = tmp_path / "a.avi"
    pictures = list(filtered("gradients=s=64x48:r=25:d=2:seed=3", "format=yuv420p"))
    with av.open(str(source), "w") as out:
        options = {"bf": "2", "g": "25"}
        stream = add_pictures(out, pictures, Fraction(25), "mpeg4", options)
        for number, one in enumerate(pictures):
            one.pict_type, one.pts = 0, number + (25 if number > begin else 0)
            out.mux(stream.encode(one))
        out.mux(stream.encode(None))
    with av.open(str(source)) as container:
        slots = [one.dts for one in container.demux(video=0) if one.size]
    assert max(np.diff(slots)) > 20
    with VideoReader(probe_video(source), False) as reader:
        assert [frame.pts for frame in reader] == slots


@pytest.mark.parametrize("broken", [1, 2, 15, 20])
def test_damage_does_not_move_the_reordered_pictures_of_avi(tmp_path: Path, broken: int) -> None:
    options = {"bf": "2", "g": "10"}
    source = make_clip(tmp_path / "a.avi", seconds=4, sound=False, options=options)
    with av.open(str(source)) as container:
        packet = [bytes(one) for one in container.demux(video=0) if one.size][broken]
    data = source.read_bytes()
    source.write_bytes(data.replace(packet, b"\xff" * len(packet)))
    with VideoReader(probe_video(source), False) as reader:
        shown = [frame.pts for frame in reader]
        assert reader.complaint
    assert shown[-8:] == list(range(32, 40))
    assert len(shown) >= 29


def test_a_gap_between_the_pictures_of_avi_is_no_damage(tmp_path: Path) -> None:
    filters = "format=yuv420p,select='not(between(n,5,8))'"
    source = make_clip(tmp_path / "a.avi", seconds=2, filters=filters, options={"bf": "0"})
    assert read_through(probe_video(source)).missing == 0


def test_damaged_frames_are_reported(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mkv", size="160x120", sound=False, seconds=2)
    data = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        packets = [bytes(one) for one in container.demux(video=0) if one.size]
    for packet in packets[1:8]:  # the first packet holds the key frame
        begin = data.index(packet)
        for i in range(begin, begin + len(packet), 7):
            data[i] ^= 255
    source.write_bytes(data)
    with VideoReader(probe_video(source), deep=False) as reader:
        count = sum(1 for _ in reader)
        assert 0 < count <= 20
        assert "damaged packets or frames" in reader.complaint


def test_a_picture_that_the_decoder_does_not_support_is_skipped(tmp_path: Path) -> None:
    """Damage may lead to other errors of the decoder than invalid data."""
    source = make_clip(
        tmp_path / "a.avi", seconds=1, codec="mjpeg", filters="format=yuvj420p", sound=False
    )
    data = bytearray(source.read_bytes())
    header = data.index(b"\xff\xc0", len(data) // 2)  # of a frame, with the shares of its chroma
    data[header + 11] = 0x13
    source.write_bytes(data)
    with av.open(str(source)) as container, pytest.raises(av.error.PatchWelcomeError):
        list(container.decode(video=0))
    with VideoReader(probe_video(source), deep=False) as reader:
        assert sum(1 for _ in reader) == 9
        assert reader.complaint == "1 damaged packets or frames"
    first = data.index(b"\xff\xc0")
    data[first + 11] = 0x13
    source.write_bytes(data)
    assert probe_video(source).width == 64


@pytest.mark.parametrize(("suffix", "codec"), [("avi", "msmpeg4"), ("wmv", "wmv1")])
@pytest.mark.parametrize("broken", [0, 7])
def test_damage_that_a_decoder_calls_forbidden_costs_one_picture(
    tmp_path: Path, suffix: str, codec: str, broken: int
) -> None:
    """These decoders return -1, which is also the system's number for what is not permitted."""
    source = make_clip(tmp_path / f"a.{suffix}", seconds=2, codec=codec, sound=False)
    with av.open(str(source)) as container:
        packet = [bytes(one) for one in container.demux(video=0) if one.size][broken]
    data = source.read_bytes()
    source.write_bytes(data.replace(packet, bytes(len(packet))))
    with VideoReader(probe_video(source), deep=False) as reader:
        assert sum(1 for _ in reader) == 19
        assert reader.complaint == "1 damaged packets or frames"


@pytest.mark.parametrize("codec", ["libx264", "libvpx-vp9", "libsvtav1"])
def test_damage_in_the_last_frames_costs_no_others(
    codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of decoding threads, which is that of the processors, changes nothing."""
    if codec not in av.codecs_available:
        pytest.skip(f"PyAV was built without {codec}")
    source = make_clip(tmp_path / "a.mkv", sound=False, seconds=3, codec=codec)
    data = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        packets = [bytes(one) for one in container.demux(video=0) if one.size]
    for packet in packets[-2:]:
        begin = data.index(packet) + 4
        data[begin : begin + len(packet) - 4] = b"\xff" * (len(packet) - 4)
    source.write_bytes(data)
    found = []
    for threads in (1, 2, 4):

        def stream(*words: Any, threads: int = threads) -> Any:
            main = main_stream(*words)
            main.codec_context.thread_count = threads
            return main

        monkeypatch.setattr("c2fdft_cli.data.video.reader.main_stream", stream)
        with VideoReader(probe_video(source), deep=False) as reader:
            found.append((sum(1 for _ in reader), reader.complaint))
    assert len(set(found)) == 1
    assert 27 < found[0][0] < 30
    assert "damaged packets or frames" in found[0][1]


def test_a_truncated_file_is_reported(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mkv", size="160x120", seconds=4)
    data = source.read_bytes()
    source.write_bytes(data[: len(data) // 2])
    (note,) = notes_of(source, tmp_path / "b.mkv")
    assert note.startswith("damage in the video: it ends after")
    assert 0 < count_frames(tmp_path / "b.mkv") < 40


def test_an_intact_video_has_no_notes(tmp_path: Path) -> None:
    for name in ("a.mkv", "a.mp4", "a.avi", "a.ts"):
        source = make_clip(tmp_path / name, seconds=3)
        assert notes_of(source, tmp_path / f"b{source.suffix}") == []


def test_a_reader_that_was_closed_has_no_more_frames(tmp_path: Path) -> None:
    reader = VideoReader(probe_video(make_clip(tmp_path / "a.mp4")), False)
    with reader:
        pass
    assert list(reader) == []


def test_a_video_without_a_frame_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_clip(tmp_path / "a.mp4")
    monkeypatch.setattr(VideoReader, "_frames", lambda _: iter(()))
    with (
        VideoReader(probe_video(source), False) as reader,
        pytest.raises(DataError, match="no frame in this video") as caught,
    ):
        list(reader)
    assert caught.value.where == str(source)
