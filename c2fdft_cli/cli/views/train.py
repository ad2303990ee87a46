"""The live view of a training: a bar and a few numbers, or plain lines without a terminal."""

from __future__ import annotations

import time
from collections import deque
from contextlib import AbstractContextManager, ExitStack, nullcontext
from logging import Logger

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from c2fdft_cli.cli import console
from c2fdft_cli.engine.train.events import (
    Begun,
    Notice,
    Saved,
    StepDone,
    TrainEvent,
    TrainResult,
    Validated,
)
from c2fdft_cli.engine.train.plan import TrainPlan
from c2fdft_cli.progress import Job
from c2fdft_cli.words import binary_size, many

SMOOTH_STEPS = 50
REMARKS = 6
NO_STEP = ": no finite gradient, step skipped"


class TrainView:
    """Collects the events of a training, of which `done` iterations are done, and renders them."""

    def __init__(self, plan: TrainPlan, done: int, screen: Console) -> None:
        self._plan = plan
        self._screen = screen
        self._steps: deque[StepDone] = deque(maxlen=SMOOTH_STEPS)
        self._remarks: deque[str] = deque(maxlen=REMARKS)
        self._best: Validated | None = None
        self._best_before: float | None = None
        self._bar: Progress = console.progress_bar(screen)
        total = plan.section.iterations
        self._task = self._bar.add_task(f"train-{plan.stage}", total=total, completed=done, note="")

    def take(self, event: TrainEvent) -> None:
        """Update the view with an event."""
        if isinstance(event, StepDone):
            self._steps.append(event)
            self._bar.advance(self._task)
            if event.skipped:
                self._remarks.append(f"{event.iteration}{NO_STEP}")
            return
        if isinstance(event, Begun):
            self._best_before = event.best_psnr
        if isinstance(event, Validated) and event.is_best:
            self._best = event
        self._remarks.append(describe(event))

    def __rich__(self) -> RenderableType:
        lines = [Text(line, style="dim") for line in self._remarks]
        body = Group(self._bar, self._numbers(), *lines)
        return console.Inset(Panel(body, title=str(self._plan.run.path), title_align="left"))

    def _numbers(self) -> RenderableType:
        if not self._steps:
            return Text("waiting for the first step")
        across = _cells_across(self._screen.width)
        grid = Table.grid(padding=(0, 2))
        for value in (8, 9, 18) if across == 3 else (18,) * across:  # fixed widths
            grid.add_column(min_width=9)
            grid.add_column(min_width=value)
        last = self._steps[-1]
        seconds = sum(step.seconds for step in self._steps)
        rate = sum(step.batch for step in self._steps) / max(seconds, 1e-9)
        waited = sum(step.seconds * step.waited for step in self._steps) / max(seconds, 1e-9)
        finite = [step.loss for step in self._steps if not step.skipped]
        loss = sum(finite) / len(finite) if finite else float("nan")
        cells = (
            ("patch", f"{last.patch} px"), ("batch", str(last.batch)), ("lr", f"{last.lr:.3g}"),
            ("mean loss", f"{loss:.4f}"), ("images/s", f"{rate:.1f}"),
            ("data wait", f"{waited:.1%}"),
            ("precision", self._plan.runtime.precision),
            ("memory", binary_size(last.memory)),
            ("best", self._best_score()),
        )  # fmt: skip
        for start in range(0, len(cells), across):
            row = cells[start : start + across]
            grid.add_row(*(text for cell in row for text in cell))
        return grid

    def _best_score(self) -> str:
        """The best score and its step; the step is unknown if it was before the run resumed."""
        if self._best is not None:
            return f"{self._best.psnr:.2f} dB at {self._best.iteration}"
        return "-" if self._best_before is None else f"{self._best_before:.2f} dB"


def _cells_across(width: int) -> int:
    """Return how many names with their values fit into a line of the panel."""
    return 3 if width >= 80 else 2 if width >= 66 else 1


def describe(event: TrainEvent) -> str:
    """Describe an event in one line."""
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
            f"({event.protocol}, {many(event.images, 'image')}){best}"
        )
    if isinstance(event, Begun):
        done = event.step == event.iterations
        steps = "no step is left" if done else f"steps {event.step + 1} to {event.iterations}"
        return (
            f"{many(event.pairs, 'training image')} and {event.validation} for validation "
            f"({event.data}); {event.parameters:,} parameters; "
            f"{steps} on {event.device}, {event.precision}"
        )
    if isinstance(event, Saved):
        return f"step {event.iteration}: saved {event.path}"
    if isinstance(event, Notice):
        return event.text
    raise TypeError(f"no words for {type(event).__name__}")


def watch(job: Job[TrainEvent, TrainResult], plan: TrainPlan) -> TrainResult:
    """Run a training under its live view, and write train.log."""
    screen = console.stderr()
    every = plan.recipe.train.log_every
    view = TrainView(plan, plan.section.iterations - len(job), screen)
    live = screen.is_interactive
    drawing: AbstractContextManager[object] = (
        Live(view, console=screen, refresh_per_second=4) if live else nullcontext()
    )
    with drawing, ExitStack() as stack:
        log: Logger | None = None
        for event in job:
            # Opened after the first event, because until then the folder may get another name.
            if log is None:
                log = stack.enter_context(plan.run.log())
            view.take(event)
            shown = not isinstance(event, StepDone) or event.iteration % every == 0 or event.skipped
            if shown:
                log.info(describe(event))
                if not live:
                    screen.print(f"{time.strftime('%H:%M:%S')} {describe(event)}")
    return job.result
