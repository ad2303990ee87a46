"""What a picture file stores besides its pixels, in a form that carries over between formats."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL.ExifTags import Base

from c2fdft_cli.data.images.formats import MetadataKind

MAX_BYTES = 16 << 20
"""Longer blocks are not read."""
COMMENT = "Comment"
"""The keyword for a comment that has none."""
_XMP_ORIENTATION = re.compile(rb"(tiff:Orientation(?:\s*=\s*[\"']|>))[2-8]")
_RESOURCE = b"8BIM"
IPTC_RESOURCE = 0x0404
_INCHES = {2: 1.0, 3: 2.54}


@dataclass(frozen=True)
class Metadata:
    """Metadata, as blocks in the encodings that several formats share.

    Args:
        icc: the embedded colour profile.
        exif: the EXIF block as a TIFF structure, without the "Exif" prefix; orientation 1.
        xmp: the XMP packet; orientation 1.
        iptc: the IPTC-IIM records, without the Photoshop resource around them.
        texts: comments and text chunks, each with its keyword.
        density: pixels per inch, horizontally and vertically.
        png_chunks: the chunks in which a PNG describes its colours without a profile (cICP, gAMA,
            cHRM, sRGB) and its resolution (pHYs), as stored; other formats do not keep them.
        lost: names what the file contains but could not be read, for a note to the user.
    """

    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    texts: tuple[tuple[str, str], ...] = ()
    density: tuple[float, float] | None = None
    png_chunks: bytes = b""
    lost: str | None = None

    @property
    def colour_chunks(self) -> bool:
        """Whether PNG chunks describe the colours as something other than plain sRGB."""
        return any(name in self.png_chunks for name in (b"cICP", b"gAMA", b"cHRM"))

    @property
    def kinds(self) -> list[MetadataKind]:
        """The kinds of metadata that are present."""
        found: dict[MetadataKind, object] = {
            "colour profile": self.icc,
            "EXIF": self.exif,
            "XMP": self.xmp,
            "IPTC": self.iptc,
            "texts": self.texts,
            "density": self.density,
            "colour chunks": self.colour_chunks,
        }
        return [kind for kind, value in found.items() if value]

    @property
    def text(self) -> str:
        """All texts joined into one, for formats that have a single comment."""
        return "\n".join(
            text if keyword == COMMENT else f"{keyword}: {text}" for keyword, text in self.texts
        )


NO_METADATA = Metadata()


def upright_exif(block: bytes | None) -> tuple[int, bytes | None]:
    """Return an EXIF block's orientation (1 to 8), and the block with its orientation set to 1.

    Where that swaps width and height, the resolutions across and along are swapped too.

    The block is patched by hand: a library that writes it again would lose the maker notes, whose
    offsets count from its start. The thumbnail is unlinked, because it would still show the old
    picture. A damaged block gives (1, None).
    """
    patched = bytearray((block or b"").removeprefix(b"Exif\0\0"))
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(bytes(patched[:4]))
    if order is None:
        return 1, None
    try:
        (start,) = struct.unpack_from(f"{order}I", patched, 4)
        (count,) = struct.unpack_from(f"{order}H", patched, start)
        orientation = 1
        resolutions: dict[int, slice] = {}
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH8x", patched, at)
            if tag in (Base.XResolution, Base.YResolution):
                resolutions[tag] = slice(at + 2, at + 12)
            if tag == Base.Orientation:
                value = order + ("I" if kind == 4 else "H")
                (orientation,) = struct.unpack_from(value, patched, at + 8)
                struct.pack_into(value, patched, at + 8, 1)
    except struct.error:
        return 1, None
    if 5 <= orientation <= 8 and len(resolutions) == 2:
        across, along = resolutions.values()
        patched[across], patched[along] = patched[along], patched[across]
    # Some programs end the block before the pointer to the thumbnail; then this appends it.
    end = start + 2 + 12 * count
    patched[end : end + 4] = bytes(4)
    return orientation if 1 <= orientation <= 8 else 1, bytes(patched)


def upright_xmp(packet: bytes | None) -> bytes | None:
    """Return an XMP packet with its orientation set to 1; None if it is absent or too long."""
    if not packet or len(packet) > MAX_BYTES:
        return None
    return _XMP_ORIENTATION.sub(rb"\g<1>1", packet)


def iptc_of(block: bytes | None) -> bytes | None:
    """Return the IPTC records of a block that contains them directly or as a Photoshop resource."""
    if not block or block[:1] == b"\x1c":
        return block or None
    at = block.find(_RESOURCE)
    while 0 <= at <= len(block) - 12 and block[at : at + 4] == _RESOURCE:
        (number,) = struct.unpack_from(">H", block, at + 4)
        start = at + 6 + (block[at + 6] + 2) // 2 * 2  # after the name, padded to an even length
        if start + 4 > len(block):
            return None
        (length,) = struct.unpack_from(">I", block, start)
        if number == IPTC_RESOURCE:
            return block[start + 4 : start + 4 + length] or None
        at = start + 4 + length + length % 2
    return None


def photoshop_block(iptc: bytes) -> bytes:
    """Wrap IPTC records as the only resource of a Photoshop block."""
    head = _RESOURCE + struct.pack(">HHI", IPTC_RESOURCE, 0, len(iptc))
    return head + iptc + bytes(len(iptc) % 2)


def density_of(tags: Mapping[int, Any]) -> tuple[float, float] | None:
    """Return the pixels per inch that the tags of a TIFF directory state; None if they do not."""
    inches = _INCHES.get(tags.get(Base.ResolutionUnit, 2))
    try:
        across, along = float(tags[Base.XResolution]), float(tags[Base.YResolution])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return None if inches is None else sane_density(across * inches, along * inches)


def sane_density(across: float, along: float) -> tuple[float, float] | None:
    """Return both numbers of pixels per inch, or None unless both are plausible."""
    return (float(across), float(along)) if 0 < across < 1e6 and 0 < along < 1e6 else None
