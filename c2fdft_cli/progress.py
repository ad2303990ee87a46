"""Long work as a sized iterable: the engine yields events, the caller may draw them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import closing
from typing import Generic, TypeAlias, TypeVar

from c2fdft_cli.signals import unwinding

Event = TypeVar("Event")
Result = TypeVar("Result")
Item = TypeVar("Item")
Looked: TypeAlias = Callable[[str, int, int], object]
"""Is told what is checked before a job starts, and how many of how many were checked."""


def counted(items: Collection[Item], looked: Looked, what: str) -> Iterator[Item]:
    """Yield the items; `looked` is called before each of them."""
    for number, item in enumerate(items):
        looked(what, number, len(items))
        yield item


class Meter:
    """Reports the progress of a job between two events, for events that take long.

    Attributes:
        watch: called during the work with the progress since the last event, counted in events,
            such as 0.25.
    """

    def __init__(self) -> None:
        self.watch: Callable[[float], None] | None = None

    def report(self, events: float) -> None:
        """Call `watch`, if it is set, with the progress since the last event."""
        if self.watch is not None:
            self.watch(events)


class Job(Generic[Event, Result]):
    """A long job that runs while it is iterated and has a `result` once it is exhausted.

    Nothing happens before the first event is requested. An error of the job is raised by the
    iteration; closing the iterator stops the job and lets it clean up. A job runs once: a further
    iteration yields nothing if it has finished, and raises RuntimeError if it was stopped.

    Args:
        work: the generator that does the work; its return value becomes `result`.
        total: the expected number of events (`len(job)`).
        title: a short name for the job, for a progress bar.
        unit: what one event stands for, in the singular ("image", "step", "pair").
        meter: reports the progress between two events, if it is known.
        resume: a hint for the user: how to resume the job after a signal.
    """

    def __init__(
        self,
        work: Generator[Event, None, Result],
        *,
        total: int,
        title: str,
        unit: str,
        meter: Meter | None = None,
        resume: str | None = None,
    ) -> None:
        self._work = work
        self._result: Result | None = None
        self._started = self._done = False
        self.total = total
        self.title = title
        self.unit = unit
        self.meter = meter or Meter()
        self._resume = resume

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Generator[Event, None, None]:
        if self._done:
            return
        if self._started:
            raise RuntimeError(f"{self.title}: the job was stopped before its end; start a new one")
        self._started = True
        # The block also covers the time in which the caller draws an event: the job's files may be
        # half written then too.
        with unwinding(self._resume):
            self._result = yield from self._work
        self._done = True

    @property
    def result(self) -> Result:
        """The job's result; RuntimeError until the job has been iterated to its end."""
        if not self._done:
            raise RuntimeError(f"{self.title}: the job has not finished")
        return self._result  # type: ignore[return-value]

    def run(self, on_event: Callable[[Event], object] = lambda _: None) -> Result:
        """Run the job to its end, call `on_event` with each event, and return the result."""
        # Closed here: in a destructor, Python would drop what a signal's handler raises.
        with closing(iter(self)) as events:
            for event in events:
                on_event(event)
        return self.result
