"""Image files to samples and back. The pixels are the libraries' work; the rest is what they lose.

PNG goes through imagecodecs (libpng), TIFF through tifffile, everything else through imageio and
its Pillow plugin. OpenCV was tried for PNG: it refuses grey with alpha, and writes nothing at all
beside a colour profile that it finds damaged. Samples are [h, w, c] as stored; c: 1 grey,
2 grey + alpha, 3 RGB, 4 RGBA.
"""

from __future__ import annotations

import contextlib
import io
import logging
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import imagecodecs
import imageio.v3 as iio
import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image, ImageCms, TiffImagePlugin
from PIL.ExifTags import IFD, Base
from tifffile.tifffile import jpeg_shape

Array = npt.NDArray[Any]

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SIGNATURES = (
    (_PNG_SIGNATURE, "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"BM", "BMP"),
    (b"GIF8", "GIF"),
)
_PNG_PALETTE = 3
_PNG_EXIF_TEXT = b"Raw profile type exif\0"
_PNG_TEXTS = {b"tEXt", b"zTXt"}
_PNG_KEPT = {b"cICP": 4, b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"pHYs": 9}  # with their lengths
_PNG_METADATA = {b"IHDR", b"eXIf", b"iCCP", *_PNG_TEXTS, *_PNG_KEPT}
_MAX_METADATA = 16 << 20
_MAX_JPEG_EXIF = 65000
# What describes a picture; the other tags of a directory tell how its own pixels are stored.
_DESCRIPTIONS = {270, 271, 272, 282, 283, 296, 305, 306, 315, 33432, *range(40091, 40096)}
_EXIF_DIRECTORIES = {IFD.Exif.value, IFD.GPSInfo.value}
_TIFF_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3}  # photometric interpretation: channels
_WHITE_IS_ZERO, _PALETTE, _CMYK, _YCBCR = 0, 3, 5, 6
_ASSOCIATED_ALPHA, _ALPHA = 1, 2
_JPEG = 7
# None, CCITT, LZW, JPEG, deflate, PackBits, LZMA, Zstandard; those of other kinds of pictures
# (JPEG 2000, WebP, ...) would have to be asked for their size before they are decoded.
_TIFF_COMPRESSIONS = {1, 2, 3, 4, 5, _JPEG, 8, 32946, 32773, 34925, 50000}
_STRIP_SIZE = 1 << 20

_PILLOW_LOCK = threading.RLock()
# Both report through logging, which prints to standard error where nobody has set it up.
for _name in ("tifffile", "imagecodecs"):
    logging.getLogger(_name).addHandler(logging.NullHandler())


class Unreadable(ValueError):
    """A file that this program does not read, with what the user can do about it."""

    def __init__(self, what: str, hint: str | None = None) -> None:
        super().__init__(what)
        self.hint = hint


class Decoded(NamedTuple):
    """Samples as stored, the EXIF orientation (1 to 8) that they wait for, and the metadata.

    `png_chunks` are those of a PNG that tell of colours without a profile, and of resolution.
    """

    samples: Array
    orientation: int
    icc: bytes | None
    exif: bytes | None
    png_chunks: bytes = b""


