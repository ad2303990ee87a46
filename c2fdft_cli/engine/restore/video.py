"""Restore a video: the network restores its frames like images, a few at a time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice, repeat
from pathlib import Path

from torch import Tensor

from c2fdft_cli.data.video.probe import VideoInfo
from c2fdft_cli.data.video.reader import Frame, VideoReader
from c2fdft_cli.data.video.writer import VideoWriter, keeps_10_bits
from c2fdft_cli.engine.restore.batch import Outcome, RunningBatch, Wanted, refuse_not_finite
from c2fdft_cli.engine.restore.inputs import Source
from c2fdft_cli.engine.restore.outputs import Item, is_about_one_file
from c2fdft_cli.engine.restore.plan import RestorePlan
from c2fdft_cli.engine.restore.result import (
    FrameDone,
    ImageDone,
    VideoDone,
    failed,
)
from c2fdft_cli.errors import CheckpointError, DataError, ResourceError
from c2fdft_cli.execution.cuda.transfer import batches_in_flight, upload
from c2fdft_cli.execution.memory import peak_bytes
from c2fdft_cli.files.folders import ensure_folder
from c2fdft_cli.files.writing import TakenError, atomic_path
from c2fdft_cli.pipeline import ahead
from c2fdft_cli.signals import StoppedError, StopRequest

_BATCHES_AHEAD = 1


class _NetworkError(Exception):
    """The network cannot run on these frames; kept apart from ResourceErrors of the file system."""

    def __init__(self, error: ResourceError) -> None:
        super().__init__(str(error))
        self.error = error


def restore_video(
    plan: RestorePlan, item: Item, stop: StopRequest
) -> Generator[FrameDone, None, ImageDone | None]:
    """Restore one video; its output is written completely or not at all.

    Yields an event for each frame except the last; returns the record, or None if stopped.

    Raises:
        ResourceError: the disk is full, or the output folder is not writable.
    """
    source = item.source
    if source.problem is not None:
        return failed(source, source.problem)
    if source.video is None or item.output is None:
        raise ValueError(f"not a video with an output file: {source.label}")
    work = _Work(plan, source, source.video, item.output, stop)
    plan.manifest.look_at(source.path)
    try:
        yield from work.run()
    except StoppedError:
        return None
    except (DataError, CheckpointError) as error:
        return failed(source, error)
    except _NetworkError as error:
        return failed(source, error.error)
    except ResourceError as error:
        if is_about_one_file(error):
            return failed(source, error)
        raise
    except TakenError:  # another program made the file meanwhile
        work.kept.append(item.output)
    return work.record()


@dataclass
class _Work:
    """The restoration of one video, and its progress so far.

    Args:
        frames: number of frames that are restored.
        seconds: the network's time for them.
        executor, notes, kept: as in `ImageDone`.
    """

    plan: RestorePlan
    source: Source
    info: VideoInfo
    output: Path
    stop: StopRequest
    start: float = field(default_factory=time.monotonic)
    frames: int = 0
    seconds: float = 0.0
    executor: str = ""
    notes: list[str] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)

    def run(self) -> Iterator[FrameDone]:
        """Run reader, network and writer concurrently, one batch apart from each other."""
        plan, info, output = self.plan, self.info, self.output
        deep = info.is_deep and plan.writing.bit_depth != 8
        if deep and not keeps_10_bits(output):
            self.notes.append(f"rounded to 8 bits: the encoder for {output.suffix} has no more")
            deep = False
        size = plan.executor.batch_size(info.height, info.width)
        ensure_folder(output.parent)
        noise = self._shared_noise()
        given = 0
        held: FrameDone | None = None
        # These are exited from the last to the first: writer and reader are closed; the pool waits
        # for its thread, which finds them closed; and the file, which is no longer in use, is
        # renamed or removed.
        with (
            atomic_path(output, replace=plan.writing.overwrite) as temporary,
            ThreadPoolExecutor(1) as pool,
            VideoReader(info, deep) as reader,
            VideoWriter(temporary, info, deep, plan.writing.crf, output) as writer,
        ):
            writes: deque[Future[None]] = deque()
            in_work: deque[Callable[[], list[Frame]]] = deque()
            frames_ahead = ahead(_batched(reader, size), _BATCHES_AHEAD)
            for frames in chain(frames_ahead, repeat(None)):
                if frames is not None:
                    in_work.append(self._begin(frames, given, noise))
                    given += len(frames)
                    if len(in_work) <= batches_in_flight(plan.runtime.device):
                        continue
                if not in_work:
                    break
                first = self.frames
                writes.append(pool.submit(_write, writer, in_work.popleft()()))
                # One batch is written while the next one is restored. No more may wait, because
                # frames are large and an error of the writer must be raised soon.
                while len(writes) > 1:
                    writes.popleft().result()
                for number in range(first + 1, self.frames + 1):
                    if held is not None:
                        yield held
                    held = self._event(number)
            for write in writes:
                write.result()
            self.stop.check()
            writer.finish()
            # Inside the block, because the file gets its final name at the end of the block.
            plan.manifest.record(output, self.source.path, temporary)
            self.notes.extend(writer.notes)
            if reader.complaint:
                self.notes.append(f"damage in the video: {reader.complaint}")

    def _shared_noise(self) -> Tensor | None:
        """Return the start noise of all frames, on the device; None if each batch samples it."""
        if self.plan.sampling.temporal_noise != "fixed":
            return None
        executor = self.plan.executor
        drawn = executor.start_noise(self.source.stem, self.info.height, self.info.width)
        return None if drawn is None else upload(drawn, executor.device)

    def _begin(
        self, frames: list[Frame], first: int, noise: Tensor | None
    ) -> Callable[[], list[Frame]]:
        """Start a batch of frames, the first of which has the number `first`, from 0.

        Returns:
            A function that waits for the batch and returns the restored frames.
        """
        plan = self.plan
        batch = RunningBatch(
            plan.executor,
            [frame.pixels for frame in frames],
            [self._frame_name(number) for number in range(first, first + len(frames))],
            [Wanted(8 * frame.pixels.itemsize, self.info.is_grey) for frame in frames],
            lambda _: self.stop.check(),
            [noise] * len(frames),
        )

        def finish() -> list[Frame]:
            try:
                outcomes = batch.outcomes()
            except ResourceError as error:
                raise _NetworkError(error) from error
            for outcome in outcomes:
                refuse_not_finite(outcome.is_finite, plan.weights, plan.runtime.precision)
            self._add(outcomes)
            return [
                frame._replace(pixels=outcome.pixels())
                for frame, outcome in zip(frames, outcomes, strict=True)
            ]

        return finish

    def _frame_name(self, number: int) -> str:
        """Return the name that decides the noise of a frame, numbered from 0.

        It is the video's base name, or with separate noise per frame a name with the frame's
        number, as for the frames of an animation.
        """
        if self.plan.sampling.temporal_noise == "fixed":
            return self.source.stem
        return f"{self.source.stem}-{number + 1:04d}"

    def _add(self, outcomes: list[Outcome]) -> None:
        self.frames += len(outcomes)
        self.seconds += sum(one.seconds for one in outcomes)
        self.executor = outcomes[-1].executor
        self.notes.extend(note for note in outcomes[-1].notes if note not in self.notes)

    def _event(self, number: int) -> FrameDone:
        fps = self.frames / max(time.monotonic() - self.start, 1e-9)
        left = max(0, self.info.frames - number) / fps
        return FrameDone(self.source.label, number, max(self.info.frames, number), fps, left)

    def record(self) -> VideoDone:
        """Return the record of the finished video."""
        plan, info = self.plan, self.info
        return VideoDone(
            source=self.source.label,
            output=str(self.output),
            height=info.height,
            width=info.width,
            calls=len(plan.timesteps) * plan.executor.runs,
            grid=plan.timesteps,
            seconds=self.seconds,
            executor=self.executor,
            precision=plan.runtime.precision,
            peak_memory=peak_bytes(plan.runtime.device),
            notes=self.notes,
            kept=self.kept,
            frames=self.frames,
            frame_rate=str(info.rate),
            fps=float(info.rate),
            duration=info.duration,
            audio_streams=len(info.audio),
        )


def _batched(frames: Iterable[Frame], size: int) -> Iterator[list[Frame]]:
    iterator = iter(frames)
    while batch := list(islice(iterator, size)):
        yield batch


def _write(writer: VideoWriter, frames: list[Frame]) -> None:
    for frame in frames:
        writer.write(frame)
