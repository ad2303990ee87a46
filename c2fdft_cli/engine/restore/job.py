"""Restoring files: decode, network and encode side by side, one record for each image."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from c2fdft_cli.data.images.picture import Picture
from c2fdft_cli.engine.restore.batches import make_batches
from c2fdft_cli.engine.restore.outputs import Item, output_suffix
from c2fdft_cli.engine.restore.pixels import to_tensor
from c2fdft_cli.engine.restore.plan import RestorePlan
from c2fdft_cli.engine.restore.result import (
    FrameDone,
    ImageDone,
    Outcome,
    RestoreResult,
    failed,
    result_of,
)
from c2fdft_cli.engine.restore.run import refuse_not_finite, run_network
from c2fdft_cli.engine.restore.video import restore_video
from c2fdft_cli.engine.restore.write import kept, lost, write_files
from c2fdft_cli.engine.sampling.executor import Ran
from c2fdft_cli.errors import (
    C2fdftError,
    CheckpointError,
    DataError,
    Interrupted,
    ResourceError,
    UsageError,
)
from c2fdft_cli.execution.signals import StoppedError, StopRequest, graceful_stop
from c2fdft_cli.pipeline import in_order
from c2fdft_cli.progress import Job, Meter

WRITERS = 2
READERS = 2


class _Loaded(NamedTuple):
    item: Item
    picture: Picture | None
    error: C2fdftError | None


def restore(plan: RestorePlan) -> Job[ImageDone | FrameDone, RestoreResult]:
    """Restore everything in the plan; an image that cannot be read does not stop the rest.

    The iteration raises ResourceError (disk full, output not writable) and Interrupted; whatever
    was written before is complete. Failed images are in the result, with the error to end with.
    """
    meter = Meter()
    work = _work(plan, meter)
    return Job(work, total=plan.units, title="restore", unit=plan.unit, meter=meter)


def _work(plan: RestorePlan, meter: Meter) -> Generator[ImageDone | FrameDone, None, RestoreResult]:
    start = time.monotonic()
    done: list[ImageDone] = []
    errors: list[C2fdftError] = []
    with graceful_stop() as stop, ThreadPoolExecutor(WRITERS) as writers:
        for event in _records(plan, writers, stop, meter):
            if isinstance(event, FrameDone):
                yield event
                continue
            record, error = event
            done.append(record)
            if error is not None:
                errors.append(error)
            yield record
        if stop.signal_number is not None:
            left = len(plan.items) - len(done)
            if left == 0:
                return result_of(plan, done, errors, time.monotonic() - start)
            raise Interrupted(
                f"stopped with {left} of {len(plan.items)} images to do",
                signal_number=stop.signal_number,
                hint="run the same command again: what is done is skipped",
            )
    seconds = time.monotonic() - start
    return result_of(plan, done, errors, seconds)


def _records(
    plan: RestorePlan, writers: ThreadPoolExecutor, stop: StopRequest, meter: Meter
) -> Iterator[Outcome | FrameDone]:
    """Outcomes of the images, then of the videos, each after its frames."""
    yield from _image_records(plan, writers, stop, meter)
    for item in plan.items:
        if item.source.video is None:
            continue
        if stop:
            return
        outcome = yield from restore_video(plan, item, stop)
        if outcome is not None:
            yield outcome


def _image_records(
    plan: RestorePlan, writers: ThreadPoolExecutor, stop: StopRequest, meter: Meter
) -> Iterator[Outcome]:
    """Outcomes as files are finished; at most a few results wait for their turn."""
    waiting: deque[Future[Outcome]] = deque()

    def tell(images: float) -> None:
        meter.tell(len(waiting) + images)

    for loaded in _loaded_batches(plan):
        if stop:
            break
        try:
            waiting.extend(_restore_loaded(plan, loaded, writers, stop, tell))
        except StoppedError:
            break
        while len(waiting) > 2 * WRITERS or (waiting and waiting[0].done()):
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _loaded_batches(plan: RestorePlan) -> Iterator[list[_Loaded]]:
    images = [item for item in plan.items if item.source.video is None]
    batches = make_batches(images, plan.options.batch, plan.executor.fits)
    yield from in_order(
        lambda batch: [_load(item) for item in batch],
        batches,
        workers=READERS,
        cost=lambda batch: sum(item.source.height * item.source.width * 12 for item in batch),
    )


def _load(item: Item) -> _Loaded:
    if item.source.problem is not None:
        return _Loaded(item, None, item.source.problem)
    try:
        return _Loaded(item, item.source.read(), None)
    except DataError as error:
        return _Loaded(item, None, error)


def _restore_loaded(
    plan: RestorePlan,
    loaded: list[_Loaded],
    writers: ThreadPoolExecutor,
    stop: StopRequest,
    tell: Callable[[float], None],
) -> Iterator[Future[Outcome]]:
    """Run the network over what was read, hand the results to the writers."""
    groups: dict[tuple[int, ...], list[_Loaded]] = {}
    for one in loaded:
        if one.error is not None:
            yield writers.submit(failed, one.item, one.error)
        elif one.picture is not None:
            groups.setdefault(one.picture.pixels.shape, []).append(one)
    for group in groups.values():
        yield from _restore_group(plan, group, writers, stop, tell)


def _restore_group(
    plan: RestorePlan,
    group: list[_Loaded],
    writers: ThreadPoolExecutor,
    stop: StopRequest,
    tell: Callable[[float], None],
) -> Iterator[Future[Outcome]]:
    pictures = [one.picture for one in group if one.picture is not None]
    lq = torch.stack([to_tensor(picture) for picture in pictures])
    names = [one.item.source.name for one in group]
    start = time.monotonic()
    try:
        result, ran = run_network(plan, lq, names, stop, lambda share: tell(share * len(group)))
    except ResourceError as error:
        yield from (writers.submit(failed, one.item, error) for one in group)
        return
    seconds = (time.monotonic() - start) / len(group)
    for i, (one, picture) in enumerate(zip(group, pictures, strict=True)):
        record = _record(plan, one.item, picture, ran, seconds)
        spread = None if result.spread is None else result.spread[i]
        yield writers.submit(_save, plan, one.item, picture, result.image[i], spread, record)


def _record(plan: RestorePlan, item: Item, picture: Picture, ran: Ran, seconds: float) -> ImageDone:
    height, width = picture.pixels.shape[:2]
    losses = lost(picture, output_suffix(item, plan.options), plan.options.bit_depth)
    return ImageDone(
        source=item.source.label,
        output=None if item.output is None else str(item.output),
        height=height,
        width=width,
        calls=len(plan.grid) * plan.runs,
        grid=plan.grid,
        seconds=seconds,
        executor=ran.executor,
        precision=plan.runtime.precision,
        peak_memory=plan.runtime.peak_memory(),
        notes=[*ran.notes, *losses, *kept(item, plan.options)],
    )


def _save(
    plan: RestorePlan,
    item: Item,
    picture: Picture,
    image: Tensor,
    spread: Tensor | None,
    record: ImageDone,
) -> Outcome:
    try:
        refuse_not_finite(plan, image)
        write_files(item, picture, image, spread, plan.options)
    except (CheckpointError, UsageError) as error:  # NaN, or a format that cannot hold it
        return failed(item, error)
    plan.record.add(item)
    return record, None