def file_format(head: bytes) -> str:
    """The format by the first 16 bytes: PNG, JPEG, TIFF, BMP, WEBP or GIF; `Unreadable`."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    for signature, name in _SIGNATURES:
        if head.startswith(signature):
            return name
    raise Unreadable("not an image", "PNG, JPEG, TIFF, BMP, WebP and GIF can be read")


def decode(data: bytes, *, frame: int, max_pixels: int) -> Decoded:
    """Frame `frame` of an image file's bytes.

    Raises:
        Unreadable: not an image, over `max_pixels`, of an unsupported kind, or no such frame.
        Exception: whatever the libraries raise on damaged files.
    """
    kind = file_format(data[:16])
    if kind == "PNG":
        return _decode_png(data, frame, max_pixels)
    if kind == "TIFF":
        return _decode_tiff(data, frame, max_pixels)
    return _decode_pillow(data, kind, frame, max_pixels)


def stored_size(file: BinaryIO) -> tuple[int, int, int]:
    """(width, height, orientation) from the headers of an open file; errors as `decode`."""
    kind = file_format(file.read(16))
    if kind == "PNG":
        chunks = _png_metadata(file)
        width, height, _, _ = _png_header(chunks)
        return width, height, upright_exif(_png_exif(chunks))[0]
    if kind == "TIFF":
        with _tiff_page(file) as page:
            return page.imagewidth, page.imagelength, _tiff_orientation(page)
    file.seek(0)
    # Pillow itself: imageio takes five times as long to open it, and planning opens every file.
    with _quiet_pillow(), Image.open(file, formats=[kind]) as image:
        return image.width, image.height, upright_exif(image.info.get("exif"))[0]


def count_frames(file: BinaryIO) -> int:
    """How many frames or pages an open file has; a camera's JPEG with previews has one."""
    kind = file_format(file.read(16))
    if kind == "TIFF":
        file.seek(0)
        with tifffile.TiffFile(file) as tiff:
            return len(tiff.pages)
    if kind == "JPEG" or (kind == "PNG" and b"acTL" not in _png_metadata(file)):
        return 1
    file.seek(0)
    with _quiet_pillow(), Image.open(file, formats=[kind]) as image:
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


def upright_exif(block: bytes | None) -> tuple[int, bytes | None]:
    """An EXIF block's orientation (1 to 8), and the block with orientation 1.

    By hand: written again by a library, the block would lose the maker's notes, whose offsets
    count from its beginning. The thumbnail is unlinked, as it would go on showing the picture as
    it was. A damaged block gives (1, None).
    """
    patched = bytearray((block or b"").removeprefix(b"Exif\0\0"))
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(bytes(patched[:4]))
    if order is None:
        return 1, None
    try:
        (start,) = struct.unpack_from(f"{order}I", patched, 4)
        (count,) = struct.unpack_from(f"{order}H", patched, start)
        orientation = 1
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", patched, at)
            if tag == Base.Orientation:
                value = order + ("I" if kind == 4 else "H")
                (orientation,) = struct.unpack_from(value, patched, at + 8)
                struct.pack_into(value, patched, at + 8, 1)
        struct.pack_into(f"{order}I", patched, start + 2 + 12 * count, 0)
    except struct.error:
        return 1, None
    return orientation if 1 <= orientation <= 8 else 1, bytes(patched)


def encode(
    suffix: str,
    samples: Array,
    *,
    icc: bytes | None,
    exif: bytes | None,
    png_chunks: bytes,
    quality: int,
) -> bytes:
    """The bytes of an image file.

    Args:
        suffix: .png, .tif, .tiff, .jpg, .jpeg, .webp or .bmp.
        samples: uint8 [h, w, c]; for PNG and TIFF also uint16.
        icc: the colour profile; BMP has none.
        exif: the EXIF block without its prefix; BMP has none, and one too long for JPEG is dropped.
        png_chunks: as in `Decoded`, for PNG.
        quality: of JPEG, 1 to 100.
    """
    if suffix == ".png":
        return _encode_png(samples, icc, exif, png_chunks)
    if suffix in {".tif", ".tiff"}:
        return _encode_tiff(samples, icc, exif)
    return _encode_pillow(suffix, samples, icc, exif, quality)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise Unreadable(f"a picture of {width} x {height} px")
    if width * height > max_pixels:
        raise Unreadable(f"{width} x {height} px is over the limit of {max_pixels} px")


@contextlib.contextmanager
def _quiet_pillow() -> Iterator[None]:
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


def _decode_pillow(data: bytes, kind: str, frame: int, max_pixels: int) -> Decoded:
    """8-bit samples; grey stays one channel, transparency becomes alpha."""
    with contextlib.ExitStack() as stack:
        with _quiet_pillow():
            opened = iio.imopen(io.BytesIO(data), "r", plugin="pillow")
            file: Any = stack.enter_context(opened)
            height, width = file.properties(index=0).shape[:2]
            _check_size(width, height, max_pixels)
            frames = 1 if kind == "JPEG" else file.properties(index=...).n_images or 1
            if frame >= frames:
                count = f"it has {frames} frames, counted from 0"
                raise Unreadable(f"{count}; there is no frame {frame}")
            about = file.metadata(index=frame, exclude_applied=False)
        mode, icc = about["mode"], about.get("icc_profile")
        alpha = "A" if mode[-1] in "Aa" or "transparency" in about else ""
        target = {"1": "L", "L": "L", "LA": "L", "La": "L", "CMYK": None}.get(mode, "RGB")
        target = f"{target}{alpha}" if target else None
        with _quiet_pillow() if kind == "GIF" else contextlib.nullcontext():
            samples = file.read(index=frame, mode=target, writeable_output=False)
    if mode == "CMYK":
        samples, icc = _rgb_from_cmyk(samples, icc), None
    samples = samples if samples.ndim == 3 else samples[..., None]
    orientation, exif = upright_exif(about.get("exif"))
    return Decoded(_grey_if_equal(samples) if mode[0] == "P" else samples, orientation, icc, exif)


