"""Neither reading nor writing changes the colours."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av")

from c2fdft_cli.data.video.conversion import output_pixel_format
from c2fdft_cli.data.video.probe import (
    FULL_RANGE,
    LIMITED_RANGE,
    UNKNOWN_RANGE,
    VideoInfo,
    probe_video,
)
from c2fdft_cli.data.video.reader import VideoReader
from tests.kit.formula import picture
from tests.kit.video import (
    add_pictures,
    av,
    copy,
    difference,
    frames,
    make_clip,
    make_raw,
    notes_of,
    planes,
)


@pytest.mark.parametrize("size", ["63x47", "64x47", "1x1"])
def test_odd_sizes_are_kept(size: str, tmp_path: Path) -> None:
    source = make_clip(
        tmp_path / "a.mkv", size=size, sound=False, filters="format=yuv444p", seconds=0.3
    )
    target = copy(source, tmp_path / "b.mp4", crf=0)
    info = probe_video(target)
    assert f"{info.width}x{info.height}" == size
    assert difference(source, target) < 0.5


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
