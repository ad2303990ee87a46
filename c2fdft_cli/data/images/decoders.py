"""Pixels as the two decoders give them: Pillow for 8 bit, OpenCV for 16 bit and float."""

from __future__ import annotations

import contextlib
import io
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

from c2fdft_cli.errors import ResourceError

Array = npt.NDArray[Any]

_PILLOW_LOCK = threading.RLock()
_NEVER_WARN_ON_LOAD = {"PNG", "JPEG", "WEBP", "BMP"}


class Unreadable(ValueError):
    """A file that this program does not read, with what the user can do about it."""

    def __init__(self, what: str, hint: str | None = None) -> None:
        super().__init__(what)
        self.hint = hint


DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    LookupError,
    TypeError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    RuntimeError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Warning,
)


@contextlib.contextmanager
def quiet_pillow() -> Iterator[None]:
    """Pillow without warnings and without its own size limit; one thread at a time.

    Both settings are the process's own, hence the lock; the caller checks sizes.
    """
    with _PILLOW_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def pillow_samples(image: Image.Image) -> Array:
    """8-bit samples [h, w, c]; grey stays one channel, transparency becomes alpha."""
    with contextlib.nullcontext() if image.format in _NEVER_WARN_ON_LOAD else quiet_pillow():
        image.load()
    alpha = "A" if image.has_transparency_data else ""
    if image.mode in {"1", "L", "LA", "La"}:
        target = f"L{alpha}"
    elif image.mode in {"P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"}:
        target = f"RGB{alpha}"
    else:
        raise Unreadable(f"{image.mode} pixels are not supported", "save it as grey or RGB")
    with quiet_pillow():
        source = image.convert("L") if image.mode == "1" and not alpha else image
        turned = _from_cmyk(source) if source.mode == "CMYK" else source.convert(target)
    samples = np.asarray(turned)
    samples = samples[..., None] if samples.ndim == 2 else samples
    return _palette_grey(samples) if image.mode in {"P", "PA"} else samples


def _palette_grey(samples: Array) -> Array:
    """A palette of greys alone makes a grey picture."""
    if (samples[..., :1] == samples[..., 1:3]).all():
        return np.delete(samples, (1, 2), axis=2)
    return samples


def _from_cmyk(image: Image.Image) -> Image.Image:
    """CMYK to sRGB through the file's own profile, by subtraction when it has no usable one."""
    profile = image.info.get("icc_profile")
    if profile:
        with contextlib.suppress(ImageCms.PyCMSError, ImportError, OSError, TypeError):
            srgb = ImageCms.createProfile("sRGB")
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            turned = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
            if turned is not None:
                return turned
    return image.convert("RGB")


def opencv_samples(data: bytes) -> Array:
    """OpenCV's samples as stored, [h, w, c] in RGB order."""
    cv2 = _opencv()
    try:
        samples = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise Unreadable("the pixels are damaged") from error
    if samples is None or samples.dtype == np.uint8:
        raise Unreadable("the pixels are truncated, damaged or of an unknown kind")
    found: Array = samples[..., None] if samples.ndim == 2 else samples
    order = {3: (2, 1, 0), 4: (2, 1, 0, 3)}.get(found.shape[2])
    return found[..., order] if order else found


def _opencv() -> Any:
    """OpenCV, loaded when first needed: it costs time, and some machines cannot load it."""
    try:
        import cv2
    except ImportError as error:
        hint = "replace it: pip uninstall opencv-python; pip install opencv-python-headless"
        what = "OpenCV cannot be loaded"
        raise ResourceError(what, hint=hint, details=[str(error)]) from error
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2
