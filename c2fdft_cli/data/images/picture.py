"""Read and write image files, preserving bit depth, grey, alpha, colour profile and metadata.

`codec` decodes and encodes the formats. Images are RGB [h, w, 3], upright, C-contiguous.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path, PurePath
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import UnidentifiedImageError

from c2fdft_cli.data.images.codec import (
    IN_ORDER,
    count_frames,
    decode,
    encode,
    frame_decoder,
    stored_profile,
    stored_size,
)
from c2fdft_cli.data.images.formats import (
    HEAD_BYTES,
    OUTPUT_FORMAT_OF,
    READ_SUFFIXES,
    WRITE_SUFFIXES,
    file_format,
)
from c2fdft_cli.data.images.metadata import NO_METADATA, Metadata
from c2fdft_cli.data.images.profiles import GREY_SPACE, RGB_SPACE, colour_space
from c2fdft_cli.data.images.samples import Decoded, to_8bit
from c2fdft_cli.data.symmetries import UPRIGHT, turned
from c2fdft_cli.errors import C2fdftError, DataError, ResourceError, UsageError
from c2fdft_cli.files.failures import path_hint
from c2fdft_cli.files.folders import walk_folders
from c2fdft_cli.files.writing import atomic_write_bytes

FramesAndProfile: TypeAlias = tuple[int, bytes | None]
"""The number of frames or pages of a file, and its embedded ICC profile."""

_MAX_FILE_BYTES = 4 << 30


@dataclass(frozen=True)
class Picture:
    """A decoded image with everything that is needed to write it again.

    Args:
        pixels: uint8 or uint16 RGB [h, w, 3], upright; the channels of a grey picture are equal.
        grey: whether the file is grey (one channel).
        alpha: opacity [h, w] of the same type, or None.
        metadata: what the file stores besides its pixels.
    """

    pixels: npt.NDArray[Any]
    grey: bool = False
    alpha: npt.NDArray[Any] | None = None
    metadata: Metadata = NO_METADATA

    def __post_init__(self) -> None:
        if self.pixels.dtype not in (np.uint8, np.uint16):
            raise TypeError(f"pixels must be uint8 or uint16, not {self.pixels.dtype}")
        if self.pixels.ndim != 3 or self.pixels.shape[2] != 3 or not self.pixels.size:
            raise ValueError(f"pixels must be [h, w, 3], not {list(self.pixels.shape)}")
        if self.alpha is None:
            return
        if self.alpha.shape != self.pixels.shape[:2] or self.alpha.dtype != self.pixels.dtype:
            raise ValueError("alpha must have the pixels' size and type")

    @property
    def bit_depth(self) -> int:
        """8 or 16 bits per sample."""
        return 8 * self.pixels.itemsize


def is_image_path(path: str | PurePath) -> bool:
    """Whether the name ends like an image's, in any case; the file is not opened."""
    return PurePath(path).suffix.lower() in READ_SUFFIXES


def natural_key(path: str | Path) -> tuple[Any, ...]:
    """Return a sort key that orders 2.png before 10.png, folder by folder."""
    # Each run of characters is a tuple that starts with its kind, so that a number is never
    # compared with a text. Numbers are compared by their digits, because Python refuses to convert
    # thousands of digits to an integer.
    parts = [
        [
            (0, len(digits), digits) if number else (1, 0, text)
            for number, text in runs
            for digits in [number.lstrip("0")]
        ]
        for part in Path(path).parts
        for runs in [re.findall(r"([0-9]+)|([^0-9]+)", part.casefold())]
    ]
    return (parts, str(path))


def list_images(folder: str | Path, recursive: bool = False) -> list[Path]:
    """List what a folder holds under an image's name, in natural order, except folders.

    Links to missing files, pipes and devices are listed too, so that whoever reads them names them.
    What is hidden is skipped, and so is a link to a folder that was listed before.

    Raises:
        DataError: the folder is missing, not a folder, or cannot be listed.
    """
    root = Path(folder)
    if not root.exists():
        raise DataError("no such folder", where=root, hint=path_hint(root))
    if not root.is_dir():
        raise DataError("not a folder", where=root, hint="give the folder that holds the images")

    def refuse(error: OSError) -> None:
        where = error.filename
        raise DataError("cannot list the folder", where=where, hint=error.strerror) from error

    folders = walk_folders(root, refuse)
    found = [
        Path(folder, name)
        for folder, names in (folders if recursive else islice(folders, 1))
        for name in names
        if is_image_path(name)
    ]
    return sorted(found, key=natural_key)


