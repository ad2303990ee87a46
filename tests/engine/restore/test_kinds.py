"""Every kind of input file passes unchanged through a network that changes nothing."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import GifImagePlugin, Image

from c2fdft_cli.core.network import DFT
from c2fdft_cli.data.images import picture
from c2fdft_cli.data.images.picture import read_picture
from c2fdft_cli.data.images.pillow import OpenFrames
from c2fdft_cli.engine.restore import pictures
from c2fdft_cli.engine.restore.job import restore
from c2fdft_cli.errors import DataError
from tests.kit.images import SRGB_PROFILE
from tests.kit.restore import Request, pixels, plan, random_picture, run, save, write_checkpoint

RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (9, 13, 3), dtype=np.uint8)
GREY = RGB[..., 0]
RGB16 = RANDOM.integers(0, 65536, (9, 13, 3), dtype=np.uint16)
PLANES = np.ascontiguousarray(RGB16.transpose(2, 0, 1))
LZW = {"compression": "lzw", "predictor": True}


class Kind(NamedTuple):
    """A kind of input file, how to make it, and the expected output."""

    name: str
    make: Callable[[Path], Any]
    depth: int = 8
    grey: bool = False
    alpha: bool = False
    size: tuple[int, int] = (9, 13)


def pillow(image: Image.Image, **options: Any) -> Callable[[Path], Any]:
    return lambda path: image.save(path, **options)


def ours(**options: Any) -> Callable[[Path], Any]:
    return lambda path: save(path, random_picture(9, 13, **options))


def tiff(values: np.ndarray, **options: Any) -> Callable[[Path], Any]:
    return lambda path: tifffile.imwrite(path, values, **options)


def twelve_bits(path: Path) -> None:
    """A TIFF of 12 bits, packed here since not every version of imagecodecs can."""
    values = RGB16 >> 4
    bits = values.reshape(len(values), -1, 1) >> np.arange(11, -1, -1) & 1
    rows = np.packbits(bits.reshape(len(values), -1).astype(np.uint8), axis=1)
    tifffile.imwrite(
        path,
        iter([rows.tobytes()]),
        shape=values.shape,
        dtype=values.dtype,
        photometric="rgb",
        bitspersample=12,
        rowsperstrip=len(values),
    )


def palette(image: Image.Image, **options: Any) -> Callable[[Path], Any]:
    return pillow(image.quantize(16), **options)


def rotated(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def stored(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


COLOUR = Image.fromarray(RGB)
KINDS = [
    Kind("rgb8.png", pillow(COLOUR)),
    Kind("rgb16.png", ours(depth=16), depth=16),
    Kind("grey8.png", pillow(Image.fromarray(GREY)), grey=True),
    Kind("grey16.png", ours(depth=16, grey=True), depth=16, grey=True),
    Kind("grey_alpha8.png", ours(grey=True, alpha=True), grey=True, alpha=True),
    Kind("grey_alpha16.png", ours(grey=True, alpha=True, depth=16), 16, True, True),
    Kind("rgba8.png", ours(alpha=True), alpha=True),
    Kind("rgba16.png", ours(alpha=True, depth=16), depth=16, alpha=True),
    Kind("palette.png", palette(COLOUR)),
    Kind("palette_clear.png", palette(COLOUR, transparency=0), alpha=True),
    Kind("one_bit.png", pillow(Image.fromarray(GREY > 128)), grey=True),
    Kind("profile.png", pillow(COLOUR, icc_profile=SRGB_PROFILE)),
    Kind("one_pixel.png", pillow(COLOUR.crop((0, 0, 1, 1))), size=(1, 1)),
    Kind("thin.png", pillow(COLOUR.crop((0, 0, 13, 1))), size=(1, 13)),
    Kind("colour.jpg", pillow(COLOUR, quality=90)),
    Kind("grey.jpg", pillow(Image.fromarray(GREY)), grey=True),
    Kind("cmyk.jpg", pillow(COLOUR.convert("CMYK"))),
    Kind("on_its_side.jpg", pillow(COLOUR, exif=rotated(6)), size=(13, 9)),
    Kind("upside_down.jpg", pillow(COLOUR, exif=rotated(3))),
    Kind("progressive.jpg", pillow(COLOUR, progressive=True)),
    Kind("rgb8.tif", pillow(COLOUR)),
    Kind("rgb16.tif", ours(depth=16), depth=16),
    Kind("grey16.tif", ours(depth=16, grey=True), depth=16, grey=True),
    Kind("float.tif", tiff((RGB / 255).astype(np.float32), photometric="rgb", **LZW), depth=16),
    Kind("half.tif", tiff((RGB / 255).astype(np.float16), photometric="rgb"), depth=16),
    Kind("12_bits.tif", twelve_bits, depth=16),
    Kind("tiles.tif", tiff(RGB16, photometric="rgb", tile=(16, 16), **LZW), depth=16),
    Kind("planes.tif", tiff(PLANES, photometric="rgb", planarconfig="separate", **LZW), depth=16),
    Kind("big.tif", tiff(RGB16, photometric="rgb", bigtiff=True, compression="zstd"), depth=16),
    Kind("packed.tif", pillow(COLOUR, compression="tiff_lzw")),
    Kind("cmyk.tif", pillow(COLOUR.convert("CMYK"))),
    Kind("colour.bmp", pillow(COLOUR)),
    Kind("lossless.webp", pillow(COLOUR, lossless=True)),
    Kind("lossy_alpha.webp", pillow(COLOUR.convert("RGBA").rotate(30)), alpha=True),
    Kind("one_frame.gif", palette(COLOUR)),
    Kind("from_windows.jfif", pillow(COLOUR, format="JPEG")),
    Kind("old.jpe", pillow(COLOUR, format="JPEG")),
    Kind("no_suffix", pillow(COLOUR, format="WEBP")),
    Kind("wrong.png", pillow(COLOUR, format="JPEG")),
    Kind("phone.avif", pillow(COLOUR)),
    Kind("deep.jp2", stored(imagecodecs.jpeg2k_encode(RGB16, level=0)), depth=16),
    Kind("deep.jxl", stored(imagecodecs.jpegxl_encode(RGB16, lossless=True)), depth=16),
    Kind("deep.ppm", stored(b"P6 13 9 65535\n" + RGB16.astype(">u2").tobytes()), depth=16),
    Kind("grey.pgm", pillow(Image.fromarray(GREY)), grey=True),
    Kind("colour.tga", pillow(COLOUR)),
    Kind("clear.tga", pillow(COLOUR.convert("RGBA").rotate(30)), alpha=True),
    Kind("colour.qoi", pillow(COLOUR)),
    Kind("colour.dds", pillow(COLOUR)),
    Kind("black.png", pillow(Image.new("RGB", (13, 9)))),
    Kind("constant.jpg", pillow(Image.new("RGB", (13, 9), (80, 90, 100)))),
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, tiny_net: Callable[..., DFT]) -> str:
    return str(write_checkpoint(tmp_path_factory.mktemp("weights") / "w.pt", tiny_net()))


@pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])
def test_the_output_equals_the_input(kind: Kind, tmp_path: Path, weights: str) -> None:
    path, out = tmp_path / kind.name, tmp_path / "out"
    kind.make(path)
    result = run(Request(str(path), str(out), weights), identity=True)
    assert result.failure is None
    (made,) = out.glob("*.png")
    given, found = read_picture(path), read_picture(made)
    assert np.array_equal(found.pixels, given.pixels)
    assert found.pixels.shape[:2] == kind.size
    assert (found.bit_depth, found.grey) == (kind.depth, kind.grey)
    assert (found.alpha is not None) == kind.alpha
    if given.alpha is not None:
        assert np.array_equal(found.alpha, given.alpha)
    assert found.metadata.icc == given.metadata.icc
    with Image.open(made) as image:
        assert image.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize("shape", [{}, {"grey": True}, {"alpha": True}])
@pytest.mark.parametrize(
    ("depth", "grid"),
    [
        (
            8,
            (999,),
        ),  # at 16 bits a single step at 999 magnifies float32's rounding 157 times, which shows
        (8, (999, 666, 333, 0)),
        (16, (999, 666, 333, 0)),
        (8, (500,)),
        (16, (500,)),
    ],
)
def test_the_round_trip_is_exact_on_any_grid(
    depth: int, shape: dict[str, bool], grid: tuple[int, ...], tmp_path: Path, weights: str
) -> None:
    source = random_picture(17, 11, depth=depth, **shape)
    path = save(tmp_path / "a.png", source)
    run(Request(str(path), str(tmp_path / "b.png"), weights, grid=grid), identity=True)
    assert np.array_equal(pixels(tmp_path / "b.png"), source.pixels)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".bmp"])
def test_lossless_formats_keep_8_bits(suffix: str, tmp_path: Path, weights: str) -> None:
    source = random_picture(9, 7)
    path, out = save(tmp_path / "a.png", source), tmp_path / f"b{suffix}"
    run(Request(str(path), str(out), weights), identity=True)
    assert np.array_equal(pixels(out), source.pixels)


def test_losses_of_a_format_are_noted(tmp_path: Path, weights: str) -> None:
    path = save(tmp_path / "a.png", random_picture(9, 7, depth=16, alpha=True))
    (record,) = run(Request(str(path), str(tmp_path / "b.jpg"), weights)).images
    assert record.notes == ["alpha dropped: jpg has none", "16 bits rounded to 8: jpg holds 8"]


def moving(path: Path, count: int) -> Path:
    """A square that moves over stripes; an animation stores only the changes of each frame."""
    frames = []
    for number in range(count):
        frame = np.zeros((24, 40, 3), np.uint8)
        frame[:, ::3] = (20, 90, 60)
        frame[5:12, number % 30 : number % 30 + 7] = (250 - 5 * number, 30, 5 * number)
        frames.append(Image.fromarray(frame))
    more = {"lossless": True} if path.suffix == ".webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=40, **more)
    return path


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The frames of GIFs that Pillow decodes, after the first of each file."""
    seen: list[int] = []
    original = GifImagePlugin.GifImageFile._seek

    def seek(self: Any, frame: int, update_image: bool = True) -> Any:
        seen.extend([frame] if update_image and frame else [])
        return original(self, frame, update_image)

    monkeypatch.setattr(GifImagePlugin.GifImageFile, "_seek", seek)
    return seen


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tif"])
def test_pages_and_frames_are_restored_one_by_one(
    tmp_path: Path, weights: str, suffix: str
) -> None:
    """Also if some of them have been restored before."""
    path, out = moving(tmp_path / f"a{suffix}", 5), tmp_path / "out"
    for count in (5, 2):
        result = run(Request(str(path), str(out), weights), identity=True)
        assert (len(result.images), result.failure) == (count, None)
        for i in range(5):
            made = out / f"a-000{i + 1}.png"
            assert np.array_equal(pixels(made), read_picture(path, frame=i).pixels)
            if i in (1, 3):
                made.unlink()