def _encode_pillow(
    suffix: str, samples: Array, icc: bytes | None, exif: bytes | None, quality: int
) -> bytes:
    options: dict[str, Any] = {}
    if suffix == ".webp":
        options = {"lossless": True, "exact": True, "quality": 60, "method": 4}
    else:
        channels = samples.shape[2]
        samples = samples[..., : channels - (channels + 1) % 2]  # neither JPEG nor BMP has alpha
    if suffix in {".jpg", ".jpeg"}:
        options = {"quality": quality, "subsampling": 0}
        exif = b"Exif\0\0" + exif if exif and len(exif) < _MAX_JPEG_EXIF else None
    options |= {"icc_profile": icc} if icc else {}
    options |= {"exif": exif} if exif else {}
    mode = ("L", "LA", "RGB", "RGBA")[samples.shape[2] - 1]
    values = np.ascontiguousarray(samples[..., 0] if mode == "L" else samples)
    data = iio.imwrite("<bytes>", values, plugin="pillow", extension=suffix, mode=mode, **options)
    return bytes(data or b"")


def _grey_if_equal(samples: Array) -> Array:
    """One channel instead of three that are equal: a palette of greys makes a grey picture."""
    if (samples[..., :1] == samples[..., 1:3]).all():
        return np.delete(samples, (1, 2), axis=2)
    return samples


def _rgb_from_cmyk(samples: Array, profile: bytes | None) -> Array:
    """CMYK to sRGB through the file's own profile, by subtraction when it has no usable one."""
    image = Image.fromarray(samples, "CMYK")
    if profile:
        with contextlib.suppress(ImageCms.PyCMSError, ImportError, OSError, TypeError):
            srgb = ImageCms.createProfile("sRGB")
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            turned = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
            if turned is not None:
                return np.asarray(turned)
    return np.asarray(image.convert("RGB"))


def _decode_png(data: bytes, frame: int, max_pixels: int) -> Decoded:
    chunks = _png_metadata(io.BytesIO(data))
    width, height, depth, colours = _png_header(chunks)
    _check_size(width, height, max_pixels)
    orientation, exif = upright_exif(_png_exif(chunks))
    if frame and depth == 16:
        raise Unreadable("a 16-bit animation", "save the frame as a still PNG")
    if frame:
        samples = _decode_pillow(data, "PNG", frame, max_pixels).samples
    else:
        samples = _png_samples(data)
        samples = _grey_if_equal(samples) if colours == _PNG_PALETTE else samples
    kept = {kind: data for kind, data in chunks.items() if len(data) == _PNG_KEPT.get(kind)}
    if orientation >= 5 and b"pHYs" in kept:
        across, along, unit = struct.unpack("4s4sc", kept[b"pHYs"])
        kept[b"pHYs"] = along + across + unit
    raw = b"".join(_png_chunk(kind, data) for kind, data in kept.items())
    return Decoded(samples, orientation, _png_icc(chunks), exif, raw)


def _png_samples(data: bytes) -> Array:
    try:
        samples = imagecodecs.png_decode(data)
    except (RuntimeError, ValueError) as error:
        # Not with imagecodecs' own message, which is read from memory that libpng freed already.
        raise Unreadable("the PNG data are damaged") from error
    return samples if samples.ndim == 3 else samples[..., None]


