"""Restore files in one job: first the pictures, then the videos, with an event for each."""

from __future__ import annotations

import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from c2fdft_cli.engine.restore.pictures import restore_pictures, writer_count
from c2fdft_cli.engine.restore.plan import RestorePlan
from c2fdft_cli.engine.restore.result import FrameDone, ImageDone, RestoreResult, Skipped
from c2fdft_cli.engine.restore.video import restore_video
from c2fdft_cli.errors import Interrupted
from c2fdft_cli.progress import Job, Meter
from c2fdft_cli.signals import graceful_stop
from c2fdft_cli.words import many


def restore(plan: RestorePlan) -> Job[ImageDone | FrameDone, RestoreResult]:
    """Restore everything in the plan; an image that cannot be read does not stop the others.

    The iteration raises ResourceError (disk full, output not writable) and Interrupted; all files
    written before are complete. The result contains the failed images, and as `failure` the error
    that the program ends with.
    """
    meter = Meter()
    work = _work(plan, meter)
    return Job(work, total=plan.units, title="restore", unit=plan.unit, meter=meter)


def _work(plan: RestorePlan, meter: Meter) -> Generator[ImageDone | FrameDone, None, RestoreResult]:
    start = time.monotonic()
    done: list[ImageDone] = []
    begun = False  # whether a video was stopped before its end
    with graceful_stop() as stop:
        with ThreadPoolExecutor(writer_count()) as writers:
            for record in restore_pictures(plan, writers, stop, meter):
                done.append(record)
                yield record
            for item in plan.items:
                if item.source.video is None or stop:
                    continue
                video = yield from restore_video(plan, item, stop)
                begun = video is None
                if video is not None:
                    done.append(video)
                    yield video
        left = len(plan.items) - len(done)
        if stop.signal_number is not None and left:
            noun = "image" if plan.unit == "image" else "file"
            again = ", and the video starts again from its first frame" if begun else ""
            raise Interrupted(
                f"stopped with {left} of {many(len(plan.items), noun)} to do",
                signal_number=stop.signal_number,
                hint=f"run the same command again: finished files are skipped{again}",
            )
    done, taken = _without_taken(plan, done)
    skipped = [*plan.skipped, *taken]
    return RestoreResult(done, skipped, time.monotonic() - start, plan.single, plan.folder)


def _without_taken(
    plan: RestorePlan, done: list[ImageDone]
) -> tuple[list[ImageDone], list[Skipped]]:
    """Separate the records whose output another program has written meanwhile, in its own way.

    An output that the same command wrote, in another process or earlier, is as good as this run's.
    """
    if any(one.existed for one in done):
        plan.manifest.read_again()
    sources = {str(item.output): item.source.path for item in plan.items}
    good, taken = [], []
    for one in done:
        doubt = None
        if one.existed and one.output is not None:
            doubt = plan.manifest.doubt(Path(one.output), sources[one.output])
        if doubt is None:
            good.append(one)
        else:
            taken.append(Skipped(one.source, str(one.output), doubt))
    return good, taken
