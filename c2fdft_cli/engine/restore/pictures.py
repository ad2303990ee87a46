"""Restore pictures: decoding, the network and encoding run concurrently; one record per image."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from c2fdft_cli.data.images.formats import OUTPUT_FORMAT_OF
from c2fdft_cli.data.images.picture import (
    Picture,
    decodes_in_order,
    encode_picture,
    frame_reader,
)
from c2fdft_cli.data.images.pillow import too_long
from c2fdft_cli.data.images.samples import to_8bit
from c2fdft_cli.data.images.tensors import interleaved, to_integers
from c2fdft_cli.engine.restore.batch import (
    IntegerPixels,
    Outcome,
    RunningBatch,
    Wanted,
    refuse_not_finite,
)
from c2fdft_cli.engine.restore.manifest import Manifest
from c2fdft_cli.engine.restore.options import Writing
from c2fdft_cli.engine.restore.outputs import Item, is_about_one_file
from c2fdft_cli.engine.restore.plan import RestorePlan
from c2fdft_cli.engine.restore.result import ImageDone, failed
from c2fdft_cli.errors import C2fdftError, CheckpointError, ResourceError, UsageError
from c2fdft_cli.execution.cuda.transfer import batches_in_flight, overlaps
from c2fdft_cli.execution.memory import peak_bytes
from c2fdft_cli.files.folders import ensure_folder
from c2fdft_cli.files.writing import TakenError, atomic_path
from c2fdft_cli.pipeline import InOrder, ahead, cores, in_order
from c2fdft_cli.progress import Meter
from c2fdft_cli.signals import StoppedError, StopRequest

DIFFERENCE_GAIN = 4
_GAP = 8
_HEAT_PERCENTILE = 99.0
_LOADED_BYTES = 8 + 12
"""Bytes per pixel of an image that waits for the network: at most 16-bit RGBA, and start noise."""


class Loaded(NamedTuple):
    """An item, its picture or the error of reading it, and its start noise if sampled ahead."""

    item: Item
    found: Picture | C2fdftError
    noise: Tensor | None = None


Found: TypeAlias = Picture | C2fdftError | Callable[[], Picture] | None
"""A frame or the error of decoding it, or what decodes it; None for the picture of a whole file."""
Finish: TypeAlias = tuple[Callable[[], ImageDone], int]
"""The remaining work for an image, to be run in a thread, and about how many bytes it holds."""


def writer_count() -> int:
    """Number of threads that encode pictures: two cores are left for feeding the network."""
    return max(2, cores() - 2)


def reader_count() -> int:
    """Number of threads that decode pictures, which takes about two thirds as long as encoding."""
    return max(2, cores() // 2)


def restore_pictures(
    plan: RestorePlan, writers: ThreadPoolExecutor, stop: StopRequest, meter: Meter
) -> Iterator[ImageDone]:
    """Restore the pictures of a plan and yield one record per picture when its files are written.

    A few results, at most about 1 GiB of them, may wait to be written. On a GPU the next batch is
    started before the results of the previous one are read.

    Raises:
        ResourceError: the disk is full, or the output folder is not writable.
    """
    line = InOrder[ImageDone](writers, 2 * writer_count())
    in_work: deque[Callable[[], list[Finish]]] = deque()
    items = _by_size([item for item in plan.items if item.source.video is None])
    loaded = in_order(
        # A device that the CPU does not wait for would wait for the CPU to sample the noise. On a
        # CPU it would only take memory.
        partial(
            _load,
            plan.manifest,
            plan.executor.start_noise if overlaps(plan.runtime.device) else None,
        ),
        ahead(_found(plan.manifest, items), 1),
        workers=reader_count(),
        cost=lambda one: one[0].source.height * one[0].source.width * _LOADED_BYTES,
    )
    with suppress(StoppedError):
        for batch in _batches(loaded, plan.executor.batch_size):
            # Bind the count now: this batch may still be running when `batch` is already the next.
            def progress(share: float, count: int = len(batch)) -> None:
                stop.check()
                meter.report(len(line) + share * count)

            stop.check()
            in_work.append(_begin(plan, batch, progress))
            while len(in_work) > batches_in_flight(plan.runtime.device):
                yield from _pass_on(line, in_work.popleft()())
            yield from line.finished()
    with suppress(StoppedError):
        while in_work:
            yield from _pass_on(line, in_work.popleft()())
    yield from line.rest()


def _pass_on(line: InOrder[ImageDone], batch: list[Finish]) -> Iterator[ImageDone]:
    """Pass the remaining work of a batch on to the threads; yield the records that make room."""
    for finish, size in batch:
        yield from line.make_room(size)
        line.submit(finish, size)


def _by_size(items: Iterable[Item]) -> list[Item]:
    """Group images of equal size, in the order in which the sizes first occur."""
    first: dict[tuple[int, int], int] = {}
    return sorted(
        items,
        key=lambda item: first.setdefault((item.source.height, item.source.width), len(first)),
    )


def _found(manifest: Manifest, items: Iterable[Item]) -> Iterator[tuple[Item, Found]]:
    """Yield the items with what is known of their pictures."""

    def file_of_frames(item: Item) -> Path | None:
        source = item.source
        return None if source.frame is None or source.problem is not None else source.path

    for path, run in groupby(items, key=file_of_frames):
        if path is None:
            yield from ((item, None) for item in run)
        else:
            yield from _frames(manifest, path, run)


def _frames(manifest: Manifest, path: Path, items: Iterable[Item]) -> Iterator[tuple[Item, Found]]:
    """Yield frames of one file, which is read once, as they are in ascending order.

    Frames that build on those before them are decoded here, each once; others by the caller.
    """
    read: Callable[[int], Picture] | None = None
    for item in items:
        found: Found
        frame = item.source.frame or 0
        try:
            if read is None:
                manifest.look_at(path)
                read, in_order = frame_reader(path), decodes_in_order(path)
            found = read(frame) if in_order else partial(read, frame)
        except C2fdftError as error:
            # Opened again for the next frame: Pillow's position in the file is undefined.
            found, read = error, None
        yield item, found


def _load(
    manifest: Manifest,
    start_noise: Callable[[str, int, int], Tensor | None] | None,
    one: tuple[Item, Found],
) -> Loaded:
    item, found = one
    if item.source.problem is not None:
        return Loaded(item, item.source.problem)
    if found is None:
        if item.source.data is None:  # the state of standard input was recorded during planning
            manifest.look_at(item.source.path)
        found = item.source.read
    if not isinstance(found, Picture | C2fdftError):
        try:
            found = found()
        except C2fdftError as error:
            found = error
    if start_noise is None or isinstance(found, C2fdftError):
        return Loaded(item, found)
    return Loaded(item, found, start_noise(item.source.stem, *found.pixels.shape[:2]))


def _batches(loaded: Iterable[Loaded], size: Callable[[int, int], int]) -> Iterator[list[Loaded]]:
    """Batch consecutive images of equal size and depth, at most `size(height, width)` of them.

    An image that could not be read is a batch of its own.
    """
    for shape, run in groupby(loaded, key=lambda one: _shape(one.found)):
        while batch := list(islice(run, size(*shape[:2]) if shape else 1)):
            yield batch


def _shape(found: Picture | C2fdftError) -> tuple[int, int, int] | None:
    """Return height, width and bit depth; None for an image that could not be read."""
    if isinstance(found, C2fdftError):
        return None
    height, width = found.pixels.shape[:2]
    return height, width, found.bit_depth


def _begin(
    plan: RestorePlan, loaded: list[Loaded], progress: Callable[[float], None]
) -> Callable[[], list[Finish]]:
    """Start a batch; the returned function waits for it and returns the work that remains."""
    first, found, _ = loaded[0]
    if isinstance(found, C2fdftError):  # then it is the only one of its batch
        return lambda: [(partial(failed, first.source, found), 0)]
    read = [(one.item, one.found) for one in loaded if isinstance(one.found, Picture)]
    wanted = [
        Wanted(
            plan.writing.bit_depth or picture.bit_depth,
            picture.grey,
            unrounded=any((item.compare, item.deviation, item.heat)),
        )
        for item, picture in read
    ]
    batch = RunningBatch(
        plan.executor,
        [picture.pixels for _, picture in read],
        [item.source.stem for item, _ in read],
        wanted,
        progress,
        [one.noise for one in loaded],
    )

    def finish() -> list[Finish]:
        try:
            outcomes = batch.outcomes()
        except ResourceError as error:
            return [(partial(failed, item.source, error), 0) for item, _ in read]
        return [
            (partial(_finish, plan, item, picture, outcome), _held_bytes(picture, outcome))
            for (item, picture), outcome in zip(read, outcomes, strict=True)
        ]

    return finish


def _held_bytes(picture: Picture, outcome: Outcome) -> int:
    """Estimate the bytes of an image until it is written: input, result, encoders' buffers."""
    floats = [part.nbytes for part in (outcome.image, outcome.deviation) if part is not None]
    return picture.pixels.nbytes + 4 * outcome.planes.nbytes + 2 * sum(floats)


