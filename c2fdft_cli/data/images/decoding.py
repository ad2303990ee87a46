"""Bytes to stored samples, orientation, profile and EXIF, whatever the format.

Every function raises `Unreadable`, or what the decoders raise on damaged files (`DAMAGE`).
"""

from __future__ import annotations

import contextlib
import io
from itertools import islice
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from c2fdft_cli.data.images import png, tiff
from c2fdft_cli.data.images.decoders import (
    DAMAGE,
    Array,
    Unreadable,
    opencv_samples,
    pillow_samples,
    quiet_pillow,
)

_ALPHA_ASSOCIATED, _ALPHA = 1, 2
_MAGIC = (
    (png.SIGNATURE, "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"BM", "BMP"),
    (b"GIF8", "GIF"),
)
_PHOTOMETRIC = {0: "grey", 1: "grey", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "Lab"}


class Decoded(NamedTuple):
    """Samples [h, w, c] as stored (c: 1 grey, 2 grey + alpha, 3 RGB, 4 RGBA), and the rest."""

    samples: Array
    orientation: int
    icc: bytes | None
    exif: bytes | None


def sniff(head: bytes) -> str:
    """The format by the first 16 bytes: PNG, JPEG, TIFF, BMP, WEBP or GIF."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    raise Unreadable("not an image", "PNG, JPEG, TIFF, BMP, WebP and GIF can be read")


def decode(data: bytes, *, frame: int, max_pixels: int) -> Decoded:
    """Frame `frame` of an image file's bytes."""
    kind = sniff(data[:16])
    if kind == "PNG":
        return _decode_png(data, frame, max_pixels)
    if kind == "TIFF":
        return _decode_tiff(data, frame, max_pixels)
    with quiet_pillow(), Image.open(io.BytesIO(data), formats=[kind]) as image:
        return _decode_pillow(image, frame, max_pixels)


def stored_size(file: BinaryIO) -> tuple[int, int, int]:
    """(width, height, orientation) from the headers of an open file."""
    kind = sniff(file.read(16))
    if kind == "PNG":
        header = png.read_header(file)
        orientation, _ = tiff.upright_exif(png.read_exif(file) or b"")
        return header.width, header.height, orientation
    if kind == "TIFF":
        page = tiff.TiffPage(file)
        return page.value(tiff.WIDTH, 0), page.value(tiff.HEIGHT, 0), _orientation(page)
    file.seek(0)
    with quiet_pillow(), Image.open(file, formats=[kind]) as image:
        orientation, _ = tiff.upright_exif(image.info.get("exif") or b"")
        return image.width, image.height, orientation


def count_frames(file: BinaryIO) -> int:
    """How many frames or pages an open file has; a camera's JPEG with previews has one."""
    kind = sniff(file.read(16))
    if kind == "TIFF":
        return sum(1 for _ in tiff.tiff_pages(file))
    if kind == "JPEG":
        return 1
    file.seek(0)
    with quiet_pillow(), Image.open(file, formats=[kind]) as image:
        return int(getattr(image, "n_frames", 1))


def upright(array: Array, orientation: int) -> Array:
    """Turn an array [h, w, ...] as EXIF orientation 1 to 8 asks."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise Unreadable(f"a picture of {width} x {height} px")
    if width * height > max_pixels:
        raise Unreadable(f"{width} x {height} px is over the limit of {max_pixels} px")


def _decode_png(data: bytes, frame: int, max_pixels: int) -> Decoded:
    file = io.BytesIO(data)
    header = png.read_header(file)
    _check_size(header.width, header.height, max_pixels)
    if frame:
        samples = _png_frame(data, frame, header, max_pixels)
    elif header.bit_depth == 16:
        samples = _png16_samples(data, header)
    else:
        with quiet_pillow():
            image = Image.open(io.BytesIO(png.pixel_chunks_only(data)), formats=["PNG"])
        samples = pillow_samples(image)
    orientation, exif = tiff.upright_exif(png.read_exif(file) or b"")
    return Decoded(samples, orientation, png.read_icc(file), exif)


def _png16_samples(data: bytes, header: png.PngHeader) -> Array:
    """16-bit samples with what OpenCV changes put back: one grey channel, the transparent grey."""
    samples = opencv_samples(png.pixel_chunks_only(data))
    if header.colour_type in png.GREY_TYPES and samples.shape[2] >= 3:
        samples = np.delete(samples, (1, 2), axis=2)
    transparent = png.read_transparent(io.BytesIO(data))
    if transparent is None or samples.shape[2] != len(transparent):
        return samples
    hidden = (samples == np.array(transparent, np.uint16)).all(axis=2, keepdims=True)
    return np.concatenate([samples, np.where(hidden, 0, 65535).astype(np.uint16)], axis=2)


def _png_frame(data: bytes, frame: int, header: png.PngHeader, max_pixels: int) -> Array:
    if header.bit_depth == 16:
        raise Unreadable("a 16-bit animation", "save the frame as a still PNG")
    with quiet_pillow(), Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        return _decode_pillow(image, frame, max_pixels).samples


def _decode_tiff(data: bytes, frame: int, max_pixels: int) -> Decoded:
    pages = list(islice(tiff.tiff_pages(io.BytesIO(data)), frame + 1))
    if len(pages) <= frame:
        raise Unreadable(f"it has {len(pages)} pages, counted from 0; there is no page {frame}")
    page = pages[frame]
    _check_size(page.value(tiff.WIDTH, 0), page.value(tiff.HEIGHT, 0), max_pixels)
    bits = set(page.values(tiff.BITS) or (1,))
    form = page.value(tiff.SAMPLE_FORMAT, 1)
    single = page.upright(data)
    if max(bits) > 8:
        _check_channels(page)
    if form == 3:
        samples = _tiff_channels(_float_samples(single, page), page)
    elif bits == {16} and form == 1:
        samples = _tiff_channels(_tiff16_samples(single, page), page)
    elif max(bits) > 8:
        name = f"{max(bits)}-bit {'signed ' if form == 2 else ''}integer TIFF"
        raise Unreadable(f"{name} is not supported", "save it with 8 or 16 unsigned bits")
    else:
        with quiet_pillow(), Image.open(io.BytesIO(single), formats=["TIFF"]) as image:
            samples = pillow_samples(image)
    subtractive = page.value(tiff.PHOTOMETRIC, 1) == 5
    icc = None if subtractive else bytes(page.values(tiff.ICC_PROFILE)) or None
    return Decoded(samples, _orientation(page), icc, _tiff_exif(single))


def _orientation(page: tiff.TiffPage) -> int:
    orientation = page.value(tiff.ORIENTATION, 1)
    return orientation if 1 <= orientation <= 8 else 1


def _tiff16_samples(data: bytes, page: tiff.TiffPage) -> Array:
    if page.value(tiff.PLANAR, 1) == 2 or page.value(tiff.SAMPLES, 1) == 2:
        return tiff.decode_strips(data, page)
    return opencv_samples(data)


def _float_samples(data: bytes, page: tiff.TiffPage) -> Array:
    """Float samples in [0, 1] as 16 bit; any other range has no agreed white."""
    hint = "scale it to 0..1, or save it with 8 or 16 unsigned bits"
    half = min(page.values(tiff.BITS) or (1,)) < 32
    if half or page.value(tiff.PLANAR, 1) == 2 or page.value(tiff.SAMPLES, 1) == 2:
        raise Unreadable("this float TIFF layout is not supported", hint)
    samples = opencv_samples(data)
    if not (samples.min() >= 0 and samples.max() <= 1):
        raise Unreadable("a float TIFF with values outside 0..1", hint)
    return np.rint(samples * 65535.0).astype(np.uint16)


def _check_channels(page: tiff.TiffPage) -> None:
    """With more than 8 bits only grey and RGB, each with or without alpha, are read."""
    channels, photometric = page.value(tiff.SAMPLES, 1), page.value(tiff.PHOTOMETRIC, 1)
    if (channels, photometric) not in {(1, 0), (1, 1), (2, 0), (2, 1), (3, 2), (4, 2)}:
        kind = _PHOTOMETRIC.get(photometric, f"kind-{photometric}")
        what = f"a TIFF of {channels} {kind} channels with over 8 bits is not supported"
        raise Unreadable(what, "save it as grey or RGB")


def _tiff_channels(samples: Array, page: tiff.TiffPage) -> Array:
    """White as the largest value, alpha not multiplied in, other channels dropped."""
    channels = samples.shape[2]
    if channels != page.value(tiff.SAMPLES, 1):
        raise Unreadable("the pixels are damaged")
    colours = channels - (channels + 1) % 2
    if page.value(tiff.PHOTOMETRIC, 1) == 0:
        samples[..., :colours] = 65535 - samples[..., :colours]
    if colours == channels:
        return samples
    extra = page.value(tiff.EXTRA_SAMPLES, _ALPHA)
    if extra == _ALPHA_ASSOCIATED:
        alpha = np.maximum(samples[..., colours:].astype(np.float64), 1)
        plain = np.rint(samples[..., :colours] * (65535 / alpha))
        samples[..., :colours] = np.minimum(plain, 65535).astype(np.uint16)
    return samples if extra in (_ALPHA_ASSOCIATED, _ALPHA) else samples[..., :colours]


def _tiff_exif(data: bytes) -> bytes | None:
    """A TIFF file's descriptions, camera and place data, as an EXIF block."""
    with quiet_pillow(), contextlib.suppress(*DAMAGE):
        found, kept = Image.Exif(), Image.Exif()
        found.load(data)
        for tag in tiff.DESCRIPTIONS & set(found):
            kept[tag] = found[tag]
        for tag in {tiff.EXIF_DIRECTORY, tiff.GPS_DIRECTORY} & set(found):
            kept[tag] = dict(found.get_ifd(tag))
        return kept.tobytes().removeprefix(b"Exif\0\0") if len(kept) else None
    return None


def _decode_pillow(image: Image.Image, frame: int, max_pixels: int) -> Decoded:
    _check_size(image.width, image.height, max_pixels)
    if frame:
        frames = 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))
        if frame >= frames:
            raise Unreadable(f"it has {frames} frames, counted from 0; there is no frame {frame}")
        image.seek(frame)
    icc = None if image.mode == "CMYK" else image.info.get("icc_profile")
    orientation, exif = tiff.upright_exif(image.info.get("exif") or b"")
    return Decoded(pillow_samples(image), orientation, icc, exif)