def test_each_frame_of_a_gif_is_decoded_once(
    tmp_path: Path, weights: str, decoded: list[int]
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.gif", "b.gif"):
        moving(tmp_path / "in" / name, 40)
    run(Request(str(tmp_path / "in"), str(tmp_path / "out"), weights), identity=True)
    assert decoded == [*range(1, 40)] * 2


@pytest.mark.parametrize("suffix", [".tif", ".avif"])
def test_a_file_is_read_once_for_all_its_frames(
    tmp_path: Path, weights: str, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, original = moving(tmp_path / f"a{suffix}", 5), picture._read_bytes
    seen: list[Path] = []

    def read(one: Path) -> bytes:
        seen.append(one)
        return original(one)

    monkeypatch.setattr(picture, "_read_bytes", read)
    result = run(Request(str(path), str(tmp_path / "out"), weights), identity=True)
    assert (len(result.images), result.failure) == (5, None)
    assert seen == [path]


def test_each_directory_of_a_tiff_is_read_once(
    tmp_path: Path, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tifffile remembers the places of those that it has read, so it must be asked in one go."""
    path, opened = moving(tmp_path / "a.tif", 5), list[Any]()
    original = tifffile.TiffFile.__init__

    def init(self: Any, *words: Any, **more: Any) -> None:
        opened.append(self)
        original(self, *words, **more)

    monkeypatch.setattr(tifffile.TiffFile, "__init__", init)
    plan_of_pages = plan(Request(str(path), str(tmp_path / "out"), weights), identity=True)
    opened.clear()
    restore(plan_of_pages).run()
    assert len(opened) == 1


def test_frames_that_do_not_fit_in_memory_are_not_decoded(
    tmp_path: Path, weights: str, decoded: list[int]
) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(RGB).save(tmp_path / "in" / "small.png")
    frames = [Image.new("L", (1200, 900), shade) for shade in (0, 100, 200)]
    frames[0].save(tmp_path / "in" / "large.gif", save_all=True, append_images=frames[1:])
    request = Request(str(tmp_path / "in"), str(tmp_path / "out"), weights, max_memory=4_000_000)
    result = run(request, identity=True)
    assert "3 of 4 images failed" in str(result.failure)
    assert decoded == []


def test_frames_are_decoded_only_a_little_ahead(
    tmp_path: Path, weights: str, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "reader_count", lambda: 1)
    monkeypatch.setattr(pictures, "writer_count", lambda: 1)
    request = Request(str(moving(tmp_path / "a.gif", 40)), str(tmp_path / "out"), weights, batch=1)
    next(iter(restore(plan(request, identity=True))))
    assert len(decoded) < 10


def test_a_damaged_frame_does_not_affect_the_others(
    tmp_path: Path, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, decode = moving(tmp_path / "a.gif", 5), OpenFrames.decode

    def damaged(self: OpenFrames, frame: int) -> Any:
        if frame == 2:
            raise OSError("broken")
        return decode(self, frame)

    monkeypatch.setattr(OpenFrames, "decode", damaged)
    result = run(Request(str(path), str(tmp_path / "out"), weights), identity=True)
    assert "1 of 5 images failed" in str(result.failure)
    errors = [record.error for record in result.images]
    assert [error is None for error in errors] == [True, True, False, True, True]
    for i in (0, 1, 3, 4):
        made = tmp_path / "out" / f"a-000{i + 1}.png"
        assert np.array_equal(pixels(made), read_picture(path, frame=i).pixels)


def test_a_still_suffix_on_an_animation_is_noted(tmp_path: Path, weights: str) -> None:
    frames = [Image.fromarray(np.roll(RGB, i, axis=0)) for i in range(2)]
    more = {"save_all": True, "append_images": frames[1:], "lossless": True}
    frames[0].save(tmp_path / "still.png", "WEBP", **more)
    result = run(Request(str(tmp_path / "still.png"), str(tmp_path / "o"), weights), identity=True)
    first, second = result.images
    assert first.notes == ["this file contains 2 frames; each is restored as a separate picture"]
    assert second.notes == []
    for i in range(2):
        made = pixels(tmp_path / "o" / f"still-000{i + 1}.png")
        assert np.array_equal(made, np.roll(RGB, i, axis=0))


def test_both_views_of_a_stereo_picture_are_restored(tmp_path: Path, weights: str) -> None:
    COLOUR.save(tmp_path / "a.mpo", save_all=True, append_images=[COLOUR.rotate(180)])
    run(Request(str(tmp_path / "a.mpo"), str(tmp_path / "o"), weights), identity=True)
    for frame in (0, 1):
        view = read_picture(tmp_path / "a.mpo", frame=frame).pixels
        assert np.array_equal(pixels(tmp_path / "o" / f"a-000{frame + 1}.png"), view)


def bad_bytes(kind: str) -> bytes:
    file = io.BytesIO()
    COLOUR.resize((200, 200)).save(file, kind)
    return file.getvalue()[: len(file.getvalue()) // 2]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("text.png", b"a text"),
        ("empty.png", b""),
        ("cut.png", bad_bytes("PNG")),
        ("cut.jpg", bad_bytes("JPEG")),
        ("cut.tif", bad_bytes("TIFF")),
        ("cut.webp", bad_bytes("WEBP")),
    ],
)
def test_a_single_damaged_file_is_a_data_error(
    name: str, data: bytes, tmp_path: Path, weights: str
) -> None:
    (tmp_path / name).write_bytes(data)
    options = Request(str(tmp_path / name), str(tmp_path / "out"), weights)
    try:
        failure: Exception | None = run(options).failure
    except DataError as error:
        failure = error
    assert isinstance(failure, DataError)
    assert name in str(failure)
    assert not list((tmp_path / "out").glob("*.png"))
