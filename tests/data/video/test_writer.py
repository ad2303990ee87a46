"""Videos are written in the containers, codecs and rates of their sources."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

pytest.importorskip("av")

from c2fdft_cli.data.video.probe import probe_video
from c2fdft_cli.data.video.reader import Frame, VideoReader
from c2fdft_cli.data.video.writer import VideoWriter
from c2fdft_cli.errors import DataError, ResourceError
from tests.kit.video import (
    av,
    begin,
    changed,
    copy,
    count_frames,
    difference,
    make_clip,
    notes_of,
    sound,
    stamps,
)


def test_a_video_is_kept(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4", rate="30000/1001")
    target = copy(source, tmp_path / "b.mp4", crf=0)
    before, after = probe_video(source), probe_video(target)
    assert after.rate == Fraction(30000, 1001)
    assert (after.height, after.width, count_frames(target)) == (48, 64, 15)
    assert (after.duration, after.audio, after.colours) == (
        pytest.approx(before.duration, abs=0.001),
        ("aac",),
        before.colours,
    )
    assert stamps(target) == stamps(source)
    assert sound(target) == sound(source)
    assert difference(source, target) < 0.5


@pytest.mark.parametrize("name", ["b.mp4", "b.mov"])
def test_a_video_can_be_played_before_it_is_complete(name: str, tmp_path: Path) -> None:
    data = copy(make_clip(tmp_path / "a.mkv"), tmp_path / name).read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("name", ["b.mkv", "b.mov", "b.avi"])
def test_other_containers_are_kept(name: str, tmp_path: Path) -> None:
    codec = "ac3" if name == "b.avi" else "aac"  # AVI omits the lead-in of AAC
    source = make_clip(tmp_path / "a.mp4", sound_codec=codec)
    target = copy(source, tmp_path / name, crf=0)
    info = probe_video(target)
    assert (info.rate, info.audio, count_frames(target)) == (10, (codec,), 5)
    assert sound(target) == sound(source)
    assert difference(source, target) < 0.5


def test_webm_is_kept(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.webm", codec="libvpx-vp9", sound_codec="libopus")
    target = copy(source, tmp_path / "b.webm")
    assert (count_frames(target), len(probe_video(target).audio)) == (5, 1)
    assert sound(target) == sound(source)


def test_a_variable_frame_rate_keeps_its_timestamps(tmp_path: Path) -> None:
    source = make_clip(
        tmp_path / "a.mp4", seconds=1, filters="format=yuv420p,select='not(eq(mod(n,3),1))'"
    )
    target = copy(source, tmp_path / "b.mp4")
    (_, times) = stamps(source)
    assert len(set(np.diff(times))) > 1
    assert stamps(target) == stamps(source)
    assert sound(target) == sound(source)


def test_the_aspect_ratio_of_pixels_is_kept(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4", aspect=Fraction(4, 3))
    assert probe_video(copy(source, tmp_path / "b.mp4")).aspect == Fraction(4, 3)


def test_webm_does_not_keep_the_aspect_ratio_of_pixels(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4", aspect=Fraction(4, 3), sound=False)
    target = tmp_path / "b.webm"
    assert notes_of(source, target) == ["the pixels' aspect ratio 4/3 is not kept in webm"]
    assert probe_video(target).aspect == 1


def test_alpha_is_noted(tmp_path: Path) -> None:
    source = make_clip(
        tmp_path / "a.mkv", sound=False, codec="ffv1", filters="format=yuva420p", seconds=0.2
    )
    target = tmp_path / "b.mkv"
    assert notes_of(source, target) == ["alpha in the pictures skipped"]
    assert notes_of(target, tmp_path / "c.mkv") == []


def test_alpha_beside_the_pictures_is_noted(tmp_path: Path) -> None:
    """WebM stores it in a second stream of the same track, with a tag for the first."""
    whole = make_clip(tmp_path / "whole.webm", sound=False, codec="libvpx-vp9", seconds=0.2)
    source, target = tmp_path / "a.webm", tmp_path / "b.webm"
    with av.open(str(whole)) as old, av.open(str(source), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        stream.metadata["alpha_mode"] = "1"
        for packet in old.demux():
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    assert notes_of(source, target) == ["alpha in the pictures skipped"]
    with av.open(str(target)) as container:
        assert "alpha_mode" not in map(str.lower, container.streams.video[0].metadata)


def test_interlaced_pictures_are_noted(tmp_path: Path) -> None:
    filters = "format=yuv420p,setfield=tff"
    source = make_clip(tmp_path / "a.mkv", sound=False, codec="ffv1", filters=filters, seconds=0.2)
    target = tmp_path / "b.mkv"
    note = "interlaced pictures are marked progressive: both fields are restored together"
    assert notes_of(source, target) == [note]
    assert not probe_video(target).is_interlaced


def test_captions_and_metadata_in_the_pictures_are_noted(tmp_path: Path) -> None:
    display = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,1)"
    options = {"x264-params": f"mastering-display={display}:cll=1000,400"}
    source = make_clip(tmp_path / "a.mp4", sound=False, options=options)
    assert notes_of(source, tmp_path / "b.mp4") == ["HDR10 metadata in the pictures skipped"]
    # Captions, as units of text (SEI) before each coded picture; lengths precede the units.
    coded = bytes.fromhex("b50031 47413934 03 42ff fc942c fcc8e9 ff")
    unit = bytes([6, 4, len(coded)]) + coded + b"\x80"
    clip = make_clip(tmp_path / "c.mp4", sound=False)
    with av.open(str(clip)) as old, av.open(str(tmp_path / "d.mp4"), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux():
            if packet.size:
                titled = av.Packet(struct.pack(">I", len(unit)) + unit + bytes(packet))
                titled.pts, titled.dts = packet.pts, packet.dts
                titled.duration, titled.time_base = packet.duration, packet.time_base
                titled.is_keyframe, titled.stream = packet.is_keyframe, stream
                new.mux(titled)
    assert notes_of(tmp_path / "d.mp4", tmp_path / "e.mp4") == [
        "closed captions in the pictures skipped"
    ]


@pytest.mark.parametrize("name", ["a.ts", "a.3gp", "a.flv"])
def test_less_common_containers_are_kept(name: str, tmp_path: Path) -> None:
    source = make_clip(tmp_path / name, rate="25")
    target = copy(source, tmp_path / f"b{source.suffix}", crf=0)
    before, after = probe_video(source), probe_video(target)
    assert (after.height, after.width, count_frames(target)) == (48, 64, 13)
    assert after.rate == before.rate
    assert begin(target) == pytest.approx(begin(source), abs=0.1)
    assert len(after.audio) == 1
    assert sound(target) == sound(source)
    assert difference(source, target) < 0.5


@pytest.mark.parametrize(
    ("name", "out", "codec", "sound_codec"),
    [("a.wmv", "b.wmv", "wmv2", "wmav2"), ("a.mpg", "b.mkv", "mpeg2video", "mp2")],
)
def test_other_codecs_become_h264(
    name: str, out: str, codec: str, sound_codec: str, tmp_path: Path
) -> None:
    source = make_clip(tmp_path / name, rate="25", codec=codec, sound_codec=sound_codec)
    target = copy(source, tmp_path / out, crf=0)
    assert (count_frames(target), probe_video(target).audio) == (13, (sound_codec,))
    assert sound(target) == sound(source)
    assert difference(source, target) < 0.5


def test_avi_has_a_constant_rate(tmp_path: Path) -> None:
    """Of 20 frames, those at equal times are dropped, and gaps are filled."""
    filters = "format=yuv420p,select='not(eq(mod(n,3),1))'"
    source = make_clip(tmp_path / "a.mp4", seconds=2, sound=False, filters=filters)
    target = copy(source, tmp_path / "b.avi", crf=0)
    rate = probe_video(target).rate
    assert count_frames(target) / rate == pytest.approx(2, abs=0.2)
    (_, times) = stamps(target)
    assert set(np.diff(times)) == {1}


@pytest.mark.parametrize(("duration", "shown"), [(0, 1), (100, 1), (300, 3)])
def test_the_last_frame_of_avi_is_shown_as_long_as_before_but_once(
    duration: int, shown: int, tmp_path: Path
) -> None:
    """Not all files state how long it is shown."""
    info = probe_video(make_clip(tmp_path / "a.mkv", sound=False))
    with VideoWriter(tmp_path / "b.avi", info, False, 18, tmp_path / "b.avi") as writer:
        for pts in (0, 100):
            writer.write(Frame(pts, duration, np.zeros((48, 64, 3), np.uint8)))
        writer.finish()
    assert count_frames(tmp_path / "b.avi") == 1 + shown


def test_a_frame_of_extreme_duration_is_refused_for_avi(tmp_path: Path) -> None:
    whole = make_clip(tmp_path / "whole.mkv", sound=False, options={"bf": "0"})

    def late(packet: Any) -> None:
        if packet.pts == 400:
            packet.pts = packet.dts = 36_000_000_000

    source = changed(whole, tmp_path / "a.mkv", late)
    with pytest.raises(DataError, match="a frame is shown for 36000000 s") as caught:
        copy(source, tmp_path / "b.avi")
    assert caught.value.where == str(source)
    assert count_frames(copy(source, tmp_path / "b.mkv")) == 5


def test_a_full_disk_is_a_resource_error(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mkv")
    target = tmp_path / "b.mkv"
    target.symlink_to("/dev/full")
    with pytest.raises(ResourceError, match=r"b\.mkv: the disk is full"):
        copy(source, target)


def test_a_disk_that_fails_is_a_resource_error(tmp_path: Path) -> None:
    """At any moment: while the file is opened, written or closed."""
    resource = pytest.importorskip("resource")
    source, target = make_clip(tmp_path / "a.mkv"), tmp_path / "b.mkv"
    copy(source, target)
    before, size = resource.getrlimit(resource.RLIMIT_FSIZE), target.stat().st_size
    for limit in (0, size // 2, size - 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(ResourceError, match=r"b\.mkv: cannot write the file") as caught:
                copy(source, target)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert caught.value.hint == "the file is larger than the file system allows"
    missing = tmp_path / "nowhere" / "b.mkv"
    with pytest.raises(ResourceError, match=r"b\.mkv: cannot write the file") as caught:
        copy(source, missing)
    assert caught.value.hint == "the folder does not exist"


def test_leaving_early_closes_all_files(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4")
    info = probe_video(source)
    target = tmp_path / "b.mp4"
    with VideoReader(info, False) as reader, VideoWriter(target, info, False, 18, target) as writer:
        pictures = iter(reader)
        first = next(pictures)
        writer.write(first)
    assert str(source) not in {file.path for file in psutil.Process().open_files()}
    assert next(pictures, None) is None
    writer.write(first)  # a thread may end a moment later
    assert not target.exists()
