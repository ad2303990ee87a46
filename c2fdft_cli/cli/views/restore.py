"""The output of `c2fdft restore`: progress, notes, the summary and the JSON document."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from c2fdft_cli.cli import console
from c2fdft_cli.engine.restore.options import STDIO
from c2fdft_cli.words import first_of, many

if TYPE_CHECKING:
    from c2fdft_cli.engine.restore.plan import RestorePlan
    from c2fdft_cli.engine.restore.result import FrameDone, ImageDone, RestoreResult


def with_rate() -> Callable[[ImageDone | FrameDone], str]:
    """Make the function that returns the note at the progress bar.

    The note contains the rate so far, in images or frames per second, and the latest input.
    """
    from c2fdft_cli.engine.restore.result import FrameDone, VideoDone

    start, count = time.monotonic(), 0

    def show(image: ImageDone | FrameDone) -> str:
        nonlocal count
        if isinstance(image, FrameDone):
            return _frame(image)
        if isinstance(image, VideoDone):
            return f"{image.source} done"
        if image.error:  # not counted in the rate, because it took no time
            return f"{image.source} FAILED"
        count += 1
        rate = count / max(time.monotonic() - start, 1e-9)
        return f"{rate:.2f} images/s, {image.source}"

    return show


def _frame(event: FrameDone) -> str:
    left = f"{console.clock(event.seconds_left)} left"
    of = f"frame {event.frame}/{event.frames}"
    return f"{of}, {event.fps:.2f} frames/s, {left}, {event.source}"


def next_command(plan: RestorePlan) -> str | None:
    """Return the command that scores the result; None if all outputs, old ones too, are videos."""
    from c2fdft_cli.data.video.probe import is_video_path

    videos = [item.source.video is not None for item in plan.items]
    videos += [is_video_path(one.output) for one in plan.skipped]
    if all(videos):
        return None
    protocol = [] if plan.protocol is None else ["--protocol", plan.protocol]
    return console.command("eval", Path(plan.out), "TARGET", *protocol)


def document(plan: RestorePlan, result: RestoreResult, following: str | None) -> object:
    """Return the JSON document that `--json` prints."""
    failed = len(result.errors)
    return {
        "weights": plan.weights,
        "grid": plan.timesteps,
        "eta": plan.executor.sampler.eta,
        "seed": plan.sampling.seed,
        "draws": plan.executor.runs,
        "device": str(plan.runtime.device),
        "precision": plan.runtime.precision,
        "warnings": plan.warnings,
        "restored": len(result.images) - failed,
        "failed": failed,
        "skipped": result.skipped,
        "not_read": plan.not_read,
        "images": [_record(image) for image in result.images],
        "seconds": result.seconds,
        "next": following,
    }


def _record(image: ImageDone) -> dict[str, object]:
    record = {
        **vars(image),
        "notes": [*image.notes, *map(_not_overwritten, image.kept)],
        "kept": image.existed,
        "error": None if image.error is None else str(image.error),
    }
    return {"existed" if name == "kept" else name: value for name, value in record.items()}


def _not_overwritten(path: Path) -> str:
    return f"{path} already exists, not overwritten (use --overwrite)"


def tell(plan: RestorePlan, result: RestoreResult) -> None:
    """Print notes and skipped outputs on stderr, and the summary on stdout unless OUT is `-`."""
    good = [image for image in result.images if image.error is None]
    _tell_notes(good)
    _tell_skipped(result)
    for kind in plan.not_read:
        console.remark(f"note: {kind}")
    if good and plan.out != STDIO:
        console.stdout().print(_summary(plan, result, good))


def _tell_notes(images: list[ImageDone]) -> None:
    """Print each note once, with the name of the image or the number of images."""
    about: dict[str, list[str]] = {}
    for image in images:
        for note in image.notes:
            about.setdefault(note, []).append(image.source)
    kept = {path: image.source for image in images for path in image.kept}
    if len(kept) > 1:  # a folder may contain hundreds of them
        exist = f"{len(kept)} files already exist, not overwritten (use --overwrite)"
        console.remark(f"note: {exist}: {next(iter(kept))}, ...")
    else:
        about |= {_not_overwritten(path): [source] for path, source in kept.items()}
    lines = [
        f"{sources[0] if len(sources) == 1 else f'{len(sources)} images'}: {note}"
        for note, sources in about.items()
    ]
    for line in first_of(lines):
        console.remark(f"note: {line}")


def _tell_skipped(result: RestoreResult) -> None:
    if not result.skipped:
        return
    count = len(result.skipped)
    exist = "1 output already exists" if count == 1 else f"{count} outputs already exist"
    console.remark(f"skipped: {exist} (--overwrite replaces)")


def _summary(plan: RestorePlan, result: RestoreResult, good: list[ImageDone]) -> str:
    listed = ",".join(map(str, plan.timesteps))
    videos = any(hasattr(one, "frames") for one in good)
    files, unit = ("files", "frames") if videos else ("images", "images")
    rate = sum(getattr(one, "frames", 1) for one in good) / max(result.seconds, 1e-9)
    what = good[0].output if len(good) == 1 else f"{len(good)} {files} in {plan.out}"
    calls = many(len(plan.timesteps), "sampling step")
    if plan.executor.runs > 1:  # samples, transforms, or both
        calls = f"{plan.executor.runs} times {calls}"
    return (
        f"restored: {what} ({rate:.2f} {unit}/s, {calls}, timesteps {listed}, "
        f"{plan.runtime.precision} on {plan.runtime.device})"
    )