def _png_metadata(file: BinaryIO) -> dict[bytes, bytes]:
    """The first chunk of each kind that is no pixels, by seeking; others are empty.

    By hand: imagecodecs returns pixels alone, and Pillow only what stands before them.
    """
    chunks: dict[bytes, bytes] = {}
    file.seek(len(_PNG_SIGNATURE))
    while b"IEND" not in chunks:
        head = file.read(8)
        if len(head) < 8:
            raise ValueError("the file is truncated")
        length, kind = struct.unpack(">I4s", head)
        end = file.tell() + length + 4
        wanted = kind in _PNG_METADATA and length <= _MAX_METADATA
        data = file.read(length) if wanted and kind not in chunks else b""
        if kind not in _PNG_TEXTS or data.startswith(_PNG_EXIF_TEXT):
            chunks.setdefault(kind, data)
        file.seek(end)
    return chunks


def _png_header(chunks: dict[bytes, bytes]) -> tuple[int, int, int, int]:
    """Width, height, bit depth, colour type."""
    if next(iter(chunks)) != b"IHDR" or len(chunks[b"IHDR"]) != 13:
        raise ValueError("the PNG header is damaged")
    width, height, depth, colours = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    return width, height, depth, colours


def _png_icc(chunks: dict[bytes, bytes]) -> bytes | None:
    """The colour profile, or None when there is none or it is damaged."""
    _, _, packed = chunks.get(b"iCCP", b"").partition(b"\0")
    return _inflated(packed[1:])


def _png_exif(chunks: dict[bytes, bytes]) -> bytes | None:
    """The EXIF block: a chunk of its own, or hexadecimal text as ImageMagick used to write it."""
    if b"eXIf" in chunks:
        return chunks[b"eXIf"]
    packed = chunks.get(b"zTXt", b"")[len(_PNG_EXIF_TEXT) + 1 :]
    text = _inflated(packed) if packed else chunks.get(b"tEXt", b"")[len(_PNG_EXIF_TEXT) :]
    with contextlib.suppress(ValueError, IndexError):
        return bytes.fromhex((text or b"").decode("ascii").split(None, 2)[2])
    return None


def _inflated(packed: bytes) -> bytes | None:
    """Decompressed, or None when the data are damaged, empty or far too long."""
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(packed, _MAX_METADATA)
    except zlib.error:
        return None
    return data if unpacker.eof else None


def _encode_png(samples: Array, icc: bytes | None, exif: bytes | None, chunks: bytes) -> bytes:
    # Paeth's filter and run lengths alone: on photographs within 4 % of the smallest files of
    # a full search with zlib's default level, and eight times as fast.
    data = imagecodecs.png_encode(
        np.squeeze(samples, 2) if samples.shape[2] == 1 else samples,
        level=imagecodecs.PNG.COMPRESSION.SPEED,
        strategy=imagecodecs.PNG.STRATEGY.RLE,
        filter=imagecodecs.PNG.FILTER.PAETH,
    )
    if icc:
        chunks += _png_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(icc))
    if exif:
        chunks += _png_chunk(b"eXIf", exif)
    at = len(_PNG_SIGNATURE) + 25  # behind the header, which is always so long
    return b"".join([data[:at], chunks, data[at:]])


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    check = zlib.crc32(data, zlib.crc32(kind))
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)


@contextlib.contextmanager
def _tiff_page(file: BinaryIO, frame: int = 0) -> Iterator[tifffile.TiffPage]:
    file.seek(0)
    # tifffile itself: imageio's plugin does not tell where a page's directory lies.
    with tifffile.TiffFile(file) as tiff:
        try:
            page = tiff.pages[frame]
        except IndexError:
            count = f"it has {len(tiff.pages)} pages, counted from 0"
            raise Unreadable(f"{count}; there is no page {frame}") from None
        yield page.aspage()


def _decode_tiff(data: bytes, frame: int, max_pixels: int) -> Decoded:
    file = io.BytesIO(data)
    with _tiff_page(file, frame) as page:
        _check_size(page.imagewidth, page.imagelength, max_pixels)
        _check_size(page.tilewidth or 1, page.tilelength or 1, max_pixels)
        _check_tiff(page)
        _check_tiff_segments(page, data)
        icc = page.tags.valueof(Base.InterColorProfile) if page.photometric != _CMYK else None
        exif = Image.Exif()
        exif.update(_descriptions(data, page.offset))
        block = exif.tobytes().removeprefix(b"Exif\0\0") if len(exif) else None
        return Decoded(_tiff_samples(page), _tiff_orientation(page), icc, block)