def _finish(plan: RestorePlan, item: Item, picture: Picture, outcome: Outcome) -> ImageDone:
    """Write the files of one image and return its record."""
    writing = plan.writing
    try:
        refuse_not_finite(outcome.is_finite, plan.weights, plan.runtime.precision)
        kept = write_files(item, picture, outcome, writing, plan.manifest)
    except (CheckpointError, UsageError) as error:  # NaN, or a format that cannot hold the picture
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
        calls=len(plan.timesteps) * plan.executor.runs,
        grid=plan.timesteps,
        seconds=outcome.seconds,
        executor=outcome.executor,
        precision=plan.runtime.precision,
        peak_memory=peak_bytes(plan.runtime.device),
        notes=[
            *([item.source.note] if item.source.note else []),
            *outcome.notes,
            *dropped(picture, item.suffix, writing.bit_depth),
        ],
        kept=kept,
    )


def write_files(
    item: Item,
    picture: Picture,
    outcome: Outcome,
    writing: Writing,
    manifest: Manifest,
) -> list[Path]:
    """Write all files of an item, the restored image last: if it exists, all of them do.

    Args:
        item: the paths of the files.
        picture: the input.
        outcome: the restored image, also unrounded if a comparison or a map is to be made.
        writing: the JPEG quality, and whether existing files are replaced.
        manifest: records the files.

    Returns:
        The files that already existed and were not overwritten.

    Raises:
        UsageError: the format cannot hold the picture.
        ResourceError: a file cannot be written.
    """
    image, deviation = outcome.image, outcome.deviation
    make: dict[Path, Callable[[], Picture]] = {}
    if image is not None and item.compare is not None:
        make[item.compare] = lambda: comparison(picture, image)
    if image is not None and deviation is not None:
        if item.deviation is not None:
            make[item.deviation] = lambda: deviation_map(deviation)
        if item.heat is not None:
            make[item.heat] = lambda: heat_map(image, deviation)
    if item.output is not None:
        make[item.output] = lambda: to_picture(outcome.pixels(), picture)
    kept = [path for path in make if not writing.overwrite and os.path.exists(path)]
    for path, picture_of in make.items():
        if path in kept:
            continue
        ensure_folder(path.parent)
        data = encode_picture(path, picture_of(), quality=writing.quality)
        try:
            with atomic_path(path, replace=writing.overwrite) as temporary:
                temporary.write_bytes(data)
                manifest.record(path, item.source.path, temporary)
        except TakenError:  # created after the check above, by another program
            kept.append(path)
    if item.output is None:
        restored = to_picture(outcome.pixels(), picture)
        name = f"standard output{item.suffix}"
        sys.stdout.buffer.write(encode_picture(name, restored, quality=writing.quality))
        sys.stdout.buffer.flush()
    return kept


