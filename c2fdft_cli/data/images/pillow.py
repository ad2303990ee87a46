"""Decode and encode with Pillow, and keep the metadata that it would lose."""

from __future__ import annotations

import contextlib
import functools
import io
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, BinaryIO

import imageio.v3 as iio
import numpy as np
from PIL import (
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
)

from c2fdft_cli.data.images.formats import (
    JPEG_SUFFIXES,
    OUTPUT_FORMAT_OF,
    MetadataKind,
    Unreadable,
)
from c2fdft_cli.data.images.metadata import (
    COMMENT,
    IPTC_RESOURCE,
    Metadata,
    density_of,
    iptc_of,
    photoshop_block,
    sane_density,
    upright_exif,
    upright_xmp,
)
from c2fdft_cli.data.images.samples import (
    Array,
    Decoded,
    check_size,
    grey_if_equal,
    no_frame,
    rgb_from_cmyk,
)
from c2fdft_cli.process_settings import ProcessSettings

_MAX_SEGMENT = 65000
"""Number of bytes that certainly fit into one segment of a JPEG."""
_WORDS = {"exif": "EXIF", "xmp": "XMP", "comment": "texts", "extra": "IPTC"}
_FRAMED = {"AVIF", "GIF", "MPO", "WEBP"}
"""Formats that have frames. Not PSD, whose frames are layers."""
_JFIF_UNITS = {1, 2}
_GIF_STRATEGY = GifImagePlugin.LoadingStrategy.RGB_AFTER_DIFFERENT_PALETTE_ONLY
_TARGETS = {"1": "L", "L": "L", "LA": "LA", "P": "RGB", "PA": "RGBA", "RGB": "RGB",
            "RGBA": "RGBA", "RGBX": "RGB", "CMYK": "CMYK", "YCbCr": "RGB", "I": "I;16",
            "I;16": "I;16", "I;16B": "I;16"}  # fmt: skip
"""Modes of pictures, and the modes to which they are converted for decoding."""


class _OfThread(threading.local):
    """Whether this thread is within `quiet_pillow`."""

    quiet = False


_of_thread = _OfThread()


