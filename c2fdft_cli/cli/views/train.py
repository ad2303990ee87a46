"""The live view of a training: a bar, a few numbers, and plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections import deque
from contextlib import AbstractContextManager, nullcontext

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from c2fdft_cli.cli import console
from c2fdft_cli.engine.train.events import (
    Notice,
    Saved,
    StepDone,
    TrainEvent,
    TrainResult,
    Validated,
)
from c2fdft_cli.engine.train.options import TrainOptions
from c2fdft_cli.progress import Job

SMOOTH_STEPS = 50
REMARKS = 6
NO_STEP = ": no finite gradient, step skipped"


class TrainView:
    """Collects the events of a training and renders them.

    Args:
        options: of the training.
        total: iterations to do.
    """

    def __init__(self, options: TrainOptions, total: int, screen: Console) -> None:
        self._options = options
        self._steps: deque[StepDone] = deque(maxlen=SMOOTH_STEPS)
        self._remarks: deque[str] = deque(maxlen=REMARKS)
        self._best: Validated | None = None
        self._bar: Progress = console.progress_bar(screen)
        self._task = self._bar.add_task(f"train-{options.stage}", total=total, note="")

    def take(self, event: TrainEvent) -> None:
        """Fold one event in."""
        if isinstance(event, StepDone):
            self._steps.append(event)
            self._bar.advance(self._task)
            if event.skipped:
                self._remarks.append(f"{event.iteration}{NO_STEP}")
            return
        if isinstance(event, Validated) and event.is_best:
            self._best = event
        self._remarks.append(describe(event))

    def __rich__(self) -> RenderableType:
        lines = [Text(line, style="dim") for line in self._remarks]
        body = Group(self._bar, self._numbers(), *lines)
        return Panel(body, title=str(self._options.run.path), title_align="left")

    def _numbers(self) -> Table:
        grid = Table.grid(padding=(0, 2))
        if not self._steps:
            grid.add_row("waiting for the first step")
            return grid
        last, n = self._steps[-1], len(self._steps)
        seconds = sum(step.seconds for step in self._steps)
        rate = sum(step.batch for step in self._steps) / max(seconds, 1e-9)
        waited = sum(step.seconds * step.waited for step in self._steps) / max(seconds, 1e-9)
        finite = [step.loss for step in self._steps if not step.skipped]
        loss = sum(finite) / len(finite) if finite else float("nan")
        best = "-" if self._best is None else f"{self._best.psnr:.2f} dB at {self._best.iteration}"
        grid.add_row("patch", f"{last.patch} px", "batch", str(last.batch), "lr", f"{last.lr:.3g}")
        grid.add_row("loss", f"{loss:.4f} (mean of {n})", "images/s", f"{rate:.1f}",
                     "data wait", f"{waited:.1%}")  # fmt: skip
        grid.add_row(
            "precision", self._options.runtime.precision,
            "memory", console.megabytes(last.memory), "best", best,
        )  # fmt: skip
        return grid


def describe(event: TrainEvent) -> str:
    """An event in one line."""
    if isinstance(event, StepDone):
        return (
            f"step {event.iteration}: {event.patch} px x {event.batch}, loss {event.loss:.4f}, "
            f"lr {event.lr:.3g}, {event.images_per_second:.1f} images/s, "
            f"waited {event.waited:.1%}{NO_STEP if event.skipped else ''}"
        )
    if isinstance(event, Validated):
        best = " (best)" if event.is_best else ""
        return (
            f"step {event.iteration}: {event.psnr:.2f} dB, SSIM {event.ssim:.4f} "
            f"({event.protocol}, {event.images} images){best}"
        )
    if isinstance(event, Saved):
        return f"step {event.iteration}: saved {event.path}"
    if isinstance(event, Notice):
        return event.text
    raise TypeError(f"no words for {type(event).__name__}")


def watch(job: Job[TrainEvent, TrainResult], options: TrainOptions) -> TrainResult:
    """Run a training under its live view, and write train.log."""
    screen = console.stderr()
    every = options.recipe.train.log_every
    view = TrainView(options, len(job), screen)
    live = screen.is_terminal
    drawing: AbstractContextManager[object] = (
        Live(view, console=screen, refresh_per_second=4) if live else nullcontext()
    )
    with drawing, options.run.log() as log:
        for event in job:
            view.take(event)
            told = not isinstance(event, StepDone) or event.iteration % every == 0 or event.skipped
            if told:
                log.info(describe(event))
                if not live:
                    screen.print(Text(f"{time.strftime('%H:%M:%S')} {describe(event)}"))
    return job.result
