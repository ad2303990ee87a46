"""Work on many items at once with threads, results in order, memory bounded."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Generic, TypeVar

from c2fdft_cli.vocabulary import number_in_environment

Item = TypeVar("Item")
Out = TypeVar("Out")

IN_FLIGHT_BYTES = 1 << 30


def cores() -> int:
    """Cores that this process may use: its share where torchrun started several on a machine."""
    # Those that a scheduler or a container's set of CPUs leaves to this process; `cpu_count` names
    # those of the machine.
    known = hasattr(os, "sched_getaffinity")
    count = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    return max(1, count // number_in_environment("LOCAL_WORLD_SIZE", 1, low=1))


class InOrder(Generic[Out]):
    """Work handed to threads, whose results leave in the order in which the work came.

    Args:
        pool: the threads.
        room: results that may wait or be in work; where `add` is given their sizes, they hold no
            more than about 1 GiB, whatever their number.
    """

    def __init__(self, pool: Executor, room: int) -> None:
        self._pool, self._room = pool, room
        self._waiting: deque[tuple[Future[Out], int]] = deque()
        self._held = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, work: Callable[[], Out], size: int = 0) -> Iterator[Out]:
        """Hand over work whose result holds `size` bytes, behind the results that make room."""
        # One result may be larger than all the room: it is let in where nothing else waits.
        while self._waiting and (
            len(self._waiting) >= self._room or self._held + size > IN_FLIGHT_BYTES
        ):
            yield self._first()
        self._waiting.append((self._pool.submit(work), size))
        self._held += size

    def finished(self) -> Iterator[Out]:
        """The results that need no waiting for."""
        while self._waiting and self._waiting[0][0].done():
            yield self._first()

    def rest(self) -> Iterator[Out]:
        """All other results."""
        while self._waiting:
            yield self._first()

    def _first(self) -> Out:
        future, size = self._waiting.popleft()
        self._held -= size
        return future.result()


def in_order(
    work: Callable[[Item], Out],
    items: Iterable[Item],
    *,
    workers: int = 0,
    cost: Callable[[Item], int] = lambda _: 0,
) -> Generator[Out, None, None]:
    """`map(work, items)` with threads, no more than two results for each of them ahead.

    Args:
        work: called in a thread; its error comes out of the iteration.
        items: what to work on.
        workers: threads; 0 for one per core.
        cost: bytes that an item's result holds; stated, no more than about 1 GiB is ahead.
    """
    workers = workers or cores()
    pool = ThreadPoolExecutor(workers)
    line = InOrder[Out](pool, 2 * workers)
    try:
        for item in items:
            yield from line.add(partial(work, item), cost(item))
        yield from line.rest()
    finally:
        pool.shutdown(cancel_futures=True)


def ahead(items: Iterable[Item], room: int) -> Generator[Item, None, None]:
    """Iterate in a thread of its own, at most `room` items and the one in work ahead.

    An error of the iteration comes out here. When this side stops early, it waits until the thread
    has the item that it is working on, so that nobody uses what the iteration owns any more.
    """
    iterator, end = iter(items), object()
    pool = ThreadPoolExecutor(1)  # one thread asks for one item after the other
    line = InOrder[Any](pool, room + 2)  # with the one that has been handed out
    try:
        while True:
            for item in line.add(partial(next, iterator, end)):
                if item is end:
                    return
                yield item
    finally:
        pool.shutdown(cancel_futures=True)
