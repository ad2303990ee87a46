"""Long work as a sized iterable: the engine yields events, whoever iterates draws them."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Generic, TypeVar

Event = TypeVar("Event")
Result = TypeVar("Result")


class Job(Generic[Event, Result]):
    """A long job that runs while it is iterated and has a `result` once it is exhausted.

    Nothing happens before the first event is asked for. An error raised by the job comes out of
    the iteration; closing the iterator stops the job and lets it clean up.

    Args:
        work: the generator that does the work; its return value becomes `result`.
        total: how many events are expected (`len(job)`).
        title: a short name for the job, for a progress bar.
        unit: what one event stands for, in the singular ("image", "step", "pair").
    """

    def __init__(
        self, work: Generator[Event, None, Result], *, total: int, title: str, unit: str
    ) -> None:
        self._work = work
        self._result: Result | None = None
        self._done = False
        self.total = total
        self.title = title
        self.unit = unit

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[Event]:
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
