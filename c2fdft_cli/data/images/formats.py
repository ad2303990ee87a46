"""Formats of picture files: what those that are written can hold, and which one a file has."""

from __future__ import annotations

import importlib.util
import re
import struct
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeAlias, get_args

HEAD_BYTES = 1024
"""Number of bytes at the start of a file from which its format is recognised."""
MetadataKind: TypeAlias = Literal[
    "colour profile", "EXIF", "XMP", "IPTC", "texts", "density", "colour chunks"
]
"""The kinds of metadata that a picture may have (`Metadata`), as notes to the user name them."""


@dataclass(frozen=True)
class OutputFormat:
    """A format in which pictures are written, and what it can hold.

    Args:
        name: its name in messages.
        suffixes: its suffixes; a file whose name the program chooses gets the first one.
        is_deep: whether it holds 16 bits per channel; 8 otherwise.
        has_alpha: whether it holds transparency.
        dropped: the kinds of metadata that it cannot hold.
        max_side: its largest side in px; None if no picture that is read can reach it.
    """

    name: str
    suffixes: tuple[str, ...]
    is_deep: bool = False
    has_alpha: bool = False
    dropped: frozenset[MetadataKind] = frozenset()
    max_side: int | None = None


_CHUNKS: frozenset[MetadataKind] = frozenset({"colour chunks"})
_ALL_KINDS: frozenset[MetadataKind] = frozenset(get_args(MetadataKind))
OUTPUT_FORMATS = (
    OutputFormat("PNG", (".png",), is_deep=True, has_alpha=True, max_side=1_000_000),  # libpng's
    OutputFormat("JPEG", (".jpg", ".jpeg"), dropped=_CHUNKS, max_side=65500),
    OutputFormat("TIFF", (".tif", ".tiff"), is_deep=True, has_alpha=True, dropped=_CHUNKS),
    OutputFormat("BMP", (".bmp",), dropped=_ALL_KINDS - {"density"}),
    OutputFormat(
        "WebP",
        (".webp",),
        has_alpha=True,
        dropped=_CHUNKS | {"IPTC", "texts", "density"},
        max_side=16383,
    ),
)
"""All formats that are written; `codec.encode` makes the files."""
OUTPUT_FORMAT_OF = {suffix: one for one in OUTPUT_FORMATS for suffix in one.suffixes}
WRITE_SUFFIXES = frozenset(OUTPUT_FORMAT_OF)
JPEG_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo"})
READ_SUFFIXES = (
    WRITE_SUFFIXES
    | JPEG_SUFFIXES
    | {".dib", ".apng", ".avif", ".avifs", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".jxl"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".qoi", ".psd", ".dds", ".pcx", ".sgi", ".ras"}
)
"""Suffixes of the images of a training or an evaluation."""
RESTORED_SUFFIXES = READ_SUFFIXES | {".gif"}
"""Suffixes of the images that can be restored: also those of 256 colours."""
_WITH_SUFFIX = {
    ".tga": ("TGA", b""), ".pcx": ("PCX", b"\n"), ".sgi": ("SGI", b"\x01\xda"),
    ".rgb": ("SGI", b"\x01\xda"), ".rgba": ("SGI", b"\x01\xda"), ".bw": ("SGI", b"\x01\xda"),
}  # fmt: skip
"""Formats that need the suffix too, because other files may start with the same bytes."""
J2K_SIGNATURE, JXL_SIGNATURE = b"\xff\x4f\xff\x51", b"\xff\x0a"
"""Signatures of JPEG 2000 and JPEG XL codestreams without boxes around them."""
_SIGNATURES = (
    (b"FUJIFILMCCD-RAW", "camera raw"),
    (b"IIRO", "camera raw"),
    (b"IIRS", "camera raw"),
    (b"IIU\0", "camera raw"),
    (b"\x76\x2f\x31\x01", "high dynamic range"),
    (b"#?RADIANCE", "high dynamic range"),
    (b"II\xbc\x01", "JPEG XR"),
    (b"\xff\xd8\xff\xf7", "JPEG-LS"),  # before JPEG, whose signature is a prefix of this one
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"GIF8", "GIF"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
    (J2K_SIGNATURE, "JPEG2000"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEGXL"),
    (JXL_SIGNATURE, "JPEGXL"),
    (b"qoif", "QOI"),
    (b"8BPS\0\1", "PSD"),
    (b"DDS ", "DDS"),
    (b"\x59\xa6\x6a\x95", "SUN"),
)
_BRANDS = {
    b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"heim": "HEIC",
    b"heis": "HEIC", b"hevc": "HEIC", b"hevx": "HEIC", b"crx ": "camera raw",
}  # fmt: skip
OTHER_VIDEO = "unsupported video"
_UNREAD_SUFFIXES = {
    "HEIC": ".heic .heif .hif",
    "camera raw": ".dng .cr2 .cr3 .crw .nef .nrw .arw .sr2 .srf .raf .orf .rw2 .raw .pef .srw .x3f "
    ".3fr .fff .iiq .mos .mrw .erf .kdc .dcr .rwl .gpr",
    "high dynamic range": ".exr .hdr .pfm",
    "JPEG XR": ".jxr .wdp .hdp",
    "JPEG-LS": ".jls",
    OTHER_VIDEO: ".y4m .yuv .h264 .264 .h265 .265 .hevc .m1v .m2v .mjpeg .mjpg .ivf .obu "
    ".ogv .ogm .nut .mxf .dv .gxf .wtv .rm .rmvb .r3d .braw",
    "vector graphics": ".svg .eps .ai .wmf .emf",
    "other": ".xcf .kra .clip .pdn .psb .fits .dcm .djvu .ico .icns .jbig2 .flif .bpg",
}
_COPY = "preview or backup copy"
_COPIES = {".thm", ".bak", ".jpg_original", ".jpeg_original", ".tif_original", ".png_original"}
HINTS = {
    "HEIC": "install the extra `heif` (pip install 'c2fdft[heif]'), or convert to JPEG or TIFF",
    "camera raw": "develop to 16-bit TIFF first, for example with darktable or RawTherapee",
    "high dynamic range": "map the tones to 0..1 first and save as 16-bit TIFF or PNG",
    "JPEG XR": "convert to PNG or TIFF",
    "JPEG-LS": "convert to PNG or TIFF",
    "vector graphics": "export as PNG",
    OTHER_VIDEO: "convert to .mkv first, for example with ffmpeg (-c copy loses nothing)",
    "other": "export as PNG or TIFF",
    _COPY: "rename to restore them",
}
"""Kinds of pictures that are not read, each with what the user can do instead."""
_SUFFIX_OF_UNREAD = {
    suffix: kind for kind, suffixes in _UNREAD_SUFFIXES.items() for suffix in suffixes.split()
}
UNREAD_SUFFIXES = frozenset(_SUFFIX_OF_UNREAD)
OTHER_VIDEO_SUFFIXES = frozenset(
    suffix for suffix, kind in _SUFFIX_OF_UNREAD.items() if kind == OTHER_VIDEO
)
"""Suffixes of videos in containers that are not read, or without a container."""
_PPM = re.compile(rb"P[1-6]\s+(?:#[^\n]*\n\s*)*[0-9]+\s")
_BMP_HEADERS = {12, 16, 40, 52, 56, 64, 108, 124}


class Unreadable(ValueError):
    """A file that this program does not read, with a hint for the user."""

    def __init__(self, what: str, hint: str | None = None) -> None:
        super().__init__(what)
        self.hint = hint


def file_format(head: bytes, suffix: str = "") -> str:
    """Return the format of a picture, such as PNG or JPEG2000.

    Args:
        head: the file's first `HEAD_BYTES`, or all of a shorter file.
        suffix: of the file's name, in lower case; decides if the bytes do not: for TGA, PCX and
            SGI, and for many files that are not read, such as camera raw.

    Raises:
        Unreadable: the file is not a picture, or of a kind that is not read.
    """
    kind = recognise(head, suffix)
    if kind is None:
        raise Unreadable("not an image", "PNG, JPEG, TIFF, WebP, AVIF and others can be read")
    if not is_read(kind):
        raise Unreadable(f"files of this kind are not read: {kind}", HINTS[kind])
    return kind


@cache
def is_read(kind: str) -> bool:
    """Whether pictures of a kind that `recognise` returns can be read on this machine."""
    if kind == "HEIC":
        return importlib.util.find_spec("pillow_heif") is not None
    return kind not in HINTS


def recognise(head: bytes, suffix: str) -> str | None:
    """Return a format that is read, one of the kinds in `HINTS`, or None if it is not a picture."""
    found = _by_content(head)
    if found == "TIFF" and head[8:10] == b"CR":
        return "camera raw"
    if found == "JPEG" and suffix in OTHER_VIDEO_SUFFIXES:  # it is followed by others
        return OTHER_VIDEO
    if suffix in _COPIES:
        return _COPY if found else None
    # many camera raw files are TIFF files whose first picture is a thumbnail
    if found in (None, "TIFF") and suffix in _SUFFIX_OF_UNREAD:
        return _SUFFIX_OF_UNREAD[suffix]
    kind, mark = _WITH_SUFFIX.get(suffix, (None, b""))
    return found or (kind if head.startswith(mark) and head else None)


def _by_content(head: bytes) -> str | None:
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        end = min(int.from_bytes(head[:4], "big"), len(head))
        brands = [head[at : at + 4] for at in (8, *range(16, end, 4))]
        return next((_BRANDS[brand] for brand in brands if brand in _BRANDS), None)
    if head[:2] == b"BM" and len(head) >= 18:
        (size,) = struct.unpack_from("<I", head, 14)
        return "BMP" if size in _BMP_HEADERS else None
    if _PPM.match(head):
        return "PPM"
    return next((kind for mark, kind in _SIGNATURES if head.startswith(mark)), None)