def read_picture(source: str | Path | bytes, *, frame: int = 0) -> Picture:
    """Read an image file, or the bytes of one, without losing what it contains.

    Palettes become RGB (grey if all their colours are grey and there is no colour profile), CMYK
    becomes sRGB through its profile, and a float TIFF with values in [0, 1] becomes 16 bits.

    Args:
        source: a path, or a file's bytes.
        frame: which frame of an animation or page of a TIFF, from 0.

    Raises:
        DataError: the file is missing, not an image, damaged, over `MAX_PIXELS`, or of an
            unsupported kind.
        ResourceError: out of memory.
    """
    where = None if isinstance(source, bytes) else Path(source)
    with reading(where):
        data = source if isinstance(source, bytes) else _read_bytes(Path(source))
        suffix = "" if where is None else where.suffix.lower()
        kind = file_format(data[:HEAD_BYTES], suffix)
        return _as_picture(decode(data, kind, frame=frame))


def _as_picture(found: Decoded) -> Picture:
    samples = turned(found.samples, UPRIGHT[found.orientation])
    channels = samples.shape[2]
    grey = channels <= 2
    pixels = np.repeat(samples[..., :1], 3, axis=2) if grey else samples[..., :3]
    metadata = found.metadata
    if found.orientation >= 5 and metadata.density:  # width and height have been swapped
        metadata = replace(metadata, density=metadata.density[::-1])
    # Programs ignore a profile that does not match the channels, and PNG forbids it.
    if metadata.icc and colour_space(metadata.icc) != (GREY_SPACE if grey else RGB_SPACE):
        what = f"the colour profile, which is not for {'grey' if grey else 'colour'} pictures"
        lost = f"{metadata.lost} and {what}" if metadata.lost else what
        metadata = replace(metadata, icc=None, lost=lost)
    return Picture(
        pixels=np.ascontiguousarray(pixels),
        grey=grey,
        alpha=None if channels in (1, 3) else np.ascontiguousarray(samples[..., -1]),
        metadata=metadata,
    )


def frame_reader(path: Path) -> Callable[[int], Picture]:
    """Open a file of several frames; the returned function reads one of them, counted from 0.

    The file is read once. Where `decodes_in_order` is true, ascending frames are each decoded once;
    otherwise several threads may call the function at a time. Both raise DataError as
    `read_picture` does.
    """
    with reading(path):
        data = _read_bytes(path)
        decode_frame = frame_decoder(data, file_format(data[:HEAD_BYTES], path.suffix.lower()))

    def read(frame: int) -> Picture:
        with reading(path):
            return _as_picture(decode_frame(frame))

    return read


def decodes_in_order(path: Path) -> bool:
    """Whether each frame of a file builds on those before it; raises DataError."""
    with reading(path), _open(path) as file:
        return file_format(file.read(HEAD_BYTES), path.suffix.lower()) in IN_ORDER


def read_rgb8(path: str | Path) -> npt.NDArray[np.uint8]:
    """Read an image as uint8 RGB [h, w, 3], for training and scoring.

    16 bits are rounded to 8 (round(v / 257)), alpha is dropped, grey is replicated. Errors as
    `read_picture`.
    """
    return to_8bit(read_picture(path).pixels)


def image_size(path: str | Path) -> tuple[int, int]:
    """Read (height, width) of the upright picture from the headers alone; raises DataError."""
    with reading(Path(path)), _open(Path(path)) as file:
        return _upright_size(file, Path(path).suffix.lower())


def size_and_frames(path: Path) -> tuple[int, int, int]:
    """Read (height, width) as `image_size`, and the number of frames as `frame_count`.

    The file is opened once, which takes most of the time on a network disk.
    """
    suffix = path.suffix.lower()
    with reading(path), _open(path) as file:
        height, width = _upright_size(file, suffix)
        file.seek(0)
        return height, width, count_frames(file, suffix)


def _upright_size(file: BinaryIO, suffix: str) -> tuple[int, int]:
    width, height, orientation = stored_size(file, suffix)
    return (width, height) if orientation >= 5 else (height, width)


def frames_and_profile(path: Path) -> FramesAndProfile:
    """Read the number of frames as `frame_count`, and the embedded ICC profile.

    The profile is read from the headers alone; None if there is none, and for formats other than
    JPEG, PNG, TIFF, WebP and AVIF. The file is opened once.
    """
    with reading(path), _open(path) as file:
        return _frames_and_profile(file, path.suffix.lower())


def size_frames_and_profile(path: Path) -> tuple[tuple[int, int], FramesAndProfile | None]:
    """Read (height, width) as `image_size`, and frames and profile as `frames_and_profile`.

    The latter are None if they cannot be read although the size can. The file is opened once.
    """
    suffix = path.suffix.lower()
    with reading(path), _open(path) as file:
        size = _upright_size(file, suffix)
        file.seek(0)
        try:
            with reading(path):
                return size, _frames_and_profile(file, suffix)
        except DataError:
            return size, None