def dropped(picture: Picture, suffix: str, bit_depth: int | None) -> list[str]:
    """Return notes on what a format cannot keep of a picture."""
    name, notes, output_format = suffix[1:], [], OUTPUT_FORMAT_OF[suffix]
    if picture.alpha is not None and not output_format.has_alpha:
        notes.append(f"alpha dropped: {name} has none")
    lost: list[str] = [one for one in picture.metadata.kinds if one in output_format.dropped]
    lost += [f"{one} over 64 kB" for one in too_long(picture.metadata, suffix)]
    if lost:
        notes.append(f"{', '.join(lost)} dropped: {name} cannot hold this")
    if picture.metadata.lost:
        notes.append(f"not read: {picture.metadata.lost}")
    if picture.bit_depth == 16 and bit_depth != 8 and not output_format.is_deep:
        notes.append(f"16 bits rounded to 8: {name} holds 8")
    return notes


def to_picture(pixels: IntegerPixels, source: Picture) -> Picture:
    """Combine restored pixels with all other properties of the picture that they came from.

    Args:
        pixels: `[h, w, 3]`, uint8 or uint16.
        source: the input, whose alpha, profile, EXIF and grey flag are kept.
    """
    alpha = source.alpha
    if alpha is not None and alpha.dtype != pixels.dtype:
        deep = pixels.dtype == np.uint16
        alpha = alpha.astype(np.uint16) * np.uint16(257) if deep else to_8bit(alpha)
    return replace(source, pixels=pixels, alpha=alpha)