def _tiff_orientation(page: tifffile.TiffPage) -> int:
    orientation = page.tags.valueof(Base.Orientation, default=1)
    return int(orientation) if orientation in range(1, 9) else 1


def _check_tiff(page: tifffile.TiffPage) -> None:
    """Refuse by name what has no agreed white, and what is not grey or colours."""
    kind = "?" if page.dtype is None else page.dtype.kind
    if kind not in "bufi" or kind == "i" or (kind == "u" and page.bitspersample > 16):
        name = f"{page.bitspersample}-bit {'signed ' if kind == 'i' else ''}integer TIFF"
        raise Unreadable(f"{name} is not supported", "save it with 8 or 16 unsigned bits")
    channels, photometric = page.samplesperpixel, int(page.photometric)
    colours = _TIFF_COLOURS.get(photometric, 0)
    plain = photometric in {0, 1, 2}
    if page.axes not in {"YX", "YXS", "SYX"} or not (
        colours and colours <= channels <= colours + 4 and (plain or page.bitspersample <= 8)
    ):
        name = getattr(page.photometric, "name", "unknown")
        what = f"a TIFF of {channels} {page.bitspersample}-bit {name} channels is not supported"
        raise Unreadable(what, "save it as grey or RGB")


def _check_tiff_segments(page: tifffile.TiffPage, data: bytes) -> None:
    """Refuse strips or tiles that are cut off, or that would decode to more than their place."""
    if page.compression not in _TIFF_COMPRESSIONS:
        name = getattr(page.compression, "name", page.compression)
        what = f"a TIFF with {name} compression is not supported"
        raise Unreadable(what, "save it with LZW, deflate or no compression")
    largest = max(page.imagewidth, page.imagelength, page.tilewidth, page.tilelength)
    for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True):
        if offset + size > len(data):
            raise ValueError("the file is truncated")
        if page.compression == _JPEG:
            _, height, width, _ = jpeg_shape(data[offset : offset + size])
            if max(height, width) > largest:
                raise ValueError("a part of the file is larger than the picture")


def _tiff_samples(page: tifffile.TiffPage) -> Array:
    """uint8 or uint16 [h, w, c] with white as the largest value and alpha not multiplied in."""
    samples = page.asarray()
    samples = samples[..., None] if samples.ndim == 2 else samples
    samples = np.moveaxis(samples, 0, 2) if page.axes == "SYX" else samples
    if samples.shape != (page.imagelength, page.imagewidth, page.samplesperpixel):
        raise ValueError("the pixels are damaged")
    photometric = int(page.photometric)
    if photometric == _PALETTE:
        palette: Array = (np.asarray(page.colormap).T >> 8).astype(np.uint8)
        return _grey_if_equal(palette[samples[..., 0]])
    if photometric == _CMYK:
        return _rgb_from_cmyk(samples[..., :4], page.tags.valueof(Base.InterColorProfile))
    if photometric == _YCBCR and page.compression != _JPEG:  # whose decoder makes RGB of it
        image = Image.fromarray(np.ascontiguousarray(samples[..., :3]), "YCbCr")
        return np.asarray(image.convert("RGB"))
    samples = _full_range(samples, page.bitspersample)
    count = _TIFF_COLOURS[photometric]
    colours, alpha = samples[..., :count], samples[..., count : count + 1]
    white = np.iinfo(samples.dtype).max
    if photometric == _WHITE_IS_ZERO:
        colours = white - colours
    extra = int((page.extrasamples or (_ALPHA,))[0])
    if not alpha.size or extra not in (_ASSOCIATED_ALPHA, _ALPHA):
        return colours
    if extra == _ASSOCIATED_ALPHA:
        plain = np.rint(colours * (white / np.maximum(alpha.astype(np.float64), 1)))
        colours = np.minimum(plain, white).astype(samples.dtype)
    return np.concatenate([colours, alpha], axis=2)