def _frames_and_profile(file: BinaryIO, suffix: str) -> FramesAndProfile:
    frames = count_frames(file, suffix)
    file.seek(0)
    return frames, stored_profile(file, suffix)


def frame_count(source: str | Path | bytes) -> int:
    """Count the frames (GIF, WebP, PNG, AVIF), pages (TIFF) or views (`.mpo`); raises DataError.

    source: a path, or a file's bytes.
    """
    if isinstance(source, bytes):
        with reading(None):
            return count_frames(io.BytesIO(source))
    with reading(Path(source)), _open(Path(source)) as file:
        return count_frames(file, Path(source).suffix.lower())


def write_picture(path: str | Path, picture: Picture, *, quality: int = 95) -> None:
    """Write a picture atomically in the format of the suffix, encoded by `encode_picture`.

    Raises:
        UsageError: as by `encode_picture`.
        ResourceError: the file cannot be written.
    """
    atomic_write_bytes(path, encode_picture(path, picture, quality=quality))


def encode_picture(path: str | Path, picture: Picture, *, quality: int = 95) -> bytes:
    """Return the content of a picture's file, as faithful as the format of its suffix allows.

    `OUTPUT_FORMATS` states what a format can hold; what it cannot hold is dropped, and 16 bits are
    rounded to 8. A grey picture is saved with one channel, the rounded mean of its three. JPEG has
    4:4:4 and `quality`, 1 to 100; WebP is lossless.

    Raises:
        UsageError: the suffix is not supported, or its format cannot hold so large a picture.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in OUTPUT_FORMAT_OF:
        hint = f"use one of {' '.join(sorted(WRITE_SUFFIXES))}"
        raise UsageError(f"cannot write images as '{suffix}'", where=path, hint=hint)
    height, width = picture.pixels.shape[:2]
    output_format = OUTPUT_FORMAT_OF[suffix]
    limit = output_format.max_side
    if limit and max(height, width) > limit:
        what = f"{width} x {height} px is too large for {suffix[1:]}"
        raise UsageError(what, where=path, hint=f"at most {limit} px a side; use .tif")
    samples = _samples(picture)
    samples = samples if output_format.is_deep else to_8bit(samples)
    return encode(suffix, samples, picture.metadata, quality)


def save_rgb8(path: str | Path, pixels: npt.NDArray[np.uint8]) -> None:
    """Write uint8 RGB [h, w, 3] without metadata; errors as `write_picture`."""
    write_picture(path, Picture(pixels))


def _samples(picture: Picture) -> npt.NDArray[Any]:
    """Return the channels to store: grey or RGB, then alpha if there is one."""
    colours = picture.pixels
    if picture.grey:
        total = colours.sum(axis=2, dtype=np.uint32, keepdims=True)
        # The exactly rounded mean: a third of an integer is never half way between two integers.
        colours = ((total + 1) // 3).astype(colours.dtype)
    if picture.alpha is None:
        return colours
    return np.concatenate([colours, picture.alpha[..., None]], axis=2)


@contextlib.contextmanager
def reading(where: str | Path | None) -> Iterator[None]:
    """Turn whatever the decoders raise for a damaged file into an error of one line."""
    try:
        yield
    except FileNotFoundError as error:
        if where is not None and os.path.islink(where):
            hint = "fetch the data that it stands for (git annex get, dvc pull), or mount its disk"
            raise DataError("no such file where the link leads", where=where, hint=hint) from error
        raise DataError("no such file", where=where, hint="check the path") from error
    except C2fdftError:
        raise
    except MemoryError as error:
        hint = "close other programs; a damaged file may request more memory than its picture needs"
        raise ResourceError("out of memory reading the image", where=where, hint=hint) from error
    except Exception as error:  # on damaged bytes the libraries raise almost anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "its header is damaged, or its kind is not supported (JPEG of 12 bits, ...)"
        what = f"cannot read the image: {reason.splitlines()[0]}"
        raise DataError(what, where=where, hint=getattr(error, "hint", None)) from error


def _open(path: Path) -> BinaryIO:
    """Open a regular, non-empty file: a pipe would block, and a device might never end."""
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise ValueError("it is a folder")
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a regular file")
    if not status.st_size:
        raise ValueError("the file is empty")
    return path.open("rb")


def _read_bytes(path: Path) -> bytes:
    with _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > _MAX_FILE_BYTES:
            raise ValueError(f"the file has {size} bytes, over the limit of {_MAX_FILE_BYTES}")
        return file.read()
