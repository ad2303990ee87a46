"""Restoring pictures: decode, network and encode side by side, one record for each image."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from c2fdft_cli.data.images.metadata import Metadata
from c2fdft_cli.data.images.picture import Picture, to_8bit, write_picture
from c2fdft_cli.data.images.pillow import too_long
from c2fdft_cli.engine.restore.manifest import Manifest
from c2fdft_cli.engine.restore.options import FORMATS
from c2fdft_cli.engine.restore.outputs import DEEP_SUFFIXES, Item, is_about_one_file
from c2fdft_cli.engine.restore.plan import RestorePlan
from c2fdft_cli.engine.restore.result import ImageDone, failed
from c2fdft_cli.engine.sampling.executor import Restored
from c2fdft_cli.errors import C2fdftError, CheckpointError, ResourceError, UsageError
from c2fdft_cli.files import ensure_folder
from c2fdft_cli.pipeline import in_order
from c2fdft_cli.progress import Meter
from c2fdft_cli.signals import StoppedError, StopRequest

WRITERS = 2
READERS = 2
DIFFERENCE_GAIN = 4.0
_GAP = 8
_HEAT_PERCENTILE = 99.0
_NO_ALPHA = frozenset({".jpg", ".jpeg", ".bmp"})
_EVERYTHING = frozenset(
    {"colour profile", "EXIF", "XMP", "IPTC", "texts", "density", "colour chunks"}
)
_NOT_KEPT = {
    ".png": frozenset[str](),
    ".tif": frozenset({"colour chunks"}),
    ".jpg": frozenset({"colour chunks"}),
    ".webp": frozenset({"colour chunks", "IPTC", "texts", "density"}),
    ".bmp": _EVERYTHING - {"density"},
}
"""Metadata that a format has no place for."""

Loaded: TypeAlias = tuple[Item, Picture | C2fdftError]
"""An item, and what reading it gave."""


def restore_pictures(
    plan: RestorePlan, writers: ThreadPoolExecutor, stop: StopRequest, meter: Meter
) -> Iterator[ImageDone]:
    """Records as files are finished; at most a few results wait for their turn.

    Raises:
        ResourceError: the disk is full, or the output folder cannot be written to.
    """
    waiting: deque[Future[ImageDone]] = deque()
    items = _by_size([item for item in plan.items if item.source.video is None])
    loaded = in_order(
        partial(_load, plan.manifest),
        items,
        workers=READERS,
        cost=lambda item: item.source.height * item.source.width * 12,
    )
    for batch in _batches(loaded, plan.executor.batch_size):

        def progress(share: float, count: int = len(batch)) -> None:
            stop.check()
            meter.tell(len(waiting) + share * count)

        if stop:
            break
        try:
            finish = _restore_batch(plan, batch, progress)
        except StoppedError:
            break
        waiting.extend(map(writers.submit, finish))
        while len(waiting) > 2 * WRITERS or (waiting and waiting[0].done()):
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _by_size(items: Iterable[Item]) -> list[Item]:
    """Images of one size behind each other, in the order in which each size comes first."""
    first: dict[tuple[int, int], int] = {}
    return sorted(
        items,
        key=lambda item: first.setdefault((item.source.height, item.source.width), len(first)),
    )


def _load(manifest: Manifest, item: Item) -> Loaded:
    if item.source.problem is not None:
        return item, item.source.problem
    manifest.look_at(item.source.path)
    try:
        return item, item.source.read()
    except C2fdftError as error:
        return item, error


def _batches(loaded: Iterable[Loaded], size: Callable[[int, int], int]) -> Iterator[list[Loaded]]:
    """Neighbours of one size together, `size(height, width)` at most; what failed by itself."""
    for shape, run in groupby(loaded, key=lambda one: _shape(one[1])):
        while batch := list(islice(run, size(*shape) if shape else 1)):
            yield batch


def _shape(found: Picture | C2fdftError) -> tuple[int, int] | None:
    return None if isinstance(found, C2fdftError) else found.pixels.shape[:2]


def _restore_batch(
    plan: RestorePlan, batch: list[Loaded], progress: Callable[[float], None]
) -> list[Callable[[], ImageDone]]:
    """Run the network over a batch; what is left to do for each image may run in a thread."""
    read = [(item, found) for item, found in batch if isinstance(found, Picture)]
    if not read:
        errors = [(item, found) for item, found in batch if isinstance(found, C2fdftError)]
        return [partial(failed, item.source, error) for item, error in errors]
    lq = torch.stack([to_tensor(picture) for _, picture in read])
    start = time.monotonic()
    try:
        restored = plan.executor(lq, [item.source.name for item, _ in read], progress)
    except ResourceError as error:
        return [partial(failed, item.source, error) for item, _ in read]
    seconds = (time.monotonic() - start) / len(read)
    return [
        partial(_finish, plan, item, picture, restored, i, seconds)
        for i, (item, picture) in enumerate(read)
    ]


def _finish(
    plan: RestorePlan, item: Item, picture: Picture, restored: Restored, i: int, seconds: float
) -> ImageDone:
    """Write the files of image `i` of a batch and record it."""
    writing = plan.writing
    image = restored.image[i]
    deviation = None if restored.deviation is None else restored.deviation[i]
    try:
        refuse_not_finite(image, plan.weights, plan.runtime.precision)
        plan.manifest.begin(item.output, item.source.path)
        kept = write_files(
            item, picture, image, deviation, writing.quality, writing.bit_depth, writing.overwrite
        )
        plan.manifest.add(item.output, item.source.path)
    except (CheckpointError, UsageError) as error:  # NaN, or a format that cannot hold it
        return failed(item.source, error)
    except ResourceError as error:
        if is_about_one_file(error):
            return failed(item.source, error)
        raise
    height, width = picture.pixels.shape[:2]
    return ImageDone(
        source=item.source.label,
        output=None if item.output is None else str(item.output),
        height=height,
        width=width,
        calls=len(plan.grid) * plan.executor.runs,
        grid=plan.grid,
        seconds=seconds,
        executor=restored.executor,
        precision=plan.runtime.precision,
        peak_memory=plan.runtime.peak_memory(),
        notes=[
            *([item.source.note] if item.source.note else []),
            *restored.notes,
            *dropped(picture, item.suffix, writing.bit_depth),
            *kept,
        ],
    )


def refuse_not_finite(image: Tensor, weights: Path, precision: str) -> None:
    """CheckpointError for a result that holds NaN or infinity, which no file can."""
    if not torch.isfinite(image).all():
        raise CheckpointError(
            f"the network produced NaN or infinite values with the weights {weights}",
            hint="use --precision fp32, or other weights" if precision != "fp32" else None,
        )


def write_files(
    item: Item,
    picture: Picture,
    image: Tensor,
    deviation: Tensor | None,
    quality: int,
    bit_depth: int | None,
    overwrite: bool,
) -> list[str]:
    """Write all files of an item, the restored image last: its being there means all are.

    Args:
        item: where they go.
        picture: the input.
        image: `[3, h, w]` in [0, 1].
        deviation: `[1, h, w]`, where there are several samples.
        quality: of JPEG.
        bit_depth: of the restored image; None for the input's.
        overwrite: whether files that exist are replaced.

    Returns:
        Notes on files that exist and were not overwritten.

    Raises:
        UsageError: the format cannot hold the picture.
        ResourceError: a file cannot be written.
    """
    make: dict[Path, Callable[[], Picture]] = {}
    if item.compare is not None:
        make[item.compare] = lambda: comparison(picture, image)
    if item.deviation is not None and deviation is not None:
        make[item.deviation] = lambda: deviation_map(deviation)
    if item.heat is not None and deviation is not None:
        make[item.heat] = lambda: heat_map(image, deviation)
    if item.output is not None:
        make[item.output] = lambda: to_picture(image, picture, bit_depth)
    kept = [path for path in make if not overwrite and os.path.exists(path)]
    for path, picture_of in make.items():
        if path not in kept:
            ensure_folder(path.parent)
            write_picture(path, picture_of(), quality=quality)
    if item.output is None:
        _write_to_stdout(to_picture(image, picture, bit_depth), item.suffix, quality)
    return [f"{path} already exists, not overwritten (use --overwrite)" for path in kept]


def _write_to_stdout(picture: Picture, suffix: str, quality: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"restored{suffix}"
        write_picture(path, picture, quality=quality)
        sys.stdout.buffer.write(path.read_bytes())
        sys.stdout.buffer.flush()


def dropped(picture: Picture, suffix: str, bit_depth: int | None) -> list[str]:
    """What a format cannot keep of a picture, in words."""
    name, notes = suffix[1:], []
    if picture.alpha is not None and suffix in _NO_ALPHA:
        notes.append(f"alpha dropped: {name} has none")
    lost = [one for one in _present(picture.metadata) if one in _NOT_KEPT[_family(suffix)]]
    lost += [f"{one} over 64 kB" for one in too_long(picture.metadata, suffix)]
    if lost:
        notes.append(f"{', '.join(lost)} dropped: {name} cannot hold this")
    if picture.metadata.lost:
        notes.append(f"not read: {picture.metadata.lost}")
    if picture.bit_depth == 16 and bit_depth != 8 and suffix not in DEEP_SUFFIXES:
        notes.append(f"16 bits rounded to 8: {name} holds 8")
    return notes


def _family(suffix: str) -> str:
    return FORMATS[suffix[1:]]


def _present(metadata: Metadata) -> list[str]:
    """What there is beside the pixels, in words."""
    found = {
        "colour profile": metadata.icc,
        "EXIF": metadata.exif,
        "XMP": metadata.xmp,
        "IPTC": metadata.iptc,
        "texts": metadata.texts,
        "density": metadata.density,
        "colour chunks": metadata.colour_chunks,
    }
    return [name for name, value in found.items() if value]


def to_tensor(picture: Picture) -> Tensor:
    """The colours of a picture as `[3, h, w]` float32 in [0, 1]."""
    white = 2**picture.bit_depth - 1
    values = torch.from_numpy(picture.pixels.astype(np.float32))
    return values.permute(2, 0, 1).contiguous().div_(white)


def to_picture(image: Tensor, source: Picture, bit_depth: int | None = None) -> Picture:
    """A restored image with everything else of the picture that it came from.

    Args:
        image: `[3, h, w]` in [0, 1]; grey sources get the mean of its channels.
        source: alpha, profile, EXIF and greyness are taken over.
        bit_depth: 8 or 16; None for the source's own.
    """
    depth = bit_depth or source.bit_depth
    alpha = source.alpha
    if alpha is not None and depth != source.bit_depth:
        alpha = alpha.astype(np.uint16) * np.uint16(257) if depth == 16 else to_8bit(alpha)
    return replace(source, pixels=quantise(image, depth, grey=source.grey), alpha=alpha)


def quantise(image: Tensor, depth: int, *, grey: bool = False) -> npt.NDArray[np.unsignedinteger]:
    """`[3, h, w]` in [0, 1] to `[h, w, 3]` of 8 or 16 bits, rounded."""
    if grey:
        image = image.mean(0, keepdim=True).expand(3, -1, -1)
    values = image.mul(2**depth - 1).round_().permute(1, 2, 0).contiguous().cpu().numpy()
    return values.astype(np.uint8 if depth == 8 else np.uint16)


def comparison(source: Picture, image: Tensor) -> Picture:
    """Degraded | restored | difference (grey where they agree, 4 times magnified), 8 bit."""
    degraded = to_8bit(source.pixels)
    restored = quantise(image, 8, grey=source.grey)
    change = restored.astype(np.float32) - degraded
    difference = np.clip(128 + DIFFERENCE_GAIN * change, 0, 255).round().astype(np.uint8)
    gap = np.full((len(degraded), _GAP, 3), 255, np.uint8)
    return Picture(np.concatenate([degraded, gap, restored, gap, difference], axis=1))


def deviation_map(deviation: Tensor) -> Picture:
    """A 16-bit grey picture: the standard deviation, 65535 standing for the whole range [0, 1]."""
    return Picture(quantise(deviation.clamp(0, 1).expand(3, -1, -1), 16), grey=True)


def heat_map(image: Tensor, deviation: Tensor) -> Picture:
    """The restored image in dim grey under the deviation in black-red-yellow-white, 8 bit.

    image: `[3, h, w]`, deviation: `[1, h, w]`, both in [0, 1].
    White is the deviation's 99th percentile in this image: the picture says where, not how much.
    """
    top = float(np.percentile(deviation.cpu().numpy(), _HEAT_PERCENTILE)) or 1.0
    share = (deviation / top).clamp(0, 1)
    colours = torch.cat([(3 * share - i).clamp(0, 1) for i in range(3)])
    dim = 0.35 * image.mean(0, keepdim=True).expand(3, -1, -1)
    return Picture(quantise(dim * (1 - share) + colours * share, 8))
