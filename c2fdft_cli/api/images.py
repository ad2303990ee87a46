"""Convert NumPy, torch and PIL images to tensors, and results back to the same type."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt
import PIL.Image
import torch
from torch import Tensor

from c2fdft_cli.data.images.picture import reading
from c2fdft_cli.engine.restore.pictures import quantise
from c2fdft_cli.errors import ResourceError, UsageError
from c2fdft_cli.execution.memory import is_out_of_memory

Image: TypeAlias = npt.NDArray[Any] | Tensor | PIL.Image.Image
"""An image, or a tensor of several images:

- NumPy `[h, w, 3]` RGB or `[h, w]` grey; uint8, uint16, or floats on the scale 0 .. 1;
- torch `[3, h, w]` or `[n, 3, h, w]`, uint8 or floats on the scale 0 .. 1, on any device;
- PIL of mode RGB, RGBA, L, LA or I;16; a palette image becomes RGB or RGBA, or L or LA if all its
  colours are grey, mode 1 becomes L, and a transparent colour or level becomes alpha.
"""

MAX_FLOAT = 4.0
"""Larger floats are not on the scale 0 .. 1; unclipped noise may exceed 1 by less."""
MIN_MEAN = -0.1
"""Images on the scale 0 .. 1 have no smaller mean, not even black ones with unclipped noise."""
_DEPTHS = {np.dtype(np.uint8): 8, np.dtype(np.uint16): 16}
_MODES = {"1": "L", "P": "RGB", "PA": "RGBA"}
_WITH_ALPHA = {"RGB": "RGBA", "L": "LA"}
_AS_ARRAY = "pass it as a NumPy array, uint16 or floats in 0 .. 1: Pillow's conversions clip it"
_MODE_HINTS = {"I": _AS_ARRAY, "F": _AS_ARRAY, "L": 'convert it first: image.convert("LA")'}
"""Hints for modes that are not supported, by their first letter."""
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Unpacked:
    """An image as a tensor, and how to convert a result back.

    values: `[n, 3, h, w]`, unscaled.
    white: the value of white: 255, 65535 or 1.
    pack: converts restored images, `[n, 3, h, w]` float32 in [0, 1], to the type of the image.
    name: the name of the file that the image was read from, if known.
    """

    values: Tensor
    white: float
    pack: Callable[[Tensor], Any]
    name: str | None = None

    @property
    def lq(self) -> Tensor:
        """`[n, 3, h, w]` float32 on the scale 0 .. 1, on the CPU."""
        return self.values.cpu().float().div(self.white)

    @property
    def levels(self) -> Tensor:
        """`[n, 3, h, w]` float64 on the scale 0 .. 255, on the CPU."""
        return self.values.cpu().double() / (self.white / 255)


def unpack(image: Image) -> Unpacked:
    """Convert an image of any supported type to a tensor.

    Raises:
        UsageError: anything else.
        DataError: the file of a PIL image is damaged, or has been closed before it was read.
    """
    if isinstance(image, Tensor):
        return _of_tensor(image)
    if isinstance(image, np.ndarray):
        return _of_array(image)
    if isinstance(image, PIL.Image.Image):
        return _of_pil(image)
    raise UsageError(
        f"an image must be a NumPy array, a torch tensor or a PIL image, got {type(image)}",
        hint="files are given as paths to restore_folder and evaluate",
    )


def are_several(images: object) -> TypeGuard[Sequence[Image]]:
    """Whether an argument is a sequence of images; texts and bytes are sequences of none."""
    return isinstance(images, Sequence) and not isinstance(images, str | bytes)


def as_list(images: Image | Sequence[Image]) -> list[Image]:
    """Return the images as a list; a single image becomes a list of one."""
    return list(images) if are_several(images) else [images]  # type: ignore[list-item]


def size_of(image: Image) -> tuple[int, int] | None:
    """Return height and width of an image without converting it; None for what `unpack` refuses."""
    shape: Sequence[int] = ()
    if isinstance(image, Tensor) and image.dim() in (3, 4):
        shape = image.shape[-2:]
    elif isinstance(image, np.ndarray) and image.ndim in (2, 3):
        shape = image.shape[:2]
    elif isinstance(image, PIL.Image.Image):
        shape = image.size[::-1]
    return (shape[0], shape[1]) if shape and all(shape) else None


@contextmanager
def converting() -> Iterator[None]:
    """Raise ResourceError if memory runs out while images are converted."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # NumPy's and torch's
        if not is_out_of_memory(error):
            raise
        raise ResourceError(
            "out of memory converting the image", hint="free some memory, or use a smaller image"
        ) from error


