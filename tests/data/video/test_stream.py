"""Decoding and encoding keep size, times, colours, sound, subtitles and chapters."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

pytest.importorskip("av")

from c2fdft_cli.data.video.parts import read_through
from c2fdft_cli.data.video.probe import (
    FULL_RANGE,
    LIMITED_RANGE,
    UNKNOWN_RANGE,
    VideoInfo,
    main_stream,
    origin,
    probe_video,
)
from c2fdft_cli.data.video.remux import audio_problem
from c2fdft_cli.data.video.stream import (
    Frame,
    VideoReader,
    VideoWriter,
    output_pixel_format,
)
from c2fdft_cli.errors import DataError, ResourceError
from tests.kit.formula import picture
from tests.kit.video import (
    add_pictures,
    av,
    begin,
    changed,
    copy,
    count_frames,
    filtered,
    frames,
    make_clip,
    make_raw,
    notes_of,
    packets,
    planes,
    remux,
    sound,
    stamps,
    subtitles,
)

SKIPPED = "1 packet without a usable timestamp skipped"


def difference(a: Path, b: Path) -> float:
    return float(np.abs(frames(a).astype(float) - frames(b)).mean())


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


@pytest.mark.parametrize("size", ["63x47", "64x47", "1x1"])
def test_odd_sizes_are_kept(size: str, tmp_path: Path) -> None:
    source = make_clip(
        tmp_path / "a.mkv", size=size, sound=False, filters="format=yuv444p", seconds=0.3
    )
    target = copy(source, tmp_path / "b.mp4", crf=0)
    info = probe_video(target)
    assert f"{info.width}x{info.height}" == size
    assert difference(source, target) < 0.5


def test_a_variable_frame_rate_keeps_its_timestamps(tmp_path: Path) -> None:
    source = make_clip(
        tmp_path / "a.mp4", seconds=1, filters="format=yuv420p,select='not(eq(mod(n,3),1))'"
    )
    target = copy(source, tmp_path / "b.mp4")
    (_, times) = stamps(source)
    assert len(set(np.diff(times))) > 1
    assert stamps(target) == stamps(source)
    assert sound(target) == sound(source)


@pytest.mark.parametrize("size", ["32:24", "96:80", "63:47"])
def test_pictures_of_another_size_are_scaled_to_the_first_ones_size(
    size: str, tmp_path: Path
) -> None:
    """Smaller pictures must not be enlarged and then cropped to their own size."""
    parts = [
        make_clip(tmp_path / f"{number}.ts", sound=False, filters=f"scale={one},format=yuv444p")
        for number, one in enumerate(("64:48", size))
    ]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    found = frames(joined)
    assert found.shape == (10, 48, 64, 3)
    assert np.abs(found[5:].astype(float) - found[:5]).mean() < 4


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


@pytest.mark.parametrize(
    ("range_", "matrix"), [("pc", "bt709"), ("tv", "bt709"), ("tv", "bt470bg")]
)
def test_colours_and_their_flags_are_kept(range_: str, matrix: str, tmp_path: Path) -> None:
    flags = f"range={range_}:colorspace={matrix}:color_primaries=bt709:color_trc=bt709"
    name = matrix.removesuffix("bg")
    filters = f"scale=out_range={range_}:out_color_matrix={name},format=yuv420p,setparams={flags}"
    source = make_clip(tmp_path / "a.mp4", sound=False, filters=filters)
    target = copy(source, tmp_path / "b.mp4", crf=0)
    colours = probe_video(target).colours
    assert colours == probe_video(source).colours
    assert colours.range == {"tv": LIMITED_RANGE, "pc": FULL_RANGE}[range_]
    assert colours.matrix == {"bt709": 1, "bt470bg": 5}[matrix]
    assert difference(source, target) < 1


LUMA = {1: (0.2126, 0.0722), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}
"""The shares of red and blue in the luma, for each matrix of H.273."""


def coded(rgb: np.ndarray, matrix: int, range_: int, bits: int) -> list[np.ndarray]:
    """Luma and chroma of RGB [h, w, 3] in [0, 1], not rounded, by the formulas of H.273."""
    red, blue = LUMA[matrix]
    luma = rgb @ [red, 1 - red - blue, blue]
    chroma = [(rgb[..., 2] - luma) / (2 - 2 * blue), (rgb[..., 0] - luma) / (2 - 2 * red)]
    unit = 2 ** (bits - 8)
    if range_ == FULL_RANGE:
        return [luma * (256 * unit - 1), *(one * (256 * unit - 1) + 128 * unit for one in chroma)]
    return [(219 * luma + 16) * unit, *((224 * one + 128) * unit for one in chroma)]


@pytest.mark.parametrize("matrix", LUMA)
@pytest.mark.parametrize("range_", [LIMITED_RANGE, FULL_RANGE])
@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize(
    ("chroma", "across", "down"), [("yuv444p", 1, 1), ("yuv422p", 2, 1), ("yuv420p", 2, 2)]
)
def test_neither_reading_nor_writing_shifts_the_colours(
    chroma: str, across: int, down: int, bits: int, range_: int, matrix: int, tmp_path: Path
) -> None:
    kind, top = (chroma, 255) if bits == 8 else (f"{chroma}10le", 65535)
    rgb = picture(48, 64, 3) / 255
    luma, *rest = coded(rgb, matrix, range_, bits)
    rest = [one.reshape(48 // down, down, 64 // across, across).mean((1, 3)) for one in rest]
    own = [np.rint(one) for one in (luma, *rest)]
    source = make_raw(tmp_path / "a.mkv", kind, own, range_, matrix)
    shift = (frames(source)[0] / top - rgb).mean((0, 1))
    assert np.abs(255 * shift).max() < 0.1
    target = copy(source, tmp_path / "b.mkv", crf=0)
    assert probe_video(target).pixel_format.replace("yuvj", "yuv") == kind
    for before, after in zip(own, planes(target), strict=True):
        assert abs((after - before).mean()) < (0.1 if bits == 8 else 0.25)  # 10 bits have a loss


@pytest.mark.parametrize(
    ("kind", "range_", "black", "white"),
    [
        ("yuv444p10le", LIMITED_RANGE, 64, 940),
        ("yuv444p10le", FULL_RANGE, 0, 1023),
        ("yuv420p12le", LIMITED_RANGE, 256, 3760),
        ("yuv420p12le", FULL_RANGE, 0, 4095),
        ("gray", LIMITED_RANGE, 16, 235),
        ("gray", FULL_RANGE, 0, 255),
        ("gray10le", LIMITED_RANGE, 64, 940),
        ("gray10le", FULL_RANGE, 0, 1023),
        ("gray10le", UNKNOWN_RANGE, 0, 1023),
        ("gbrp10le", UNKNOWN_RANGE, 0, 1023),
    ],
)
def test_black_and_white_are_the_ends_of_the_range(
    kind: str, range_: int, black: int, white: int, tmp_path: Path
) -> None:
    """Grey and RGB of unknown range have the full one, and are written in the limited one."""
    luma = np.full((48, 64), black)
    luma[:, 32:] = white
    neutral = np.full((24, 32) if "420" in kind else (48, 64), 128 << white.bit_length() - 8)
    own = {"gr": [luma], "gb": [luma] * 3, "yu": [luma, neutral, neutral]}[kind[:2]]
    source = make_raw(tmp_path / "a.mkv", kind, own, range_, 1)
    (found,) = frames(source)
    assert found[0, [0, 63]].tolist() == [[0] * 3, [np.iinfo(found.dtype).max] * 3]
    with VideoReader(probe_video(source), deep=False) as reader:
        rounded = next(iter(reader)).pixels
    assert rounded[0, [0, 63]].tolist() == [[0] * 3, [255] * 3]
    after = planes(copy(source, tmp_path / "b.mkv", crf=0))[0]
    unit, top = (1, 255) if white < 256 else (4, 1023)
    ends = (0, top) if range_ == FULL_RANGE else (16 * unit, 235 * unit)
    assert (after[0, 0], after[0, 63]) == ends


@pytest.mark.parametrize(
    ("kind", "range_", "black", "white"),
    [
        ("yuv444p10le", LIMITED_RANGE, 64, 940),
        ("yuv444p10le", FULL_RANGE, 0, 1023),
        ("gray10le", LIMITED_RANGE, 64, 940),
        ("gray10le", FULL_RANGE, 0, 1023),
        ("gray10le", UNKNOWN_RANGE, 0, 1023),
        ("gbrp10le", UNKNOWN_RANGE, 0, 1023),
    ],
)
def test_10_bits_are_rounded_to_the_nearest_of_8(
    kind: str, range_: int, black: int, white: int, tmp_path: Path
) -> None:
    luma = np.random.default_rng(0).integers(black, white + 1, (48, 64))
    neutral = np.full((48, 64), 512)
    own = {"gr": [luma], "gb": [luma] * 3, "yu": [luma, neutral, neutral]}[kind[:2]]
    source = make_raw(tmp_path / "a.mkv", kind, own, range_, 1)
    with VideoReader(probe_video(source), deep=False) as reader:
        found = next(iter(reader)).pixels
    error = found - (luma[..., None] - black) * (255 / (white - black))
    assert found.dtype == np.uint8
    assert abs(error.mean()) < 0.02
    assert np.abs(error).max() < 0.52


@pytest.mark.parametrize(
    ("name", "codec", "kind"),
    [
        ("a.mov", "qtrle", "rgb24"),
        ("a.avi", "rawvideo", "bgr24"),
        ("a.mkv", "ffv1", "bgr0"),
        ("a.avi", "huffyuv", "rgb24"),
        ("a.avi", "rawvideo", "pal8"),
    ],
)
def test_rgb_becomes_bt709_and_is_marked_as_such(
    name: str, codec: str, kind: str, tmp_path: Path
) -> None:
    source = tmp_path / name
    if kind == "pal8":
        palette = np.tile(np.uint8([255, 200, 60, 40]), (256, 1))
        one = av.VideoFrame.from_ndarray((np.zeros((48, 64), np.uint8), palette), kind)
    else:
        rgb = np.tile(np.uint8([200, 60, 40]), (48, 64, 1))
        one = av.VideoFrame.from_ndarray(rgb, "rgb24").reformat(format=kind)
    one.pts, one.time_base = 0, Fraction(1, 10)
    with av.open(str(source), "w") as out:
        stream = add_pictures(out, [one], Fraction(10), codec)
        out.mux(stream.encode(one))
        out.mux(stream.encode(None))
    assert np.all(frames(source) == [200, 60, 40])
    target = copy(source, tmp_path / "b.mkv", crf=0)
    assert probe_video(target).colours.matrix == 1
    assert [int(plane[20, 20]) for plane in planes(target)] == [92, 105, 190]


@pytest.mark.parametrize(("matrix", "code"), [("ycgco", 8), ("bt2020c", 10), ("ictcp", 14)])
def test_a_matrix_that_cannot_be_converted_is_kept(matrix: str, code: int, tmp_path: Path) -> None:
    source = make_clip(
        tmp_path / "a.mp4", sound=False, filters=f"format=yuv444p,setparams=colorspace={matrix}"
    )
    target = tmp_path / "b.mp4"
    what = f"the colour matrix {code} of H.273 is not supported: the network sees other colours"
    assert notes_of(source, target, crf=0) == [what]
    assert probe_video(target).colours.matrix == code
    assert difference(source, target) < 1


def test_ten_bits_are_kept(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("width", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("height", [1, 2, 3])
def test_tiny_videos_keep_their_colours(width: int, height: int, tmp_path: Path) -> None:
    """With blocks of 2 x 2 px in 4:2:0: red, green, blue above green, blue, red."""
    source, target = tmp_path / "a.mkv", tmp_path / "b.mkv"
    blocks = np.add.outer(np.arange(2), np.arange(3)) % 3
    whole = blocks.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
    blocks = blocks[: -(-height // 2), : -(-width // 2)]
    codes = [(whole, [81, 145, 41]), (blocks, [90, 54, 240]), (blocks, [240, 34, 110])]
    make_raw(source, "yuv420p", [np.array(values)[which] for which, values in codes])
    colours = np.array([[254, 0, 0], [0, 255, 0], [0, 0, 255]])[whole]
    assert np.abs(frames(source).astype(int) - colours).max() <= 3
    copy(source, target, crf=0)
    if width % 2 or height % 2:  # odd sides are written in 4:4:4, even ones in 4:2:0
        assert np.abs(frames(target).astype(int) - colours).max() <= 3


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


def test_a_gap_between_the_pictures_of_avi_is_no_damage(tmp_path: Path) -> None:
    filters = "format=yuv420p,select='not(between(n,5,8))'"
    source = make_clip(tmp_path / "a.avi", seconds=2, filters=filters, options={"bf": "0"})
    assert read_through(probe_video(source)).missing == 0


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
        ("y210le", (48, 64), True, "yuv422p10le"),
        ("nv16", (48, 64), False, "yuv422p"),
        ("yuyv422", (48, 64), False, "yuv422p"),
        ("nv24", (48, 64), False, "yuv444p"),
        ("yuv440p", (48, 64), False, "yuv444p"),
        ("yuv411p", (48, 64), False, "yuv422p"),
        ("uyyvyy411", (47, 64), False, "yuv422p"),
        ("yuv411p", (48, 63), False, "yuv444p"),
        ("yuv410p", (48, 64), False, "yuv420p"),
        ("rgb24", (48, 64), False, "yuv444p"),
        ("pal8", (48, 64), False, "yuv444p"),
    ],
)
def test_the_pixel_format_of_the_output(
    own: str, size: tuple[int, int], deep: bool, expected: str
) -> None:
    info = VideoInfo(Path("a.mp4"), *size, Fraction(25), pixel_format=own)
    assert info.is_deep is deep
    assert output_pixel_format(info, deep) == expected


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

        monkeypatch.setattr("c2fdft_cli.data.video.stream.main_stream", stream)
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


def test_an_intact_video_has_no_notes(tmp_path: Path) -> None:
    for name in ("a.mkv", "a.mp4", "a.avi", "a.ts"):
        source = make_clip(tmp_path / name, seconds=3)
        assert notes_of(source, tmp_path / f"b{source.suffix}") == []


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