def _elsewhere(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that does nothing within `quiet_pillow`, and is the given one elsewhere."""

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        return None if _of_thread.quiet else function(*args, **options)

    return call


class _Warnings(ModuleType):
    """The module `warnings` as Pillow's modules see it: silent within `quiet_pillow`."""

    def __getattr__(self, name: str) -> Any:
        return getattr(warnings, name)

    @staticmethod
    def warn(
        message: Any, category: Any = None, stacklevel: int = 1, source: Any = None, **more: Any
    ) -> None:
        if not _of_thread.quiet:
            warnings.warn(message, category, stacklevel + 1, source, **more)


# Once and for each thread apart: the filters of warnings and Pillow's limit belong to the whole
# process, and other threads of a Python program may use both meanwhile.
for _module in (Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin):
    vars(_module)["warnings"] = _Warnings("warnings")
if hasattr(Image, "_decompression_bomb_check"):
    Image._decompression_bomb_check = _elsewhere(Image._decompression_bomb_check)


def _set_values(undo: list[Callable[[], object]]) -> None:
    for module, name, value in (
        # The modes of a GIF's frames depend on it; a calling program's imageio may have changed it.
        (GifImagePlugin, "LOADING_STRATEGY", _GIF_STRATEGY),
        # Some libraries set it when they are imported: half a picture would be read as a whole one.
        (ImageFile, "LOAD_TRUNCATED_IMAGES", False),
    ):
        before = getattr(module, name)
        if before != value:
            undo.append(functools.partial(setattr, module, name, before))
            setattr(module, name, value)


_settings = ProcessSettings(_set_values)


@contextlib.contextmanager
def quiet_pillow() -> Iterator[None]:
    """Run Pillow without warnings, without its limit of pixels, and with the settings above.

    The caller must check sizes. Several threads may do this at once; the settings are global to the
    process, so other threads have them meanwhile.
    """
    before = _of_thread.quiet
    with _settings.changed():
        try:
            _of_thread.quiet = True
            yield
        finally:
            _of_thread.quiet = before


def stored_size(file: BinaryIO, kind: str) -> tuple[int, int, int]:
    """See `codec.stored_size`."""
    file.seek(0)
    with quiet_pillow(), Image.open(file, formats=[kind]) as image:
        return image.width, image.height, upright_exif(image.info.get("exif"))[0]


def stored_profile(file: BinaryIO, kind: str) -> bytes | None:
    """See `codec.stored_profile`."""
    file.seek(0)
    with quiet_pillow(), Image.open(file, formats=[kind]) as image:
        found: bytes | None = image.info.get("icc_profile")
    return found or None


def count_frames(file: BinaryIO, kind: str) -> int:
    """See `codec.count_frames`."""
    file.seek(0)
    with quiet_pillow(), Image.open(file, formats=[kind]) as image:
        return int(getattr(image, "n_frames", 1))


class OpenFrames:
    """Decode frames; grey stays one channel, 16-bit grey 16 bits, transparency becomes alpha.

    To reach a frame, Pillow decodes all frames between it and the last requested one, so in
    ascending order each is decoded once. One object must not be used by two threads at once.

    Args:
        data: the whole file.
        kind: its format; MPO for the further views of a JPEG.
    """

    def __init__(self, data: bytes, kind: str) -> None:
        formats = ["JPEG" if kind == "MPO" else kind]  # which finds out that it is an MPO
        with quiet_pillow():
            try:
                self._image = Image.open(io.BytesIO(data), formats=formats)
            except OSError as error:
                raise UnidentifiedImageError(str(error)) from error
            self.count = int(getattr(self._image, "n_frames", 1)) if kind in _FRAMED else 1

    def decode(self, frame: int) -> Decoded:
        """Decode a frame, counted from 0; errors as `codec.decode`."""
        with quiet_pillow():
            return decode_opened(self.seek(frame))

    def seek(self, frame: int) -> Image.Image:
        """Return a frame with its size checked and its pixels not decoded; in `quiet_pillow`."""
        if frame >= self.count:
            raise no_frame(frame, self.count)
        check_size(self._image.width, self._image.height)
        if self.count > 1:
            # In a GIF each on the way is checked, because any of them may enlarge the picture.
            is_gif = self._image.format == "GIF"
            for number in range(min(self._image.tell(), frame) if is_gif else frame, frame + 1):
                self._image.seek(number)
                check_size(self._image.width, self._image.height)
        return self._image


def decode_opened(image: Image.Image) -> Decoded:
    """Decode what `OpenFrames.seek` returns."""
    mode = image.mode
    if mode not in _TARGETS:
        what = f"a {image.format} picture in mode {mode}"
        raise Unreadable(what, "save it as RGB with 8 bits")
    target = _TARGETS[mode]
    if target in ("L", "RGB") and "transparency" in image.info:
        target += "A"
    samples = np.array(image if mode == target else image.convert(target))
    about = dict(image.info)
    samples = samples.astype(samples.dtype.newbyteorder("="), copy=False)
    return _decoded(samples, mode, about)


def metadata_of(about: Mapping[Any, Any]) -> tuple[int, Metadata]:
    """Extract orientation and metadata from what Pillow reports about a picture."""
    orientation, exif = upright_exif(about.get("exif"))
    xmp, comment = about.get("xmp"), about.get("comment")
    photoshop = about.get("photoshop")
    if isinstance(comment, bytes):
        comment = comment.decode("utf-8", "replace")
    text = str(comment or "").strip("\0")
    return orientation, Metadata(
        icc=about.get("icc_profile") or None,
        exif=exif,
        xmp=upright_xmp(xmp.encode() if isinstance(xmp, str) else xmp),
        iptc=iptc_of(photoshop.get(IPTC_RESOURCE)) if isinstance(photoshop, dict) else None,
        texts=((COMMENT, text),) if text else (),
        density=_density(about),
    )


def _density(about: Mapping[Any, Any]) -> tuple[float, float] | None:
    if about.get("exif") and about.get("jfif_unit") not in _JFIF_UNITS:
        exif = Image.Exif()  # Pillow itself reports 72 if the block has no resolution
        with quiet_pillow(), contextlib.suppress(Exception):  # a damaged block has no resolution
            exif.load(about["exif"])
            return density_of(exif)
        return None
    across, along = about.get("dpi") or (0, 0)
    return sane_density(across, along)


def _decoded(samples: Array, mode: str, about: Mapping[Any, Any]) -> Decoded:
    samples = np.atleast_3d(samples)
    if mode[0] == "P":
        samples = grey_if_equal(samples, about.get("icc_profile"))
    if mode == "CMYK":
        samples = rgb_from_cmyk(samples, about.get("icc_profile"))
        about = {**about, "icc_profile": None}
    orientation, metadata = metadata_of(about)
    return Decoded(samples, orientation, metadata)


def encode_pillow(suffix: str, samples: Array, metadata: Metadata, quality: int) -> bytes:
    """Encode 8-bit samples in a format of `OUTPUT_FORMATS`, with the metadata that it can hold."""
    output_format = OUTPUT_FORMAT_OF[suffix]
    if not output_format.has_alpha:
        channels = samples.shape[2]
        samples = samples[..., : channels - (channels + 1) % 2]
    values_of: dict[MetadataKind, tuple[str, Any]] = {
        "colour profile": ("icc_profile", metadata.icc),
        "EXIF": ("exif", metadata.exif),
        "XMP": ("xmp", metadata.xmp),
        "density": ("dpi", metadata.density),
    }
    options = dict(pair for kind, pair in values_of.items() if kind not in output_format.dropped)
    if suffix == ".webp":
        # "Exact" keeps the colours of fully transparent pixels. In lossless WebP, quality is the
        # effort of compression.
        options |= {"lossless": True, "exact": True, "quality": 60, "method": 4}
    if suffix in JPEG_SUFFIXES:
        options |= {"quality": quality, "subsampling": 0}
        blocks = _jpeg_blocks(metadata).items()
        options |= {name: block if len(block) < _MAX_SEGMENT else b"" for name, block in blocks}
    mode = ("L", "LA", "RGB", "RGBA")[samples.shape[2] - 1]
    values = np.ascontiguousarray(samples[..., 0] if mode == "L" else samples)
    given = {name: value for name, value in options.items() if value not in (None, b"")}
    data = iio.imwrite("<bytes>", values, plugin="pillow", extension=suffix, mode=mode, **given)
    return bytes(data or b"")


def too_long(metadata: Metadata, suffix: str) -> list[str]:
    """Name the metadata that are dropped because they do not fit into a segment of a JPEG."""
    if suffix not in JPEG_SUFFIXES:
        return []
    blocks = _jpeg_blocks(metadata)
    return [_WORDS[name] for name, block in blocks.items() if len(block) >= _MAX_SEGMENT]


def _jpeg_blocks(metadata: Metadata) -> dict[str, bytes]:
    """Return Pillow's options for metadata in JPEG segments, even blocks too long for a segment."""
    photoshop = b""
    if metadata.iptc:
        block = b"Photoshop 3.0\0" + photoshop_block(metadata.iptc)
        photoshop = b"\xff\xed" + min(len(block) + 2, 65535).to_bytes(2, "big") + block
    return {
        "exif": b"Exif\0\0" + metadata.exif if metadata.exif else b"",
        "xmp": metadata.xmp or b"",
        "comment": metadata.text.encode("utf-8", "replace"),
        "extra": photoshop,
    }