def quantise(image: Tensor, depth: int, *, grey: bool = False) -> IntegerPixels:
    """Round `[3, h, w]` in [0, 1] to integers of 8 or 16 bits, `[h, w, 3]`."""
    return interleaved(to_integers(image, depth, grey=grey))


def comparison(source: Picture, image: Tensor) -> Picture:
    """Draw degraded | restored | difference (times 4, grey where they agree), 8 bit."""
    degraded = to_8bit(source.pixels)
    restored = quantise(image, 8, grey=source.grey)
    # In place and in 16 bits, which hold 128 +/- 4 * 255: a picture may have 100 megapixels.
    change = restored.astype(np.int16)
    change -= degraded
    change *= DIFFERENCE_GAIN
    change += 128
    difference = change.clip(0, 255, out=change).astype(np.uint8)
    gap = np.full((len(degraded), _GAP, 3), 255, np.uint8)
    return Picture(np.concatenate([degraded, gap, restored, gap, difference], axis=1))


def deviation_map(deviation: Tensor) -> Picture:
    """Draw the standard deviation as a 16-bit grey picture; 65535 stands for the full range 1.0."""
    return Picture(quantise(deviation.clamp(0, 1).expand(3, -1, -1), 16), grey=True)


def heat_map(image: Tensor, deviation: Tensor) -> Picture:
    """Draw the deviation in black-red-yellow-white over the dimmed, grey restored image, 8 bit.

    image: `[3, h, w]`, deviation: `[1, h, w]`, both in [0, 1].
    White is the 99th percentile of the deviation in this image, so the picture shows where the
    deviation is large, not how large it is.
    """
    top = float(np.percentile(deviation.cpu().numpy(), _HEAT_PERCENTILE)) or 1.0
    share = (deviation / top).clamp(0, 1)
    colours = torch.cat([(3 * share - i).clamp(0, 1) for i in range(3)])
    dim = 0.35 * image.mean(0, keepdim=True).expand(3, -1, -1)
    return Picture(quantise(dim * (1 - share) + colours * share, 8))