def _full_range(samples: Array, bits: int) -> Array:
    """8 or 16 bits, and floats in [0, 1] as 16, so that white is the type's largest value."""
    if samples.dtype.kind == "f":
        if not (samples.min() >= 0 and samples.max() <= 1):
            hint = "scale it to 0..1, or save it with 8 or 16 unsigned bits"
            raise Unreadable("a float TIFF with values outside 0..1", hint)
        wide = samples.astype(np.promote_types(samples.dtype, np.float32), copy=False)
        return np.rint(wide * 65535.0).astype(np.uint16)
    if bits in (8, 16):
        return samples.astype(samples.dtype.newbyteorder("="), copy=False)
    white, dtype = (255, np.uint8) if bits < 8 else (65535, np.uint16)
    stretched: Array = np.rint(samples * (white / (2**bits - 1))).astype(dtype)
    return stretched


def _descriptions(tiff: bytes, offset: int | None = None) -> dict[int, Any]:
    """What a TIFF directory (an EXIF block is one too) tells of camera, place and picture.

    Through Pillow's directories: tifffile reads the values but writes no EXIF block.

    Args:
        tiff: a file or an EXIF block.
        offset: where the directory lies; None for the first.
    """
    file, head = io.BytesIO(tiff), tiff[: 16 if 43 in tiff[2:4] else 8]

    def directory(at: int | None) -> dict[int, Any]:
        found = TiffImagePlugin.ImageFileDirectory_v2(head)
        file.seek(found.next if at is None else at)
        found.load(file)
        return dict(found)

    # A damaged directory costs the descriptions, not the picture.
    with _quiet_pillow(), contextlib.suppress(Exception):
        found = directory(offset)
        tags: dict[int, Any] = {tag: found[tag] for tag in _DESCRIPTIONS & found.keys()}
        for tag in _EXIF_DIRECTORIES & found.keys():
            tags[tag] = directory(found[tag])
            tags[tag].pop(IFD.Interop, None)  # a directory within, of no use without its offset
        return tags
    return {}


def _encode_tiff(samples: Array, icc: bytes | None, exif: bytes | None) -> bytes:
    """A deflated TIFF.

    The directory is Pillow's: tifffile refuses to write those of camera and place within it, and
    Pillow's own pictures have no 16-bit colours.
    """
    height, width, count = samples.shape
    rows = max(1, _STRIP_SIZE // (width * count * samples.itemsize))
    strips = [_tiff_strip(samples[top : top + rows]) for top in range(0, height, rows)]
    ends = np.cumsum([len(strip) for strip in strips], dtype=np.int64).tolist()
    pixels: dict[int, Any] = {
        Base.ImageWidth: width,
        Base.ImageLength: height,
        Base.BitsPerSample: (samples.itemsize * 8,) * count,
        Base.Compression: 8,
        Base.PhotometricInterpretation: 2 if count >= 3 else 1,
        Base.Orientation: 1,
        Base.SamplesPerPixel: count,
        Base.RowsPerStrip: rows,
        Base.StripByteCounts: tuple(len(strip) for strip in strips),
        Base.StripOffsets: (0, *ends[:-1]),  # relative: the directory adds its own size
        Base.PlanarConfiguration: 1,
        Base.Predictor: 2,
    }
    if count in (2, 4):
        pixels[Base.ExtraSamples] = _ALPHA
    if icc:
        pixels[Base.InterColorProfile] = icc
    try:
        head = _tiff_directory(pixels | _descriptions(exif or b""))
    except (struct.error, ValueError, TypeError, OverflowError, LookupError):
        # An EXIF block from a camera may hold values that no TIFF directory takes.
        head = _tiff_directory(pixels)
    return head + b"".join(strips)


def _tiff_strip(rows: Array) -> bytes:
    """Rows as differences from the pixel on the left, compressed."""
    differences = imagecodecs.delta_encode(np.ascontiguousarray(rows), axis=1)
    values = differences.astype(differences.dtype.newbyteorder("<"), copy=False)
    return bytes(imagecodecs.deflate_encode(values.tobytes(), level=1, raw=False))


def _tiff_directory(tags: dict[int, Any]) -> bytes:
    """The head of a TIFF file; its strips follow."""
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    directory.tagtype[Base.InterColorProfile] = 7
    for tag, value in tags.items():
        directory[tag] = value
    return b"II*\0\x08\0\0\0" + directory.tobytes(8)
