"""Samples as the libraries decode them, and their conversion to a common form."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from c2fdft_cli.data.images.formats import Unreadable
from c2fdft_cli.data.images.metadata import NO_METADATA, Metadata
from c2fdft_cli.data.images.profiles import in_srgb

MAX_PIXELS = 1 << 28
"""Largest size of a picture that is decoded."""
MAX_FRAMES = 100_000
"""Largest number of frames or pages of a file that is restored."""

Array = npt.NDArray[Any]


class Decoded(NamedTuple):
    """Samples [h, w, c] as stored, the EXIF orientation (1 to 8) still to be applied, and metadata.

    c: 1 grey, 2 grey + alpha, 3 RGB, 4 RGBA.
    """

    samples: Array
    orientation: int = 1
    metadata: Metadata = NO_METADATA


def check_size(width: int, height: int) -> None:
    """Raise Unreadable for an empty picture, and for one with more than `MAX_PIXELS`."""
    if width < 1 or height < 1:
        raise Unreadable(f"a picture of {width} x {height} px")
    if width * height > MAX_PIXELS:
        raise Unreadable(f"{width} x {height} px is over the limit of {MAX_PIXELS} px")


def grey_if_equal(samples: Array, profile: bytes | None) -> Array:
    """Reduce three equal channels to one: a palette of greys makes a grey picture.

    Not if there is a colour profile: that of a palette is for RGB, and must not be combined with a
    grey picture.
    """
    if not profile and (samples[..., :1] == samples[..., 1:3]).all():
        return np.delete(samples, (1, 2), axis=2)
    return samples


def rgb_from_cmyk(samples: Array, profile: bytes | None) -> Array:
    """Convert CMYK to sRGB by the file's own profile, or by subtraction without a usable one."""
    height, width = samples.shape[:2]
    image = Image.frombytes("CMYK", (width, height), samples.tobytes())
    turned = in_srgb(image, profile) if profile else None
    return np.asarray(image.convert("RGB") if turned is None else turned)


def no_frame(frame: int, frames: int) -> Unreadable:
    """Return the error for a frame, counted from 0, that a file of `frames` does not have."""
    return Unreadable(f"it has {frames} frames, counted from 0; there is no frame {frame}")


def full_range(samples: Array, bits: int) -> Array:
    """Scale samples so that white is the largest value of uint8 or uint16; floats become uint16."""
    if samples.dtype.kind == "f":
        # Written this way round so that NaN, for which every comparison is false, is refused.
        if not (samples.min() >= 0 and samples.max() <= 1):
            hint = "scale it to 0..1, or save it with 8 or 16 unsigned bits"
            raise Unreadable("a float picture with values outside 0..1", hint)
        # Half floats end at 65504, below the 65535 of white.
        wide = samples.astype(np.promote_types(samples.dtype, np.float32), copy=False)
        return np.rint(wide * 65535.0).astype(np.uint16)
    if bits in (8, 16):
        return samples.astype(samples.dtype.newbyteorder("="), copy=False)
    white, dtype = (255, np.uint8) if bits < 8 else (65535, np.uint16)
    stretched: Array = np.rint(samples * (white / (2**bits - 1))).astype(dtype)
    return stretched


def to_8bit(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Convert uint16 to uint8 by round(v / 257); uint8 is returned unchanged."""
    if values.dtype == np.uint8:
        return values
    # Integers make this exact: 257 is odd, so no value is half way, and half of it, rounded down,
    # is 128. Widened because the sum exceeds uint16.
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