def _of_tensor(image: Tensor) -> Unpacked:
    if image.layout != torch.strided or image.is_meta or image.is_nested:
        strided = "on the meta device" if image.is_meta else "that is nested"
        kind = strided if image.layout == torch.strided else f"of the layout {image.layout}"
        raise UsageError(f"a tensor must be dense and hold values, got one {kind}")
    batch = image[None] if image.dim() == 3 else image
    if batch.dim() != 4 or batch.shape[1] != 3 or not batch.numel():
        shape = list(image.shape)
        hint = _hint(shape, {
            (None, None, 3): "pass image.permute(2, 0, 1)",
            (None, None, None, 3): "pass images.permute(0, 3, 1, 2)",
            (1, None, None): "a grey image: pass image.expand(3, -1, -1)",
            (None, 1, None, None): "grey images: pass images.expand(-1, 3, -1, -1)",
        })  # fmt: skip
        raise UsageError(f"a tensor must be [n, 3, h, w] or [3, h, w], got {shape}", hint=hint)
    if image.dtype != torch.uint8 and image.dtype not in _FLOATS:
        raise UsageError(f"a tensor must be uint8 or floating of 16 to 64 bits, got {image.dtype}")
    if image.is_floating_point():
        _check_scale(batch.abs().max().item(), batch.mean(dtype=torch.float32).item())

    def pack(restored: Tensor) -> Tensor:
        if image.dtype == torch.uint8:
            restored = restored.mul(255).round_()
        return restored.to(image.device, image.dtype).view(image.shape)

    return Unpacked(batch, 255 if image.dtype == torch.uint8 else 1, pack)


def _of_array(image: npt.NDArray[Any]) -> Unpacked:
    # `asarray` also converts np.matrix, which has no third axis. Arrays read from a file may have
    # the other byte order, such as those of a Mac's 16-bit TIFF.
    image = np.asarray(image)
    image = image.astype(image.dtype.newbyteorder("="), copy=False)
    grey, depth = image.ndim == 2, _DEPTHS.get(image.dtype)
    if not (grey or (image.ndim == 3 and image.shape[2] == 3)) or not image.size:
        shape = list(image.shape)
        hint = _hint(shape, {
            (3, None, None): "pass image.transpose(1, 2, 0)",
            (None, None, 1): "pass image[..., 0]",
            (None, None, 4): "pass image[..., :3], or a PIL image, whose alpha is kept",
            (None, None, None, None): "pass several images as a list",
        })  # fmt: skip
        raise UsageError(f"an array must be [h, w, 3] or [h, w], got {shape}", hint=hint)
    if depth is None and not np.issubdtype(image.dtype, np.floating):
        raise UsageError(f"an array must be uint8, uint16 or floating, got {image.dtype}")
    if depth is None:  # before float64 is narrowed to float32 below
        _check_scale(float(np.abs(image).max()), float(image.mean(dtype=np.float64)))
    values = image if depth else image.astype(np.float32)
    colours = np.repeat(values[..., None], 3, axis=2) if grey else values
    # int32, because torch supports hardly any operation on uint16.
    batch = torch.from_numpy(colours.astype(np.int32 if depth else np.float32))

    def pack(restored: Tensor) -> npt.NDArray[Any]:
        if depth:
            pixels: npt.NDArray[Any] = quantise(restored[0], depth, grey=grey)
            return np.ascontiguousarray(pixels[..., 0]) if grey else pixels
        if grey:
            return restored[0].mean(0).numpy().astype(image.dtype)
        return np.ascontiguousarray(restored[0].permute(1, 2, 0).numpy().astype(image.dtype))

    return Unpacked(batch.permute(2, 0, 1)[None], 2**depth - 1 if depth else 1, pack)


