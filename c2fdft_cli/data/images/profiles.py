"""Colour profiles (ICC): conversion to sRGB, and how much two profiles differ."""

from __future__ import annotations

import contextlib
import io
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

GREY_SPACE, RGB_SPACE, CMYK_SPACE = b"GRAY", b"RGB ", b"CMYK"

_GRID = np.arange(0, 256, 51, dtype=np.uint8)
_MAX_NAME = 40


def in_srgb(image: Image.Image, profile: bytes) -> Image.Image | None:
    """Convert a picture to sRGB; None if the profile is damaged or for another kind of pictures."""
    with contextlib.suppress(ImageCms.PyCMSError, ImportError, OSError, TypeError):
        srgb = ImageCms.createProfile("sRGB")
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
    return None


def colour_space(profile: bytes | None) -> bytes | None:
    """Return the four characters by which a profile names the colour space of its pictures."""
    return None if profile is None else profile[16:20]


def profile_name(profile: bytes | None) -> str:
    """Return the description that a profile contains, for messages."""
    if profile is None:
        return "no profile"
    with contextlib.suppress(ImageCms.PyCMSError, OSError, TypeError):
        found = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile)))
        shown = "".join(char for char in found.strip() if char.isprintable())
        if shown:
            return shown[:_MAX_NAME]
    return "a profile without a name"


def profile_difference(a: bytes | None, b: bytes | None) -> int:
    """Return by how many 8-bit levels, at most, equal RGB values differ in sRGB.

    None and unusable profiles count as sRGB, as programs commonly treat them.
    """
    if a == b:
        return 0
    return int(np.abs(_grid_in_srgb(a) - _grid_in_srgb(b)).max())


@lru_cache(maxsize=8)  # a profile can have megabytes
def _grid_in_srgb(profile: bytes | None) -> npt.NDArray[np.int16]:
    """Convert a grid over all RGB values to sRGB, [216, 3]."""
    values = np.stack(np.meshgrid(_GRID, _GRID, _GRID), axis=-1).reshape(1, -1, 3)
    shown = None if profile is None else in_srgb(Image.fromarray(values), profile)
    grid: npt.NDArray[np.int16] = np.asarray(values if shown is None else shown)[0].astype(np.int16)
    return grid
