"""Long work as a sized iterable: the engine yields events, whoever iterates draws them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Generic, TypeVar

from c2fdft_cli.signals import unwinding

Event = TypeVar("Event")
Result = TypeVar("Result")


class Meter:
    """How far a job is beyond its last event, for events that take long.

    Attributes:
        watch: called in the middle of the work with a count of events, such as 0.25.
    """

    def __init__(self) -> None:
        self.watch: Callable[[float], None] | None = None

    def report(self, events: float) -> None:
        """Pass on to `watch` how much is done of what is in work."""
        if self.watch is not None:
            self.watch(events)


class Job(Generic[Event, Result]):
    """A long job that runs while it is iterated and has a `result` once it is exhausted.

    Nothing happens before the first event is asked for. An error raised by the job comes out of
    the iteration; closing the iterator stops the job and lets it clean up.

    Args:
        work: the generator that does the work; its return value becomes `result`.
        total: how many events are expected (`len(job)`).
        title: a short name for the job, for a progress bar.
        unit: what one event stands for, in the singular ("image", "step", "pair").
        meter: reports how far the work is between two events, if it is known.
        resume: how to go on after a signal, for people.
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
        self._done = False
        self.total = total
        self.title = title
        self.unit = unit
        self.meter = meter or Meter()
        self._resume = resume

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[Event]:
        # Open while the caller draws an event too: the job's files are half written then as well.
        with unwinding(self._resume):
            self._result = yield from self._work
        self._done = True

    @property
    def result(self) -> Result:
        """The job's result; RuntimeError before the job has been iterated to its end."""
        if not self._done:
            raise RuntimeError(f"{self.title}: the job has not finished")
        return self._result  # type: ignore[return-value]

    def run(self) -> Result:
        """Run to the end without looking at the events."""
        for _ in self:
            pass
        return self.result