def _of_pil(image: PIL.Image.Image) -> Unpacked:
    # bytes if the file was opened by a name in bytes
    name = os.fsdecode(getattr(image, "filename", "") or "") or None
    with reading(name):
        try:
            image.load()  # Pillow reads only the header of a file when it is opened
        except (AssertionError, AttributeError) as error:  # Pillow's answers to a closed file
            raise ValueError("its file has been closed") from error
    mode = _MODES.get(image.mode, image.mode)
    if "transparency" in image.info:
        if mode == "I;16":
            raise UsageError(
                "a PIL image of mode I;16 cannot keep its transparent level",
                hint='restore the file with restore_folder, or del image.info["transparency"]',
            )
        mode = _WITH_ALPHA.get(mode, mode)
    if mode not in ("RGB", "RGBA", "L", "LA", "I;16"):
        hint = _MODE_HINTS.get(image.mode[0], 'convert it first: image.convert("RGB")')
        raise UsageError(f"a PIL image of mode {image.mode} is not supported", hint=hint)
    converted = image.convert(mode)
    if image.mode in ("P", "PA") and _is_grey(converted):
        converted = converted.convert(mode.replace("RGB", "L"))
    *bands, last = converted.split()
    alpha = last if converted.mode in ("RGBA", "LA") else None
    bands = bands if alpha else [*bands, last]
    pixels = [np.asarray(band) for band in bands]
    inner = _of_array(pixels[0] if len(pixels) == 1 else np.stack(pixels, axis=-1))

    def pack(restored: Tensor) -> PIL.Image.Image:
        out = PIL.Image.fromarray(inner.pack(restored))
        if alpha is not None:
            out.putalpha(alpha)
        # A transparent colour has become alpha. If the entry were kept too, it would make other
        # pixels transparent, because the colours have changed.
        out.info = {key: value for key, value in image.info.items() if key != "transparency"}
        return out

    return Unpacked(inner.values, inner.white, pack, name)


def _is_grey(image: PIL.Image.Image) -> bool:
    """Whether a palette image of mode RGB or RGBA is read as grey from a file."""
    red, green, blue = image.split()[:3]
    return not image.info.get("icc_profile") and red.tobytes() == green.tobytes() == blue.tobytes()


def _hint(shape: Sequence[int], hints: Mapping[tuple[int | None, ...], str]) -> str | None:
    """Return the hint of the first pattern that a shape fits; None in a pattern fits any length."""
    for pattern, hint in hints.items():
        fits = (wanted in (None, side) for side, wanted in zip(shape, pattern, strict=False))
        if len(pattern) == len(shape) and all(fits) and all(shape):
            return hint
    return None


def _check_scale(largest: float, mean: float) -> None:
    """Raise UsageError unless values of this largest magnitude and mean can be on the scale 0 .. 1.

    Values on the scale -1 .. 1 are noticed if they are dark on average: unclipped noise has
    negative values too, but it does not darken the mean.
    """
    if not math.isfinite(largest):
        raise UsageError("the image has NaN or infinite values")
    if largest > MAX_FLOAT:
        raise UsageError(
            f"floating values must be on the scale 0 to 1, got {largest:g}",
            hint="divide by 255, or pass uint8",
        )
    if mean < MIN_MEAN:
        raise UsageError(
            f"floating values must be on the scale 0 to 1, got a mean of {mean:.3g}",
            hint="from the scale -1 to 1, pass (image + 1) / 2",
        )
